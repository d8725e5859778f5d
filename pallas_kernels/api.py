"""The three operations: one signature each for every implementation, and the arguments they refuse.

All are differentiable in q, k and v; the kernels' backward pass is that of `xla` (blocked, recomputing), cuDNN's its own.

Axes: B batch, T new tokens, P patches, N query heads, K kv heads (N a multiple of K), S slots, H head dim.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import cudnn, remat, xla
from pallas_kernels.dispatch import choose
from pallas_kernels.grid import DECODE_TILE, decode_splits, kv_splits, sm_count
from pallas_kernels.rotary import Rotary, rotate

DECODE_TOKENS = 8  # new tokens of a decode step, at most
DECODE_ROWS = 64  # query heads of a kv head times tokens, at most: the query rows of one warpgroup


def decode_attention(q, k, v, *, last, index, rotary: Rotary | None = None, implementation: str = "auto", tiling=None):
    """Attention of at most 8 new tokens over a KV cache.

    Args:
        q: [B, T, N, H] queries, rotated.
        k, v: [B, K, S, H] keys and values, head-major, those of the new tokens among them.
        last: [B, T] int32: a token attends to the slots whose index is in 0..last; -1 for one that attends to nothing.
        index: [B, S] int32: index of a slot's token in its sequence, -1 for an empty slot.
        rotary: (cos, sin) [B, S, H/2] float32, by which the keys are rotated on read; None when they are rotated already.
        tiling: how a kernel cuts the work, a `Tiling` of `mosaic_gpu`, `mosaic_gpu_pingpong` or `tpu`; None for the default.

    Returns:
        [B, T, N, H] in the dtype of q; zeros for a token that attends to nothing.

    Raises:
        NotImplementedError: the named implementation does not take these shapes or dtypes.
        ValueError: shapes that do not fit each other.
    """
    _check("decode_attention", q, k, v, last, index)
    rows = q.shape[1] * (q.shape[2] // k.shape[1])
    if q.shape[1] > DECODE_TOKENS or rows > DECODE_ROWS:
        raise ValueError(
            f"decode_attention: got {q.shape[1]} tokens, {rows} rows a kv head; takes 8, 64: use prefill_attention"
        )
    # A decode step has one tile of queries a kv head, too few blocks to fill a GPU: the slots are split over more.
    splits = decode_splits(k.shape[0] * k.shape[1], -(-k.shape[2] // DECODE_TILE))
    gpu = {"slots": DECODE_TILE, "stages": 3, "warpgroups": 1, "splits": splits}
    call = _Call("decode_attention", implementation, tiling, gpu, {"slots": 512})
    return _attention(call, q, k, v, _Visibility(None, last, index), rotary)


def prefill_attention(
    q, k, v, *, last, index, rotary: Rotary | None = None, causal: bool = False, implementation: str = "auto", tiling=None
):
    """Attention of a chunk of new tokens over a KV cache that holds them, or of a complete sequence over itself.

    Args: as of `decode_attention`, and
        causal: a static promise that S = T and that slot t holds token t, which lets cuDNN do without an attention mask and
            spares `xla` half the work; padding (index and last -1) on the right. cuDNN answers a broken promise with NaN.

    Unrotated keys are rotated before the kernel: once for a chunk, a small part of its time.
    """
    _check("prefill_attention", q, k, v, last, index)
    if causal and k.shape[2] != q.shape[1]:
        raise ValueError(f"prefill_attention: causal needs as many slots as tokens, got {k.shape[2]} and {q.shape[1]}")
    gpu = {"slots": 128, "stages": 2, "warpgroups": 2, "splits": kv_splits(_query_tiles(q, k, 128), -(-k.shape[2] // 128))}
    tilings: dict[str, Any] = {"gpu": gpu, "pingpong": {"blocks": sm_count()}, "tpu": {"q_rows": 256, "slots": 512}}
    call = _Call("prefill_attention", implementation, tiling, **tilings, causal=causal)
    return _attention(call, q, k, v, _Visibility(None, last, index), rotary)


def vision_attention(q, k, v, *, first, last, index, span: int, implementation: str = "auto", tiling=None):
    """Attention of patches inside their segments (windows, frames), each a range of neighbouring patches.

    Args:
        q: [B, P, N, H]; k, v: [B, K, P, H]: all rotated.
        first, last: [B, P] int32, the range of patches that a patch attends to; empty (last < first) for padding.
        index: [B, P] int32: the patch's own number, or -1 for padding.
        span: a static bound on the length of a range, in patches.
    """
    _check("vision_attention", q, k, v, last, index)
    if first.shape != last.shape or k.shape[2] != q.shape[1]:
        got = f"first {first.shape}, last {last.shape}, {q.shape[1]} patches, {k.shape[2]} keys"
        raise ValueError(f"vision_attention: got {got}; expected one range a patch and as many keys")
    # Tiles of slots as large as a window: of a window of 64 patches, larger tiles would be masked for the most part.
    slots = 64 if span <= 64 else 128
    splits = kv_splits(_query_tiles(q, k, 128), -(-min(span, q.shape[1]) // slots))
    gpu = {"slots": slots, "stages": 2, "warpgroups": 2, "splits": splits}
    pingpong: dict[str, Any] = {"blocks": sm_count()}
    if span <= 64:  # a tile or two a block, which mostly waits: two blocks to a multiprocessor
        pingpong = {"slots": 64, "warpgroups": 1, "overlap": False, "registers": 128}
    tilings = {"gpu": gpu, "pingpong": pingpong, "tpu": {"q_rows": 128, "slots": 128 if span <= 128 else 512}}
    call = _Call("vision_attention", implementation, tiling, **tilings, span=span)
    return _attention(call, q, k, v, _Visibility(first, last, index))


def _query_tiles(q, k, rows: int) -> int:
    """Tiles of `rows` query rows, of all kv heads and streams."""
    return q.shape[0] * k.shape[1] * -(-q.shape[1] * (q.shape[2] // k.shape[1]) // rows)


def _check(op: str, q, k, v, last, index) -> None:
    batch, length, heads, width = q.shape
    fits = k.shape == v.shape == (batch, k.shape[1], k.shape[2], width) and heads % k.shape[1] == 0
    if not fits or last.shape != (batch, length) or index.shape != (batch, k.shape[2]):
        got = f"q {q.shape}, k {k.shape}, v {v.shape}, last {last.shape}, index {index.shape}"
        raise ValueError(f"{op}: got {got}; expected [B,T,N,H], [B,K,S,H] twice with N % K == 0, [B,T], [B,S]")


class _Visibility(NamedTuple):
    """What replaces an attention mask: the limits of each query, first (None: 0) and last [B, T], and index [B, S]."""

    first: Any
    last: Any
    index: Any


class _Call(NamedTuple):
    """What is static about a call. gpu, tpu, pingpong: fields of the default tilings; None: as gpu."""

    operation: str
    implementation: str
    tiling: Any
    gpu: dict[str, int]
    tpu: dict[str, int]
    pingpong: dict[str, Any] | None = None
    span: int | None = None
    causal: bool = False


def _attention(call: _Call, q, k, v, visibility: _Visibility, rotary: Rotary | None = None):
    implementation = choose(call.operation, call.implementation, q, call.causal)
    visibility = _Visibility(*(None if x is None else jnp.asarray(x) for x in visibility))
    options: dict[str, Any] = visibility._asdict() | {"rotary": rotary, "causal": call.causal}
    if implementation == "xla":
        return remat.named(xla.attention(q, k, v, **options, span=call.span))
    if implementation == "cudnn":
        return cudnn.attention(q, k, v, **options)  # `remat.save_attention` knows its primitive
    # Imported here: a kernel's module needs a Pallas backend, which not every installation of jax has.
    if implementation in ("tpu", "interpret_tpu"):
        from pallas_kernels import tpu as kernel

        tiling = call.tiling or kernel.Tiling(**call.tpu)
    elif implementation.endswith("pingpong") and call.pingpong is not None:
        from pallas_kernels import mosaic_gpu_pingpong as kernel

        tiling = call.tiling or kernel.Tiling(**call.pingpong)
    else:
        from pallas_kernels import mosaic_gpu as kernel

        tiling = call.tiling or kernel.Tiling(**call.gpu)
    if rotary is not None and call.operation != "decode_attention":
        k, rotary = rotate(k, rotary, head_axis=1), None
    run = partial(kernel.flash, tiling=tiling, interpret=implementation.startswith("interpret"))
    static = {"span": call.span, "causal": call.causal}
    return remat.named(_differentiable(run, tuple(static.items()), q, k, v, visibility, rotary))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _differentiable(run, static, q, k, v, visibility: _Visibility, rotary):
    """A kernel `run`, with the gradient of `xla.attention`, which computes the scores anew."""
    return run(q, k, v, **visibility._asdict(), rotary=rotary)


def _forward(run, static, q, k, v, visibility: _Visibility, rotary):
    return run(q, k, v, **visibility._asdict(), rotary=rotary), (q, k, v, visibility, rotary)


def _backward(run, static, residuals, upstream):
    q, k, v, visibility, rotary = residuals
    options = visibility._asdict() | dict(static)
    _, pull = jax.vjp(lambda q, k, v: xla.attention(q, k, v, **options, rotary=rotary), q, k, v)
    return (*pull(upstream), None, None)


_differentiable.defvjp(_forward, _backward)
