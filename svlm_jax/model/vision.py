"""The vision tower: patches in, one feature for every 2x2 patches out.

One tower for Qwen2.5-VL (arXiv 2502.13923, section 2.1.1), Qwen2-VL (arXiv 2409.12191) and Qwen3-VL (arXiv 2511.21631): what
differs is a field of `VisionConfig`. It is called with a `VisionInput` and returns `Features`: that is all the model knows.

Takes patches in window order (`inputs.pack_vision`), so that nothing is permuted here: window layers and per-frame full layers
differ only in the range of patches that a patch attends to. Padding attends to nothing and stays finite.

Axes: B batch, P patches, C numbers a patch, E width, N heads, H head dim (64, 72 or 80), M = P/4, D text width, L learned
positions around a patch.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, UInt8

from svlm_jax.config import VISION_EPS, VISION_ROPE_THETA, ModelConfig, Remat, VisionConfig
from svlm_jax.inputs import VISION_TABLES, VisionInput
from svlm_jax.model.attention import vision_attention
from svlm_jax.model.layers import MLP, GatedMLP, LayerNorm, Linear, RMSNorm, call_layer, normal, rematerialize
from svlm_jax.model.rope import Rotary, rotate, vision_rotary

jax.tree_util.register_dataclass(VisionInput, data_fields=["patches", *VISION_TABLES], meta_fields=["frame_span"])

NORMS = {"rms_norm": RMSNorm, "layer_norm": LayerNorm}


class Features(NamedTuple):
    """What a vision tower gives the decoder.

    rows: the embedding of each merged vision token, in window order. by_layer: what is added to the hidden states of these
    tokens after each of the first decoder layers (DeepStack, arXiv 2406.04334); () for a tower without it.
    """

    rows: Float[Array, "B M D"]
    by_layer: tuple[Float[Array, "B M D"], ...] = ()


class VisionAttention(nnx.Module):
    """Multi-head attention inside segments. qkv kernel [E, 3, N, H]: q, k and v are an axis, so sharding cannot cut across."""

    def __init__(self, config: ModelConfig, linear: Callable[..., Linear]) -> None:
        size, heads = config.vision.hidden_size, (config.vision.num_heads, config.vision.head_dim)
        self.implementation = config.attention
        self.qkv = linear(size, (3, *heads), bias=True)
        self.out = linear(heads, size, bias=True)

    def __call__(
        self, x: Float[Array, "B P E"], rotary: Rotary, segment: Int[Array, "B P 2"], index: Int[Array, "B P"], span: int
    ) -> Float[Array, "B P E"]:
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)  # from [B, P, 3, N, H]
        q, k = rotate(q, rotary, head_axis=2), rotate(k, rotary, head_axis=2)
        first, last = segment[..., 0], segment[..., 1]
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        ranges = {"first": first, "last": last, "index": index, "span": span}
        return self.out(vision_attention(q, k, v, **ranges, implementation=self.implementation))


class VisionBlock(nnx.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs | None) -> None:
        vision, dtype = config.vision, config.param_dtype
        size, hidden, norm = vision.hidden_size, vision.intermediate_size, NORMS[vision.norm]
        linear = partial(Linear, dtype=dtype, rngs=rngs)
        self.norm1 = norm(size, VISION_EPS, dtype=dtype)
        self.norm2 = norm(size, VISION_EPS, dtype=dtype)
        self.attention = VisionAttention(config, linear)
        if vision.hidden_act == "silu":
            self.mlp = GatedMLP(size, hidden, linear, bias=True, fused=config.fused)
        else:
            self.mlp = MLP(size, hidden, vision.hidden_act, linear)

    def __call__(
        self, x: Float[Array, "B P E"], rotary: Rotary, segment: Int[Array, "B P 2"], index: Int[Array, "B P"], span: int
    ) -> Float[Array, "B P E"]:
        with jax.named_scope("attention"):
            x = x + self.attention(self.norm1(x), rotary, segment, index, span)
        with jax.named_scope("mlp"):
            return x + self.mlp(self.norm2(x))


class Merger(nnx.Module):
    """Norm, then four neighbouring patches -> one feature through a two-layer MLP with the exact (erf) gelu. norm_merged: the
    norm is over the four patches together (DeepStack), instead of over each."""

    def __init__(self, config: VisionConfig, *, norm_merged: bool = False, dtype: str, rngs: nnx.Rngs | None) -> None:
        merged_width = config.hidden_size * config.merge_unit
        self.norm_merged = norm_merged
        self.norm = NORMS[config.norm](merged_width if norm_merged else config.hidden_size, VISION_EPS, dtype=dtype)
        self.up = Linear(merged_width, merged_width, bias=True, dtype=dtype, rngs=rngs)
        self.down = Linear(merged_width, config.out_hidden_size, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B P E"]) -> Float[Array, "B M D"]:
        # Window order keeps the four patches of a merge unit next to each other.
        merged = x.shape[0], -1, self.up.kernel.shape[0]
        x = self.norm(x.reshape(merged)) if self.norm_merged else self.norm(x).reshape(merged)
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


def normalised(raw: UInt8[Array, "*batch C"], config: VisionConfig) -> Float32[Array, "*batch C"]:
    """Raw uint8 patches normalised channel by channel, as the preprocessor does it."""
    mean, std = (jnp.asarray(number, jnp.float32)[:, None] for number in (config.image_mean, config.image_std))
    by_channel = raw.reshape(*raw.shape[:-1], 3, -1).astype(jnp.float32)
    return ((by_channel / 255 - mean) / std).reshape(raw.shape)


class VisionTower(nnx.Module):
    """Patches [B, P, C] -> features, both in window order."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs | None) -> None:
        self.config, self.dtype = config.vision, config.dtype
        self.remat: Remat = config.remat
        vision, dtype = config.vision, config.param_dtype
        merger = partial(Merger, vision, dtype=dtype, rngs=rngs)
        self.patch_embed = Linear(vision.patch_dim, vision.hidden_size, bias=vision.patch_bias, dtype=dtype, rngs=rngs)
        if vision.num_position_embeddings:
            self.position_embedding = nnx.Param(normal(rngs, (vision.num_position_embeddings, vision.hidden_size), dtype))
        self.blocks = nnx.List([VisionBlock(config, rngs) for _ in range(vision.depth)])
        self.merger = merger()
        self.deepstack = nnx.List([merger(norm_merged=True) for _ in vision.deepstack_visual_indexes])

    @jax.named_scope("vision")
    def __call__(self, vision: VisionInput) -> Features:
        vision = jax.tree.map(jnp.asarray, vision)
        x = self._embed(vision)
        rotary = vision_rotary(vision.positions, self.config.head_dim, VISION_ROPE_THETA)
        # An empty range (last < first) marks padding.
        is_patch = vision.frame_range[..., 0] <= vision.frame_range[..., 1]
        index = jnp.where(is_patch, jnp.arange(x.shape[1]), -1)
        by_layer = []
        for number, block in enumerate(self.blocks):
            with jax.named_scope(f"block_{number}"):
                is_full = number in self.config.fullatt_block_indexes
                span = vision.frame_span if is_full else self.config.window_patches
                # Of a tower that is trained: 24 s of 720p are 73,728 patches, and a block's activations several GB.
                call_block = rematerialize(partial(call_layer, block, span=span), self.remat)
                x = call_block(x, rotary, vision.frame_range if is_full else vision.window_range, index)
            if number in self.config.deepstack_visual_indexes:
                with jax.named_scope("deepstack"):
                    by_layer.append(self.deepstack[len(by_layer)](x))
        with jax.named_scope("merger"):
            return Features(self.merger(x), tuple(by_layer))

    @jax.named_scope("patch_embed")
    def _embed(self, vision: VisionInput) -> Float[Array, "B P E"]:
        patches = normalised(vision.patches, self.config) if vision.patches.dtype == jnp.uint8 else vision.patches
        x = self.patch_embed(patches.astype(self.dtype))
        if not self.config.num_position_embeddings:
            return x
        # One gather for each of the four neighbours: the sum needs no [B, P, L, E].
        position = jnp.float32(0)
        for k in range(vision.position_index.shape[-1]):
            rows = jnp.take(self.position_embedding[...], vision.position_index[..., k], axis=0)
            position = position + rows.astype(jnp.float32) * vision.position_weight[..., k, None]
        return x + position.astype(x.dtype)
