"""The static sizes of the programs that watch a chunk: one set for all chunks, and one more for a first chunk that is longer.

With one set, every chunk would cost what the longest costs. Knows no device. Axes: F frames, P patches.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from svlm_jax.config import StreamConfig, VisionConfig
from svlm_jax.inputs import Clip, Grid
from svlm_jax.media.resize_weights import FrameBox


class ChunkSize(NamedTuple):
    """grid: (t, h, w) in patches of the largest chunk; frames of other shapes may be as many patches. max_patches: P, of all
    clips that the vision tower encodes for a chunk. box: of frames that the device resizes."""

    grid: Grid
    max_patches: int
    box: FrameBox | None


def chunk_sizes(config: StreamConfig, grid: Grid, vision: VisionConfig, box: FrameBox | None) -> tuple[ChunkSize, ...]:
    """The sizes of a session's chunks, the largest last.

    Args:
        grid, box: of a chunk; of the first or of another, where they differ.
    """
    # A mode without a cache encodes the frames of the other chunks in the window again.
    others = config.vision_window - 1 if config.mode == "recompute" else 0
    if config.first_chunk_seconds is None:
        return (ChunkSize(grid, (1 + others) * math.prod(grid), box),)
    num_pairs = config.chunk_frames // vision.temporal_patch_size
    first_pairs = max(num_pairs, config.first_chunk_frames // vision.temporal_patch_size)
    frame_patches = math.prod(grid[1:])
    return tuple(
        ChunkSize(
            grid=(t, *grid[1:]),
            max_patches=(t + others * num_pairs) * frame_patches,
            box=box and box._replace(num_frames=t * vision.temporal_patch_size),
        )
        for t in sorted({num_pairs, first_pairs})
    )


def size_index(sizes: Sequence[ChunkSize], clips: Sequence[Clip]) -> int:
    """The number of the smallest size that holds the clips of a chunk; the last where none does."""
    longest = max((clip.grid[0] for clip in clips), default=0)
    return next((number for number, size in enumerate(sizes) if longest <= size.grid[0]), len(sizes) - 1)


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
