"""One token of each stream of a decode loop on Hopper (Mosaic GPU), with few kernels: attention that also writes the token's
key and value, and a residual addition with the RMSNorm behind it.

XLA makes of a decoder layer nineteen kernels a token, most of a microsecond or two. Here `attend` reads the new token as the
projections left it, attends to the cache and to the token itself, which is not in the cache yet, and puts its rotated key, key
and value there, in place. `add_rms_norm` replaces an addition, a reduction and a product.

Never run on a GPU so far: compiled for one, and run in GPU interpret mode (`mosaic_ops.Ops`).

Axes: B batch, N query heads, K kv heads, G = N/K, R = G rounded up to 8, S slots, H head dim, J splits, D width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # public only from jax 0.11 on
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import blocks
from pallas_kernels.blocks import MASK_VALUE, RUNNING_MAX_INIT, round_up
from pallas_kernels.grid import DECODE_TILE, decode_splits
from pallas_kernels.mosaic_ops import BEFORE_JAX_0_11, COLUMN, LOG2E, MATRIX, ROW, ROWS, Ops, swizzle_transforms

STAGES = 3  # tiles in flight
MAX_SPLITS = 32
THREADS = 128  # of a warpgroup

Interpret = bool | InterpretGPUParams


class StepMetadata(NamedTuple):
    """Where the new token of each stream stands, [B] int32 if nothing else is said.

    slot: where its key and value go; S or more: nowhere (a reply that has ended), and its result is not used. last: its index:
    it attends to itself and to the slots of indexes 0 to last - 1. index: [B, S], -1 where a slot is empty; that of `slot` is
    `last`. tiles: [B, 2] int32, of `blocks.filled_tiles`.
    """

    slot: Any
    last: Any
    index: Any
    tiles: Any


def row_count(group: int) -> int:
    """Rows of `new` a kv head: G queries, the rotated key, the key and the value, in eights, as TMA copies them."""
    return round_up(group + 3, 8)


def attend(
    new,
    rotated_keys,
    keys,
    values,
    metadata: StepMetadata,
    *,
    group: int,
    splits: int | None = None,
    interpret: Interpret = False,
):
    """(attention [B, 1, N, H], rotated_keys, keys, values), the latter with the new token.

    Args:
        new: [B, K, row_count(G), H]: the rotated queries, the rotated key, the key, the value of each kv head.
        rotated_keys, keys, values: [B, K, S, H], S a multiple of DECODE_TILE; updated in place if the caller gives them away.
        splits: blocks that share the slots of a kv head; None: as many as fill the GPU.
    """
    batch, kv_heads, _, width = new.shape
    tiles = keys.shape[2] // DECODE_TILE
    if splits is None:
        splits = decode_splits(batch * kv_heads, tiles, MAX_SPLITS)
    refs = [jax.new_ref(x, memory_space=plgpu.GMEM) for x in (rotated_keys, keys, values)]
    run = _attention_kernel((batch, kv_heads, group, keys.shape[2], width), new.dtype, splits, interpret)
    out, lse = run(*refs, new, *metadata)
    in_a_kernel = width % THREADS == 0
    merged = merge_splits(out, lse, group, interpret) if in_a_kernel else blocks.merge_splits(out, lse)[:, :, :group]
    return merged.reshape(batch, 1, kv_heads * group, width), *(jax.freeze(ref) for ref in refs)


def _attention_kernel(shape: tuple[int, ...], dtype, splits: int, interpret: Interpret) -> Callable:
    """The kernel of `attend`, for (B, K, G, S, H): results of each split [J, B, K, R, H] and their log-sum-exp [J, B, K, R]."""
    batch, kv_heads, group, capacity, width = shape
    ops, written = Ops(bool(interpret)), round_up(group, 8)
    scale = width**-0.5 * LOG2E  # scores in powers of two
    swizzled = swizzle_transforms(width, dtype)
    down = functools.partial(lax.broadcast_in_dim, shape=(ROWS, width), broadcast_dimensions=(0,))  # a value a row
    across = functools.partial(lax.broadcast_in_dim, shape=(ROWS, width), broadcast_dimensions=(1,))  # the same in all rows
    to_tile = functools.partial(lax.broadcast_in_dim, shape=(ROWS, DECODE_TILE))

    def block(rotated_keys, keys, values, new, slot, last, index, tiles, out, lse, smem):
        b, h, j = (lax.axis_index(name) for name in ("b", "h", "j"))
        low, high = tiles[b, 0], tiles[b, 1]
        per_split = jnp.maximum(lax.div(high - low + splits - 1, jnp.int32(splits)), 1)
        start = low + j * per_split
        steps = jnp.clip(high - start, 0, per_split)
        # The block that reads the tile of the new slot writes it, when it has read it: no other block looks there.
        own_slot, own_index = slot[b], last[b]
        owner = jnp.clip(lax.div(lax.div(own_slot, jnp.int32(DECODE_TILE)) - low, per_split), 0, splits - 1)
        is_owner = (j == owner) & (own_slot < capacity)

        def attend_tile(_, k, v, tile_index, carry):
            acc, m, l = carry
            scores = ops.scores(smem["q"], k)
            tile_index = to_tile(ops.load(tile_index, COLUMN), broadcast_dimensions=(1,))
            # Not the token's own slot, whose index is `last`: it still holds what was there before.
            scores = jnp.where((tile_index >= 0) & (tile_index < own_index), scores, MASK_VALUE)
            m_new = jnp.maximum(m, scores.max(axis=1) * scale)
            weights = jnp.exp2(scores * scale - to_tile(m_new, broadcast_dimensions=(0,)))
            correction = jnp.exp2(m - m_new)
            l = l * correction + weights.sum(axis=1)
            return ops.accumulate(acc * down(correction), weights.astype(dtype), v), m_new, l

        def compute(pipeline):
            ready = smem["ready"].at[0]
            # Rows behind the queries are never written out, whatever they hold.
            plgpu.copy_gmem_to_smem(new.at[b, h, pl.ds(0, written)], smem["q"].at[pl.ds(0, written)], ready)
            plgpu.copy_gmem_to_smem(new.at[b, h, pl.ds(group, 3)], smem["own"], ready)
            plgpu.barrier_wait(ready)
            # The owner's softmax begins with the token itself, that of the others with nothing.
            own_weight = jnp.where(is_owner, 1.0, 0.0).astype(jnp.float32)
            key, value = (across(ops.load(smem["own"].at[n], COLUMN).astype(jnp.float32)) for n in (0, 2))
            score = (ops.load(smem["q"], MATRIX).astype(jnp.float32) * key).sum(axis=1)
            m = score * scale * own_weight + RUNNING_MAX_INIT * (1 - own_weight)
            l = ops.cast(jnp.zeros((ROWS,), jnp.float32), ROW) + own_weight
            acc, m, l = pipeline((value * own_weight, m, l))
            is_visible = l > 0
            l = jnp.where(is_visible, l, 1.0)
            smem["q"][...] = (acc * down(jnp.where(is_visible, 1 / l, 0.0))).astype(dtype)
            smem["lse"][...] = jnp.where(is_visible, m + jnp.log(l) * LOG2E, MASK_VALUE)
            plgpu.commit_smem()
            for name, target in (("q", out), ("lse", lse)):
                plgpu.copy_smem_to_gmem(smem[name].at[pl.ds(0, written)], target.at[j, b, h])

            @pl.when(is_owner)
            def _():
                for n, cache in enumerate((rotated_keys, keys, values)):
                    plgpu.copy_smem_to_gmem(smem["own"].at[pl.ds(n, 1)], cache.at[b, h, pl.ds(own_slot, 1)])

            plgpu.wait_smem_to_gmem(0)

        rows = plgpu.BlockSpec((DECODE_TILE, width), lambda n: (start + n, 0), transforms=swizzled)
        plgpu.emit_pipeline_warp_specialized(
            attend_tile,  # pyright: ignore[reportArgumentType]
            grid=(steps,),
            in_specs=[rows, rows, plgpu.BlockSpec((DECODE_TILE,), lambda n: (start + n,))],
            max_concurrent_steps=STAGES,
            wg_axis="wg",
            num_compute_wgs=1,
            memory_registers=40,
            compute_context=compute,
        )(rotated_keys.at[b, h], values.at[b, h], index.at[b])

    scratch = {
        "q": plgpu.SMEM((ROWS, width), dtype, transforms=swizzled),
        "own": plgpu.SMEM((3, width), dtype),
        "lse": plgpu.SMEM((ROWS,), jnp.float32),
        "ready": plgpu.Barrier(num_arrivals=2, num_barriers=1),
    }
    results = (splits, batch, kv_heads, written)
    out_type = [jax.ShapeDtypeStruct((*results, width), dtype), jax.ShapeDtypeStruct(results, jnp.float32)]
    grid = {"j": splits, "h": kv_heads, "b": batch}
    return _kernel(block, out_type, grid, interpret, "decode_step", scratch=scratch, warpgroups=2)


def merge_splits(out, lse, group: int, interpret: Interpret = False):
    """`blocks.merge_splits` in one kernel: [J, B, K, R, H] and [J, B, K, R] -> [B, K, G, H], H a multiple of 128."""
    splits, batch, kv_heads, _, width = out.shape
    dtype, layout = out.dtype, plgpu.Layout.WG_STRIDED((width,), vec_size=1)

    def block(out, lse, merged, _):
        b, h, g = (lax.axis_index(name) for name in ("b", "h", "g"))
        parts = [lse[j, b, h, g] for j in range(splits)]
        m = functools.reduce(jnp.maximum, parts)
        weights = [jnp.where(part > RUNNING_MAX_INIT, jnp.exp2(part - m), 0.0) for part in parts]
        l = functools.reduce(jnp.add, weights)
        share = 1 / jnp.where(l > 0, l, 1.0)
        rows = [_load(out.at[j, b, h, g], layout, interpret).astype(jnp.float32) for j in range(splits)]
        mixed = functools.reduce(jnp.add, (row * (weight * share) for row, weight in zip(rows, weights, strict=True)))
        merged[b, h, g] = mixed.astype(dtype)

    out_type = [jax.ShapeDtypeStruct((batch, kv_heads, group, width), dtype)]
    return _kernel(block, out_type, {"g": group, "h": kv_heads, "b": batch}, interpret, "merge_splits")(out, lse)[0]


def add_rms_norm(x, update, scale, eps: float, interpret: Interpret = False):
    """(x + update, its RMSNorm times scale): x, update [B, D], scale [D], D a multiple of 128; `update` None adds nothing.
    Rounded as a module would: the sum, and the normalised row before it is scaled."""
    count, width = x.shape
    dtype = x.dtype
    layout = plgpu.Layout.WG_STRIDED((width,), vec_size=_vector_size(width, jnp.dtype(dtype).itemsize))

    def block(*refs):
        *terms, scale, total, normed, _ = refs
        b = lax.axis_index("b")
        load = functools.partial(_load, layout=layout, interpret=interpret)
        row = load(terms[0].at[b])
        if update is not None:
            row = (row.astype(jnp.float32) + load(terms[1].at[b]).astype(jnp.float32)).astype(dtype)
            total[b] = row
        row = row.astype(jnp.float32)
        row = row * lax.rsqrt(jnp.sum(row * row) / width + eps)
        normed[b] = row.astype(dtype) * load(scale)

    row_type = jax.ShapeDtypeStruct((count, width), dtype)
    terms = [x] if update is None else [x, update]
    total, normed = _kernel(block, [row_type, row_type], {"b": count}, interpret, "add_rms_norm")(*terms, scale)
    return (x if update is None else total), normed


def _kernel(
    block: Callable,
    out_type: Sequence[jax.ShapeDtypeStruct],
    grid: dict[str, int],
    interpret: Interpret,
    name: str,
    *,
    scratch: dict[str, Any] | None = None,
    warpgroups: int = 1,
) -> Callable:
    """`block`(*operands, *results, scratch) for every block of a grid by axis name. Operands may be Refs, which are updated in
    place: `plgpu.kernel` of jax 0.10 refuses them under jit (and a profile shows a kernel that takes Refs as new_body)."""
    # Mosaic refuses a reduction over a whole array in a kernel with an axis of threads, so one warpgroup has none.
    threads = {"num_threads": warpgroups, "thread_name": "wg"} if warpgroups > 1 else {}

    def scoped(*refs):
        pl.run_scoped(lambda **smem: block(*refs, smem), **(scratch or {}), collective_axes="wg" if threads else ())

    params = interpret if isinstance(interpret, InterpretGPUParams) else InterpretGPUParams()
    return pl.kernel(
        scoped,
        out_type=tuple(out_type),
        mesh=plgpu.Mesh(grid=tuple(grid.values()), grid_names=tuple(grid), **threads),
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=params if interpret else None,
        name=name,
    )


def _load(ref, layout, interpret: Interpret):
    """A row from global memory to registers."""
    if interpret:
        return ref[...]
    if BEFORE_JAX_0_11:
        return plgpu.load(ref, (), layout=layout, optimized=False)
    return plgpu.load(ref, layout=layout, optimized=False)  # pyright: ignore[reportCallIssue]


def _vector_size(width: int, itemsize: int) -> int:
    """Elements that a thread loads at a time: as many as 16 bytes hold, if a warpgroup shares the row evenly."""
    sizes = (n // itemsize for n in (16, 8, 4))
    return next((size for size in sizes if size and width % (size * THREADS) == 0), 1)
