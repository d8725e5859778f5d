"""Claims about the generated game: a function of its seed, with words that can be learned and a judge that can tell."""

import colorsys
import re
import subprocess
import sys
from itertools import islice, pairwise

import numpy as np
import pytest

from svlm_jax.data.annotation import parse_line, training_turns
from svlm_jax.data.records import Records
from svlm_jax.errors import InputError
from svlm_jax.media.chunks import Timing
from svlm_jax.media.sources import open_source
from svlm_jax.media.video import sample_video
from svlm_jax.touchline import commentary, film
from svlm_jax.touchline.film import play
from svlm_jax.touchline.judge import facts_at, judge, score_mentions
from svlm_jax.touchline.match import LEAD, MAX_GOALS, TEAMS, Kind, Rules, World, second_of
from svlm_jax.touchline.render import PITCHES, UNSEEN_PITCHES, Renderer, match_look
from svlm_jax.touchline.source import SCHEMES, MatchSource, open_match


@pytest.fixture(scope="module")
def world() -> World:
    return play(7, 1200)


def true_commentary(world: World, seconds: int) -> dict[int, str]:
    return {second: turn.reply.removesuffix(" ...").strip() for second, turn in enumerate(turns(world, seconds))}


def turns(world: World, seconds: int):
    return training_turns(film.annotate(world, "x.mp4", seconds))


def test_a_seed_is_a_game(world):
    assert play(7, 1200).events == world.events and play(8, 1200).events != world.events


def test_frames_are_the_same_at_any_frame_rate():
    slow, fast = film.Film(3, size=(84, 56)), film.Film(3, size=(84, 56))
    every_tenth = islice(fast.frames(20), 0, 200, 10)
    for slow_frame, fast_frame in zip(islice(slow.frames(2), 20), every_tenth, strict=True):
        np.testing.assert_array_equal(slow_frame, fast_frame)


def test_frames_start_at_the_requested_second():
    frames = list(islice(film.Film(3, size=(84, 56)).frames(2), 30))
    np.testing.assert_array_equal(next(film.Film(3, size=(84, 56)).frames(2, start=12)), frames[24])


@pytest.mark.parametrize("rules", Rules)
def test_rules(rules):
    """Goals are counted, matches end, and who has scored first stays who it was."""
    world = play(7, 1200, rules)
    for before, event in pairwise(world.events):
        same_match = before.facts.number == event.facts.number
        if event.kind is Kind.GOAL:
            assert same_match and sum(event.facts.goals) == sum(before.facts.goals) + 1 and max(event.facts.goals) <= MAX_GOALS
        elif same_match:
            assert event.facts == before.facts
        else:
            assert before.kind is Kind.FULL_TIME and event.facts.goals == (0, 0) and not event.facts.first
        if same_match and before.facts.first:
            assert event.facts.first == before.facts.first
    kinds = {event.kind for event in world.events}
    drill_kinds = {Kind.OPENING, Kind.HOME, Kind.AWAY, Kind.KICK_OFF, Kind.GOAL, Kind.FULL_TIME}
    match_kinds = set(Kind) - {Kind.PLAY}
    assert kinds == {Rules.MATCH: match_kinds, Rules.PRACTICE: match_kinds - {Kind.FOUL}, Rules.DRILL: drill_kinds}[rules]


def test_practice_has_more_to_count_and_a_drill_most():
    goals = [sum(event.kind is Kind.GOAL for event in play(9, 1200, rules).events) for rules in Rules]
    assert goals[2] > 3 * goals[1] and goals[1] > 1.5 * goals[0] > 0


@pytest.mark.parametrize("seed", range(5))
def test_each_event_is_shown_and_mentioned_in_a_second_of_its_own(seed):
    events = play(seed, 900).events
    for before, event in pairwise(events):
        assert second_of(event.time) >= second_of(before.time) + len(commentary.phrases(before))
        assert 0 <= second_of(event.time) + 0.5 - event.time <= 0.5 + LEAD + 1e-6  # seen at s, or at s + 0.5 at the latest


def test_some_seconds_are_silent_and_no_phrase_is_too_long_for_a_reply(world):
    spoken = [bool(words) for words in true_commentary(world, 1200).values()]
    assert 0.3 < sum(spoken) / len(spoken) < 0.6
    assert all(len(phrase.split()) <= 6 for event in world.events for phrase in commentary.phrases(event))


def test_words_say_what_happened(world):
    for event in world.events:
        text = " ".join(commentary.phrases(event))
        team = "" if event.kind in (Kind.OPENING, Kind.WIDE, Kind.FULL_TIME) else event.team
        assert commentary.claims(text) == [(event.kind, team)]
        for score in commentary.scores(text):
            assert (score.teams, score.goals) == (event.facts.teams, event.facts.goals)


def test_questions_have_the_answers_of_their_time(world):
    questions = list(commentary.questions(world, 1200, 0.1))
    assert 80 < len(questions) < 160 and {question.text for question in questions} == {
        text for text, _ in commentary.QUESTIONS.values()
    }
    for question in questions:
        facts = [event.facts for event in world.events if event.time <= question.time][-1]
        assert question.answer == commentary.answer(question.text, facts, world.holders[int(question.time)])
    ball_questions = list(commentary.questions(world, 1200, 1.0, ["ball"]))
    assert len(ball_questions) == 1200 and {question.answer for question in ball_questions} > {"Nobody."}


def test_a_question_waits_for_the_commentary_to_give_its_answer(world):
    questions = commentary.questions(world, 1200, 1.0, ["score", "playing", "cup", "first"])
    seconds = {int(question.time) for question in questions}
    assert seconds.isdisjoint(
        second_of(event.time) for event in world.events if event.kind in (Kind.HOME, Kind.AWAY, Kind.GOAL)
    )


def test_the_judge_gives_the_truth_full_marks(world):
    tally = judge(true_commentary(world, 1200), world.events, 0, 1200)
    assert tally.f1 == tally.score_accuracy == tally.score_recall == tally.silence_precision == tally.silence_recall == 1
    assert (
        tally.mean_delay == 0
        and tally.events > 300
        and tally.scores > 20
        and tally.first_scorers > 2
        and tally.first_scorer_accuracy == 1
    )


def test_the_judge_counts_what_is_wrong(world):
    truth = true_commentary(world, 600)
    late = {second + 1: words for second, words in truth.items()}
    far = {second + 5: words for second, words in truth.items()}
    stale = {second: words.replace("1", "7") for second, words in truth.items()}
    again = {second: "Reds pass." for second in truth}
    events = world.events
    assert judge(late, events, 0, 600).mean_delay == pytest.approx(1, abs=0.05) and judge(late, events, 0, 600).f1 > 0.97
    assert judge(far, events, 0, 600).f1 < 0.6
    assert 0 < judge(stale, events, 0, 600).score_accuracy < 1 and judge(stale, events, 0, 600).f1 == 1
    assert judge({}, events, 0, 600).recall == 0 and judge({}, events, 0, 600).silence_recall == 1
    assert judge(again, events, 0, 600).repetition_rate > 0.99
    halves = judge(truth, events, 0, 300) + judge(truth, events, 300, 600)
    assert halves.events == judge(truth, events, 0, 600).events


def test_a_mistake_is_new_once(world):
    truth = true_commentary(world, 1200)
    right = score_mentions(truth, world.events, 1200)
    assert len(right) > 20 and all(mention.is_consistent and mention.age >= 0 for mention in right)
    number = world.events[-1].facts.number // 2  # of a match in which the home team gets a goal too many, from the first on
    for second, words in truth.items():
        facts = facts_at(world.events, second)
        if facts.number == number and facts.goals != (0, 0):
            truth[second] = re.sub(r"(\d+)-", lambda home: f"{int(home[1]) + 1}-", words)
    wrong = score_mentions(truth, world.events, 1200)
    assert [mention.is_consistent for mention in wrong].count(False) == 1 and [mention.age for mention in wrong] == [
        mention.age for mention in right
    ]
    assert judge(truth, world.events, 0, 1200).correct_scores < len(right) - 1


def test_unseen_looks_are_unseen():
    assert {match_look(1, number, unseen=True).stripes for number in range(20)} == set(UNSEEN_PITCHES)
    training_pitches = {match_look(1, number).stripes[0] for number in range(200)}
    assert training_pitches > {pitch for pitch, _ in PITCHES} and len(training_pitches) > 80
    for unseen, _ in UNSEEN_PITCHES:
        assert min(abs(hue(unseen) - hue(pitch)) for pitch in training_pitches) > 0.04
    moment = next(film.moments(World(5), 2))
    training, unseen = (Renderer(5, 84, 56, unseen)(moment) for unseen in (False, True))
    assert training.shape == unseen.shape == (56, 84, 3) and np.abs(training.astype(int) - unseen).mean() > 5


def hue(colour) -> float:
    return colorsys.rgb_to_hsv(*(level / 255 for level in colour))[0]


def test_a_film_is_what_is_drawn_and_its_annotation_what_is_said(tmp_path):
    command = [sys.executable, "-m", "launch.world", "--out", tmp_path / "films", "--seeds", "3:5", "--seconds", "20"]
    subprocess.run([*command, "--jobs", "1", "--size", "168x112"], check=True, capture_output=True)
    drawn = islice(film.Film(3, size=(168, 112)).frames(2), 40)
    decoded = [frame for _, frame in sample_video(tmp_path / "films" / "match_3.mp4", 2, 0, 20)]
    assert all(np.abs(a.astype(int) - b).mean() < 8 for a, b in zip(drawn, decoded, strict=True))
    records = Records([tmp_path / "films" / "matches.jsonl"])
    annotation = parse_line(records[0].line, "record")
    assert annotation.words == film.annotate(play(3, 20), "match_3.mp4", 20).words and len(records) == 2


def test_films_continue_after_a_stop(tmp_path):
    command = [sys.executable, "-m", "launch.world", "--out", tmp_path, "--seconds", "4", "--jobs", "1", "--size", "84x56"]
    assert subprocess.run([*command, "--seeds", "3:5"], capture_output=True).returncode == 0
    index, mtime_ns = tmp_path / "matches.jsonl", (tmp_path / "match_3.mp4").stat().st_mtime_ns
    index_text = index.read_text()
    for name in ("matches.jsonl", "matches_seeks.jsonl", "match_4.mp4"):
        (tmp_path / name).unlink()
    refused = subprocess.run([*command, "--seeds", "3:5"], capture_output=True, text=True)
    assert refused.returncode == 2 and "match_3.mp4: got something that exists already" in refused.stderr
    assert subprocess.run([*command, "--seeds", "3:5", "--keep"], capture_output=True).returncode == 0
    assert index.read_text() == index_text and (tmp_path / "match_3.mp4").stat().st_mtime_ns == mtime_ns


def test_a_match_is_a_source():
    with open_match(1000003, unseen=True, start=30, duration=4) as source:
        chunks = list(source)
    assert [(chunk.start, chunk.frames.shape) for chunk in chunks] == [(s, (2, 448, 672, 3)) for s in (30, 31, 32, 33)]
    assert source.total == 4


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--seeds", "1000000"], "expected seeds below 1000000"),
        (["--seeds", "3", "--test"], "expected seeds from 1000000"),
        (["--seeds", "5:2"], "the smaller number first"),
        (["--size", "335x224"], "even sides"),
        (["--seconds", "0"], "1 or more"),
    ],
)
def test_bad_flags_are_one_line(tmp_path, flags, words):
    command = [sys.executable, "-m", "launch.world", "--out", tmp_path / "films", *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and words in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "films").exists()


def test_a_bad_name_of_a_match_is_one_line():
    with pytest.raises(InputError, match="match:SEED"):
        open_source("match:first", schemes=SCHEMES)


def test_a_start_that_no_game_has_is_one_line():
    """Else: a game is played for hours without a word."""
    for start in (1e300, float("inf"), float("nan"), 1e12):
        with pytest.raises(InputError, match=re.escape("at most 1e+09")):
            MatchSource("match:5", Timing(start=start))
    with pytest.raises(InputError, match=re.escape("start: got 3.6e+06 s of match:5") + ".*start earlier"):
        open_match(5, start=3_600_000)
    with pytest.warns(UserWarning, match="match:5 is played up to 3600 s first"):
        open_match(5, start=3600)
    with pytest.raises(InputError, match=re.escape("0.5 s or more")):
        open_match(5, duration=0.1)
    assert len(list(open_match(5, duration=0.5))) == 1


def test_only_frames_that_are_called_are_drawn(monkeypatch):
    """Else: a server draws 8 pictures a second of each game that nobody watches."""
    source, drawn = open_match(5, duration=2), []
    monkeypatch.setattr(source.film, "draw", drawn.append)
    second, *_ = list(source.lazy_frames())[1::2]
    second()
    assert [moment.time for moment in drawn] == [0.5]


def test_teams_have_words_and_colours():
    from svlm_jax.touchline.render import COLOURS

    assert set(COLOURS) == set(TEAMS)
