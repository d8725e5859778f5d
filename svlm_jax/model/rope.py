"""Rotary position embeddings: M-RoPE for text, two axes for patches. Positions, angles and the rotation are float32:
bfloat16 positions are off by 4 near 2048.

Axes: B batch, T tokens, P patches, H head dim.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from pallas_kernels.dispatch import platform
from pallas_kernels.rotary import Rotary, rotate

__all__ = ["Rotary", "frequencies", "rotate", "text_rotary", "vision_rotary"]


def frequencies(dim: int, theta: float) -> Float32[np.ndarray, " half"]:
    """Inverse frequencies theta^(-2i/dim), float32 [dim/2], rounded as transformers rounds them."""
    # In float32 from the start: rounded from float64, some frequencies differ in the last bit from those of transformers,
    # and an angle is a frequency times a position of up to millions.
    exponent = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (np.float32(1) / np.float32(theta) ** exponent).astype(np.float32)


def text_rotary(
    positions: Float32[Array, "B 3 T"], sections: tuple[int, int, int], theta: float, *, interleaved: bool = False
) -> Rotary:
    """M-RoPE: which of t, h and w each frequency turns with.

    Args:
        positions: (t, h, w) of each token, not necessarily integers.
        sections: frequencies of each axis; they add up to H/2.
        interleaved: t, h and w take turns (Qwen3-VL, arXiv 2511.21631). Otherwise the first `sections[0]` frequencies belong
            to t, the next to h, the last to w (Qwen2-VL, arXiv 2409.12191, 2.1).
    """
    axis = np.repeat(np.arange(3), sections)
    if interleaved:  # t h w t h w ..., and t again where h and w have all of theirs
        axis = np.zeros(sum(sections), np.int64)
        axis[1 : 3 * sections[1] : 3], axis[2 : 3 * sections[2] : 3] = 1, 2
    angles = positions.astype(jnp.float32)[:, axis, :].swapaxes(1, 2) * frequencies(2 * sum(sections), theta)
    return _rotary(angles)


def vision_rotary(row_column: Int[Array, "B P 2"], head_dim: int, theta: float) -> Rotary:
    """Rotation by row (first quarter of a head) and column (second quarter) of a patch."""
    # [B, P, 2, H/4]: the frequencies of the row, then those of the column, flattened to the H/2 angles of a half head.
    scaled = row_column.astype(jnp.float32)[..., None] * frequencies(head_dim // 2, theta)
    angles = scaled.reshape(*row_column.shape[:2], head_dim // 2)
    return _rotary(angles)


def _rotary(angles: Float32[Array, "B T half"]) -> Rotary:
    # The one token of a decode step, or an odd number of frequencies, has nothing to gain or to halve.
    in_halves = platform() == "cpu" and angles.shape[1] > 1 and angles.shape[-1] % 2 == 0
    return _cos_sin_in_halves(angles) if in_halves else _cos_sin(angles)


def _cos_sin(angles: Float32[Array, "B T half"]) -> Rotary:
    return Rotary(jnp.cos(angles), jnp.sin(angles))


def _cos_sin_in_halves(angles: Float32[Array, "B T half"]) -> Rotary:
    """The same by a loop over two halves of the frequencies."""
    # XLA's CPU compiler fuses cosine and sine into every reader, past any optimization barrier: for each layer and head all
    # slots again, a tenth of a chunk. Through a loop it cannot fuse.
    halves = jax.lax.map(_cos_sin, jnp.stack(jnp.split(angles, 2, axis=-1)))
    return Rotary(*(jnp.concatenate([half[0], half[1]], axis=-1) for half in halves))
