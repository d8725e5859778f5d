"""The frames that a question is asked about: of a whole prefix, thinned, or the newest alone.

Axes: F frames, H, W pixels. Units: seconds of the video. Host side, never jax.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from svlm_jax.errors import InputError
from svlm_jax.media.container import declared_length
from svlm_jax.media.paths import existing_file
from svlm_jax.media.video import read_video

NEWEST = 0.05  # seconds before the end at which the newest frame of a thinned prefix is taken


class FrameSet(NamedTuple):
    """pixels uint8 [F, H, W, 3]; frame k is the one on screen at start + k / fps."""

    pixels: np.ndarray
    fps: float
    start: float


def prefix(path: str | Path, end: float, *, max_frames: int, fps: float = 2.0, start: float = 0.0) -> FrameSet:
    """Frames between `start` and `end`, or the end of the video if that is sooner: `fps` a second, or `max_frames` where that
    would be more, evenly spaced from the first to the newest, as the published scripts thin.

    Raises:
        InputError: a file that cannot be read, or that ends before `start`.
    """
    if max_frames < 1:
        raise InputError("frames", max_frames, "1 or more", "raise it")
    end = end_within(path, end)
    newest, rate = min(NEWEST, 0.5 / fps), fps
    if (end - start) * fps > max_frames:
        if max_frames == 1:
            start = end - newest
        else:  # questions are about what is on screen now: spacing without the last frame would end seconds too early
            rate = (max_frames - 1) / (end - newest - start)
    pixels, times, _ = read_video(path, rate, start, max(end - start, newest), max_frames=max_frames + 1)
    return FrameSet(pixels[:max_frames], rate, float(times[0]))


def recent(path: str | Path, end: float, *, frames: int, fps: float = 2.0) -> FrameSet:
    """The newest `frames` frames before `end`, and nothing of what came before: the baseline of SimpleStream."""
    end = end_within(path, end)
    return prefix(path, end, max_frames=frames, fps=fps, start=max(0.0, end - frames / fps))


def end_within(path: str | Path, end: float) -> float:
    """`end`, or the end of the video if that is sooner."""
    length = declared_length(existing_file(path, "video"))
    return min(end, length) if length else end
