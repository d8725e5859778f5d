"""Flash attention for Hopper (Mosaic GPU): one kernel body for a decode step, a prefill chunk and the vision tower.

A thread block takes 64 query rows a compute warpgroup (a row: one query head at one token, the G query heads of a kv head side
by side, so each key is read once for all of them) against one stretch of the slots; a memory warpgroup streams K and V through
shared memory ahead of them (TMA). Tiles of slots that no row of a tile attends to are not read. With `splits` > 1 several
blocks share the slots of the same rows, and their results are merged by their log-sum-exp (flash decoding).

The softmax is online (arXiv 2205.14135): m is the running maximum of a row, l the sum of exp2(score - m), acc the sum of values
weighted so. Scores are in powers of two, because exp2 is one instruction.

The same body runs on a CPU in GPU interpret mode: `Ops` replaces what that mode lacks (register layouts, tensor cores) by plain
array code; copies, barriers, the pipeline, the grid and the masking are the real ones.

Axes: B batch, T tokens, N query heads, K kv heads, G = N/K, R query rows = T * G, S slots, H head dim, J splits.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # public only from jax 0.11 on
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.blocks import MASK_VALUE, RUNNING_MAX_INIT, kernel_operands, merge_splits, round_up, unfold
from pallas_kernels.mosaic_ops import COLUMN, COLUMNS, LOG2E, MATRIX, ROW, ROWS, Ops, check_dtype, swizzle_transforms


class Tiling(NamedTuple):
    """How the work is cut: slots at a time, tiles of K and V in flight (stages), warpgroups of 64 rows each, and into how many
    blocks the slots of the same rows (splits)."""

    slots: int = 128
    stages: int = 2
    warpgroups: int = 2
    splits: int = 1


def flash(q, k, v, *, first, last, index, rotary, tiling: Tiling, interpret: bool | InterpretGPUParams = False):
    """Attention as `reference.attention` defines it, of q [B, T, N, H] over k, v [B, K, S, H]; `tiling` fits the shapes.

    Raises:
        NotImplementedError: a dtype or head dim that the kernel does not take. One that is no multiple of 16 is padded, which
            copies k and v unless what makes them writes them so (the vision tower; not a cache).
    """
    if not interpret:
        check_dtype("mosaic_gpu", q)
    if rotary is not None and (tiling.warpgroups != 1 or (not interpret and q.shape[-1] not in (64, 128))):
        raise NotImplementedError("mosaic_gpu: rotates keys on read only in decode, with head dims of 64 and 128")
    columns = COLUMNS if rotary is None else 1  # keys that are rotated on read are halves of the head dim itself
    operands = kernel_operands(q, k, v, first, last, index, tiling.warpgroups * ROWS, tiling.slots, columns)
    if rotary is not None:
        # Cosines and sines are at most 1: 16 bits of float16 have three more bits of mantissa than bfloat16.
        angle_dtype = jnp.float16 if q.dtype == jnp.bfloat16 else q.dtype
        padding = operands["k"].shape[2] - k.shape[2]
        padded = {name: jnp.pad(x, ((0, 0), (0, padding), (0, 0))) for name, x in rotary._asdict().items()}
        operands |= {name: x.astype(angle_dtype) for name, x in padded.items()}
    static = {"real_rows": q.shape[1] * (q.shape[2] // k.shape[1]), "scale": q.shape[-1] ** -0.5}
    kernel = _Kernel(operands["q"].shape, q.dtype, frozenset(operands), tiling, interpret, **static)
    out, lse = kernel(operands)
    return unfold(out[0] if tiling.splits == 1 else merge_splits(out, lse), q.shape)


class _Kernel:
    """The kernel for query rows [B, K, R, H] of one shape: what is static about it, and what a thread block does. H may be
    padded: `scale` is that of the true head dim.

    Owns the grid, the scratch memory and the online softmax. `operands` of its methods are arrays in global memory by name, as
    `flash` gives them; `smem` scratch arrays in shared memory, by name, with a leading axis of warpgroups.
    """

    def __init__(
        self,
        shape,
        dtype,
        names: frozenset[str],
        tiling: Tiling,
        interpret: bool | InterpretGPUParams,
        *,
        real_rows: int,
        scale: float,
    ) -> None:
        """names: of the operands; real_rows: rows that are no padding; scale: of the scores."""
        self.ops, self.interpret = Ops(bool(interpret)), interpret
        self.shape, self.dtype, self.tiling = shape, dtype, tiling
        self.width, self.scale = shape[3], scale * LOG2E  # scores in powers of two
        self.rotated_on_read, self.has_first = "cos" in names, "first" in names
        self.limits = ["last", "first"] if self.has_first else ["last"]
        # Keys that are rotated are read by halves, so a swizzle must not span both.
        self.key_transforms = swizzle_transforms(self.width // 2 if self.rotated_on_read else self.width, dtype)
        # A decode step has few rows: only those that are real (in eights, the rows of a tile) are written, not all 64.
        self.written_rows = min(ROWS, round_up(real_rows, 8)) if shape[2] == ROWS else ROWS

    def __call__(self, operands: dict[str, Any]) -> Any:
        """Results of each split: attention [J, B, K, R, H], normalised, and base-2 log-sum-exp [J, B, K, R]."""
        batch, kv_heads, count, width = self.shape
        warpgroups, splits, slots = self.tiling.warpgroups, self.tiling.splits, self.tiling.slots
        scratch = {
            "q": plgpu.SMEM((warpgroups, ROWS, width), self.dtype, transforms=self.key_transforms),
            "lse": plgpu.SMEM((warpgroups, ROWS), jnp.float32),
            **{name: plgpu.SMEM((warpgroups, ROWS), jnp.int32) for name in self.limits},
            "ready": plgpu.Barrier(num_arrivals=1 + len(self.limits), num_barriers=warpgroups),
        }
        if self.rotated_on_read:
            scratch["rotated_keys"] = plgpu.SMEM((slots, width), self.dtype, transforms=self.key_transforms)
        results = (splits, batch, kv_heads, count // ROWS * self.written_rows)
        interpret = self.interpret if isinstance(self.interpret, InterpretGPUParams) else InterpretGPUParams()
        run = plgpu.kernel(
            self._flash_attention_block,
            out_type=[jax.ShapeDtypeStruct((*results, width), self.dtype), jax.ShapeDtypeStruct(results, jnp.float32)],
            scratch_types=[scratch],
            grid=(splits, count // (warpgroups * ROWS), kv_heads, batch),
            grid_names=("j", "i", "h", "b"),
            num_threads=warpgroups + 1,  # and the one that copies
            thread_name="wg",
            compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
            interpret=interpret if self.interpret else None,
        )
        return run(operands)

    def _flash_attention_block(self, operands, out, lse, smem) -> None:
        """One split j of the slots, for query tile i of kv head h of stream b."""
        b, h, i, j = (lax.axis_index(name) for name in ("b", "h", "i", "j"))
        low, high = operands["bounds"][b, i, 0], operands["bounds"][b, i, 1]
        per_split = lax.div(high - low + self.tiling.splits - 1, jnp.int32(self.tiling.splits))
        start = low + j * per_split
        steps = jnp.clip(high - start, 0, per_split)  # 0 for the last splits of few tiles

        def tiles(width, transforms):
            return plgpu.BlockSpec((self.tiling.slots, width), lambda n: (start + n, 0), transforms=transforms)

        specs = [tiles(self.width, self.key_transforms), tiles(self.width, swizzle_transforms(self.width, self.dtype))]
        specs.append(plgpu.BlockSpec((self.tiling.slots,), lambda n: (start + n,)))
        streamed = [operands["k"].at[b, h], operands["v"].at[b, h], operands["index"].at[b]]
        if self.rotated_on_read:
            half = self.width // 2
            specs += [tiles(half, swizzle_transforms(half, operands["cos"].dtype))] * 2
            streamed += [operands["cos"].at[b], operands["sin"].at[b]]
        plgpu.emit_pipeline_warp_specialized(
            partial(self._attend_tile, smem),  # pyright: ignore[reportArgumentType]
            grid=(steps,),
            in_specs=specs,
            max_concurrent_steps=self.tiling.stages,
            wg_axis="wg",
            num_compute_wgs=self.tiling.warpgroups,
            memory_registers=40,  # copying needs few: the rest go to the accumulators
            compute_context=partial(self._warpgroup, (b, h, i, j), operands, out, lse, smem),
        )(*streamed)

    def _warpgroup(self, block, operands, out, lse, smem, pipeline) -> None:
        """What a compute warpgroup does around the loop over tiles: load its queries, normalise and write its result."""
        b, h, i, j = block
        warpgroup = lax.axis_index("wg")
        start = (i * self.tiling.warpgroups + warpgroup) * ROWS
        own = partial(_own, smem)
        plgpu.copy_gmem_to_smem(operands["q"].at[b, h, pl.ds(start, ROWS)], own("q"), smem["ready"].at[warpgroup])
        for name in self.limits:
            plgpu.copy_gmem_to_smem(operands[name].at[b, pl.ds(start, ROWS)], own(name), smem["ready"].at[warpgroup])
        plgpu.barrier_wait(smem["ready"].at[warpgroup])
        acc = self.ops.cast(jnp.zeros((ROWS, self.width), jnp.float32), MATRIX)
        m = self.ops.cast(jnp.full((ROWS,), RUNNING_MAX_INIT, jnp.float32), ROW)
        l = self.ops.cast(jnp.zeros((ROWS,), jnp.float32), ROW)
        acc, m, l = pipeline((acc, m, l))
        is_visible = l > 0  # any slot at all
        l = jnp.where(is_visible, l, 1.0)
        acc = acc * lax.broadcast_in_dim(jnp.where(is_visible, 1 / l, 0.0), (ROWS, self.width), (0,))
        own("q")[...] = acc.astype(self.dtype)  # the queries are no longer needed: the result goes out through their memory
        own("lse")[...] = jnp.where(is_visible, m + jnp.log(l) * LOG2E, MASK_VALUE)
        plgpu.commit_smem()
        written = self.written_rows
        for name, target in (("q", out), ("lse", lse)):
            plgpu.copy_smem_to_gmem(own(name).at[pl.ds(0, written)], target.at[j, b, h, pl.ds(start, written)])
        plgpu.wait_smem_to_gmem(0)

    def _attend_tile(self, smem, _, k, v, index, *refs):
        """One step of the online softmax: (acc, m, l) after one tile of slots. refs: cos and sin, if any, then that triple."""
        *angles, (acc, m, l) = refs
        own, ops = partial(_own, smem), self.ops
        to_tile = partial(lax.broadcast_in_dim, shape=(ROWS, self.tiling.slots), broadcast_dimensions=(0,))
        if self.rotated_on_read:
            _rotate(ops, k, angles, smem["rotated_keys"])
            k = smem["rotated_keys"]
        scores = ops.scores(own("q"), k)
        slot_index = lax.broadcast_in_dim(ops.load(index, COLUMN), (ROWS, self.tiling.slots), (1,))
        visible = slot_index <= to_tile(ops.load(own("last"), ROW))
        if self.has_first:
            visible = visible & (slot_index >= to_tile(ops.load(own("first"), ROW)))
        scores = jnp.where(visible, scores, MASK_VALUE)
        m_new = jnp.maximum(m, scores.max(axis=1) * self.scale)
        weights = jnp.exp2(scores * self.scale - to_tile(m_new))
        correction = jnp.exp2(m - m_new)  # what was summed so far was relative to the old maximum
        l = l * correction + weights.sum(axis=1)
        acc = acc * lax.broadcast_in_dim(correction, (ROWS, self.width), (0,))
        return ops.accumulate(acc, weights.astype(self.dtype), v), m_new, l


def _own(smem, name: str):
    """This warpgroup's part of an array in shared memory."""
    return smem[name].at[lax.axis_index("wg")]


def _rotate(ops: Ops, keys, angles, target) -> None:
    """Keys of one tile, rotated, from shared memory to shared memory (wgmma reads its second operand from there)."""
    half = target.shape[1] // 2
    halves = [pl.ds(0, half), pl.ds(half, half)]
    plgpu.commit_smem()  # no warp may still read the tile before, which this one overwrites
    cos, sin = (ops.load(table, MATRIX).astype(jnp.float32) for table in angles)
    k1, k2 = (ops.load(keys.at[:, part], MATRIX).astype(jnp.float32) for part in halves)
    target[:, halves[0]] = (k1 * cos - k2 * sin).astype(target.dtype)
    target[:, halves[1]] = (k2 * cos + k1 * sin).astype(target.dtype)
    plgpu.commit_smem()
