"""The KV cache: keys and values of the retained tokens, a functional pytree of static capacity, written in place under jit.

Owns the arrays and their layout; does not know why a token is retained. The host (stream/policy) decides which token goes into
which slot and what is evicted. Its decision arrives once a chunk as `index` and `positions` of every slot (`with_slots`), so
eviction, the move of old replies and contiguous RoPE positions change these two small arrays and no key or value.

Slots are in any order: they are reused as they become free, like those of a ring buffer. There is no attention mask: a query
attends to a slot when the slot's index is not larger than its own, which is causal attention for slots in any order. So the
slots of a reply can be described before the reply is decoded.

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
from jaxtyping import Array, Float, Float32, Int, Int32

from svlm_jax.config import ModelConfig, TextConfig
from svlm_jax.sharding import constrain, sharding

KV_AXES = ("batch", "heads", None, None)  # logical axes of keys and values; index and positions are small and replicated


class KVCache(NamedTuple):
    """The KV cache of a batch of streams.

    keys, values: one array a layer. index: index of the slot's token in its sequence, -1 when empty. positions: (t, h, w) of
    each slot. rotated_keys: the keys rotated to these positions, one array a layer, for a decode loop (in which no position
    changes); () otherwise.
    """

    keys: tuple[Float[Array, "B K S H"], ...]
    values: tuple[Float[Array, "B K S H"], ...]
    index: Int32[Array, "B S"]
    positions: Float32[Array, "B 3 S"]
    rotated_keys: tuple[Float[Array, "B K S H"], ...] = ()

    @classmethod
    def empty(cls, config: TextConfig, batch_size: int, capacity: int, dtype: str, mesh: Mesh | None = None) -> "KVCache":
        """A cache of `capacity` slots a stream, all empty; over a mesh, streams are cut over data and heads over tensor."""
        shape = (batch_size, config.num_key_value_heads, capacity, config.head_dim)
        device = None if mesh is None else sharding(mesh, shape, KV_AXES)
        keys, values = (tuple(jnp.zeros(shape, dtype, device=device) for _ in range(config.num_hidden_layers)) for _ in "kv")
        index = jnp.full((batch_size, capacity), -1, jnp.int32)
        return cls(keys, values, index, jnp.zeros((batch_size, 3, capacity), jnp.float32))

    @property
    def capacity(self) -> int:
        return self.index.shape[1]

    def constrain(self) -> "KVCache":
        """Pinned to the devices that its streams and heads belong to, inside jit."""
        keys, values = (tuple(constrain(layer, *KV_AXES) for layer in layers) for layers in (self.keys, self.values))
        return self._replace(keys=keys, values=values)

    def with_slots(self, index: Int[Array | np.ndarray, "B S"], positions: Float32[Array | np.ndarray, "B 3 S"]) -> "KVCache":
        """The cache with new metadata for every slot: which tokens survive, in which order, at which positions."""
        return self._replace(index=jnp.asarray(index), positions=jnp.asarray(positions))


def kv_cache_dtype(config: ModelConfig, values: Mapping[str, jax.Array]) -> str:
    """The dtype of cached keys and values: the model's, but float32 for bfloat16 on a CPU."""
    # A CPU has no bfloat16 arithmetic: XLA would widen the whole cache for every token that is written or that attends to it,
    # ten times the work of a decode step.
    platform = next(iter(values["text.embedding"].devices())).platform
    widen = platform == "cpu" and config.dtype == "bfloat16" and config.attention in ("auto", "xla")
    return "float32" if widen else config.dtype


def write(
    cached: Float[Array, "B K S H"], new: Float[Array, "B T K H"], slots: Int[Array | np.ndarray, "B T"]
) -> Float[Array, "B K S H"]:
    """Keys or values of one layer with those of new tokens at `slots`; a token whose slot is S or more (padding, streams that
    have ended) is dropped."""
    if slots.size == 1:
        # XLA turns a single update into a dynamic-update-slice, which on a CPU it fuses into both readers with a copy of the
        # cache for each. Two updates, one of them dropped, stay a scatter in place.
        new, slots = (jnp.concatenate([x, x], axis=1) for x in (new, jnp.asarray(slots)))
        slots = slots.at[:, 1].set(cached.shape[2])
    stream = jnp.arange(cached.shape[0])[:, None]
    return constrain(cached.at[stream, :, slots].set(new.astype(cached.dtype), mode="drop"), *KV_AXES)
