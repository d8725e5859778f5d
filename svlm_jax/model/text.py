"""The text decoder of Qwen2.5-VL: grouped-query attention with biases on q, k, v, SwiGLU, chunked M-RoPE.

Parameters come in two forms. Inference holds one array a layer and unrolls the layers (no weight is copied out of a stack in
the decode loop); training holds them stacked on a leading axis and scans (`scan_layers`). `checkpoint/hf` reads and writes
both; `stack` and `unstack` go from one to the other.

Axes: B batch, T new tokens, S cache slots, L layers, D width, N query heads, K kv heads, H head dim, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Float32, Int

from svlm_jax.config import ModelConfig, Remat
from svlm_jax.model.attention import text_attention
from svlm_jax.model.cache import KVCache, write
from svlm_jax.model.layers import GatedMLP, Linear, RMSNorm, matmul, normal
from svlm_jax.model.rope import Rotary, rotate, text_rotary
from svlm_jax.sharding import constrain

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_attention": jax.checkpoint_policies.save_only_these_names("attention"),
    "save_projections": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Seen(NamedTuple):
    """What every layer of one pass shares: rotation of the new tokens; the last index that each sees (its own); index of the
    slots; rotation of the slots (None where the keys are held rotated); into which slots the new tokens go [B, T] (None
    without a cache)."""

    rotary: Rotary
    last: jax.Array
    index: jax.Array
    slot_rotary: Rotary | None = None
    slots: jax.Array | None = None


class Held(NamedTuple):
    """Keys and values [B, K, S, H] of one layer of a cache, and its rotated keys or None."""

    keys: jax.Array
    values: jax.Array
    rotated: jax.Array | None


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(table: jax.Array, ids: jax.Array, dtype: str) -> jax.Array:
    """Rows of a table [V, D] in `dtype`. The table is cast before it is gathered over fsdp (2.2 GB of float32 at 7B), its
    gradient is added up in its own dtype: in bfloat16 the thousands of rows that a frequent token has would be lost."""
    return jnp.take(constrain(table.astype(dtype), "vocab", None), ids, axis=0)


def _lookup_forward(table: jax.Array, ids: jax.Array, dtype: str) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _lookup(table, ids, dtype), (table, ids)


def _lookup_backward(dtype: str, held: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    table, ids = held  # of the table, which is there anyway, the shape alone is used
    added = jnp.zeros(table.shape, table.dtype).at[ids].add(gradient.astype(table.dtype))
    return constrain(added, "vocab", None), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


class TextAttention(nnx.Module):
    """Grouped-query attention over the cache, or over the new tokens alone."""

    def __init__(self, config: ModelConfig, linear: Callable[..., Linear]) -> None:
        self.implementation = config.attention
        size, width = config.text.hidden_size, config.text.head_dim
        heads, kv_heads = config.text.num_attention_heads, config.text.num_key_value_heads
        self.fused = config.fused
        if self.fused:  # each kv head behind the query heads that look at it
            self.qkv = linear(size, (kv_heads, heads // kv_heads + 2, width), bias=True)
        else:
            self.q = linear(size, (heads, width), bias=True)
            self.k = linear(size, (kv_heads, width), bias=True)
            self.v = linear(size, (kv_heads, width), bias=True)
        self.out = linear((heads, width), size, bias=False)

    def __call__(self, x: Float[Array, "B T D"], seen: Seen, held: Held | None) -> tuple[Float[Array, "B T D"], Held | None]:
        """x [B, T, D] -> (out [B, T, D], what the layer holds with the new tokens in it)."""
        q, k, v = self._project(x)
        q = rotate(constrain(q, "batch", "length", "heads", None), seen.rotary, head_axis=2)
        how = {"index": seen.index, "implementation": self.implementation}
        if held is None or seen.slots is None:
            keys, values = rotate(k, seen.rotary, head_axis=2).swapaxes(1, 2), v.swapaxes(1, 2)
            out = text_attention(q, keys, values, last=seen.last, causal=True, **how)
        else:
            turned = None
            if held.rotated is not None:
                turned = write(held.rotated, rotate(k, seen.rotary, head_axis=2), seen.slots)
            held = Held(write(held.keys, k, seen.slots), write(held.values, v, seen.slots), turned)
            keys = held.keys if turned is None else turned
            out = text_attention(q, keys, held.values, last=seen.last, rotary=seen.slot_rotary, **how)
        return self.out(checkpoint_name(out, "attention")), held

    def _project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [B, T, D] -> q [B, T, N, H], k and v [B, T, K, H]."""
        if not self.fused:
            return self.q(x), self.k(x), self.v(x)
        joined = self.qkv(x)
        q = joined[..., :-2, :]
        return q.reshape(*q.shape[:2], -1, q.shape[-1]), joined[..., -2, :], joined[..., -1, :]


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs | None) -> None:
        text, dtype = config.text, config.param_dtype
        self.norm1 = RMSNorm(text.hidden_size, text.rms_norm_eps, dtype=dtype)
        self.norm2 = RMSNorm(text.hidden_size, text.rms_norm_eps, dtype=dtype)
        adapters = (config.lora_rank, config.lora_alpha)
        linear = partial(Linear, dtype=dtype, rngs=rngs, weights=config.weights, lora=adapters)
        self.attention = TextAttention(config, linear)
        self.mlp = GatedMLP(text.hidden_size, text.intermediate_size, linear, bias=False, fused=config.fused)

    def __call__(
        self, x: Float[Array, "B T D"], seen: Seen, held: Held | None = None
    ) -> tuple[Float[Array, "B T D"], Held | None]:
        out, held = self.attention(self.norm1(x), seen, held)
        x = x + out
        x = x + self.mlp(self.norm2(x))
        return constrain(x, "batch", "length", None), held


class Decoder(nnx.Module):
    """Embeddings, layers, final norm and head: embed [V, D], head [D, V] unless tied."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs | None) -> None:
        text, dtype = config.text, config.param_dtype
        self.config, self.dtype = text, config.dtype
        self.remat: Remat = config.remat
        self.scan = config.scan_layers
        self.embedding = nnx.Param(normal(rngs, (text.vocab_size, text.hidden_size), dtype))
        make = partial(DecoderLayer, config)
        if self.scan:
            keys = None if rngs is None else rngs.fork(split=text.num_hidden_layers)
            axis = None if keys is None else 0
            stacked = nnx.vmap(lambda keys: make(rngs=keys), in_axes=axis, axis_size=text.num_hidden_layers)
            self.layers: Any = stacked(keys)
        else:
            self.layers = nnx.List([make(rngs=rngs) for _ in range(text.num_hidden_layers)])
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps, dtype=dtype)
        head = partial(Linear, text.hidden_size, text.vocab_size, bias=False, dtype=dtype, rngs=rngs)
        self.head = None if config.tie_word_embeddings else head(weights=config.weights)

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """ids [B, T] -> [B, T, D]."""
        return _lookup(self.embedding[...], ids, self.dtype)

    def __call__(
        self, x: Float[Array, "B T D"], index: Int[Array, "B T"], positions: Float32[Array, "B 3 T"]
    ) -> Float[Array, "B T D"]:
        """Whole sequences, without a cache: final hidden states after the norm.

        Args:
            x: embeddings.
            index: place of each token in its sequence, 0, 1, 2 ..., then -1 for padding; a token sees what has a smaller index,
                and itself.
            positions: rotary (t, h, w).
        """
        seen = Seen(self._rotary(positions), index, index)
        if not self.scan:
            for layer in self.layers:
                x = _remat(lambda x, layer=layer: layer(x, seen)[0], self.remat)(x)
            return self.norm(x)
        graph, stacked = nnx.split(self.layers)
        body = _remat(lambda x, state: nnx.merge(graph, state)(x, seen)[0], self.remat)
        return self.norm(jax.lax.scan(lambda x, state: (body(x, state), None), x, stacked)[0])

    def extend(
        self,
        x: Float[Array, "B T D"],
        index: Int[Array, "B T"],
        positions: Float32[Array, "B 3 T"],
        slots: Int[Array, "B T"],
        cache: KVCache,
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """New tokens on top of a cache that describes them (`KVCache.with_slots`): as above, and their keys and values go into
        `slots`; those with a slot beyond the capacity are held nowhere.

        Raises:
            ValueError: the decoder is stacked (`unstack` its parameters first).
        """
        if self.scan:
            raise ValueError("a stacked (scan_layers) decoder has no cached pass: unstack its parameters first")
        slot_rotary = None if cache.rotated_keys else self._rotary(cache.positions)
        seen = Seen(self._rotary(positions), index, cache.index, slot_rotary, slots)
        layers: list[Held] = []
        held = map(Held, cache.keys, cache.values, cache.rotated_keys or repeat(None))
        for layer, one in zip(self.layers, held, strict=True):
            x, one = layer(x, seen, one)
            layers.append(one)
        keys, values, rotated = zip(*layers, strict=True)
        return self.norm(x), cache._replace(keys=keys, values=values, rotated_keys=rotated if cache.rotated_keys else ())

    def with_rotated_keys(self, cache: KVCache) -> KVCache:
        """The cache with its keys as they are at its positions beside it: rotated once for a loop, not once a token."""
        rotary = self._rotary(cache.positions)
        return cache._replace(rotated_keys=tuple(rotate(keys, rotary, head_axis=1) for keys in cache.keys))

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float32[Array, "*batch V"]:
        """hidden [..., D] -> float32 [..., V]."""
        logits = matmul(hidden, self.embedding[...].T, 1) if self.head is None else self.head(hidden)
        return logits.astype(jnp.float32)

    def _rotary(self, positions: jax.Array) -> Rotary:
        return text_rotary(positions, self.config.mrope_section, self.config.rope_theta)


def _remat(function, policy: Remat):
    return function if policy == "none" else jax.checkpoint(function, policy=_POLICIES[policy])
