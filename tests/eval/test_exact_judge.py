"""Claims about the judge that needs no model: it prefers what is nearer to the truth, in this order, and says why."""

import pytest

from svlm_jax.eval.exact_judge import ExactJudge
from svlm_jax.eval.judging import Candidate, JudgeError, Pair
from tests.eval.test_timing import FILM, RIGHT, seconds

JUDGE = ExactJudge({"film.mp4": FILM}, "0" * 64)


def candidate(said: dict[int, str]) -> Candidate:
    utterances = tuple(seconds(said))
    return Candidate(" ".join(each.text for each in utterances if each.text), utterances)


def votes(a: Candidate, b: Candidate, reference: str = "Goal for Reds! 1-0 Goal for Blues! 1-1") -> set[str]:
    """In both orders, and with both exchanged: always the same candidate, named as in the first."""
    pairs = [Pair("key", "film.mp4", 0, 10, reference, *candidates) for candidates in ((a, b), (b, a))]
    straight, exchanged = ([JUDGE.vote(pair, swapped).vote for swapped in (False, True)] for pair in pairs)
    return {*straight, *({"A": "B", "B": "A"}.get(vote, vote) for vote in exchanged)}


def test_events_come_first():
    wrong_score = {2: "Goal for Reds! 9-9 9-9 9-9 and so on and so on", 7: "Goal for Blues! 9-9"}
    assert votes(candidate(wrong_score), candidate({2: "Goal for Reds! 1-0"})) == {"A"}  # F1 of 1 against 2 / 3


def test_then_states():
    no_score = {2: "Goal for Reds!", 7: "Goal for Blues! What a match we have"}
    assert votes(candidate(RIGHT), candidate({**RIGHT, 3: "0-1"})) == {"A"}  # 2 of 2 against 1 of 2
    assert votes(candidate(RIGHT), candidate(no_score)) == {"A"}  # who says no score is not right about it
    assert votes(candidate({**RIGHT, 9: "7-7"}), candidate(no_score)) == {"A"}


def test_then_the_number_of_words():
    longer = {**RIGHT, 9: "So be it then"}
    assert votes(candidate(RIGHT), candidate(longer)) == {"A"}
    assert votes(candidate(longer), candidate(RIGHT), reference=" ".join(["word"] * 12)) == {"A"}


def test_the_same_is_a_tie():
    assert votes(candidate(RIGHT), candidate(dict(RIGHT))) == {"tie"}
    assert votes(candidate({}), Candidate("")) == {"tie"}


def test_only_the_segment_counts():
    a, b = candidate({2: "Goal for Reds!", 9: "Goal for Reds! Goal for Reds!"}), candidate({2: "Goal for Reds!"})
    pair = Pair("key", "film.mp4", 0, 5, "Goal for Reds!", a._replace(text="Goal for Reds!"), b)
    assert JUDGE.vote(pair, False).vote == "tie"


def test_text_without_times_lies_evenly_in_the_segment():
    early = "Now watch. Goal for Reds! That is one to them, and on it goes here."  # word 3 of 14: second 1
    late = "That is one to them, and on it goes here. Now watch. Goal for Reds!"  # word 12: second 7
    assert votes(Candidate(early), Candidate(late)) == {"A"}
    assert votes(Candidate(early), candidate({9: "Goal for Reds!"})) == {"A"}


def test_it_says_why_and_what_it_needs_to_be_repeated():
    ballot = JUDGE.vote(Pair("key", "film.mp4", 0, 10, "one two", candidate(RIGHT), candidate({})), False)
    assert ballot.answer == "A: F1 1.0000, states 1.0000, words off by 6; B: F1 0.0000, states 0.0000, words off by 2"
    assert JUDGE.settings() == {"judge": "exact", "truth": "0" * 64, "tolerance": 2.0}


def test_a_video_without_truth_is_unresolved():
    with pytest.raises(JudgeError, match=r"no truth of other\.mp4"):
        JUDGE.vote(Pair("key", "other.mp4", 0, 10, "", candidate({}), candidate({})), False)
