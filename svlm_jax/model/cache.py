"""The key-value cache: a functional pytree of static capacity, written in place under jit.

Owns what is held and where; knows nothing of why. The host (stream/policy) decides which token goes into which slot and what
survives; its decision arrives once a chunk as `index` and `positions` of every slot (`arrange`), so eviction, the move of old
replies and contiguous RoPE touch these two small arrays and no key or value. Slots are in any order: they are used again as
they become free, like those of a ring buffer, and what a token sees is decided by indexes alone. A slot whose index is larger
than that of a query is invisible to it, so the slots of a reply are described before the reply is made.

Keys are UNROTATED and rotated on use from the position of their slot. One array a layer, head-major: the layout in which XLA
neither copies nor transposes the cache around a decode loop.

Axes: B batch (streams), K kv heads, S slots, H head dim, T new tokens.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int

from svlm_jax.config import ModelConfig, TextConfig
from svlm_jax.sharding import constrain, sharding

LOGICAL = ("batch", "heads", None, None)  # axes of keys and values; index and positions are small and whole


class Cache(NamedTuple):
    """keys, values: one [B, K, S, H] a layer. index [B, S] int32: place of the slot's token in its sequence, -1 when empty.
    positions [B, 3, S] float32: (t, h, w) of each slot. rotated: the keys as they are at these positions, one [B, K, S, H] a
    layer, for a decode loop (in which no position changes); () otherwise."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    index: jax.Array
    positions: jax.Array
    rotated: tuple[jax.Array, ...] = ()

    @classmethod
    def empty(cls, config: TextConfig, batch: int, capacity: int, dtype: str, mesh: Mesh | None = None) -> "Cache":
        """A cache of `capacity` slots a stream, all empty; over a mesh, streams are cut over data and heads over tensor."""
        shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
        place = None if mesh is None else sharding(mesh, shape, LOGICAL)
        keys, values = (tuple(jnp.zeros(shape, dtype, device=place) for _ in range(config.num_hidden_layers)) for _ in range(2))
        return cls(keys, values, jnp.full((batch, capacity), -1, jnp.int32), jnp.zeros((batch, 3, capacity), jnp.float32))

    @property
    def capacity(self) -> int:
        return self.index.shape[1]

    def constrain(self) -> "Cache":
        """Pinned to the devices that its streams and heads belong to, inside jit."""
        keys, values = (tuple(constrain(one, *LOGICAL) for one in layers) for layers in (self.keys, self.values))
        return self._replace(keys=keys, values=values)

    def arrange(self, index: Int[Array | np.ndarray, "B S"], positions: Float32[Array | np.ndarray, "B 3 S"]) -> "Cache":
        """Describe every slot anew: what survives, in which order, at which positions."""
        return self._replace(index=jnp.asarray(index), positions=jnp.asarray(positions))


def held_dtype(config: ModelConfig, values: Mapping[str, jax.Array]) -> str:
    """The dtype in which keys and values are held: the model's, but float32 for bfloat16 on a CPU, which has no arithmetic for
    it: XLA would widen the whole cache for every token that is written or looks at it, ten times the work of a decode step."""
    platform = next(iter(values["text.embedding"].devices())).platform
    wide = platform == "cpu" and config.dtype == "bfloat16" and config.attention in ("auto", "xla")
    return "float32" if wide else config.dtype


def write(
    held: Float[Array, "B K S H"], new: Float[Array, "B T K H"], slots: Int[Array | np.ndarray, "B T"]
) -> Float[Array, "B K S H"]:
    """Write new [B, T, K, H] into held [B, K, S, H] at slots [B, T]; what has a slot of S or more (padding, streams that are
    done) is dropped."""
    if slots.size == 1:
        # Of one update XLA makes a dynamic-update-slice, which on a CPU it fuses into two readers, with a copy of the cache for
        # each; of two, one of which is dropped, it makes a scatter in place.
        new, slots = (jnp.concatenate([x, x], axis=1) for x in (new, jnp.asarray(slots)))
        slots = slots.at[:, 1].set(held.shape[2])
    rows = jnp.arange(held.shape[0])[:, None]
    return constrain(held.at[rows, :, slots].set(new.astype(held.dtype), mode="drop"), *LOGICAL)
