"""Sound cut into chunks that a server takes, and the words of the chunks put together again.

Neighbours share a few seconds around each cut, so that the word at the cut is heard whole by both; it is counted once. Owns
where the cuts are and which of two neighbours a word is taken from. Knows neither servers nor files. Host side, never jax.
Units: seconds of the video. Axes: N samples.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from svlm_jax.curate.transcribing.audio import RATE
from svlm_jax.curate.transcript import TimedWord

OVERLAP = 3.0  # on each side of a cut
SEARCH = 60.0  # in which the quietest place is looked for, at most; a quarter of a chunk where that is less
QUIET = 0.4  # of the place that is judged
HOP = RATE // 50  # samples between two such places
MAX_OFF = 1.0  # by which two engines, or one at two chunks, may differ on when a word begins


@dataclass(frozen=True)
class Chunk:
    """
    Attributes:
        start: of the first sample.
        first_cut, last_cut: where its neighbours begin to count; start and end of the sound at its ends.
        samples: int16 [N].
    """

    start: float
    first_cut: float
    last_cut: float
    samples: np.ndarray

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


def cut_into_chunks(blocks: Iterable[np.ndarray], max_seconds: float) -> Iterator[Chunk]:
    """Chunks of at most `max_seconds` (4 overlaps and more), cut where it is quietest near their end. No more than one is held.

    Args:
        blocks: int16 [N], one behind the other, from second 0 on.
    """
    size, overlap = round(max_seconds * RATE), round(OVERLAP * RATE)
    search = min(round(SEARCH * RATE), size // 4)
    waiting, num_waiting, start, cut = [np.empty(0, np.int16)], 0, 0, 0  # start, cut: of the next chunk, in samples

    def chunk(next_cut: int, end: int) -> Chunk:
        return Chunk(start / RATE, cut / RATE, (start + next_cut) / RATE, sound[:end].copy())

    for block in blocks:
        waiting.append(block)
        num_waiting += len(block)
        while num_waiting > size + search:  # so much that what is left is worth a chunk of its own
            sound = np.concatenate(waiting)
            next_cut = _quietest(sound, size - overlap - search, size - overlap)
            yield chunk(next_cut, next_cut + overlap)
            start, cut = start + next_cut - overlap, start + next_cut
            waiting = [sound[next_cut - overlap :]]
            num_waiting = len(waiting[0])
    sound = np.concatenate(waiting)
    if num_waiting > size:  # two chunks of about half: a last one of a few seconds would be hard to understand
        next_cut = _quietest(sound, (num_waiting - search) // 2, (num_waiting + search) // 2)
        yield chunk(next_cut, next_cut + overlap)
        start, cut, sound = start + next_cut - overlap, start + next_cut, sound[next_cut - overlap :]
    if len(sound):
        yield chunk(len(sound), len(sound))


def stitch(transcripts: Sequence[Sequence[TimedWord]], cuts: Sequence[float]) -> list[TimedWord]:
    """The words of chunks as those of one sound: none of those around a cut twice, and none left out.

    The two transcripts of the seconds around a cut are laid beside each other, and the change from one to the other is made at
    the word, said by both, that is nearest to the cut. Where they have no word in common, words count by their middle.

    Args:
        transcripts: words of each chunk, in order.
        cuts: one fewer.
    """
    words = list(transcripts[0]) if transcripts else []
    for cut, following in zip(cuts, transcripts[1:], strict=True):
        words = _joined(words, list(following), cut)
    return words


def _joined(before: list[TimedWord], after: list[TimedWord], cut: float) -> list[TimedWord]:
    reach = OVERLAP + MAX_OFF
    before_times, after_times = _times(before), _times(after)
    first = next((i for i, (start, _) in enumerate(before_times) if start >= cut - reach), len(before))
    last = next((j for j, (start, _) in enumerate(after_times) if start > cut + reach), len(after))
    pairs = [
        (first + i, j)
        for i, j in _common(
            list(zip(before[first:], before_times[first:], strict=True)),
            list(zip(after[:last], after_times[:last], strict=True)),
        )
    ]
    if pairs:
        i, j = min(pairs, key=lambda pair: abs(before_times[pair[0]][0] - cut))
        return before[: i + 1] + after[j + 1 :]
    head = [word for word, (start, end) in zip(before, before_times, strict=True) if start + end < 2 * cut]
    said_until = max((min(end, cut + MAX_OFF / 2) for start, end in before_times if start + end < 2 * cut), default=-np.inf)
    # one voice: what the right one hears before the left one has ended is the same word, heard as another
    later = max(said_until, cut - MAX_OFF)
    return head + [word for word, (start, end) in zip(after, after_times, strict=True) if start + end >= 2 * later]


def _common(before: list[tuple[TimedWord, tuple[float, float]]], after: list) -> list[tuple[int, int]]:
    """Indices of the same words at about the same time, in order, so that they are most and nearest in time."""
    best = np.zeros((len(before) + 1, len(after) + 1))
    gain = np.zeros((len(before), len(after)))
    for i, (word, (start, _)) in enumerate(before):
        for j, (other, (other_start, _)) in enumerate(after):
            if (same := _letters(word.text)) and same == _letters(other.text):
                gain[i, j] = max(MAX_OFF - abs(start - other_start), 0.0)
            best[i + 1, j + 1] = max(best[i, j + 1], best[i + 1, j], best[i, j] + gain[i, j])
    pairs, i, j = [], len(before), len(after)
    while i and j:
        if gain[i - 1, j - 1] and best[i, j] == best[i - 1, j - 1] + gain[i - 1, j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif best[i, j] == best[i - 1, j]:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def _letters(text: str) -> str:
    """What two transcripts agree on: case and punctuation they do not."""
    return "".join(char for char in text.casefold() if char.isalnum())


def _times(words: Sequence[TimedWord]) -> list[tuple[float, float]]:
    """Start and end of each; of a word without times, the end of the one before."""
    times, last = [], next((word.start for word in words if word.start is not None), 0.0)
    for word in words:
        start = last if word.start is None else word.start
        last = start if word.end is None else word.end
        times.append((start, last))
    return times


def _quietest(samples: np.ndarray, first: int, last: int) -> int:
    """The middle of the quietest place between two samples."""
    places = samples[first:last]
    hops = len(places) // HOP
    energy = np.square(places[: hops * HOP].astype(np.float32).reshape(hops, HOP)).mean(1)
    width = max(min(round(QUIET * RATE / HOP), hops), 1)
    quiet = np.convolve(energy, np.ones(width), "valid")
    return first + round((int(quiet.argmin()) + width / 2) * HOP)
