"""The text decoder: grouped-query attention, SwiGLU, M-RoPE. One for all families: what differs is a field of `TextConfig`.

Parameters come in two forms. Inference has one array a layer and unrolls the layers (no weight is copied out of a stack in
the decode loop); training stacks them on a leading axis and scans (`scan_layers`). `checkpoint/huggingface` reads and writes
both; `stack` and `unstack` go from one to the other.

Axes: B batch, T new tokens, S cache slots, L layers, D width, N query heads, K kv heads, H head dim, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Float32, Int

from svlm_jax.config import ModelConfig, Remat
from svlm_jax.model import fused_decode
from svlm_jax.model.attention import text_attention
from svlm_jax.model.cache import KVCache, write
from svlm_jax.model.layers import GatedMLP, Linear, RMSNorm, call_layer, matmul, normal, rematerialize
from svlm_jax.model.rope import Rotary, rotate, text_rotary
from svlm_jax.sharding import constrain

Deepstack = tuple[Float[Array, "B T D"], ...]

# What a remat policy saves of a layer besides its input and the attention: activations by the names that the layer gives them.
_SAVED: dict[Remat, tuple[str, ...]] = {
    "save_attention": (),
    "save_attention_block": ("qkv", "attention_residual"),
    "save_up": ("qkv", "attention_residual", "up"),
    "save_projections": ("qkv", "attention_residual", "up", "gate"),
}


class AttentionMetadata(NamedTuple):
    """What the attention of every layer of one pass shares; `last` and `index` stand for an attention mask.

    rotary: rotation of the new tokens. last: the last index that each query attends to (its own: causal attention). index:
    index of each slot. slot_rotary: rotation of the slots, None where the keys are rotated already. slots: the slot that each
    new token is written to, None without a cache.
    """

    rotary: Rotary
    last: Int[Array, "B T"]
    index: Int[Array, "B S"]
    slot_rotary: Rotary | None = None
    slots: Int[Array, "B T"] | None = None


class LayerCache(NamedTuple):
    """The KV cache of one layer; rotated_keys: None unless the cache has them."""

    keys: Float[Array, "B K S H"]
    values: Float[Array, "B K S H"]
    rotated_keys: Float[Array, "B K S H"] | None


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(table: Float[Array, "V D"], ids: Int[Array, "B T"], dtype: str) -> Float[Array, "B T D"]:
    """Rows of a table in `dtype`."""
    # The table is cast before fsdp gathers it: 2.2 GB of float32 at 7B otherwise.
    return jnp.take(constrain(table.astype(dtype), "vocab", None), ids, axis=0)


def _lookup_forward(table: jax.Array, ids: jax.Array, dtype: str) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _lookup(table, ids, dtype), (table, ids)


def _lookup_backward(dtype: str, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, None]:
    # The gradient is summed in the table's own dtype: a frequent token adds thousands of rows, which bfloat16 would lose. Of
    # the table, a parameter that is alive anyway, only the shape is used.
    table, ids = residuals
    summed = jnp.zeros(table.shape, table.dtype).at[ids].add(gradient.astype(table.dtype))
    return constrain(summed, "vocab", None), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


class TextAttention(nnx.Module):
    """Grouped-query attention over the cache, or over the new tokens alone."""

    def __init__(self, config: ModelConfig, linear: Callable[..., Linear]) -> None:
        self.implementation = config.attention
        text = config.text
        size, width, bias = text.hidden_size, text.head_dim, text.qkv_bias
        heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
        self.fused, self.qk_norm = config.fused, text.qk_norm
        if self.fused:  # each kv head behind the query heads of its group
            self.qkv = linear(size, (kv_heads, heads // kv_heads + 2, width), bias=bias)
        else:
            self.q = linear(size, (heads, width), bias=bias)
            self.k = linear(size, (kv_heads, width), bias=bias)
            self.v = linear(size, (kv_heads, width), bias=bias)
        if self.qk_norm:
            self.q_norm = RMSNorm(width, text.rms_norm_eps, dtype=config.param_dtype)
            self.k_norm = RMSNorm(width, text.rms_norm_eps, dtype=config.param_dtype)
        self.out = linear((heads, width), size, bias=False)

    def __call__(
        self, x: Float[Array, "B T D"], metadata: AttentionMetadata, cache: LayerCache | None
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """x -> (attention output, the layer's cache with the new tokens in it)."""
        q, k, v = self._project(x)
        q = rotate(constrain(q, "batch", "length", "heads", None), metadata.rotary, head_axis=2)
        q = checkpoint_name(q, "qkv")
        attend = partial(text_attention, q, last=metadata.last, index=metadata.index, implementation=self.implementation)
        if cache is None or metadata.slots is None:
            k, v = checkpoint_name(rotate(k, metadata.rotary, head_axis=2), "qkv"), checkpoint_name(v, "qkv")
            out = attend(k.swapaxes(1, 2), v.swapaxes(1, 2), causal=True)
        else:
            # Written first: a new token attends to itself and to the tokens before it in the same chunk.
            rotated_keys = None
            if cache.rotated_keys is not None:
                rotated_keys = write(cache.rotated_keys, rotate(k, metadata.rotary, head_axis=2), metadata.slots)
            cache = LayerCache(write(cache.keys, k, metadata.slots), write(cache.values, v, metadata.slots), rotated_keys)
            keys = cache.keys if rotated_keys is None else rotated_keys
            out = attend(keys, cache.values, rotary=metadata.slot_rotary)
        return self.out(out), cache

    def decode_step(
        self, x: Float[Array, "B 1 D"], step: fused_decode.DecodeStep, cache: LayerCache, interpret: bool
    ) -> tuple[Float[Array, "B 1 D"], LayerCache]:
        """One token of each stream by fused kernels; the cache has rotated keys."""
        q, k, v = self._project(x)
        rotated_q, rotated_k = (rotate(heads, step.rotary, head_axis=2) for heads in (q, k))
        layers = (cast(jax.Array, cache.rotated_keys), cache.keys, cache.values)
        out, (rotated_keys, keys, values) = fused_decode.attend(rotated_q, rotated_k, k, v, layers, step, interpret)
        return self.out(out), LayerCache(keys, values, rotated_keys)

    def _project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """x [B, T, D] -> q [B, T, N, H], k and v [B, T, K, H]: all that is done to them before the rotation."""
        if self.fused:
            qkv = self.qkv(x)  # [B, T, K, G + 2, H]
            q, k, v = qkv[..., :-2, :], qkv[..., -2, :], qkv[..., -1, :]
            q = q.reshape(*q.shape[:2], -1, q.shape[-1])
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        return (self.q_norm(q), self.k_norm(k), v) if self.qk_norm else (q, k, v)


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
        self, x: Float[Array, "B T D"], metadata: AttentionMetadata, cache: LayerCache | None = None
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        with jax.named_scope("attention"):
            out, cache = self.attention(self.norm1(x), metadata, cache)
            x = checkpoint_name(x + out, "attention_residual")
        with jax.named_scope("mlp"):
            x = x + self.mlp(self.norm2(x))
        return constrain(x, "batch", "length", None), cache

    def decode_step(
        self,
        x: Float[Array, "B 1 D"],
        update: Float[Array, "B 1 D"] | None,
        step: fused_decode.DecodeStep,
        cache: LayerCache,
        interpret: bool,
    ) -> tuple[Float[Array, "B 1 D"], Float[Array, "B 1 D"], LayerCache]:
        """One token of each stream by fused kernels. The hidden state is x + update, added where it is normalised; so is what
        this layer returns."""
        with jax.named_scope("attention"):
            x, normed = fused_decode.add_rms_norm(x, update, self.norm1.scale[...], self.norm1.eps, interpret)
            update, cache = self.attention.decode_step(normed, step, cache, interpret)
        with jax.named_scope("mlp"):
            x, normed = fused_decode.add_rms_norm(x, update, self.norm2.scale[...], self.norm2.eps, interpret)
            return x, self.mlp(normed), cache


class Decoder(nnx.Module):
    """Embeddings, layers, final norm and head: embed [V, D], head [D, V] unless tied.

    `deepstack` of its passes: vision features that are added to the hidden states after the first layers, one array a layer,
    zero where a token is no vision token (`vision.Features.by_layer`); () for a tower without them.
    """

    layers: "nnx.List[DecoderLayer] | DecoderLayer"  # one whose parameters are stacked, with scan_layers

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs | None) -> None:
        text, dtype = config.text, config.param_dtype
        self.config, self.dtype = text, config.dtype
        self.fused_decode = config if config.fused_decode else None
        self.remat: Remat = config.remat
        self.scan = config.scan_layers
        self.embedding = nnx.Param(normal(rngs, (text.vocab_size, text.hidden_size), dtype))
        layer = partial(DecoderLayer, config)
        if self.scan:
            keys = None if rngs is None else rngs.fork(split=text.num_hidden_layers)
            axis = None if keys is None else 0
            self.layers = nnx.vmap(lambda keys: layer(rngs=keys), in_axes=axis, axis_size=text.num_hidden_layers)(keys)
        else:
            self.layers = nnx.List([layer(rngs=rngs) for _ in range(text.num_hidden_layers)])
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps, dtype=dtype)
        head = partial(Linear, text.hidden_size, text.vocab_size, bias=False, dtype=dtype, rngs=rngs)
        self.head = None if config.tie_word_embeddings else head(weights=config.weights)

    @jax.named_scope("embed")
    def embed(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Token embeddings."""
        return _lookup(self.embedding[...], ids, self.dtype)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        index: Int[Array, "B T"],
        positions: Float32[Array, "B 3 T"],
        deepstack: Deepstack = (),
    ) -> Float[Array, "B T D"]:
        """Complete sequences, without a cache: final hidden states after the norm.

        Args:
            x: embeddings.
            index: index of each token in its sequence, 0, 1, 2 ..., then -1 for padding; a token attends to itself and to
                smaller indexes.
            positions: rotary (t, h, w).
            deepstack: see the class.
        """
        # Slot t holds token t: each query attends up to its own index, and padding (-1) is an empty slot.
        metadata = AttentionMetadata(self._rotary(positions), index, index)
        if isinstance(self.layers, DecoderLayer):
            return self._final_norm(self._scan(self.layers, x, metadata, deepstack))
        for number, layer in enumerate(self.layers):
            with jax.named_scope(f"layer_{number}"):
                x = self._rematerialize(lambda x, layer=layer: layer(x, metadata)[0])(x)
                x = _add_deepstack(x, deepstack, number)
        return self._final_norm(x)

    def _scan(self, layers: DecoderLayer, x: jax.Array, metadata: AttentionMetadata, deepstack: Deepstack) -> jax.Array:
        # One compiled layer for all: parameters [L, ...] are sliced by the scan, and remat bounds what the backward pass keeps.
        graph, stacked = nnx.split(layers)
        # A scan's backward pass is a loop of its own, so there is nothing that XLA could merge the second computation with.
        body = self._rematerialize(lambda x, state: nnx.merge(graph, state)(x, metadata)[0], prevent_cse=False)
        features = jnp.stack(deepstack) if deepstack else None

        def step(x, numbered):
            state, number = numbered
            with jax.named_scope("layer"):
                x = body(x, state)
            if features is not None:
                # Each step of a scan is the same program: the later layers read the last feature and add zero.
                feature = features[jnp.minimum(number, len(deepstack) - 1)]
                x = x + jnp.where(number < len(deepstack), feature, 0)
            return x, None

        return jax.lax.scan(step, x, (stacked, jnp.arange(self.config.num_hidden_layers)))[0]

    def _rematerialize(self, function: Callable, *, prevent_cse: bool = True) -> Callable:
        return rematerialize(function, self.remat, _SAVED.get(self.remat, ()), prevent_cse=prevent_cse)

    def extend(
        self,
        x: Float[Array, "B T D"],
        index: Int[Array, "B T"],
        positions: Float32[Array, "B 3 T"],
        slots: Int[Array, "B T"],
        cache: KVCache,
        deepstack: Deepstack = (),
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """New tokens on top of a KV cache whose slots describe them already (`KVCache.with_slots`): a prefill chunk or a decode
        step. As above, and keys and values of the tokens go into `slots`; those of a slot beyond the capacity are dropped.

        Raises:
            ValueError: the decoder is stacked (`unstack` its parameters first).
        """
        layers = self._unstacked_layers()
        # Positions change between chunks, so the angles of all slots are computed once a pass, and shared by the layers.
        slot_rotary = None if cache.rotated_keys else self._rotary(cache.positions)
        metadata = AttentionMetadata(self._rotary(positions), index, cache.index, slot_rotary, slots)
        updated: list[LayerCache] = []
        layer_caches = map(LayerCache, cache.keys, cache.values, cache.rotated_keys or repeat(None))
        for number, (layer, layer_cache) in enumerate(zip(layers, layer_caches, strict=True)):
            with jax.named_scope(f"layer_{number}"):
                x, layer_cache = call_layer(layer, x, metadata, layer_cache)
                x = _add_deepstack(x, deepstack, number)
            updated.append(cast(LayerCache, layer_cache))  # a layer that is given a cache returns one
        keys, values, rotated_keys = zip(*updated, strict=True)
        cache = cache._replace(keys=keys, values=values, rotated_keys=rotated_keys if cache.rotated_keys else ())
        return self._final_norm(x), cache

    def decode_step(
        self,
        x: Float[Array, "B 1 D"],
        index: Int[Array, "B 1"],
        positions: Float32[Array, "B 3 1"],
        slots: Int[Array, "B 1"],
        cache: KVCache,
        tiles: Int[Array, "B 2"],
    ) -> tuple[Float[Array, "B 1 D"], KVCache]:
        """`extend` by one token of each stream, over rotated keys: by fused kernels if the config asks for them.

        Args:
            tiles: `fused_decode.slot_tiles` of the cache's index, computed once for all steps of a loop.
        """
        if self.fused_decode is None:
            return self.extend(x, index, positions, slots, cache)
        mesh = jax.sharding.get_abstract_mesh()
        interpret = fused_decode.interpreted(self.fused_decode, 1 if mesh.empty else mesh.size, cache.capacity)
        step = fused_decode.DecodeStep(self._rotary(positions), slots[:, 0], index[:, 0], cache.index, tiles)
        updated: list[LayerCache] = []
        update = None
        layer_caches = map(LayerCache, cache.keys, cache.values, cache.rotated_keys)
        for number, (layer, layer_cache) in enumerate(zip(self._unstacked_layers(), layer_caches, strict=True)):
            with jax.named_scope(f"layer_{number}"):
                args = (x, update, step, layer_cache)
                x, update, layer_cache = call_layer(layer, *args, method="decode_step", interpret=interpret)
            updated.append(layer_cache)
        keys, values, rotated_keys = zip(*updated, strict=True)
        with jax.named_scope("final_norm"):
            _, normed = fused_decode.add_rms_norm(x, update, self.norm.scale[...], self.norm.eps, interpret)
        return normed, cache._replace(keys=keys, values=values, rotated_keys=rotated_keys)

    @jax.named_scope("rotate_keys")
    def with_rotated_keys(self, cache: KVCache) -> KVCache:
        """The cache with its keys rotated to their positions as well: once for a decode loop, not once a token."""
        rotary = self._rotary(cache.positions)
        return cache._replace(rotated_keys=tuple(rotate(keys, rotary, head_axis=1) for keys in cache.keys))

    @jax.named_scope("lm_head")
    def logits(self, hidden: Float[Array, "*batch D"]) -> Float32[Array, "*batch V"]:
        """Logits of final hidden states, in float32."""
        logits = matmul(hidden, self.embedding[...].T, 1) if self.head is None else self.head(hidden)
        return logits.astype(jnp.float32)

    def _unstacked_layers(self) -> list[DecoderLayer]:
        if isinstance(self.layers, DecoderLayer):
            raise ValueError("a stacked (scan_layers) decoder has no cached pass: unstack its parameters first")
        return list(self.layers)

    @jax.named_scope("final_norm")
    def _final_norm(self, x: jax.Array) -> jax.Array:
        return self.norm(x)

    @jax.named_scope("rotary")
    def _rotary(self, positions: jax.Array) -> Rotary:
        config = self.config
        return text_rotary(positions, config.mrope_section, config.rope_theta, interleaved=config.mrope_interleaved)


def target_log_probs(logits: Float32[Array, "*batch V"], targets: Int[Array, "*batch"]) -> Float32[Array, "*batch"]:
    """log p(target) in nats, 0 where a target is negative."""
    # A masked sum, because a gather along a vocabulary that is sharded over devices would first collect it.
    target_logits = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], logits, 0), axis=-1)
    return jnp.where(targets >= 0, target_logits - jax.nn.logsumexp(logits, axis=-1), 0)


def _add_deepstack(x: jax.Array, deepstack: Deepstack, layer: int) -> jax.Array:
    return x + deepstack[layer].astype(x.dtype) if layer < len(deepstack) else x
