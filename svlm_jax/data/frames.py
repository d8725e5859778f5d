"""The frames of an annotated window, second by second, from its video file.

Owns how many frames a second has, and the error of a video that is too short for its window. Does not know the sizes that a
model takes, or tokens. Host side, never jax. Axes: F frames · H, W pixels · 3 channels R, G, B.
"""

import math
from pathlib import Path

import numpy as np

from svlm_jax.data.annotation import Annotation
from svlm_jax.errors import InputError
from svlm_jax.media.video import SLACK, sample_video


def window_frames(annotation: Annotation, fps: float, root: str | Path | None = None) -> list[np.ndarray]:
    """One uint8 [fps, H, W, 3] for each second with frames, none where there is no video; frame k is the one on screen k / fps
    seconds after the first of these seconds starts.

    A fractional last second has all its frames where the video continues, and those up to its end where it does not. An odd
    number of frames is allowed: patches hold two, and the last frame of a second is then repeated (`pixels.patchify`).

    Args:
        fps: frames a second, a whole number.
        root: directory that relative paths of videos start from.

    Raises:
        InputError: fps; a video that is missing, broken, or shorter than the window says.
    """
    count = check_fps(fps)
    if annotation.video is None:
        return []
    path = Path(root or "", annotation.video)  # an absolute path stays as it is
    start, seconds = annotation.start + annotation.hidden, annotation.visible_seconds
    length = annotation.end - start
    frames = [frame for _, frame in sample_video(path, count, start, seconds)]
    # At least one frame a second; one that is on screen for less than a clock's rounding is not required.
    min_frames = max(math.ceil((length - SLACK) * count), (seconds - 1) * count + 1)
    if len(frames) < min_frames:
        got = f"frames of {len(frames) / count:g} s from {start:g} s on"
        raise InputError(f"video {path}", got, f"{length:g} s of them", "copy the video again, or leave the record out")
    return by_second(np.stack(frames), count)


def by_second(frames: np.ndarray, fps: float) -> list[np.ndarray]:
    """[F, H, W, 3] -> [fps, H, W, 3] for each second; fewer in the last, if it is fractional."""
    count = check_fps(fps)
    return [frames[start : start + count] for start in range(0, len(frames), count)]


def check_fps(fps: float) -> int:
    """Raises:
    InputError: not a whole number of frames.
    """
    if not fps >= 1 or fps % 1:
        raise InputError("fps", fps, "a whole number of frames a second, 1 or more", "2 is usual")
    return int(fps)
