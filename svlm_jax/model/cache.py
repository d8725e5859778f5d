"""The key-value cache: a functional pytree of static capacity, written in place under jit.

Owns what is held and where; knows nothing of why (the host decides what is written and what survives). Keys are UNROTATED and
rotated on use from the position of their slot, so contiguous RoPE is a change of `positions` and nothing cached is rewritten.
One array a layer, head-major: the layout in which XLA neither copies nor transposes the cache around a decode loop.

Axes: B batch, K kv heads, S slots, H head dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from svlm_jax.config import TextConfig


class Cache(NamedTuple):
    """keys, values: one [B, K, S, H] a layer. index [B, S] int32: place of the slot's token in its sequence, -1 when empty.
    positions [B, 3, S] float32: (t, h, w) of each slot."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    index: jax.Array
    positions: jax.Array

    @classmethod
    def empty(cls, config: TextConfig, batch: int, capacity: int, dtype: str) -> "Cache":
        """A cache of `capacity` slots a stream, all empty."""
        shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        keys, values = (tuple(jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers)) for _ in range(2))
        return cls(keys, values, jnp.full((batch, capacity), -1, jnp.int32), jnp.zeros((batch, 3, capacity), jnp.float32))

    @property
    def capacity(self) -> int:
        return self.index.shape[1]

    def place(self, index: Int[Array, "B T"], positions: Float32[Array, "B 3 T"], start: Int[Array, ""]) -> "Cache":
        """Describe the slots start .. start+T of every stream: index [B, T], positions [B, 3, T]. The caller keeps
        start + T <= capacity (dynamic_update_slice would clamp, not wrap)."""
        return self._replace(
            index=jax.lax.dynamic_update_slice(self.index, index.astype(jnp.int32), (0, start)),
            positions=jax.lax.dynamic_update_slice(self.positions, positions.astype(jnp.float32), (0, 0, start)),
        )


def write(held: Float[Array, "B K S H"], new: Float[Array, "B T K H"], start: Int[Array, ""]) -> Float[Array, "B K S H"]:
    """Write new [B, T, K, H] into held [B, K, S, H] at slots start .. start+T."""
    return jax.lax.dynamic_update_slice(held, new.swapaxes(1, 2).astype(held.dtype), (0, 0, start, 0))
