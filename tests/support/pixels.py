"""Frames that are hard to resize right."""

import numpy as np


def hard_frame(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [height, width, 3]: noise, or (odd seeds) only black and white, where bicubic weights overshoot everywhere."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(noise > 127, np.uint8(255), np.uint8(0)) if seed % 2 else noise
