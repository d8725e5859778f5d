"""Compares a commentary with the events of its game: the measures of how right it is.

Owns the measures. Does not know models. Host side, never jax. Units: seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from svlm_jax.touchline.commentary import Claim, claims, first_scorers, latest_event, phrases, scores
from svlm_jax.touchline.match import Event, Facts, second_of

TOLERANCE = 2  # max seconds between an event and a claim that match
REPETITION_WINDOW = 3  # seconds within which the same words are a repetition


@dataclass
class Tally:
    """Counts over a part of a stream; + adds two of them.

    Attributes:
        events, claims, matches: of the game; of the commentary; pairs of one kind and team within TOLERANCE.
        total_delay: seconds between the two of a pair (absolute), summed over pairs.
        scores, correct_scores, expected_scores: claimed; claimed and equal to the score at that time; of the true commentary.
        first_scorers, correct_first_scorers: claims of who scored first, and the correct ones.
        true_silences, silences, matched_silences: seconds without words in the true commentary; in this one; in both.
        spoken, repetitions: seconds with words; with the same words as one of the REPETITION_WINDOW seconds before.
        questions, correct_answers: answered by the model, and correctly.
    """

    events: int = 0
    claims: int = 0
    matches: int = 0
    total_delay: float = 0.0
    scores: int = 0
    correct_scores: int = 0
    expected_scores: int = 0
    first_scorers: int = 0
    correct_first_scorers: int = 0
    true_silences: int = 0
    silences: int = 0
    matched_silences: int = 0
    spoken: int = 0
    repetitions: int = 0
    questions: int = 0
    correct_answers: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def precision(self) -> float:
        return _ratio(self.matches, self.claims)

    @property
    def recall(self) -> float:
        return _ratio(self.matches, self.events)

    @property
    def f1(self) -> float:
        """Of events."""
        return _ratio(2 * self.matches, self.events + self.claims)

    @property
    def mean_delay(self) -> float:
        """Mean seconds between an event and the claim that matches it."""
        return _ratio(self.total_delay, self.matches)

    @property
    def score_accuracy(self) -> float:
        """Correct scores, of those that were claimed."""
        return _ratio(self.correct_scores, self.scores)

    @property
    def score_recall(self) -> float:
        """Correct scores, of those in the true commentary; above 1 for a commentary that mentions the score more often."""
        return _ratio(self.correct_scores, self.expected_scores)

    @property
    def silence_precision(self) -> float:
        """Of the seconds without words, those that are silent in the true commentary."""
        return _ratio(self.matched_silences, self.silences)

    @property
    def silence_recall(self) -> float:
        """Of the seconds that are silent in the true commentary, those without words."""
        return _ratio(self.matched_silences, self.true_silences)

    @property
    def repetition_rate(self) -> float:
        return _ratio(self.repetitions, self.spoken)

    @property
    def answer_accuracy(self) -> float:
        return _ratio(self.correct_answers, self.questions)

    @property
    def first_scorer_accuracy(self) -> float:
        return _ratio(self.correct_first_scorers, self.first_scorers)


def judge(replies: Mapping[int, str], events: Sequence[Event], start: int, end: int) -> Tally:
    """The counts over the seconds start .. end - 1.

    Args:
        replies: second -> words, without answers to questions; a second without an entry (a dropped one) counts as silent.
        events: of the game, in order, at least up to `end`.
    """
    tally = Tally()
    tally.events, tally.claims, tally.matches, tally.total_delay = _match_events(replies, events, start, end)
    # Per second, the phrases of the true commentary; a long event has phrases in the seconds after it too.
    truth = {second_of(event.time) + number: phrase for event in events for number, phrase in enumerate(phrases(event))}
    for second in range(start, end):
        words, facts = replies.get(second, "").strip(), facts_at(events, second)
        tally.true_silences += second not in truth
        tally.silences += not words
        tally.matched_silences += second not in truth and not words
        tally.spoken += bool(words)
        earlier = (replies.get(second - back, "").strip() for back in range(1, REPETITION_WINDOW + 1))
        tally.repetitions += bool(words) and words in earlier
        for score in scores(words):
            tally.scores += 1
            tally.correct_scores += (score.teams, score.goals) == (facts.teams, facts.goals)
        for team in first_scorers(words):
            tally.first_scorers += 1
            tally.correct_first_scorers += team == facts.first
        tally.expected_scores += len(scores(truth.get(second, "")))
    return tally


def _match_events(replies: Mapping[int, str], events: Sequence[Event], start: int, end: int) -> tuple[int, int, int, float]:
    """(events, claims, matches, total delay in seconds): each event takes the nearest claim that fits it and is still free."""
    in_range = [event for event in events if start <= second_of(event.time) < end]
    unmatched = [(second, claim) for second in range(start, end) for claim in claims(replies.get(second, ""))]
    num_claims, matches, total_delay = len(unmatched), 0, 0.0
    for event in in_range:
        second = second_of(event.time)
        candidates = [
            (abs(claim_second - second), index)
            for index, (claim_second, claim) in enumerate(unmatched)
            if abs(claim_second - second) <= TOLERANCE and _fits(event, claim)
        ]
        if candidates:  # the nearest; of two as near, the earlier
            delay, index = min(candidates)
            unmatched.pop(index)
            matches += 1
            total_delay += delay
    return len(in_range), num_claims, matches, total_delay


class ScoreMention(NamedTuple):
    """A score that the commentary claims. age: seconds since the claim before it; is_consistent: its goals are those of the
    claim before plus the goals since, or, for the first claim of a match, the goals of that match (teams are ignored)."""

    age: int
    is_consistent: bool


def score_mentions(replies: Mapping[int, str], events: Sequence[Event], end: int) -> list[ScoreMention]:
    """The claims of a score in the seconds 0 .. end - 1, in order. A mistake counts once: later claims are compared with it.

    Args: as for `judge`.
    """
    mentions, claimed_goals, prev_facts, prev_second = [], (0, 0), None, 0
    for second in range(end):
        for score in scores(replies.get(second, "")):
            facts = facts_at(events, second)
            if prev_facts is None or prev_facts.number != facts.number:  # the first claim of a match
                claimed_goals, prev_facts = (0, 0), facts._replace(goals=(0, 0))
            goals = zip(claimed_goals, facts.goals, prev_facts.goals, strict=True)
            expected = tuple(claimed + now - before for claimed, now, before in goals)
            mentions.append(ScoreMention(second - prev_second, score.goals == expected))
            claimed_goals, prev_facts, prev_second = score.goals, facts, second
    return mentions


def facts_at(events: Sequence[Event], second: int) -> Facts:
    """The state of the match that frames up to this second show."""
    return latest_event(events, second).facts


def _fits(event: Event, claim: Claim) -> bool:
    # The phrases of some events name no team; the event itself may have one.
    return claim.kind is event.kind and claim.team in ("", event.team)


def _ratio(part: float, total: float) -> float:
    return part / total if total else float("nan")
