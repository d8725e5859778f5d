"""Flash attention for TPU (Mosaic): one kernel body for a decode step, a prefill chunk and the vision tower.

The grid goes over batch, kv head and tiles of query rows, and inside, one after another, over tiles of slots. The online
softmax (arXiv 2205.14135) keeps m, the running maximum of a row, l, the sum of exp(score - m), and acc, the sum of values
weighted so, in VMEM; tiles of slots that no row of a tile attends to are neither fetched nor computed.

Axes: B batch, T tokens, N query heads, K kv heads, S slots, H head dim, R query rows (T times the query heads of a kv head).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.blocks import (
    MASK_VALUE,
    RUNNING_MAX_INIT,
    kernel_operands,
    round_up,
    unfold,
)

LANES = 128  # a vector register is 8 x 128 of 32 bits
SUBLANES = 16  # query rows come in multiples of it: a tile of bfloat16


class Tiling(NamedTuple):
    """How the work is cut: query rows and slots at a time."""

    q_rows: int = 256
    slots: int = 512


def flash(q, k, v, *, first, last, index, rotary, tiling: Tiling, interpret: Any = False):
    """Attention as `reference.attention` defines it, of q [B, T, N, H] over k, v [B, K, S, H]."""
    batch, length, heads, width = q.shape
    kv_heads = k.shape[1]
    q_tile = min(tiling.q_rows, round_up(length * heads // kv_heads, SUBLANES))
    kv_tile = min(tiling.slots, round_up(k.shape[2], LANES))
    slots = k.shape[2]
    operands = kernel_operands(q, k, v, first, last, index, q_tile, kv_tile)
    bounds, q_rows, k, v, index = (operands[name] for name in ("bounds", "q", "k", "v", "index"))

    def kv_block(i, j, b, bounds):
        """The tile of slots of step j; past the end the last one again, because a block that stays is not fetched again."""
        low, high = bounds[b, i, 0], bounds[b, i, 1]
        return jnp.clip(low + j, 0, jnp.maximum(high - 1, 0))

    # A limit [B, R] is a column and an index [B, S] a row, so that they broadcast against scores without a transpose.
    limit_spec = pl.BlockSpec((None, q_tile, 1), lambda b, h, i, j, bounds: (b, i, 0))
    q_spec = pl.BlockSpec((None, None, q_tile, width), lambda b, h, i, j, bounds: (b, h, i, 0))
    kv_spec = pl.BlockSpec((None, None, kv_tile, width), lambda b, h, i, j, bounds: (b, h, kv_block(i, j, b, bounds), 0))
    index_spec = pl.BlockSpec((None, 1, kv_tile), lambda b, h, i, j, bounds: (b, 0, kv_block(i, j, b, bounds)))
    angle_spec = pl.BlockSpec((None, kv_tile, width // 2), lambda b, h, i, j, bounds: (b, kv_block(i, j, b, bounds), 0))
    angles = [] if rotary is None else [jnp.pad(x, ((0, 0), (0, k.shape[2] - slots), (0, 0))) for x in rotary]
    limits = [operands[name] for name in ("last", "first") if name in operands]
    out = pl.pallas_call(
        partial(_body, has_first=first is not None, rotated_on_read=bool(angles), scale=width**-0.5),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, kv_heads, q_rows.shape[2] // q_tile, k.shape[2] // kv_tile),
            in_specs=[q_spec, kv_spec, kv_spec, index_spec, *[limit_spec] * len(limits), *[angle_spec] * len(angles)],
            out_specs=q_spec,
            # m and l fill a whole row of lanes with copies of one number: a column of single numbers would be relaid out.
            scratch_shapes=[pltpu.VMEM((q_tile, LANES), jnp.float32)] * 2 + [pltpu.VMEM((q_tile, width), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct(q_rows.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="flash",
    )(bounds, q_rows, k, v, index[:, None], *(x[..., None] for x in limits), *angles)
    return unfold(out, q.shape)


def _body(bounds, q, k, v, index, *rest, has_first: bool, rotated_on_read: bool, scale: float):
    """One tile of slots for one tile of query rows. rest: the limits last (and first), cos and sin if any, then the result and
    the scratch arrays m, l, acc."""
    limits, angles = rest[: 1 + has_first], rest[1 + has_first : 1 + has_first + 2 * rotated_on_read]
    out, m, l, acc = rest[1 + has_first + 2 * rotated_on_read :]
    b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    steps = bounds[b, i, 1] - bounds[b, i, 0]

    @pl.when(j == 0)
    def _():
        m[...], l[...], acc[...] = jnp.full_like(m, RUNNING_MAX_INIT), jnp.zeros_like(l), jnp.zeros_like(acc)

    @pl.when(j < steps)  # the grid is as long as for a tile of rows that attends to every slot
    def _():
        keys = k[...]
        if rotated_on_read:
            cos, sin = (table[...] for table in angles)
            k1, k2 = jnp.split(keys.astype(jnp.float32), 2, axis=-1)
            keys = jnp.concatenate([k1 * cos - k2 * sin, k2 * cos + k1 * sin], axis=-1).astype(keys.dtype)
        dot = partial(lax.dot_general, precision="highest" if q.dtype == jnp.float32 else None)
        scores = dot(q[...], keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32) * scale
        visible = index[...] <= limits[0][...]
        if has_first:
            visible &= index[...] >= limits[1][...]
        scores = jnp.where(visible, scores, MASK_VALUE)
        m_new = jnp.maximum(m[...], scores.max(-1, keepdims=True))
        # What was summed so far was relative to the old maximum.
        correction, weights = jnp.exp(m[...] - m_new), jnp.exp(scores - m_new[:, :1])
        m[...], l[...] = m_new, l[...] * correction + weights.sum(-1, keepdims=True)
        mixed = dot(weights.astype(v.dtype), v[...], (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        acc[...] = acc[...] * correction[:, :1] + mixed

    @pl.when(j == pl.num_programs(3) - 1)
    def _():
        is_visible = l[..., :1] > 0  # a row that attends to nothing gives zeros
        out[...] = jnp.where(is_visible, acc[...] / jnp.where(is_visible, l[..., :1], 1.0), 0.0).astype(out.dtype)
