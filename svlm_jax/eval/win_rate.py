"""From votes to a win rate: how often A is preferred to B, with an interval, and how far the judge is to be trusted.

Owns what a vote counts. Each pair has two ballots, one an order. A win rate is votes for A / (votes for A + votes for B), over
all pairs of all videos; a tie is half a vote for each; a ballot that is invalid is no vote, and is counted.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

from svlm_jax.eval.intervals import ratio_interval
from svlm_jax.eval.judging import Ballot, Judgement


class Votes(NamedTuple):
    """Of a number of ballots: for A, for B, invalid."""

    a: float = 0
    b: float = 0
    invalid: int = 0

    @property
    def rate(self) -> float | None:
        """Of A; None without a vote."""
        return self.a / (self.a + self.b) if self.a + self.b else None


def count(ballots: Iterable[Ballot]) -> Votes:
    """The votes of ballots."""
    number = {"A": 0, "B": 0, "tie": 0, "invalid": 0}
    for ballot in ballots:
        number[ballot.vote] += 1
    half = number["tie"] / 2
    return Votes(_int_if_integral(number["A"] + half), _int_if_integral(number["B"] + half), number["invalid"])


def votes(judgements: Iterable[Judgement]) -> Votes:
    """The votes of both orders of all pairs; none of a pair with a candidate that was never made."""
    compared = (judgement for judgement in judgements if judgement.rule != "missing")
    return count(ballot for judgement in compared for ballot in (judgement.ab, judgement.ba))


def interval(judgements: Iterable[Judgement]) -> tuple[float, float] | None:
    """The 95 % interval of the win rate of A, by a bootstrap over videos; None with fewer than two."""
    by_video = [votes(group) for group in grouped(judgements, lambda judgement: judgement.pair.video).values()]
    return ratio_interval([each.a for each in by_video], [each.a + each.b for each in by_video])


def inconsistent(judgements: Iterable[Judgement]) -> float | None:
    """The share of pairs that a judge decided otherwise in the other order, of those for which both its votes are valid: 1 for
    a judge that looks at the position alone, whose win rate is then 50 %. None without such pairs."""
    decided = [(each.ab.vote, each.ba.vote) for each in judgements if not each.rule]
    decided = [both for both in decided if "invalid" not in both]
    return sum(ab != ba for ab, ba in decided) / len(decided) if decided else None


def grouped(judgements: Iterable[Judgement], key: Callable[[Judgement], Hashable]) -> dict[Hashable, Sequence[Judgement]]:
    """Judgements by a key, in order."""
    groups: dict[Hashable, list[Judgement]] = {}
    for judgement in judgements:
        groups.setdefault(key(judgement), []).append(judgement)
    return dict(groups)


def _int_if_integral(value: float) -> float:
    return int(value) if value == int(value) else value
