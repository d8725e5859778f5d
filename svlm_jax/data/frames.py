"""The frames of an annotated window, second by second, from its video file.

Owns how many frames a second has and what is said of a video that is too short for its window. Does not know sizes that a model
likes, or tokens. Host side, never jax. Axes: F frames · H, W pixels · 3 channels R, G, B.
"""

import math
from pathlib import Path

import numpy as np

from svlm_jax.data.annotation import Annotation
from svlm_jax.errors import InputError
from svlm_jax.media.video import SLACK, sample_video


def window_frames(annotation: Annotation, fps: float, root: str | Path | None = None) -> list[np.ndarray]:
    """One uint8 [fps, H, W, 3] a second that is shown, none where there is no video; frame k is the one on screen at k / fps
    after the first of them begins.

    A last, broken second is shown whole where the video goes on, and as far as the video goes where it ends. An odd number of
    frames is allowed: patches hold two, and the last frame of a second is then repeated (`pixels.patchify`).

    Args:
        fps: frames a second, a whole number.
        root: where the paths of videos begin that are not absolute.

    Raises:
        InputError: fps; a video that is missing, broken, or shorter than the window says.
    """
    count = check_fps(fps)
    if annotation.video is None:
        return []
    path = Path(root or "", annotation.video)
    start, seconds = annotation.start + annotation.hidden, annotation.shown
    length = annotation.end - start
    frames = [frame for _, frame in sample_video(path, count, start, seconds)]
    # Each second has a frame at least; one that is on screen for less than a clock's rounding is not asked for.
    needed = max(math.ceil((length - SLACK) * count), (seconds - 1) * count + 1)
    if len(frames) < needed:
        got = f"frames of {len(frames) / count:g} s from {start:g} s on"
        raise InputError(f"video {path}", got, f"{length:g} s of them", "copy the video again, or leave the record out")
    return by_second(np.stack(frames), count)


def by_second(frames: np.ndarray, fps: float) -> list[np.ndarray]:
    """[F, H, W, 3] -> [fps, H, W, 3] a second; fewer in the last, if it is broken."""
    count = check_fps(fps)
    return [frames[start : start + count] for start in range(0, len(frames), count)]


def check_fps(fps: float) -> int:
    """Raises:
    InputError: not a whole number of frames.
    """
    if not fps >= 1 or fps % 1:
        raise InputError("fps", fps, "a whole number of frames a second, 1 or more", "2 is usual")
    return int(fps)
