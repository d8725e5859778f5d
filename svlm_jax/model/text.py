"""The text decoder of Qwen2.5-VL: grouped-query attention with biases on q, k, v, SwiGLU, chunked M-RoPE.

Parameters come in two forms. Inference holds one array a layer and unrolls the layers (no weight is copied out of a stack in
the decode loop); training holds them stacked on a leading axis and scans (`scan_layers`). `checkpoint/hf` reads and writes
both; `stack` and `unstack` go from one to the other.

Axes: B batch, T new tokens, S cache slots, L layers, D width, N query heads, K kv heads, H head dim, V vocabulary.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Float32, Int

from svlm_jax.config import ModelConfig, Remat, TextConfig
from svlm_jax.model.attention import attention
from svlm_jax.model.cache import Cache, write
from svlm_jax.model.layers import GatedMLP, Linear, RMSNorm, matmul, normal
from svlm_jax.model.rope import Rotary, rotate, text_rotary
from svlm_jax.sharding import constrain

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_attention": jax.checkpoint_policies.save_only_these_names("attention"),
    "save_projections": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Seen(NamedTuple):
    """What every layer of one pass shares: rotation of the new tokens; range of indexes each sees; index and rotation of the
    slots; into which slots the new tokens go [B, T] (None without a cache)."""

    rotary: Rotary
    first: jax.Array
    last: jax.Array
    index: jax.Array
    slot_rotary: Rotary
    slots: jax.Array | None


class TextAttention(nnx.Module):
    """Grouped-query attention over the cache, or over the new tokens alone."""

    def __init__(self, config: TextConfig, *, dtype: str, rngs: nnx.Rngs | None) -> None:
        size, width = config.hidden_size, config.head_dim
        heads, kv_heads = (config.num_attention_heads, width), (config.num_key_value_heads, width)
        self.q = Linear(size, heads, bias=True, dtype=dtype, rngs=rngs)
        self.k = Linear(size, kv_heads, bias=True, dtype=dtype, rngs=rngs)
        self.v = Linear(size, kv_heads, bias=True, dtype=dtype, rngs=rngs)
        self.out = Linear(heads, size, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], seen: Seen, held: tuple[jax.Array, jax.Array] | None):
        """x [B, T, D] -> (out [B, T, D], this layer's keys and values [B, K, S, H] with the new tokens in them)."""
        q = rotate(constrain(self.q(x), "batch", "length", "heads", None), seen.rotary, head_axis=2)
        k, v = self.k(x), self.v(x)
        if held is None or seen.slots is None:
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        else:
            k, v = write(held[0], k, seen.slots), write(held[1], v, seen.slots)
        out = attention(q, k, v, first=seen.first, last=seen.last, index=seen.index, rotary=seen.slot_rotary)
        return self.out(checkpoint_name(out, "attention")), (k, v)


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: TextConfig, *, dtype: str, rngs: nnx.Rngs | None) -> None:
        self.norm1 = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        self.norm2 = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        self.attention = TextAttention(config, dtype=dtype, rngs=rngs)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], seen: Seen, held: tuple[jax.Array, jax.Array] | None = None):
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
        make = partial(DecoderLayer, text, dtype=dtype)
        if self.scan:
            keys = None if rngs is None else rngs.fork(split=text.num_hidden_layers)
            axis = None if keys is None else 0
            stacked = nnx.vmap(lambda keys: make(rngs=keys), in_axes=axis, axis_size=text.num_hidden_layers)
            self.layers: Any = stacked(keys)
        else:
            self.layers = nnx.List([make(rngs=rngs) for _ in range(text.num_hidden_layers)])
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps, dtype=dtype)
        head = partial(Linear, text.hidden_size, text.vocab_size, bias=False, dtype=dtype, rngs=rngs)
        self.head = None if config.tie_word_embeddings else head()

    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """ids [B, T] -> [B, T, D]."""
        table = constrain(self.embedding[...], "vocab", None)  # gathered over fsdp before the lookup, not after
        return jnp.take(table, ids, axis=0).astype(self.dtype)

    def __call__(
        self, x: Float[Array, "B T D"], index: Int[Array, "B T"], positions: Float32[Array, "B 3 T"]
    ) -> Float[Array, "B T D"]:
        """Whole sequences, without a cache: final hidden states after the norm.

        Args:
            x: embeddings.
            index: place of each token in its sequence, -1 on padding; a token sees what has an index <= its own.
            positions: rotary (t, h, w).
        """
        rotary = self._rotary(positions)
        seen = Seen(rotary, *_range(index), index, rotary, None)
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
        cache: Cache,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """New tokens on top of a cache that describes them (`Cache.arrange`): as above, and their keys and values go into
        `slots`; those with a slot beyond the capacity are held nowhere.

        Raises:
            ValueError: the decoder is stacked (`unstack` its parameters first).
        """
        if self.scan:
            raise ValueError("a stacked (scan_layers) decoder has no cached pass: unstack its parameters first")
        seen = Seen(self._rotary(positions), *_range(index), cache.index, self._rotary(cache.positions), slots)
        keys, values = [], []
        for layer, k, v in zip(self.layers, cache.keys, cache.values, strict=True):
            x, (k, v) = layer(x, seen, (k, v))
            keys.append(k)
            values.append(v)
        return self.norm(x), cache._replace(keys=tuple(keys), values=tuple(values))

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float32[Array, "*batch V"]:
        """hidden [..., D] -> float32 [..., V]."""
        table = self.embedding[...].T if self.head is None else self.head.kernel[...]
        return matmul(hidden, table, 1).astype(jnp.float32)

    def _rotary(self, positions: jax.Array) -> Rotary:
        return text_rotary(positions, self.config.mrope_section, self.config.rope_theta)


def _range(index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First and last index that a token sees: everything up to itself; nothing for padding."""
    return jnp.where(index < 0, 1, 0), jnp.maximum(index, 0)


def _remat(function, policy: Remat):
    return function if policy == "none" else jax.checkpoint(function, policy=_POLICIES[policy])
