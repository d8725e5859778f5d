"""Flash attention for Hopper where there are many query rows (a prefill chunk, the vision tower): products and softmax overlap,
as in FlashAttention-3 (arXiv 2407.08608).

`mosaic_gpu` computes the scores of a tile of slots, then its softmax, then adds its values, one after the other, and both
warpgroups of a block do so in step: the tensor cores wait for the softmax. Here

- a warpgroup issues the scores of the next tile and the products with the values of this one together, and does the softmax of
  the next tile under the latter (`overlap`);
- the two warpgroups take turns in issuing (`pingpong`), so that the softmax of one runs under the products of the other;
- tiles of slots that every row of a query tile sees whole are not masked (`blocks.whole_tiles`);
- the steps of all query tiles are cut evenly over the multiprocessors (`stream_k`).

Three traps for who edits this; `python -m benchmarks kernels --target h100` looks for them:

- The compiler moves the second wait in front of the softmax if they are in one basic block: right, and no overlap left. That
  the softmax is in a branch (`lax.cond`, masked or not) keeps the wait behind it.
- The weights stay in float32 until the second wait: converted before it, they take the registers of those that the tensor cores
  still read, for which ptxas waits after each wgmma (C7513).
- In GPU interpret mode each warpgroup has to see all phases of its barriers: what is left over is waited for at the end.

Axes: B batch, T tokens, N query heads, K kv heads, G = N/K, R query rows = T * G, S slots, H head dim, J partial results.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # public only from jax 0.11 on
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import stream_k
from pallas_kernels.blocks import MASK_VALUE, RUNNING_MAX_INIT, kernel_operands, merge_splits, unfold, whole_tiles
from pallas_kernels.mosaic_ops import COLUMN, COLUMNS, LOG2E, MATRIX, ROW, ROWS, Ops, check_dtype, swizzle_transforms

REGISTERS = 512  # of an SM for each lane of a warpgroup: 65,536 in all
MEMORY_REGISTERS = 24  # of the warpgroup that copies


class Tiling(NamedTuple):
    """How the work is cut: slots at a time, tiles of K and of V in flight (stages), warpgroups of 64 rows each, and the thread
    blocks over which the steps of all query tiles are cut evenly (0: a block a query tile).

    overlap, pingpong: see above. registers: of a lane, where several blocks are to share an SM (0: all there are).
    """

    slots: int = 128
    stages: int = 2
    warpgroups: int = 2
    blocks: int = 0
    overlap: bool = True
    pingpong: bool = True
    registers: int = 0


class Segment(NamedTuple):
    """Steps that a block does in a row: for query tile i of kv head h of stream b. All int32 scalars.

    part: number of the partial result; start: first tile of slots; steps: at least 1; done: steps of the block before these.
    """

    b: Any
    h: Any
    i: Any
    part: Any
    start: Any
    steps: Any
    done: Any


class Refs(NamedTuple):
    """operands, out, lse: in global memory; smem: scratch in shared memory, by name."""

    operands: dict[str, Any]
    out: Any
    lse: Any
    smem: dict[str, Any]


def flash(q, k, v, *, first, last, index, rotary, tiling: Tiling, interpret: bool | InterpretGPUParams = False):
    """Attention as `reference.attention` defines it, of q [B, T, N, H] over k, v [B, K, S, H], already rotated (`rotary` None).

    Raises:
        NotImplementedError: a dtype or head dim that the kernel does not take; one that is no multiple of 16 is padded.
    """
    if not interpret:
        check_dtype("mosaic_gpu_pingpong", q)
    if rotary is not None:
        raise NotImplementedError("mosaic_gpu_pingpong: does not rotate keys on read")
    kv_heads, q_tile = k.shape[1], tiling.warpgroups * ROWS
    operands = kernel_operands(q, k, v, first, last, index, q_tile, tiling.slots, COLUMNS)
    limits = operands.get("first"), operands["last"], operands["index"]
    operands["whole"] = whole_tiles(*limits, q_tile, tiling.slots)
    bounds, scale = operands["bounds"], q.shape[-1] ** -0.5
    if not tiling.blocks:
        kernel = _Kernel(operands["q"].shape, q.dtype, frozenset(operands), tiling, interpret, parts=1, scale=scale)
        out, _ = kernel(operands)
        return unfold(out[0], q.shape)
    kv_tiles = operands["k"].shape[2] // tiling.slots
    tiling = tiling._replace(blocks=min(tiling.blocks, bounds[..., 0].size * kv_heads * kv_tiles))
    shares = stream_k.cut(bounds, kv_heads, kv_tiles, tiling.blocks)
    operands |= {"offsets": shares.offsets, "shares": shares.blocks}
    static = {"parts": shares.max_parts, "scale": scale}
    out, lse = _Kernel(operands["q"].shape, q.dtype, frozenset(operands), tiling, interpret, **static)(operands)
    # Partial results that no block wrote are whatever was in memory.
    is_written = jnp.repeat(jnp.arange(shares.max_parts).reshape(-1, 1, 1, 1) < shares.parts, q_tile, -1)
    out, lse = jnp.where(is_written[..., None], out, 0), jnp.where(is_written, lse, MASK_VALUE)
    return unfold(merge_splits(out, lse), q.shape)


class _Kernel:
    """The kernel for query rows [B, K, R, H] of one shape: what is static about it, and what a thread block does. H may be
    padded: `scale` is that of the true head dim."""

    def __init__(
        self,
        shape,
        dtype,
        names: frozenset[str],
        tiling: Tiling,
        interpret: bool | InterpretGPUParams,
        *,
        parts: int,
        scale: float,
    ) -> None:
        """names: of the operands; parts: partial results of a query tile, at most; scale: of the scores."""
        self.ops, self.interpret = Ops(bool(interpret)), interpret
        self.shape, self.parts, self.dtype, self.tiling = shape, parts, dtype, tiling
        self.width, self.q_tiles = shape[3], shape[2] // (tiling.warpgroups * ROWS)
        self.scale = scale * LOG2E  # scores in powers of two
        self.limits = ["last", "first"] if "first" in names else ["last"]
        self.takes_turns = tiling.pingpong and tiling.warpgroups > 1

    def __call__(self, operands: dict[str, Any]) -> Any:
        """Partial results: attention [J, B, K, R, H], normalised, and base-2 log-sum-exp [J, B, K, R]."""
        batch, kv_heads, rows, width = self.shape
        groups, stages, slots = self.tiling.warpgroups, self.tiling.stages, self.tiling.slots
        transforms = swizzle_transforms(width, self.dtype)
        scratch = {
            "q": plgpu.SMEM((groups, ROWS, width), self.dtype, transforms=transforms),
            "k": plgpu.SMEM((stages, slots, width), self.dtype, transforms=transforms),
            "v": plgpu.SMEM((stages, slots, width), self.dtype, transforms=transforms),
            "index": plgpu.SMEM((stages, slots), jnp.int32),
            "lse": plgpu.SMEM((groups, ROWS), jnp.float32),
            **{name: plgpu.SMEM((groups, ROWS), jnp.int32) for name in self.limits},
            "q ready": plgpu.Barrier(num_arrivals=1 + len(self.limits), num_barriers=groups),
            "k ready": plgpu.Barrier(num_arrivals=2, num_barriers=stages),  # keys and index
            "v ready": plgpu.Barrier(num_arrivals=1, num_barriers=stages),
            "k free": plgpu.Barrier(num_arrivals=groups, num_barriers=stages),
            "v free": plgpu.Barrier(num_arrivals=groups, num_barriers=stages),
        }
        if self.takes_turns:
            scratch["turn"] = plgpu.Barrier(num_arrivals=1, num_barriers=groups)
        is_cut = self.tiling.blocks > 0
        results = (self.parts, batch, kv_heads, rows)
        interpret = self.interpret if isinstance(self.interpret, InterpretGPUParams) else InterpretGPUParams()
        run = plgpu.kernel(
            self._pingpong_attention_block,
            out_type=[jax.ShapeDtypeStruct((*results, width), self.dtype), jax.ShapeDtypeStruct(results, jnp.float32)],
            scratch_types=[scratch],
            grid=(self.tiling.blocks,) if is_cut else (self.q_tiles, kv_heads, batch),
            grid_names=("block",) if is_cut else ("i", "h", "b"),
            num_threads=groups + 1,  # and the one that copies
            thread_name="wg",
            compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
            interpret=interpret if self.interpret else None,
        )
        return run(operands)

    def _pingpong_attention_block(self, operands, out, lse, smem) -> None:
        refs, groups = Refs(operands, out, lse, smem), self.tiling.warpgroups
        warpgroup = lax.axis_index("wg")

        @pl.when(warpgroup == groups)
        def _():
            if not self.tiling.registers:
                plgpu.set_max_registers(MEMORY_REGISTERS, action="decrease")
            self._copy_tiles(refs)

        @pl.when(warpgroup < groups)
        def _():
            registers = self.tiling.registers or (REGISTERS - MEMORY_REGISTERS) // max(groups, 2) // 8 * 8
            plgpu.set_max_registers(registers, action="increase")
            if self.takes_turns:
                pl.when(warpgroup == groups - 1)(lambda: plgpu.barrier_arrive(smem["turn"].at[0]))
            self._for_segments(operands, partial(self._attend, refs))
            if self.takes_turns:  # the turn that the last one passed on
                pl.when(warpgroup == 0)(lambda: plgpu.barrier_wait(smem["turn"].at[0]))

    def _for_segments(self, operands, run):
        """Calls `run` with each segment of this block; the steps of all."""
        if not self.tiling.blocks:
            b, h, i = (lax.axis_index(name) for name in ("b", "h", "i"))
            low, high = operands["bounds"][b, i, 0], operands["bounds"][b, i, 1]
            steps = jnp.maximum(high - low, 1)  # rows that attend to nothing look at one tile, all masked
            run(Segment(b, h, i, 0, low, steps, jnp.int32(0)))
            return steps
        block = lax.axis_index("block")
        share = operands["shares"][block, 2]
        share_start, all_steps = block * share, operands["offsets"][self.shape[0] * self.shape[1] * self.q_tiles]

        def query_tile(tile, _):
            above, i = lax.div(tile, jnp.int32(self.q_tiles)), lax.rem(tile, jnp.int32(self.q_tiles))
            b, h = lax.div(above, jnp.int32(self.shape[1])), lax.rem(above, jnp.int32(self.shape[1]))
            offset = operands["offsets"][tile]
            start = jnp.maximum(offset, share_start)
            steps = jnp.minimum(operands["offsets"][tile + 1], share_start + share) - start
            kv_start = operands["bounds"][b, i, 0] + start - offset
            segment = Segment(b, h, i, block - lax.div(offset, share), kv_start, steps, start - share_start)
            pl.when(steps > 0)(lambda: run(segment))
            return _

        lax.fori_loop(operands["shares"][block, 0], operands["shares"][block, 1], query_tile, None)
        return jnp.clip(all_steps - share_start, 0, share)

    def _copy_tiles(self, refs: Refs) -> None:
        """The memory warpgroup: K and V of all segments through shared memory, as stages become free."""
        operands, smem, stages = refs.operands, refs.smem, self.tiling.stages

        def copy_segment(seg: Segment):
            def copy_tile(n, _):
                stage, slots = self._stage(seg.done + n), pl.ds((seg.start + n) * self.tiling.slots, self.tiling.slots)

                def copy(source, name, ready):
                    plgpu.copy_gmem_to_smem(source, smem[name].at[stage], smem[ready].at[stage])

                is_reused = seg.done + n >= stages
                pl.when(is_reused)(lambda: plgpu.barrier_wait(smem["k free"].at[stage]))
                copy(operands["k"].at[seg.b, seg.h, slots], "k", "k ready")
                copy(operands["index"].at[seg.b, slots], "index", "k ready")
                pl.when(is_reused)(lambda: plgpu.barrier_wait(smem["v free"].at[stage]))
                copy(operands["v"].at[seg.b, seg.h, slots], "v", "v ready")
                return _

            lax.fori_loop(0, seg.steps, copy_tile, None)

        def drain(n, _):
            for name in ("k free", "v free"):
                plgpu.barrier_wait(smem[name].at[self._stage(n)])
            return _

        steps = self._for_segments(operands, copy_segment)
        lax.fori_loop(jnp.maximum(steps, stages), steps + stages, drain, None)

    def _attend(self, refs: Refs, seg: Segment) -> None:
        """Attention of a compute warpgroup's query rows over the slots of a segment: one partial result."""
        own, warpgroup = partial(_own, refs.smem), lax.axis_index("wg")
        rows = pl.ds((seg.i * self.tiling.warpgroups + warpgroup) * ROWS, ROWS)
        plgpu.copy_gmem_to_smem(refs.operands["q"].at[seg.b, seg.h, rows], own("q"), own("q ready"))
        for name in self.limits:
            plgpu.copy_gmem_to_smem(refs.operands[name].at[seg.b, rows], own(name), own("q ready"))
        plgpu.barrier_wait(own("q ready"))
        acc = self.ops.cast(jnp.zeros((ROWS, self.width), jnp.float32), MATRIX)
        m = self.ops.cast(jnp.full((ROWS,), RUNNING_MAX_INIT, jnp.float32), ROW)
        l = self.ops.cast(jnp.zeros((ROWS,), jnp.float32), ROW)
        acc, m, l = (self._overlapped if self.tiling.overlap else self._in_order)(refs, seg, acc, m, l)
        is_visible = l > 0  # any slot at all
        l = jnp.where(is_visible, l, 1.0)
        acc = acc * self._to_rows(jnp.where(is_visible, 1 / l, 0.0))
        own("q")[...] = acc.astype(self.dtype)  # the queries are no longer needed: the result goes out through their memory
        own("lse")[...] = jnp.where(is_visible, m + jnp.log(l) * LOG2E, MASK_VALUE)
        plgpu.commit_smem()
        for name, target in (("q", refs.out), ("lse", refs.lse)):
            plgpu.copy_smem_to_gmem(own(name), target.at[seg.part, seg.b, seg.h, rows])
        plgpu.wait_smem_to_gmem(0)

    def _overlapped(self, refs: Refs, seg: Segment, acc, m, l):
        """(acc, m, l) after all steps: the softmax of a tile of slots under the products with the values before it."""
        smem, flags = refs.smem, partial(self._is_whole, refs, seg)
        unmasked, next_unmasked = flags(0), flags(1)
        weights, _, m, l = self._weights(refs, seg, 0, m, l, unmasked)

        def step(n, carry):
            acc, weights, m, l, unmasked = carry
            next_unmasked, stage, before = flags(n + 1), self._stage(seg.done + n), self._stage(seg.done + n - 1)
            plgpu.barrier_wait(smem["k ready"].at[stage])
            plgpu.barrier_wait(smem["v ready"].at[before])
            self._await_turn(smem)
            acc, (weights, correction, m, l) = self.ops.accumulate_under(
                acc,
                weights,
                smem["v"].at[before],
                _own(smem, "q"),
                smem["k"].at[stage],
                partial(self._issued, smem, stage),
                lambda scores, slot_index: self._softmax_of(smem, stage, scores, slot_index, m, l, unmasked),
            )
            plgpu.barrier_arrive(smem["v free"].at[before])
            # Converted not before the wait: the tensor cores still read the weights of the tile before.
            return acc * self._to_rows(correction), weights.astype(self.dtype), m, l, next_unmasked

        carry = (acc, weights.astype(self.dtype), m, l, next_unmasked)
        acc, weights, m, l, _ = lax.fori_loop(1, seg.steps, step, carry)
        return self._accumulate(refs, seg, seg.steps - 1, acc, weights), m, l

    def _in_order(self, refs: Refs, seg: Segment, acc, m, l):
        """(acc, m, l) after all steps: scores, softmax and values one after the other; fewer registers."""
        flags = partial(self._is_whole, refs, seg)

        def step(n, carry):
            acc, m, l, unmasked = carry
            next_unmasked = flags(n + 1)
            weights, correction, m, l = self._weights(refs, seg, n, m, l, unmasked)
            acc = self._accumulate(refs, seg, n, acc * self._to_rows(correction), weights.astype(self.dtype))
            return acc, m, l, next_unmasked

        acc, m, l, _ = lax.fori_loop(0, seg.steps, step, (acc, m, l, flags(0)))
        return acc, m, l

    def _weights(self, refs: Refs, seg: Segment, n, m, l, unmasked):
        """`_softmax` of step n, whose scores are computed with nothing under way."""
        stage = self._stage(seg.done + n)
        plgpu.barrier_wait(refs.smem["k ready"].at[stage])
        self._await_turn(refs.smem)
        issued = partial(self._issued, refs.smem, stage)
        scores, slot_index = self.ops.scores_alone(_own(refs.smem, "q"), refs.smem["k"].at[stage], issued)
        return self._softmax_of(refs.smem, stage, scores, slot_index, m, l, unmasked)

    def _accumulate(self, refs: Refs, seg: Segment, n, acc, weights):
        """acc with the values of step n, with nothing under way."""
        stage = self._stage(seg.done + n)
        plgpu.barrier_wait(refs.smem["v ready"].at[stage])
        self._await_turn(refs.smem)
        acc = self.ops.accumulate_alone(acc, weights, refs.smem["v"].at[stage], partial(self._pass_turn, refs.smem))
        plgpu.barrier_arrive(refs.smem["v free"].at[stage])
        return acc

    def _softmax_of(self, smem, stage, scores, slot_index, m, l, unmasked):
        """`_softmax` of the scores of a stage, masked unless `whole`; its keys are then no longer needed."""
        plgpu.barrier_arrive(smem["k free"].at[stage])

        def masked(scores, m, l):
            tile = (ROWS, self.tiling.slots)
            to_tile = partial(lax.broadcast_in_dim, shape=tile, broadcast_dimensions=(0,))
            slots = lax.broadcast_in_dim(slot_index, tile, (1,))
            visible = slots <= to_tile(self.ops.load(_own(smem, "last"), ROW))
            if "first" in self.limits:
                visible = visible & (slots >= to_tile(self.ops.load(_own(smem, "first"), ROW)))
            return self._softmax(jnp.where(visible, scores, MASK_VALUE), m, l)

        return lax.cond(unmasked > 0, self._softmax, masked, scores, m, l)

    def _softmax(self, scores, m, l):
        """(weights in float32, correction of what was summed so far, m, l): a step of the online softmax."""
        m_new = jnp.maximum(m, scores.max(axis=1) * self.scale)
        weights = jnp.exp2(scores * self.scale - lax.broadcast_in_dim(m_new, scores.shape, (0,)))
        correction = jnp.exp2(m - m_new)
        return weights, correction, m_new, l * correction + weights.sum(axis=1)

    def _is_whole(self, refs: Refs, seg: Segment, n):
        return refs.operands["whole"][seg.b, seg.i, seg.start + n]

    def _stage(self, n):
        return lax.rem(jnp.int32(n), jnp.int32(self.tiling.stages))

    def _to_rows(self, x):
        return lax.broadcast_in_dim(x, (ROWS, self.width), (0,))

    def _issued(self, smem, stage):
        """What a warpgroup does when its scores are issued: pass the turn on, and read the index of the slots of the stage."""
        self._pass_turn(smem)
        return self.ops.load(smem["index"].at[stage], COLUMN)

    def _await_turn(self, smem) -> None:
        if self.takes_turns:
            plgpu.barrier_wait(_own(smem, "turn"))

    def _pass_turn(self, smem) -> None:
        if self.takes_turns:
            plgpu.barrier_arrive(smem["turn"].at[lax.rem(lax.axis_index("wg") + 1, jnp.int32(self.tiling.warpgroups))])


def _own(smem, name: str):
    """This warpgroup's part of an array or of barriers in shared memory."""
    return smem[name].at[lax.axis_index("wg")]
