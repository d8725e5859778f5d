"""Bounds on a frame of Qwen2.5-VL, and frames that are hard to resize right."""

import numpy as np

from svlm_jax.families import preset
from svlm_jax.media.pixels import stream_frame

STREAM_FRAME = stream_frame(preset("qwen2.5-vl-7b").vision)


def hard_frame(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [height, width, 3]: noise, or (odd seeds) only black and white, where bicubic weights overshoot everywhere."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(noise > 127, np.uint8(255), np.uint8(0)) if seed % 2 else noise
