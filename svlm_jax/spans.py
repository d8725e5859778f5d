"""Structure of a token sequence as spans, and the contiguous RoPE positions that follow from it. numpy only.

The one file that training data and streaming share: a sequence is a list of spans, never rediscovered by scanning ids.
Units: lengths in tokens, grids in patches (t, h, w), steps and positions in rotary positions (float32, not truncated).
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np


class Kind(IntEnum):
    """What a span of tokens is."""

    SYSTEM = 0
    PREVIOUS = 1
    USER_TEXT = 2
    VISION = 3
    REPLY = 4


class Part(IntEnum):
    """Where in its turn a span stands: HEAD is the markup that opens the turn, TAIL what closes it; of a user turn BODY is the
    time text and a question, of a reply TAIL begins with its last word (the " ..." of trained models)."""

    HEAD = 0
    BODY = 1
    TAIL = 2


class Span(NamedTuple):
    """A run of `length` tokens of one kind in one turn. Pads carry their patch grid (t, h, w) and `step`, the temporal
    positions from one t to the next; a VISION span without a grid is the marker before or after them."""

    kind: Kind
    length: int
    turn: int = 0
    grid: tuple[int, int, int] | None = None
    step: float = 1.0
    part: Part = Part.BODY


def temporal_step(tokens_per_second: int, temporal_patch_size: int, fps: float | int) -> float:
    """Positions between two temporal patches of a video at `fps`: 2 at 2 fps, 0.5 at 8 fps. Not truncated, unlike
    transformers (StreamingVLM keeps the fraction and is trained with it)."""
    return tokens_per_second * temporal_patch_size / fps


def vision_span(grid: tuple[int, int, int], merge: int = 2, turn: int = 0, step: float = 1.0) -> Span:
    """The span of one image or clip whose patch grid is (t, h, w)."""
    t, h, w = grid
    return Span(Kind.VISION, t * (h // merge) * (w // merge), turn, grid, step)


def positions(spans: Iterable[Span], merge: int = 2, start: float = 0.0) -> np.ndarray:
    """Contiguous (t, h, w) positions of a sequence, as float32 [3, n].

    Text counts up by one on all axes. A vision block at p has t = p + k*step, h = p + row, w = p + column over its merged
    grid. The next span starts at the largest position on any axis + 1 (Qwen2-VL's M-RoPE, arXiv 2409.12191 section 2.1, and
    StreamingVLM's contiguous RoPE; transformers 5 goes on from max(rows, columns) instead: see tests/parity).
    """
    blocks: list[np.ndarray] = []
    following = start
    for span in spans:
        if span.grid is None:
            block = np.broadcast_to(following + np.arange(span.length), (3, span.length))
        else:
            t, h, w = span.grid[0], span.grid[1] // merge, span.grid[2] // merge
            block = following + np.indices((t, h, w)).reshape(3, -1) * np.array([[span.step], [1.0], [1.0]])
        blocks.append(block)
        following = float(block.max()) + 1 if block.size else following
    return np.concatenate(blocks, axis=1).astype(np.float32) if blocks else np.zeros((3, 0), np.float32)


def total(spans: Sequence[Span]) -> int:
    """Tokens in a list of spans."""
    return sum(span.length for span in spans)


def truncate(length: int, first: int, last: int) -> tuple[range, range]:
    """Places of a run of tokens that survive: the first `first` and the last `last` of `length`; all of them when the two
    would meet. The rule of sink and sliding window, for streaming and for training data."""
    if first + last >= length:
        return range(length), range(length, length)
    return range(first), range(length - last, length)
