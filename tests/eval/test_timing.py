"""Claims about timing: what was said is compared with the truth second by second, and every number is one of arithmetic."""

import pytest

from svlm_jax.errors import InputError
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.timing import Observations, count, observe, transcript
from svlm_jax.eval.timing_metrics import details, fifths, metrics, series
from svlm_jax.eval.truth import Mention, Truth, Value, read_truth, truth_of, write_truth
from svlm_jax.json_lines import BadLines
from svlm_jax.touchline.eval_sets.commentaries import BASELINES, truth
from svlm_jax.touchline.eval_sets.games import Game
from svlm_jax.touchline.film import HELD_OUT
from svlm_jax.touchline.judge import Tally, judge

# Two goals and three scores in ten seconds; a good commentator speaks in seconds 2, 3 and 7.
GOALS = (Value(2, 5, "Reds"), Value(7, 9, "Blues"))
SCORES = (Value(0, 2, "0-0"), Value(2, 7, "1-0"), Value(7, 10, "1-1"))
MENTIONS = (Mention("goal", "event", r"Goal for (\w+)", GOALS), Mention("score", "state", r"(\d-\d)", SCORES))
SPOKEN = (Utterance(2.1, 2.9, "Goal for Reds!"), Utterance(3.0, 3.5, "1-0"), Utterance(7, 8, "Goal for Blues! 1-1"))
FILM = Truth("film.mp4", 10, MENTIONS, SPOKEN)


def seconds(said: dict[int, str]) -> list[Utterance]:
    return [Utterance(second, second + 1, said.get(second, "")) for second in range(10)]


def watched(said: dict[int, str], truth: Truth = FILM, **options) -> Observations:
    return observe(truth, seconds(said), range(10), **options)


def number(observed: Observations, name: str) -> float | None:
    return next(metric.value for metric in metrics([count(observed)]) if metric.name == name)


RIGHT = {2: "Goal for Reds!", 3: "1-0", 7: "Goal for Blues! 1-1"}


def test_who_says_all_of_it_in_time_has_full_marks():
    observed = watched(RIGHT)
    perfect = {"event_f1", "event_precision", "event_recall", "timely", "state_accuracy", "state_recall"}
    for name in perfect | {"silence_precision", "silence_recall"}:
        assert number(observed, name) == 1, name
    for name in ("timing_error", "absolute_timing_error", "timely_delay", "false_alarms", "repetition"):
        assert number(observed, name) == 0, name
    assert number(observed, "words_per_second") == 8 / 10  # 3 + 1 + 4 words


def test_early_and_late_claims_have_a_sign():
    observed = watched({1: "Goal for Reds!", 9: "Goal for Blues!"})  # 1 s before the event, 2 s after it
    counts = count(observed)
    assert (counts.matches, counts.error, counts.absolute_error) == (2, -1 + 2, 1 + 2)
    assert (number(observed, "timing_error"), number(observed, "absolute_timing_error")) == (0.5, 1.5)
    assert (counts.timely_events, number(observed, "timely_delay")) == (
        0,
        None,
    )  # one before its span, one when it is over: 9 is not in 7 .. 9
    assert details({"film.mp4": observed})["timing_error_histogram"] == {"-1": 1, "+2": 1}


def test_wrong_doubled_and_far_claims_are_false_alarms():
    said = {2: "Goal for Blues!", 3: "Goal for Reds!", 4: "Goal for Reds!", 6: "Goal for Reds! 1-0", 8: "0-1"}
    observed = watched(said)
    counts = count(observed)
    # Reds at 2: the claim at 3 is theirs. Blues at 7: the claim at 2 is 5 s away. Left over: 2, 4 and 6.
    assert (counts.events, counts.claims, counts.matches) == (2, 4, 1)
    assert number(observed, "event_f1") == 2 * 1 / (2 + 4)
    assert number(observed, "false_alarms") == 3 / (10 / 3600)
    assert (counts.timely_events, counts.delay) == (1, 1)
    assert (counts.states, counts.right_states, counts.expected_states) == (2, 1, 2)  # 1-0 at 6 is right, 0-1 never is
    assert (number(observed, "state_accuracy"), number(observed, "state_recall")) == (0.5, 0.5)


def test_one_claim_is_of_one_event():
    twice = Truth("x.mp4", 10, (Mention("pass", "event", "pass", (Value(2, 3, "Reds"), Value(4, 5, "Reds"))),))
    counts = count(observe(twice, seconds({3: "A pass."}), range(10)))
    assert (counts.matches, counts.error) == (1, 1)
    counts = count(observe(twice, seconds({3: "A pass.", 5: "A pass."}), range(10)))
    assert (counts.matches, counts.error) == (2, 2)
    assert count(observe(twice, seconds({3: "A pass.", 5: "A pass."}), range(10), tolerance=0)).matches == 0


def test_silence_is_right_where_a_good_commentator_is_silent():
    observed = watched({0: "Well.", 2: "Goal for Reds!", 5: "So.", 7: "..."})
    counts = count(observed)
    # True silences: 0 1 4 5 6 8 9. Silent here: 1 3 4 6 7 8 9, as "..." is no word. In both: 1 4 6 8 9.
    assert (counts.true_silences, counts.silences, counts.matched_silences) == (7, 7, 5)
    assert number(observed, "silence_precision") == number(observed, "silence_recall") == 5 / 7
    unknown = watched(RIGHT, FILM._replace(commentary=None))
    assert number(unknown, "silence_precision") is number(unknown, "state_recall") is None
    assert number(unknown, "state_accuracy") == 1


def test_the_same_words_within_three_seconds_are_a_repetition():
    counts = count(watched({0: "So.", 3: "So.", 7: "So.", 8: "Well.", 9: "So."}))
    assert (counts.spoken, counts.repetitions) == (5, 2)  # at 3 and at 9; 7 is four seconds after 3


def test_nothing_said_has_no_precision_and_no_recall():
    observed = watched({})
    assert number(observed, "event_f1") == number(observed, "event_recall") == number(observed, "state_recall") == 0
    assert number(observed, "event_precision") is number(observed, "state_accuracy") is number(observed, "repetition") is None


def test_only_what_is_covered_counts():
    counts = count(observe(FILM, seconds({**RIGHT, 6: "Goal for Blues!"}), range(5)))
    assert (counts.seconds, counts.events, counts.claims, counts.states, counts.expected_states) == (5, 1, 1, 1, 1)
    assert (counts.words, counts.true_silences) == (4, 3)
    assert count(observe(FILM, seconds(RIGHT), range(50))).seconds == 10  # and nothing behind the end of the film


def test_words_of_a_long_utterance_lie_evenly_in_it():
    said = transcript([Utterance(0, 10, "Nothing yet, nothing at all. Goal for Reds! One nil.")])
    assert said.words[0] == "Nothing" and said.words[5] == "Goal" and said.words[9] == "nil."
    counts = count(observe(FILM, [Utterance(0, 10, "Nothing yet, nothing at all. Goal for Reds! One nil.")], range(10)))
    assert (counts.claims, counts.matches) == (1, 0)  # claimed at 5, three seconds late
    short = transcript([Utterance(57.8, 58.8, "Goal for Reds!")])
    assert short.words == {57: "Goal for Reds!"}


def test_utterances_may_overlap():
    said = [Utterance(0, 10, "And on and on and on and Goal for Blues!"), Utterance(2, 3, "Goal for Reds!")]
    counts = count(observe(FILM, said, range(10)))
    assert (counts.claims, counts.matches, counts.error) == (2, 2, 0)  # word 7 of 10 is said in second 7


def test_a_claim_may_go_on_in_the_next_second_if_the_pattern_says_so():
    said = {2: "Goal for", 3: "Reds!"}
    assert count(watched(said)).claims == 0
    mention = MENTIONS[0]._replace(pattern=r"Goal\s+for\s+(\w+)")
    counts = count(watched(said, FILM._replace(mentions=(mention,))))
    assert (counts.claims, counts.matches, counts.error) == (1, 1, 0)


def test_a_state_that_changes_within_a_second_has_two_right_values_in_it():
    mention = Mention("score", "state", r"(\d-\d)", (Value(0, 4.4, "0-0"), Value(4.4, 10, "1-0")))
    film = Truth("x.mp4", 10, (mention,))
    states = observe(film, seconds({3: "1-0", 4: "0-0 1-0", 5: "0-0"}), range(10)).states
    assert [claim.correct for claim in states] == [False, True, True, False]


def test_fifths_add_up_to_the_whole_and_tell_when_it_got_worse():
    observed = watched({2: "Goal for Reds!", 3: "1-0", 8: "Goal for Reds! 1-0"})
    parts = fifths(observed)
    assert sum(parts[1:], parts[0]) == count(observed)
    lines = {line.metric: line.points for line in series([observed, observed])}
    assert lines["event_f1"] == ((10, None), (30, 1), (50, None), (70, 0), (90, 0))
    assert lines["state_accuracy"] == ((10, None), (30, 1), (50, None), (70, None), (90, 0))


def test_intervals_are_over_videos():
    good, poor = count(watched(RIGHT)), count(watched({2: "Goal for Reds!"}))
    one, several = metrics([good]), metrics([good, poor, good, poor])
    assert all(metric.ci95 is None for metric in one)
    recall = next(metric for metric in several if metric.name == "event_recall")
    assert (recall.value, recall.count) == (6 / 8, 8) and recall.ci95 is not None
    assert 0.5 <= recall.ci95[0] < 6 / 8 < recall.ci95[1] <= 1


# The game, where `touchline/judge.py` measures the same.


@pytest.fixture(scope="module")
def game() -> Game:
    return Game(HELD_OUT + 2, 400)


def damaged(game: Game) -> dict[int, str]:
    """Doubled, half and foreign phrases, as a model that breaks down has them."""
    said = {second: text for second, text in game.replies.items() if second % 7}
    said |= {second: "Reds pass. Reds pass." for second in range(0, game.seconds, 11)}
    return said | {second: "Reds 1-0 Blues. GOAL for" for second in range(5, game.seconds, 13)}


@pytest.mark.parametrize("name", [*BASELINES, "damaged"])
def test_on_the_game_the_numbers_are_those_of_its_judge(game, name):
    replies = damaged(game) if name == "damaged" else BASELINES[name](game)
    utterances = [Utterance(second, second + 1, replies.get(second, "")) for second in range(game.seconds)]
    observed = observe(truth(game), utterances, range(game.seconds))
    tally, counts, score = judge(replies, game.events, 0, game.seconds), count(observed), count(observed, names=["score"])
    first = count(observed, names=["first"])
    assert tally == Tally(
        events=counts.events,
        claims=counts.claims,
        matches=counts.matches,
        total_delay=counts.absolute_error,
        scores=score.states,
        correct_scores=score.right_states,
        expected_scores=score.expected_states,
        first_scorers=first.states,
        correct_first_scorers=first.right_states,
        true_silences=counts.true_silences,
        silences=counts.silences,
        matched_silences=counts.matched_silences,
        spoken=counts.spoken,
        repetitions=counts.repetitions,
    )
    assert name != "truth" or (counts.matches, counts.timely_events, counts.delay) == (counts.events, counts.events, 0)
    assert name != "late" or tally.matches < tally.events / 2


# The file of truth.


def test_truth_is_read_as_it_was_written(tmp_path):
    other = FILM._replace(video="b/other.mp4", commentary=None)
    write_truth(tmp_path / "truth.jsonl", [FILM, other])
    truths = read_truth(tmp_path / "truth.jsonl")
    assert list(truths.values()) == [FILM, other]
    assert truth_of(truths, "film.mp4") is truths["film.mp4"] and truth_of(truths, "other.mp4") is truths["b/other.mp4"]
    with pytest.raises(InputError, match=r"no truth of third\.mp4"):
        truth_of(truths, "third.mp4")
    with pytest.raises(InputError, match=r"2 videos called film\.mp4"):
        truth_of({"a/film.mp4": FILM, "b/film.mp4": FILM}, "film.mp4")


MENTION = '{"name": "goal", "kind": "event", "pattern": "Goal", "values": [[1, 2, ""]]}'


def line(*mentions: str) -> str:
    return f'{{"video": "x.mp4", "seconds": 9, "mentions": [{", ".join(mentions)}]}}'


BAD = {
    "[]": "JSON list",
    '{"video": "x.mp4", "mentions": []}': "seconds: got nothing",
    '{"video": "x.mp4", "seconds": 0, "mentions": []}': "seconds: got 0",
    '{"video": "x.mp4", "seconds": 9, "mentions": [], "commentary": [[1, 2]]}': "[start, end, text]",
    line("3"): "mentions[0]: got 3",
    line(MENTION.replace('"event"', '"goal"')): "expected event or state",
    line(MENTION.replace('"Goal"', '"(Goal"')): "regular expression",
    line(MENTION.replace("[1, 2, ", "[2, 2, ")): "start before its end",
    line(MENTION.replace("[1, 2, ", "[NaN, 2, ")): "a number",
    line(MENTION.replace('"event"', '"state"').replace("]]", "], [1, 3, 0]]")): "a text",
    line(MENTION.replace('"event"', '"state"').replace("]]", '], [1, 3, "1"]]')): "one at a time",
    line(MENTION, MENTION): "each of another name",
}


@pytest.mark.parametrize(("bad", "message"), BAD.items())
def test_a_line_that_is_no_truth_is_named(tmp_path, bad, message):
    (tmp_path / "truth.jsonl").write_text(f'{{"video": "good.mp4", "seconds": 9, "mentions": [{MENTION}]}}\n{bad}\n')
    with pytest.raises(InputError) as raised:
        read_truth(tmp_path / "truth.jsonl")
    assert "truth.jsonl:2" in str(raised.value) and message in str(raised.value)
    with pytest.warns(UserWarning, match="left out"):
        assert list(read_truth(tmp_path / "truth.jsonl", BadLines(1))) == ["good.mp4"]
