"""The frames that a question is asked about: of a whole prefix, thinned, or the newest alone.

Axes: F frames, H, W pixels. Units: seconds of the video. Host side, never jax.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from svlm_jax.errors import InputError
from svlm_jax.media.video import read_video

MIN_SECONDS = 1e-3


class FrameSet(NamedTuple):
    """pixels uint8 [F, H, W, 3]; frame k is the one on screen at start + k / fps."""

    pixels: np.ndarray
    fps: float
    start: float


def prefix(path: str | Path, end: float, *, max_frames: int, fps: float = 2.0, start: float = 0.0) -> FrameSet:
    """Frames between start and end, `fps` a second, or fewer where that would be more than `max_frames`: then evenly thinned,
    as the published scripts do.

    Raises:
        InputError: a file that cannot be read, or that ends before `start`.
    """
    if max_frames < 1:
        raise InputError("frames", max_frames, "1 or more", "raise it")
    seconds = max(end - start, MIN_SECONDS)
    rate = min(fps, max_frames / seconds)
    pixels, times, _ = read_video(path, rate, start, seconds, max_frames=max_frames + 1)
    return FrameSet(pixels[:max_frames], rate, float(times[0]))


def recent(path: str | Path, end: float, *, frames: int, fps: float = 2.0) -> FrameSet:
    """The newest `frames` frames before `end`, and nothing of what came before: the baseline of SimpleStream."""
    return prefix(path, end, max_frames=frames, fps=fps, start=max(0.0, end - frames / fps))
