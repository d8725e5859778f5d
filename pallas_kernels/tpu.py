"""Flash attention for TPU (Mosaic): one kernel body for a decode step, a prefill chunk and the vision tower.

The grid goes over batch, kv head and tiles of rows, and inside, one after another, over tiles of slots, whose running maximum,
sum and result stay in VMEM; tiles of slots that no row of a tile sees are neither fetched nor computed.

Axes: B batch, T tokens, N query heads, K kv heads, S slots, H head dim, R rows (T times the query heads of a kv head).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.blocks import FLOOR, NOTHING, UNSEEN, fold, ranges, round_up, unfold

LANES = 128
SUBLANES = 16  # rows come in multiples of it: a tile of bfloat16


class Tiling(NamedTuple):
    """How the work is cut: rows and slots at a time."""

    rows: int = 256
    slots: int = 512


def flash(q, k, v, *, first, last, index, rotary, tiling: Tiling, interpret: Any = False):
    """Attention as `reference.attention` defines it, of q [B, T, N, H] over k, v [B, K, S, H]."""
    batch, length, heads, width = q.shape
    kv_heads = k.shape[1]
    tile = min(tiling.rows, round_up(length * heads // kv_heads, SUBLANES))
    slots = min(tiling.slots, round_up(k.shape[2], LANES))
    more = round_up(k.shape[2], slots) - k.shape[2]
    if more:
        k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) for x in (k, v))
    rows, (first, last) = fold(q, kv_heads, tile, (first, last))
    index = jnp.pad(index, ((0, 0), (0, more)), constant_values=-1)
    index = jnp.where(index < 0, UNSEEN, index)
    bounds = ranges(first, last, index, tile, slots)

    def slot(i, j, b, bounds):
        """The tile of slots of a step; past the end the last one again, which is not fetched twice."""
        low, high = bounds[b, i, 0], bounds[b, i, 1]
        return jnp.clip(low + j, 0, jnp.maximum(high - 1, 0))

    row = pl.BlockSpec((None, tile, 1), lambda b, h, i, j, bounds: (b, i, 0))
    queries = pl.BlockSpec((None, None, tile, width), lambda b, h, i, j, bounds: (b, h, i, 0))
    keys = pl.BlockSpec((None, None, slots, width), lambda b, h, i, j, bounds: (b, h, slot(i, j, b, bounds), 0))
    column = pl.BlockSpec((None, 1, slots), lambda b, h, i, j, bounds: (b, 0, slot(i, j, b, bounds)))
    angle = pl.BlockSpec((None, slots, width // 2), lambda b, h, i, j, bounds: (b, slot(i, j, b, bounds), 0))
    tables = [] if rotary is None else [jnp.pad(x, ((0, 0), (0, more), (0, 0))) for x in rotary]
    limits = [x for x in (last, first) if x is not None]
    out = pl.pallas_call(
        partial(_body, ranged=first is not None, rotated=bool(tables), scale=width**-0.5),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, kv_heads, rows.shape[2] // tile, k.shape[2] // slots),
            in_specs=[queries, keys, keys, column, *[row] * len(limits), *[angle] * len(tables)],
            out_specs=queries,
            scratch_shapes=[pltpu.VMEM((tile, LANES), jnp.float32)] * 2 + [pltpu.VMEM((tile, width), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct(rows.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="flash",
    )(bounds, rows, k, v, index[:, None], *(x[..., None] for x in limits), *tables)
    return unfold(out, q.shape)


def _body(bounds, q, k, v, index, *rest, ranged: bool, rotated: bool, scale: float):
    limits, tables = rest[: 1 + ranged], rest[1 + ranged : 1 + ranged + 2 * rotated]
    out, peak, total, acc = rest[1 + ranged + 2 * rotated :]
    b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    steps = bounds[b, i, 1] - bounds[b, i, 0]

    @pl.when(j == 0)
    def _():
        peak[...], total[...], acc[...] = jnp.full_like(peak, FLOOR), jnp.zeros_like(total), jnp.zeros_like(acc)

    @pl.when(j < steps)
    def _():
        keys = k[...]
        if rotated:
            cos, sin = (table[...] for table in tables)
            left, right = jnp.split(keys.astype(jnp.float32), 2, axis=-1)
            keys = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(keys.dtype)
        dot = partial(lax.dot_general, precision="highest" if q.dtype == jnp.float32 else None)
        scores = dot(q[...], keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32) * scale
        visible = index[...] <= limits[0][...]
        if ranged:
            visible &= index[...] >= limits[1][...]
        scores = jnp.where(visible, scores, NOTHING)
        new = jnp.maximum(peak[...], scores.max(-1, keepdims=True))
        decay, weights = jnp.exp(peak[...] - new), jnp.exp(scores - new[:, :1])
        peak[...], total[...] = new, total[...] * decay + weights.sum(-1, keepdims=True)
        mixed = dot(weights.astype(v.dtype), v[...], (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        acc[...] = acc[...] * decay[:, :1] + mixed

    @pl.when(j == pl.num_programs(3) - 1)
    def _():
        seen = total[..., :1] > 0
        out[...] = jnp.where(seen, acc[...] / jnp.where(seen, total[..., :1], 1.0), 0.0).astype(out.dtype)
