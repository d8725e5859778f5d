"""How right a commentary is: what was said, second by second, against what happened.

Owns the measures. Does not know models. Host side, never jax. Units: seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from svlm_jax.touchline.commentary import claims, first_scorers, newest, phrases, scores
from svlm_jax.touchline.match import Event, Facts, second_of

TOLERANCE = 2  # seconds between an event and words about it that still count
AGAIN = 3  # seconds within which the same words are a repetition


@dataclass
class Tally:
    """Counts of a part of a stream; add two with +.

    Attributes:
        events, claimed, matched: that happened; that were told; pairs of both of one kind and team within TOLERANCE.
        late: seconds between the two of a pair, summed over pairs (absolute).
        scores, right: told, and those that were the score then; due: that should have been told.
        firsts, first_right: told who scored first, and right.
        quiet, quiet_told, quiet_both: seconds in which nothing was to say; nothing was said; both.
        spoken, repeated: seconds with words; with words of one of the AGAIN seconds before.
        asked, answered: questions, and those answered rightly.
    """

    events: int = 0
    claimed: int = 0
    matched: int = 0
    late: float = 0.0
    scores: int = 0
    right: int = 0
    due: int = 0
    firsts: int = 0
    first_right: int = 0
    quiet: int = 0
    quiet_told: int = 0
    quiet_both: int = 0
    spoken: int = 0
    repeated: int = 0
    asked: int = 0
    answered: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def precision(self) -> float:
        return _share(self.matched, self.claimed)

    @property
    def recall(self) -> float:
        return _share(self.matched, self.events)

    @property
    def f1(self) -> float:
        """Of events."""
        return _share(2 * self.matched, self.events + self.claimed)

    @property
    def delay(self) -> float:
        """Mean seconds between an event and words about it."""
        return _share(self.late, self.matched)

    @property
    def score_right(self) -> float:
        """Of the scores that were told."""
        return _share(self.right, self.scores)

    @property
    def score_told(self) -> float:
        """Right scores of those that should have been told; more than 1 where it is told more often."""
        return _share(self.right, self.due)

    @property
    def silence_precision(self) -> float:
        """Of the seconds without words, those in which nothing was to say."""
        return _share(self.quiet_both, self.quiet_told)

    @property
    def silence_recall(self) -> float:
        """Of the seconds in which nothing was to say, those without words."""
        return _share(self.quiet_both, self.quiet)

    @property
    def repetition(self) -> float:
        return _share(self.repeated, self.spoken)

    @property
    def answers_right(self) -> float:
        return _share(self.answered, self.asked)

    @property
    def firsts_right(self) -> float:
        return _share(self.first_right, self.firsts)


def judge(replies: Mapping[int, str], events: Sequence[Event], start: int, end: int) -> Tally:
    """The measures of the seconds start .. end - 1.

    Args:
        replies: second -> words (answers to questions left out); seconds without an entry were dropped, and count as silent.
        events: all that happened up to `end` at least, in order.
    """
    tally = Tally()
    inside = [event for event in events if start <= second_of(event.time) < end]
    told = [(second, claim) for second in range(start, end) for claim in claims(replies.get(second, ""))]
    tally.events, tally.claimed = len(inside), len(told)
    for event in inside:
        second = second_of(event.time)
        pairs = [(abs(at - second), place) for place, (at, claim) in enumerate(told) if _fits(event, second, at, claim)]
        if pairs:
            late, place = min(pairs)
            told.pop(place)
            tally.matched += 1
            tally.late += late
    busy = {second_of(event.time) + number for event in events for number in range(len(phrases(event)))}
    for second in range(start, end):
        words, now = replies.get(second, "").strip(), facts_at(events, second)
        tally.quiet += second not in busy
        tally.quiet_told += not words
        tally.quiet_both += second not in busy and not words
        tally.spoken += bool(words)
        tally.repeated += bool(words) and any(words == replies.get(second - back, "").strip() for back in range(1, AGAIN + 1))
        for one in scores(words):
            tally.scores += 1
            tally.right += (one.teams, one.goals) == (now.teams, now.goals)
        for team in first_scorers(words):
            tally.firsts += 1
            tally.first_right += team == now.first
    tally.due = sum(
        len(scores(phrase))
        for event in events
        for number, phrase in enumerate(phrases(event))
        if start <= second_of(event.time) + number < end
    )
    return tally


class Counted(NamedTuple):
    """A score that was told. age: seconds since the one told before it; kept: its goals are that one's and those scored since,
    or, in the first score of a match, those of that match (teams are not looked at)."""

    age: int
    kept: bool


def counted(replies: Mapping[int, str], events: Sequence[Event], end: int) -> list[Counted]:
    """The scores told in the seconds 0 .. end - 1, in order; a mistake counts where it is made, and not in the scores after it.

    Args: as for `judge`.
    """
    found, told, then, last = [], (0, 0), None, 0
    for second in range(end):
        for one in scores(replies.get(second, "")):
            now = facts_at(events, second)
            if then is None or then.number != now.number:
                told, then = (0, 0), now._replace(goals=(0, 0))
            grown = tuple(before + new - old for before, new, old in zip(told, now.goals, then.goals, strict=True))
            found.append(Counted(second - last, one.goals == grown))
            told, then, last = one.goals, now, second
    return found


def words_of(reply: str) -> tuple[str, str]:
    """(answer to a question or "", words of the commentary) of a reply."""
    answer, _, words = reply.partition("\n")
    return answer.strip(), words.strip()


def facts_at(events: Sequence[Event], second: int) -> Facts:
    """What is true, and can have been seen, in a second."""
    return newest(events, second).facts


def _fits(event: Event, second: int, at: int, claim) -> bool:
    # The phrases of some events name no team; the event itself may have one.
    return claim.kind is event.kind and claim.team in ("", event.team) and abs(at - second) <= TOLERANCE


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
