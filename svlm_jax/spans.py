"""Structure of a token sequence as spans, and the contiguous RoPE positions that follow from it. numpy only.

The one file that training data and streaming share: a sequence is a list of spans, never rediscovered by scanning ids.
Units: lengths in tokens, grids in patches (t, h, w), steps and positions in rotary positions (float32, not truncated).
Axes: M merged tokens of a grid, n tokens.
"""

from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

TokenMask = bytes  # one bit for each merged token of a grid, in (t, h, w) order, as np.packbits lays them out


class Kind(IntEnum):
    """What a span of tokens is."""

    SYSTEM = 0
    PREVIOUS = 1
    USER_TEXT = 2
    VISION = 3
    REPLY = 4


class Part(IntEnum):
    """The part of its turn that a span is: HEAD is the markup that opens the turn, TAIL what closes it; of a user turn BODY is
    the time text and a question, of a reply TAIL begins with its last word (the " ..." of trained models)."""

    HEAD = 0
    BODY = 1
    TAIL = 2


class Span(NamedTuple):
    """A run of `length` tokens of one kind in one turn. Vision tokens carry their patch grid (t, h, w) and `step`, the temporal
    positions from one t to the next; a VISION span without a grid is the mark before them (HEAD), with a time stamp in families
    that have one, or after them (TAIL). keep: which merged tokens of the grid exist (None: all); `length` counts those."""

    kind: Kind
    length: int
    turn: int = 0
    grid: tuple[int, int, int] | None = None
    step: float = 1.0
    part: Part = Part.BODY
    keep: TokenMask | None = None


def merged_tokens(grid: tuple[int, int, int], merge: int = 2) -> int:
    """Merged tokens of a patch grid (t, h, w): M."""
    t, h, w = grid
    return t * (h // merge) * (w // merge)


def vision_span(
    grid: tuple[int, int, int],
    merge: int = 2,
    turn: int = 0,
    step: float = 1.0,
    keep: Bool[np.ndarray, " M"] | None = None,
) -> Span:
    """The span of one image or clip whose patch grid is (t, h, w); keep: which of its merged tokens exist (all by default)."""
    if keep is None or keep.all():
        return Span(Kind.VISION, merged_tokens(grid, merge), turn, grid, step)
    return Span(Kind.VISION, int(np.count_nonzero(keep)), turn, grid, step, keep=np.packbits(keep).tobytes())


def grid_index(span: Span) -> Int[np.ndarray, " n"]:
    """For each token of a vision span, its index among the merged tokens of the grid in (t, h, w) order."""
    if span.keep is None:
        return np.arange(span.length)
    return np.flatnonzero(np.unpackbits(np.frombuffer(span.keep, np.uint8)))


def grid_indices(spans: Iterable[Span], merge: int = 2) -> Int[np.ndarray, " n"]:
    """For each vision token of a sequence, its index among the merged tokens of all its grids, one grid after the other."""
    indices, offset = [np.zeros(0, np.int64)], 0
    for span in spans:
        if span.grid is not None:
            indices.append(offset + grid_index(span))
            offset += merged_tokens(span.grid, merge)
    return np.concatenate(indices)


def positions(spans: Iterable[Span], merge: int = 2, start: float = 0.0) -> Float32[np.ndarray, "3 n"]:
    """Contiguous (t, h, w) positions of a sequence.

    Text counts up by one on all axes. A vision block at p has t = p + k*step, h = p + row, w = p + column over its merged
    grid. The next span starts at the largest position on any axis + 1 (Qwen2-VL's M-RoPE, arXiv 2409.12191 section 2.1, and
    StreamingVLM's contiguous RoPE; transformers 5 goes on from max(rows, columns) instead: see tests/parity).
    """
    spans = [span for span in spans if span.length]
    starts, vision, next_pos, index = [], [], float(start), 0
    for span in spans:
        starts.append(next_pos)
        if span.grid is None:
            last = next_pos + (span.length - 1)
        else:
            offsets, largest = _grid_offsets(span.grid, span.step, merge)
            last = next_pos + largest
            # A token that is not kept leaves its place empty: no other token moves for it.
            kept_offsets = offsets if span.keep is None else offsets[:, grid_index(span)]
            vision.append((index, next_pos + kept_offsets))
        next_pos = last + 1
        index += span.length
    # All text at once, as if there were nothing else: a sequence has many short spans. Then the few blocks of vision.
    lengths = np.array([span.length for span in spans], np.int64)
    rank = np.arange(index) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    result = np.empty((3, index), np.float32)
    result[:] = np.repeat(starts, lengths) + rank
    for first, block in vision:
        result[:, first : first + block.shape[1]] = block
    return result


@lru_cache(maxsize=64)
def _grid_offsets(grid: tuple[int, int, int], step: float, merge: int) -> tuple[Float64[np.ndarray, "3 M"], float]:
    """Positions of the merged tokens of a grid whose block begins at 0, and the largest of them."""
    t, h, w = grid[0], grid[1] // merge, grid[2] // merge
    offsets = np.indices((t, h, w)).reshape(3, -1) * np.array([[step], [1.0], [1.0]])
    offsets.flags.writeable = False  # it is cached
    return offsets, float(offsets.max())


def total(spans: Iterable[Span]) -> int:
    """Tokens in a list of spans."""
    return sum(span.length for span in spans)


def truncate(length: int, sink: int, window: int) -> tuple[range, range]:
    """Indices of a run of `length` tokens that survive: an attention sink of its first `sink` tokens and a sliding window of
    its last `window`; all of them when the two would meet. The rule for streaming and for training data."""
    if sink + window >= length:
        return range(length), range(length, length)
    return range(sink), range(length - window, length)
