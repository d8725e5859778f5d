"""A decode step of few kernels: what `pallas_kernels.decode_step` needs of a model, and where it can run.

Chosen by `ModelConfig.fused_decode`. It has not run on a GPU yet, so nothing takes it by itself: `python -m benchmarks decode`
measures it. Whatever comes between projections and rotation, and inside an MLP, stays the model's own.

Axes: B batch, K kv heads, G query heads of a kv head, S slots, H head dim, N = K * G, D width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.blocks import filled_tiles
from pallas_kernels.dispatch import implementation_for
from pallas_kernels.grid import DECODE_TILE
from pallas_kernels.rotary import Rotary
from svlm_jax.config import ModelConfig
from svlm_jax.errors import InputError

MAX_GROUP = 61  # query heads of a kv head: rows of a tile, but for the key, the rotated key and the value


class DecodeStep(NamedTuple):
    """What all layers of one step share.

    rotary: rotation of the new tokens. slot: where the key and value of each go, S or more: nowhere. last: index of each.
    index: of each slot. tiles: of slots that hold anything (`slot_tiles`).
    """

    rotary: Rotary
    slot: Int[Array, " B"]
    last: Int[Array, " B"]
    index: Int[Array, "B S"]
    tiles: Int[Array, "B 2"]


def slot_tiles(index: Int[Array, "B S"]) -> Int[Array, "B 2"]:
    """From which tile of slots, and up to which (exclusive), a decode step reads: those of a reply are in it, since they are
    described before it is decoded."""
    return filled_tiles(index, DECODE_TILE)


def interpreted(config: ModelConfig, num_devices: int, capacity: int | None = None) -> bool:
    """Whether the kernels run interpreted, as `config.attention` says.

    Raises:
        InputError: they do not take this model, these devices or a cache of `capacity` slots.
    """
    text, remedy = config.text, "leave fused_decode out"
    kernels = implementation_for(config.attention, config.dtype, text.head_dim)
    on_gpu = kernels.startswith("mosaic_gpu")
    group = text.num_attention_heads // text.num_key_value_heads
    problems = (
        (not on_gpu and not kernels.startswith("interpret"), f"attention {kernels}", "mosaic_gpu (a Hopper GPU)"),
        (on_gpu and text.head_dim % 128 != 0, f"head dim {text.head_dim}", "a multiple of 128"),
        (on_gpu and config.dtype != "bfloat16", config.dtype, "bfloat16"),
        (text.hidden_size % 128 != 0 and on_gpu, f"hidden_size {text.hidden_size}", "a multiple of 128"),
        (group > MAX_GROUP, f"{group} query heads a kv head", f"at most {MAX_GROUP}"),
        (num_devices > 1, f"{num_devices} devices", "one"),
        ((capacity or 0) % DECODE_TILE != 0, f"{capacity} slots", f"a multiple of {DECODE_TILE}"),
    )
    for is_problem, got, expected in problems:
        if is_problem:
            raise InputError("fused_decode", got, expected, remedy)
    return not on_gpu


def attend(
    q: Float[Array, "B 1 N H"],
    rotated_key: Float[Array, "B 1 K H"],
    key: Float[Array, "B 1 K H"],
    value: Float[Array, "B 1 K H"],
    cache: tuple[jax.Array, jax.Array, jax.Array],
    step: DecodeStep,
    interpret: bool,
) -> tuple[Float[Array, "B 1 N H"], tuple[jax.Array, jax.Array, jax.Array]]:
    """(attention of one token, the layer's (rotated keys, keys, values) with that token); q is rotated."""
    from pallas_kernels import decode_step as kernels  # needs a Pallas backend, which not every installation of jax has

    batch, _, kv_heads, width = key.shape
    group = q.shape[2] // kv_heads
    rows = [
        q.reshape(batch, kv_heads, group, width),
        *(x.reshape(batch, kv_heads, 1, width) for x in (rotated_key, key, value)),
    ]
    padding = jnp.zeros((batch, kv_heads, kernels.row_count(group) - group - 3, width), q.dtype)
    metadata = kernels.StepMetadata(step.slot, step.last, step.index, step.tiles)
    new = jnp.concatenate([*rows, padding], axis=2)
    out, *updated = kernels.attend(new, *cache, metadata, group=group, interpret=interpret)
    rotated_keys, keys, values = updated
    return out, (rotated_keys, keys, values)


def add_rms_norm(
    x: Float[Array, "B 1 D"], update: Float[Array, "B 1 D"] | None, scale: Float[Array, " D"], eps: float, interpret: bool
) -> tuple[Float[Array, "B 1 D"], Float[Array, "B 1 D"]]:
    """(x + update, its RMSNorm times scale)."""
    from pallas_kernels import decode_step as kernels

    row = None if update is None else update[:, 0]
    total, normed = kernels.add_rms_norm(x[:, 0], row, scale.astype(x.dtype), eps, interpret=interpret)
    return total[:, None], normed[:, None]
