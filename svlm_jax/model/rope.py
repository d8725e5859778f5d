"""Rotary position embeddings: chunked M-RoPE for text, two axes for patches. Positions, angles and the rotation are float32:
bfloat16 positions are off by 4 near 2048.

Axes: B batch, T tokens, P patches, H head dim.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from pallas_kernels.rotary import Rotary, rotate

__all__ = ["Rotary", "frequencies", "rotate", "text_rotary", "vision_rotary"]


def frequencies(dim: int, theta: float) -> Float32[np.ndarray, " half"]:
    """Inverse frequencies theta^(-2i/dim), float32 [dim/2], rounded as transformers rounds them."""
    # In float32 from the start: rounded from float64, some frequencies differ in the last bit from those of transformers,
    # and an angle is a frequency times a position of up to millions.
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (np.float32(1) / np.float32(theta) ** exponent).astype(np.float32)


def text_rotary(positions: Float32[Array, "B 3 T"], sections: tuple[int, int, int], theta: float) -> Rotary:
    """M-RoPE (arXiv 2409.12191, 2.1): the first `sections[0]` frequencies belong to t, the next to h, the last to w.

    Args:
        positions: (t, h, w) of each token, not necessarily integers.
        sections: frequencies of each axis; they add up to H/2.
    """
    axis = np.repeat(np.arange(3), sections)  # which of t, h, w each frequency reads
    angles = positions.astype(jnp.float32)[:, axis, :].swapaxes(1, 2) * frequencies(2 * sum(sections), theta)
    return Rotary(jnp.cos(angles), jnp.sin(angles))


def vision_rotary(row_column: Int[Array, "B P 2"], head_dim: int, theta: float) -> Rotary:
    """Rotation by row (first quarter of a head) and column (second quarter) of a patch."""
    # [B, P, 2, H/4]: the frequencies of the row, then those of the column, flattened to the H/2 angles of a half head.
    scaled = row_column.astype(jnp.float32)[..., None] * frequencies(head_dim // 2, theta)
    angles = scaled.reshape(*row_column.shape[:2], head_dim // 2)
    return Rotary(jnp.cos(angles), jnp.sin(angles))
