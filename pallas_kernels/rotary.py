"""The rotation of rotary embeddings, half against half; what the angles are is the model's business."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Rotary(NamedTuple):
    """Cosine and sine of the angles, float32 [B, T, H/2]; the two halves of a head share them."""

    cos: jax.Array
    sin: jax.Array


def rotate(x: jax.Array, rotary: Rotary, head_axis: int) -> jax.Array:
    """Rotate heads: x [B, T, N, H] with head_axis 2, or [B, N, T, H] with head_axis 1. Float32 inside, x's dtype outside."""
    cos, sin = (jnp.expand_dims(part, head_axis) for part in rotary)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
