"""A judge that needs no model: of two commentaries the one that is nearer to the truth wins.

In order: the higher event F1; the higher share of states that are right; the number of words nearer to that of the reference.
Whoever is ahead in the first of them that differs wins, in either order; else it is a tie. Host side, never jax.
"""

from collections.abc import Mapping
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.judging import Ballot, Candidate, JudgeError, Pair
from svlm_jax.eval.timing import TOLERANCE, Counts, count, observe
from svlm_jax.eval.truth import Truth, truth_of


class ExactJudge:
    """A `Judge`. The votes of both orders are the same."""

    def __init__(self, truths: Mapping[str, Truth], digest: str, tolerance: float = TOLERANCE) -> None:
        """Args:
        truths: of `truth.read_truth`.
        digest: SHA-256 of their file.
        tolerance: seconds between an event and a claim that match, at most.
        """
        self.truths, self.digest, self.tolerance = truths, digest, tolerance

    def settings(self) -> dict[str, Any]:
        return {"judge": "exact", "truth": self.digest, "tolerance": self.tolerance}

    def vote(self, pair: Pair, swapped: bool) -> Ballot:
        try:
            truth = truth_of(self.truths, pair.video)
        except InputError as error:
            raise JudgeError(str(error)) from None
        a, b = (self._merits(truth, pair, candidate) for candidate in (pair.a, pair.b))
        answer = "; ".join(f"F1 {f1:.4f}, states {state:.4f}, words off by {-off}" for f1, state, off in (a, b))
        return Ballot("tie" if a == b else "A" if a > b else "B", f"A: {answer.replace('; ', '; B: ')}")

    def _merits(self, truth: Truth, pair: Pair, candidate: Candidate) -> tuple[float, float, int]:
        """Larger is better, the first that differs decides."""
        utterances = candidate.utterances or (Utterance(pair.start, pair.end, candidate.text),)
        counts = count(observe(truth, utterances, range(int(pair.start), int(pair.end)), self.tolerance))
        words_off = abs(len(candidate.text.split()) - len(pair.reference.split()))
        return event_f1(counts), state_score(counts), -words_off


def event_f1(counts: Counts) -> float:
    """1 where nothing happened and nothing was claimed."""
    total = counts.events + counts.claims
    return 2 * counts.matches / total if total else 1.0


def state_score(counts: Counts) -> float:
    """Right claims, of all claims or of those that the true commentary has, whichever are more: who says nothing is not right.
    1 where there is nothing to say and nothing was said."""
    total = max(counts.states, counts.expected_states)
    return counts.right_states / total if total else 1.0
