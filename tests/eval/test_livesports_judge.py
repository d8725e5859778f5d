"""LiveSports-3K CC: what is counted, by hand. A number that counts silence, gaps or ties otherwise is not the published one."""

import pytest

from svlm_jax.eval.judging import Ballot, Judgement, Vote
from svlm_jax.eval.livesports_cc import Event, Prediction
from svlm_jax.eval.livesports_judge import compare, pairs, published_judgements

VOTES: dict[str, Vote] = {"A": "A", "B": "B", "-": "tie", "?": "invalid"}


def event(key, sport="soccer"):
    video, number = key.split("_")
    return Event(video, int(number), 0.0, 10.0, "A match", sport, "", "one two three")


def judged(events, ballots, a=None, b=None):
    """ballots: two signs an event, AB and BA; "x" for a rule, "!" for a judge who did not answer."""
    a, b = a or {}, b or {}
    default = Prediction("two words")
    a = {each.key: default for each in events} | a
    b = {each.key: default for each in events} | b
    made = pairs(events, {k: p for k, p in a.items() if p}, {k: p for k, p in b.items() if p})
    judgements = []
    for pair, (ab, ba, *mark) in zip(made, ballots, strict=True):
        rule, error = ("missing" if "m" in mark else "empty" if "e" in mark else ""), ("no answer" if "!" in mark else "")
        judgements.append(Judgement(pair, Ballot(VOTES[ab]), Ballot(VOTES[ba]), rule, error))
    return judgements


EVENTS = [event("v_1"), event("v_2"), event("w_1", "judo"), event("w_2", "judo"), event("x_1", "judo"), event("x_2")]


def test_counts_by_hand():
    """Wins AA, loss BB, tie --, inconsistent AB and A-, invalid ?A. Ballots: A 2 + 1 + 1 + 1 = 5, B 2 + 1 = 3, tie 2 + 1 = 3,
    invalid 1; of 12 the published rate is 5/12, of the decided 5/8."""
    judgements = judged(EVENTS, ["AA", "BB", "--", "AB", "A-", "?A"])
    result, details = compare(EVENTS, judgements, "a vs b")
    published, decided = result.metrics[:2]
    assert (published.value, published.count) == (5 / 12, 6)
    assert decided.value == 5 / 8
    assert details["events"] == {"judged": 6, "wins": 1, "losses": 1, "ties": 1, "inconsistent": 2, "invalid": 1}
    assert details["ballots"] == {"A": 5, "B": 3, "tie": 3, "invalid": 1}
    assert details["position"] == {"decided": 3, "first_both_times": 1, "second_both_times": 0}


def test_intervals_are_over_videos():
    """Video v: 2 of 4 ballots, w: 1 of 4, x: 2 of 4. Any three of them drawn lie between 1/4 and 1/2."""
    published = compare(EVENTS, judged(EVENTS, ["AA", "BB", "--", "AB", "A-", "?A"]), "")[0].metrics[0]
    assert published.ci95 is not None
    assert published.ci95 == (0.25, 0.5)


def test_per_sport_sums_to_all():
    """judo: --, AB, A-: ballots A 2, B 1, tie 3, so 2/6 and 2/3. soccer: AA, BB, ?A: A 3, B 2, invalid 1, so 3/6 and 3/5."""
    sports = compare(EVENTS, judged(EVENTS, ["AA", "BB", "--", "AB", "A-", "?A"]), "")[1]["per_sport"]
    assert [(name, row["win_rate_published"], row["win_rate_decided"]) for name, row in sports.items()] == [
        ("judo", 2 / 6, 2 / 3),
        ("soccer", 3 / 6, 3 / 5),
    ]


def test_a_judge_who_always_takes_the_first_gives_half_and_is_found_out():
    result, details = compare(EVENTS, judged(EVENTS, ["AB"] * 6), "")
    assert [metric.value for metric in result.metrics[:2]] == [0.5, 0.5]
    assert details["events"]["inconsistent"] == details["position"]["first_both_times"] == 6


def test_always_tie_is_lost_by_both_as_published_and_decides_nothing():
    result = compare(EVENTS, judged(EVENTS, ["--"] * 6), "")[0]
    assert [metric.value for metric in result.metrics[:2]] == [0.0, None]


def test_a_missing_prediction_is_listed_and_never_blanks_the_other():
    """A published judge empties the baseline's text too where a prediction is missing or empty, and then likes what it reads
    first: 50 % for a model that says nothing. Here a missing one counts for nobody, and an empty one loses."""
    made = pairs(EVENTS[:2], {"v_2": Prediction("")}, {"v_1": Prediction("base"), "v_2": Prediction("base")})
    assert made[0].a.missing and made[0].b.text == made[1].b.text == "base" and not made[1].a.missing
    judgements = judged(EVENTS[:2], ["??m", "BBe"], {"v_1": None, "v_2": Prediction("")})
    result, details = compare(EVENTS[:2], judgements, "")
    assert result.metrics[0].value == 0.0 and result.metrics[0].count == 1
    assert details["missing"] == {"A": ["v_1"], "B": []}
    assert details["without_words"] == {"A": ["v_2"], "B": []} and details["by_rule"] == 1
    assert details["position"]["decided"] == 0, "a rule has no position"


def test_unresolved_events_are_listed_and_not_counted():
    result, details = compare(EVENTS[:2], judged(EVENTS[:2], ["AA", "A?!"]), "")
    assert details["unresolved"] == {"v_2": "no answer"}
    assert result.metrics[0] == ("win_rate_published", 1.0, None, 1, "%")


def test_the_length_of_both_is_told():
    """A: 4 and 0 words, so 2 a caption; B: 1 and 2, so 1.5; the references have 3."""
    a = {"v_1": Prediction("he shoots and scores"), "v_2": Prediction("")}
    b = {"v_1": Prediction("goal"), "v_2": Prediction("no goal")}
    result = compare(EVENTS[:2], judged(EVENTS[:2], ["AA", "BBe"], a, b), "")[0]
    assert [metric.value for metric in result.metrics[2:]] == [2.0, 1.5, 3.0]


def test_nothing_judged_is_no_rate():
    result, details = compare(EVENTS[:1], judged(EVENTS[:1], ["??m"], {"v_1": None}), "")
    assert [metric.value for metric in result.metrics] == [None] * 5
    assert details["events"]["judged"] == 0


def test_published_form_names_the_winner_of_each_order():
    judgements = judged(EVENTS, ["AA", "BB", "--", "AB", "A?!", "??m"])
    assert published_judgements(judgements, "ours", "GPT-4o")[3] == {
        "video_event_id": "w_2",
        "ab_winner": "ours",
        "ba_winner": "GPT-4o",
    }
    assert [line["ab_winner"] for line in published_judgements(judgements, "ours", "GPT-4o")] == [
        "ours",
        "GPT-4o",
        "tie",
        "ours",
    ]


def test_another_number_of_judgements_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        compare(EVENTS, [], "")
