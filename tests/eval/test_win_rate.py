"""What votes amount to, against results worked out by hand."""

import pytest

from svlm_jax.eval import win_rate
from svlm_jax.eval.judging import Ballot, Candidate, Judgement, Pair, Vote, judge_pairs
from svlm_jax.eval.win_rate import Votes


def judgement(ab: Vote, ba: Vote, video: str = "g.mp4", rule: str = "") -> Judgement:
    pair = Pair(f"{video}:{ab}{ba}", video, 0.0, 100.0, "", Candidate("a"), Candidate("b"))
    return Judgement(pair, Ballot(ab), Ballot(ba), rule)


def test_a_win_rate_is_of_votes_not_of_winners():
    """A A, A B, B B, invalid A: A has 2 + 1 + 0 + 1 = 4 votes, B has 0 + 1 + 2 + 0 = 3, one is invalid: 4 / 7."""
    judgements = [judgement("A", "A"), judgement("A", "B"), judgement("B", "B"), judgement("invalid", "A")]
    assert win_rate.votes(judgements) == Votes(4, 3, 1)
    assert win_rate.votes(judgements).rate == pytest.approx(4 / 7)


def test_a_tie_is_half_a_vote_for_each():
    """tie tie: 1 and 1. tie A: 1.5 and 0.5. Together 2.5 of 4."""
    assert win_rate.votes([judgement("tie", "tie")]) == Votes(1, 1, 0)
    assert win_rate.votes([judgement("tie", "tie"), judgement("tie", "A")]) == Votes(2.5, 1.5, 0)


def test_nothing_but_invalid_votes_is_no_rate():
    assert win_rate.votes([judgement("invalid", "invalid")]).rate is None
    assert win_rate.votes([]).rate is None
    assert win_rate.votes([judgement("invalid", "invalid", rule="missing")]) == Votes(0, 0, 0)


def test_inconsistent_is_of_the_pairs_that_a_judge_decided_twice():
    """Of A A, A B, tie B two of three differ. A rule is no judge, and an invalid vote cannot be compared."""
    decided = [judgement("A", "A"), judgement("A", "B"), judgement("tie", "B")]
    others = [judgement("A", "A", rule="empty"), judgement("invalid", "A")]
    assert win_rate.inconsistent([*decided, *others]) == pytest.approx(2 / 3)
    assert win_rate.inconsistent(others) is None


class FirstIsBetter:
    """A judge that looks at the position alone."""

    def settings(self):
        return {"model": "first"}

    def vote(self, pair: Pair, swapped: bool) -> Ballot:
        return Ballot("B" if swapped else "A", "A")


def test_a_judge_that_always_says_a_gives_half_and_never_agrees_with_itself(tmp_path):
    pairs = [Pair(str(number), "g.mp4", 0.0, 1.0, "", Candidate("a"), Candidate("b")) for number in range(7)]
    judgements = judge_pairs(pairs, FirstIsBetter(), tmp_path / "votes.jsonl")
    assert win_rate.votes(judgements) == Votes(7, 7, 0)
    assert win_rate.votes(judgements).rate == 0.5
    assert win_rate.inconsistent(judgements) == 1.0


def test_an_empty_candidate_loses_and_two_tie_without_a_judge(tmp_path):
    """2 : 0, 0 : 2 and 1 : 1, and the judge is not asked."""
    texts = [("a", ""), (" \n", "b"), ("", "")]
    pairs = [Pair(str(n), "g.mp4", 0.0, 1.0, "", Candidate(a), Candidate(b)) for n, (a, b) in enumerate(texts)]
    judgements = judge_pairs(pairs, FirstIsBetter(), tmp_path / "votes.jsonl")
    assert [win_rate.votes([each]) for each in judgements] == [Votes(2, 0), Votes(0, 2), Votes(1, 1)]
    assert win_rate.inconsistent(judgements) is None


def test_the_interval_is_over_games():
    """A wins every vote of one game and none of the other: games drawn again give 0, 1/2 or 1, however many segments each has.
    One game says nothing of another."""
    first, second = [judgement("A", "A", "a.mp4")] * 50, [judgement("B", "B", "b.mp4")] * 50
    assert win_rate.interval([*first, *second]) == (0.0, 1.0)
    assert win_rate.interval(first) is None
    assert win_rate.interval([*first, judgement("invalid", "invalid", "b.mp4")]) is None
