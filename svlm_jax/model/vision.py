"""The vision tower of Qwen2.5-VL (arXiv 2502.13923, section 2.1.1): patches in, one feature for every 2x2 patches out.

A tower is called with a `VisionInput` and returns `Features`: that is all the model knows of it.

Takes patches in window order (`inputs.pack_vision`), so that nothing is permuted here: window layers and per-frame full layers
differ only in the range of patches that a patch attends to. Padding attends to nothing and stays finite.

Axes: B batch, P patches, C numbers a patch, E width, N heads, H head dim (80 in every published size), M = P/4, D text width.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, UInt8

from svlm_jax.config import VISION_EPS, VISION_ROPE_THETA, ModelConfig, VisionConfig
from svlm_jax.inputs import VisionInput
from svlm_jax.model.attention import vision_attention
from svlm_jax.model.layers import GatedMLP, Linear, RMSNorm, call_layer
from svlm_jax.model.rope import Rotary, rotate, vision_rotary

jax.tree_util.register_dataclass(
    VisionInput, data_fields=["patches", "positions", "window_range", "frame_range"], meta_fields=["frame_span"]
)


class Features(NamedTuple):
    """What a vision tower gives the decoder.

    rows: the embedding of each merged vision token, in window order. by_layer: what is added to the hidden states of these
    tokens after each of the first decoder layers (DeepStack, arXiv 2406.04334); () for Qwen2.5-VL.
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
    """Pre-norm attention and gated MLP."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs | None) -> None:
        size, dtype = config.vision.hidden_size, config.param_dtype
        linear = partial(Linear, dtype=dtype, rngs=rngs)
        self.norm1 = RMSNorm(size, VISION_EPS, dtype=dtype)
        self.norm2 = RMSNorm(size, VISION_EPS, dtype=dtype)
        self.attention = VisionAttention(config, linear)
        self.mlp = GatedMLP(size, config.vision.intermediate_size, linear, bias=True, fused=config.fused)

    def __call__(
        self, x: Float[Array, "B P E"], rotary: Rotary, segment: Int[Array, "B P 2"], index: Int[Array, "B P"], span: int
    ) -> Float[Array, "B P E"]:
        with jax.named_scope("attention"):
            x = x + self.attention(self.norm1(x), rotary, segment, index, span)
        with jax.named_scope("mlp"):
            return x + self.mlp(self.norm2(x))


class Merger(nnx.Module):
    """Norm, then four neighbouring patches -> one feature through a two-layer MLP with the exact (erf) gelu."""

    def __init__(self, config: VisionConfig, *, dtype: str, rngs: nnx.Rngs | None) -> None:
        merged_width = config.hidden_size * config.merge_unit
        self.norm = RMSNorm(config.hidden_size, VISION_EPS, dtype=dtype)
        self.up = Linear(merged_width, merged_width, bias=True, dtype=dtype, rngs=rngs)
        self.down = Linear(merged_width, config.out_hidden_size, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B P E"]) -> Float[Array, "B M D"]:
        # Window order keeps the four patches of a merge unit next to each other.
        x = self.norm(x).reshape(x.shape[0], -1, self.up.kernel.shape[0])
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


def normalised(raw: UInt8[Array, "*batch C"], config: VisionConfig) -> Float32[Array, "*batch C"]:
    """Raw uint8 patches normalised channel by channel, as the preprocessor does it."""
    mean, std = (jnp.asarray(number, jnp.float32)[:, None] for number in (config.image_mean, config.image_std))
    by_channel = raw.reshape(*raw.shape[:-1], 3, -1).astype(jnp.float32)
    return ((by_channel / 255 - mean) / std).reshape(raw.shape)


class VisionTower(nnx.Module):
    """Patches [B, P, C] -> rows [B, M, D], both in window order."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs | None) -> None:
        self.config, self.dtype = config.vision, config.dtype
        vision, dtype = config.vision, config.param_dtype
        self.patch_embed = Linear(vision.patch_dim, vision.hidden_size, bias=False, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([VisionBlock(config, rngs) for _ in range(vision.depth)])
        self.merger = Merger(vision, dtype=dtype, rngs=rngs)

    @jax.named_scope("vision")
    def __call__(self, vision: VisionInput) -> Features:
        vision = jax.tree.map(jnp.asarray, vision)
        with jax.named_scope("patch_embed"):
            patches = normalised(vision.patches, self.config) if vision.patches.dtype == jnp.uint8 else vision.patches
            x = self.patch_embed(patches.astype(self.dtype))
        rotary = vision_rotary(vision.positions, self.config.head_dim, VISION_ROPE_THETA)
        # An empty range (last < first) marks padding.
        is_patch = vision.frame_range[..., 0] <= vision.frame_range[..., 1]
        index = jnp.where(is_patch, jnp.arange(x.shape[1]), -1)
        for number, block in enumerate(self.blocks):
            with jax.named_scope(f"block_{number}"):
                if number in self.config.fullatt_block_indexes:
                    x = call_layer(block, x, rotary, vision.frame_range, index, span=vision.frame_span)
                else:
                    x = call_layer(block, x, rotary, vision.window_range, index, span=self.config.window_patches)
        with jax.named_scope("merger"):
            return Features(self.merger(x))
