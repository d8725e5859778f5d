"""The frames that a question is asked about: of a whole prefix, thinned, or the newest alone.

Axes: F frames, H, W pixels. Units: seconds of the video. Host side, never jax.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from svlm_jax.errors import InputError
from svlm_jax.media.container import declared_length
from svlm_jax.media.paths import existing_file
from svlm_jax.media.video import read_video, sample_video

NEWEST = 0.05  # seconds before the end at which the newest frame of a thinned prefix is taken
SCAN_FPS = 2.0  # at which a file that does not say its length is looked through


class FrameSet(NamedTuple):
    """pixels uint8 [F, H, W, 3]; frame k is the one on screen at start + k / fps."""

    pixels: np.ndarray
    fps: float
    start: float


def length(path: str | Path) -> float:
    """Seconds of a video file: by its header, or, where that is silent, by decoding it.

    Raises:
        InputError: a file that is missing or cannot be read.
    """
    path = existing_file(path, "video")
    declared = declared_length(path)
    return declared if declared is not None else max(second for second, _ in sample_video(path, SCAN_FPS)) + 1 / SCAN_FPS


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
    """`end`, or the end of the video if that is sooner. Headers may say too little: what is behind their end is looked for."""
    declared = declared_length(existing_file(path, "video"))
    if not declared or end <= declared:
        return end
    try:
        behind = sample_video(path, SCAN_FPS, declared, end - declared, lambda second, text: None)
        return min(end, max(second for second, _ in behind) + 1 / SCAN_FPS)
    except InputError:  # nothing is
        return declared
