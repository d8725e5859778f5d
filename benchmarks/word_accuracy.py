"""How many words of a transcript are as in the truth: an alignment that counts what is wrong with it.

Owns the counts. Knows neither where words come from nor what damaged them. Units: seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from svlm_jax.curate.transcript import TimedWord
from svlm_jax.data.annotation import Word

TOLERANCE = 0.5  # seconds by which a start or an end may be off
_PER_SECOND = 1e-3  # cost of a second between two words that are the same: of alignments as good, the one nearest in time
_FAR = 100.0  # seconds, from which on all are as far


@dataclass(frozen=True)
class Accuracy:
    """Counts of words; + adds those of two transcripts.

    Attributes:
        words: of the truth.
        substituted, inserted, deleted: of the alignment with the fewest of these.
        mistimed: the same words, but with a start or an end that is off by more than TOLERANCE, or missing.
    """

    words: int = 0
    substituted: int = 0
    inserted: int = 0
    deleted: int = 0
    mistimed: int = 0

    def __add__(self, other: "Accuracy") -> "Accuracy":
        return Accuracy(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def share(self) -> float:
        """1 for the truth; 0 and less where as many words are wrong as there are."""
        return 1 - (self.substituted + self.inserted + self.deleted + self.mistimed) / self.words


def word_accuracy(truth: Sequence[Word], words: Sequence[TimedWord | Word]) -> Accuracy:
    """Compare words with the truth, in their order; case and punctuation count."""
    costs = _costs(truth, words)
    row, column = len(truth), len(words)
    substituted = inserted = deleted = mistimed = 0
    while row or column:
        cost = costs[row, column]
        pair = _pair_cost(truth[row - 1], words[column - 1]) if row and column else np.inf
        if row and column and np.isclose(costs[row - 1, column - 1] + pair, cost, atol=1e-6):
            row, column = row - 1, column - 1
            is_same = truth[row].text == words[column].text
            substituted += not is_same
            mistimed += is_same and not _is_timed(truth[row], words[column])
        elif column and np.isclose(costs[row, column - 1] + 1, cost, atol=1e-6):
            column, inserted = column - 1, inserted + 1
        else:
            row, deleted = row - 1, deleted + 1
    return Accuracy(len(truth), substituted, inserted, deleted, mistimed)


def _costs(truth: Sequence[Word], words: Sequence[TimedWord | Word]) -> np.ndarray:
    """[truth + 1, words + 1]: the least cost of the alignment of the first so many words of both."""
    numbers: dict[str, int] = {}
    texts = np.array([numbers.setdefault(word.text, len(numbers)) for word in words], int)
    ends = np.array([np.nan if word.end is None else word.end for word in words], float)
    steps = np.arange(len(words) + 1.0)
    costs = np.empty((len(truth) + 1, len(words) + 1))
    costs[0] = steps
    for row, word in enumerate(truth, 1):
        seconds = np.nan_to_num(np.abs(ends - word.end), nan=0.0)
        pairs = np.where(texts == numbers.get(word.text, -1), _PER_SECOND * np.minimum(seconds, _FAR), 1.0)
        best = costs[row - 1] + 1
        best[1:] = np.minimum(best[1:], costs[row - 1, :-1] + pairs)
        costs[row] = np.minimum.accumulate(best - steps) + steps  # words inserted one after the other
    return costs


def _pair_cost(true: Word, word: TimedWord | Word) -> float:
    if true.text != word.text:
        return 1.0
    return _PER_SECOND * min(abs(word.end - true.end), _FAR) if word.end is not None else 0.0


def _is_timed(true: Word, word: TimedWord | Word) -> bool:
    if word.start is None or word.end is None:
        return False
    return max(abs(word.start - true.start), abs(word.end - true.end)) <= TOLERANCE
