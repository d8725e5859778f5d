"""Flash attention for Hopper (Mosaic GPU): one kernel body for a decode step, a prefill chunk and the vision tower.

A block of threads takes 64 rows a compute warpgroup (a row: one query head at one token, the G query heads of a kv head
side by side, so each key is read once for all of them) against one stretch of the slots; a memory warpgroup streams K and V
through shared memory ahead of them (TMA). Tiles of slots that no row of a tile sees are not read. With `splits` > 1 several
blocks share the slots of the same rows and their results are merged by their log-sum-exp.

The same body runs on a CPU in GPU interpret mode: `Ops` replaces what that mode lacks (register layouts, tensor cores) by plain
array code; copies, barriers, the pipeline, the grid and the masks are the real ones.

Axes: B batch, T tokens, N query heads, K kv heads, G = N/K, S slots, H head dim.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # public only from jax 0.11 on
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.blocks import FLOOR, NOTHING, UNSEEN, fold, merge, ranges, round_up, unfold

ROWS = 64  # rows of a compute warpgroup: the M of a wgmma
ACC = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]
LOG2E = math.log2(math.e)
OLD = jax.__version_info__ < (0, 11)


class Tiling(NamedTuple):
    """How the work is cut: slots at a time, tiles of K and V in flight (stages), warpgroups of 64 rows each, and into how many
    blocks the slots of the same rows (splits)."""

    slots: int = 128
    stages: int = 2
    warpgroups: int = 2
    splits: int = 1


class Ops:
    """What GPU interpret mode lacks: on a GPU the register layouts and wgmma, on a CPU plain array code."""

    def __init__(self, interpret: bool) -> None:
        self.interpret = interpret

    def cast(self, x, layout):
        return x if self.interpret else plgpu.layout_cast(x, layout)

    def load(self, ref, layout):
        if self.interpret:
            return ref[...]
        return plgpu.load(ref, (), layout=layout) if OLD else plgpu.load(ref, layout=layout)  # pyright: ignore[reportCallIssue]

    def scores(self, q, k):
        """q [m, H] @ k [n, H]^T, both in shared memory, in float32."""
        if self.interpret:
            return lax.dot_general(q[...], k[...], (((1,), (1,)), ((), ())), "highest", jnp.float32)

        def product(acc):
            plgpu.wgmma(acc, q, plgpu.transpose_ref(k, (1, 0)) if OLD else k.transpose((1, 0)))
            return acc[...]

        return pl.run_scoped(product, ACC((q.shape[0], k.shape[0]), jnp.float32))

    def accumulate(self, acc, weights, v):
        """acc + weights [m, n] @ v [n, H]; weights in registers, v in shared memory."""
        if self.interpret:
            return acc + lax.dot_general(weights, v[...], (((1,), (0,)), ((), ())), "highest", jnp.float32)
        return pl.run_state(lambda ref: plgpu.wgmma(ref, weights, v))(ACC.init(acc))


def flash(q, k, v, *, first, last, index, rotary, tiling: Tiling, interpret: bool | InterpretGPUParams = False):
    """Attention as `reference.attention` defines it, of q [B, T, N, H] over k, v [B, K, S, H]; `tiling` fits the shapes.

    Raises:
        NotImplementedError: a dtype or head dim that the tensor cores do not take.
    """
    if not interpret and (q.dtype != jnp.bfloat16 or q.shape[-1] % 16 or q.shape[-1] > 128):
        raise NotImplementedError(
            f"mosaic_gpu: got {q.dtype} and head dim {q.shape[-1]}; takes bfloat16, multiples of 16 to 128"
        )
    if rotary is not None and (tiling.warpgroups != 1 or (not interpret and q.shape[-1] not in (64, 128))):
        raise NotImplementedError("mosaic_gpu: rotates keys on read only in decode, with head dims of 64 and 128")
    slots = round_up(k.shape[2], tiling.slots)
    more = slots - k.shape[2]
    if more:
        k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) for x in (k, v))
    rows, (first, last) = fold(q, k.shape[1], tiling.warpgroups * ROWS, (first, last))
    index = jnp.pad(index, ((0, 0), (0, more)), constant_values=-1)
    index = jnp.where(index < 0, UNSEEN, index)
    operands = {"bounds": ranges(first, last, index, tiling.warpgroups * ROWS, tiling.slots)}
    operands |= {"q": rows, "k": k, "v": v, "index": index, "last": last}
    if first is not None:
        operands["first"] = first
    if rotary is not None:
        # Of numbers up to 1, 16 bits hold three more as float16 than as bfloat16.
        fine = jnp.float16 if q.dtype == jnp.bfloat16 else q.dtype
        operands |= {name: jnp.pad(x, ((0, 0), (0, more), (0, 0))).astype(fine) for name, x in rotary._asdict().items()}
    used = q.shape[1] * (q.shape[2] // k.shape[1])
    out, mass = _kernel(rows.shape, used, q.dtype, frozenset(operands), tiling, interpret)(operands)
    return unfold(out[0] if tiling.splits == 1 else merge(out, mass), q.shape)


def _kernel(shape, used: int, dtype, operands: frozenset[str], tiling: Tiling, interpret) -> Any:
    """The kernel for rows [B, K, R, H], of which `used` are tokens; `operands`: names of what `flash` gives it."""
    ops = Ops(bool(interpret))
    batch, kv_heads, count, width = shape
    tile, groups, half = tiling.slots, tiling.warpgroups, shape[3] // 2
    scale = width**-0.5 * LOG2E  # scores in powers of two
    matrix, row, column = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)
    across = partial(lax.broadcast_in_dim, shape=(ROWS, tile), broadcast_dimensions=(0,))
    rotated = "cos" in operands
    limits = [name for name in ("last", "first") if name in operands]
    keys = _transforms(half if rotated else width, dtype)  # keys that are rotated are read by halves
    written = min(ROWS, round_up(used, 8)) if count == ROWS else ROWS  # rows of a warpgroup that are written

    def body(given, out, mass, held):
        b, h, i, j = (lax.axis_index(name) for name in ("b", "h", "i", "j"))
        low, high = given["bounds"][b, i, 0], given["bounds"][b, i, 1]
        share = lax.div(high - low + tiling.splits - 1, jnp.int32(tiling.splits))
        start = low + j * share
        steps = jnp.clip(high - start, 0, share)

        def mine(name):
            return held[name].at[lax.axis_index("wg")]

        def step(_, k, v, index, *refs):
            *turn, (acc, peak, total) = refs
            if rotated:
                _rotate(ops, k, turn, held["rotated"], matrix)
                k = held["rotated"]
            scores = ops.scores(mine("q"), k)
            at = lax.broadcast_in_dim(ops.load(index, column), (ROWS, tile), (1,))
            visible = at <= across(ops.load(mine("last"), row))
            if "first" in operands:
                visible = visible & (at >= across(ops.load(mine("first"), row)))
            scores = jnp.where(visible, scores, NOTHING)
            new = jnp.maximum(peak, scores.max(axis=1) * scale)
            weights = jnp.exp2(scores * scale - across(new))
            decay = jnp.exp2(peak - new)
            total = total * decay + weights.sum(axis=1)
            acc = acc * lax.broadcast_in_dim(decay, (ROWS, width), (0,))
            return ops.accumulate(acc, weights.astype(dtype), v), new, total

        def compute(pipeline):
            me = lax.axis_index("wg")
            place = (i * groups + me) * ROWS
            plgpu.copy_gmem_to_smem(given["q"].at[b, h, pl.ds(place, ROWS)], mine("q"), held["ready"].at[me])
            for name in limits:
                plgpu.copy_gmem_to_smem(given[name].at[b, pl.ds(place, ROWS)], mine(name), held["ready"].at[me])
            plgpu.barrier_wait(held["ready"].at[me])
            acc = ops.cast(jnp.zeros((ROWS, width), jnp.float32), matrix)
            peak = ops.cast(jnp.full((ROWS,), FLOOR, jnp.float32), row)
            total = ops.cast(jnp.zeros((ROWS,), jnp.float32), row)
            acc, peak, total = pipeline((acc, peak, total))
            seen = total > 0
            total = jnp.where(seen, total, 1.0)
            acc = acc * lax.broadcast_in_dim(jnp.where(seen, 1 / total, 0.0), (ROWS, width), (0,))
            mine("q")[...] = acc.astype(dtype)
            mine("mass")[...] = jnp.where(seen, peak + jnp.log(total) * LOG2E, NOTHING)
            plgpu.commit_smem()
            for name, target in (("q", out), ("mass", mass)):
                plgpu.copy_smem_to_gmem(mine(name).at[pl.ds(0, written)], target.at[j, b, h, pl.ds(place, written)])
            plgpu.wait_smem_to_gmem(0)

        def tiles(size, of):
            return plgpu.BlockSpec((tile, size), lambda n: (start + n, 0), transforms=of)

        specs = [tiles(width, keys), tiles(width, _transforms(width, dtype)), plgpu.BlockSpec((tile,), lambda n: (start + n,))]
        streamed = [given["k"].at[b, h], given["v"].at[b, h], given["index"].at[b]]
        if rotated:
            specs += [tiles(half, _transforms(half, given["cos"].dtype))] * 2
            streamed += [given["cos"].at[b], given["sin"].at[b]]
        plgpu.emit_pipeline_warp_specialized(
            step,  # pyright: ignore[reportArgumentType]
            grid=(steps,),
            in_specs=specs,
            max_concurrent_steps=tiling.stages,
            wg_axis="wg",
            num_compute_wgs=groups,
            memory_registers=40,
            compute_context=compute,
        )(*streamed)

    scratch = {
        "q": plgpu.SMEM((groups, ROWS, width), dtype, transforms=keys),
        "mass": plgpu.SMEM((groups, ROWS), jnp.float32),
        **{name: plgpu.SMEM((groups, ROWS), jnp.int32) for name in limits},
        **({"rotated": plgpu.SMEM((tile, width), dtype, transforms=keys)} if rotated else {}),
        "ready": plgpu.Barrier(num_arrivals=1 + len(limits), num_barriers=groups),
    }
    results = (tiling.splits, batch, kv_heads, count // ROWS * written)
    return plgpu.kernel(
        body,
        out_type=[jax.ShapeDtypeStruct((*results, width), dtype), jax.ShapeDtypeStruct(results, jnp.float32)],
        scratch_types=[scratch],
        grid=(tiling.splits, count // (groups * ROWS), kv_heads, batch),
        grid_names=("j", "i", "h", "b"),
        num_threads=groups + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=(interpret if isinstance(interpret, InterpretGPUParams) else InterpretGPUParams()) if interpret else None,
    )


def _rotate(ops: Ops, keys, turn, target, layout) -> None:
    """Keys of one tile, rotated, from shared memory to shared memory."""
    half = target.shape[1] // 2
    halves = [pl.ds(0, half), pl.ds(half, half)]
    plgpu.commit_smem()  # all warps have done with the tile before
    cos, sin = (ops.load(table, layout).astype(jnp.float32) for table in turn)
    left, right = (ops.load(keys.at[:, part], layout).astype(jnp.float32) for part in halves)
    target[:, halves[0]] = (left * cos - right * sin).astype(target.dtype)
    target[:, halves[1]] = (right * cos + left * sin).astype(target.dtype)
    plgpu.commit_smem()


def _transforms(width: int, dtype) -> tuple:
    """Tiles and swizzle of rows of that many elements: the widest swizzle that they fill."""
    size = jnp.dtype(dtype).itemsize
    for swizzle in (128, 64, 32):
        if width * size % swizzle == 0:
            return plgpu.TilingTransform((8, swizzle // size)), plgpu.SwizzleTransform(swizzle)
    return ()
