"""The three operations: one signature each for every implementation, and what they refuse.

All are differentiable in q, k and v; the kernels' backward pass is that of `xla` (blocked, recomputing), cuDNN's its own.

Axes: B batch, T new tokens, P patches, N query heads, K kv heads (N a multiple of K), S slots, H head dim.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels import cudnn, xla
from pallas_kernels.dispatch import choose
from pallas_kernels.rotary import Rotary, rotate

DECODE_TOKENS = 8  # most new tokens of a decode step
DECODE_ROWS = 64  # most query heads of a kv head times tokens: the rows of one warpgroup
SPLIT = 512  # slots that one block of a decode step reads at least


def decode_attention(q, k, v, *, last, index, rotary: Rotary | None = None, implementation: str = "auto", tiling=None):
    """Attention of at most 8 new tokens over a ring buffer.

    Args:
        q: [B, T, N, H] queries, rotated.
        k, v: [B, K, S, H] slots, head-major, the new tokens' own among them.
        last: [B, T] int32: a token sees the slots whose index is in 0..last; -1 for a token that sees nothing.
        index: [B, S] int32: the place of a slot's token in its sequence, -1 for a slot that holds nothing.
        rotary: (cos, sin) [B, S, H/2] float32, by which the keys are rotated on read; None when they are held rotated.
        tiling: how a kernel cuts the work (`mosaic_gpu.Tiling`, `tpu.Tiling`); None for the default.

    Returns:
        [B, T, N, H] in the dtype of q; zeros for a token that sees nothing.

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
    splits = max(1, min(32, k.shape[2] // SPLIT))
    gpu = {"slots": 64, "stages": 3, "warpgroups": 1, "splits": splits}
    call = _Call("decode_attention", implementation, tiling, gpu, {"slots": 512})
    return _attention(call, q, k, v, {"last": last, "index": index}, rotary)


def prefill_attention(
    q, k, v, *, last, index, rotary: Rotary | None = None, causal: bool = False, implementation: str = "auto", tiling=None
):
    """Attention of a chunk of new tokens over a ring buffer that holds them, or of a whole sequence over itself.

    Args: as of `decode_attention`, and
        causal: a static promise that S = T and that slot t holds token t, which lets cuDNN do without a mask and spares `xla`
            half the work; padding (index and last -1) on the right. cuDNN answers a broken promise with NaN.

    Keys that are held unrotated are rotated before the kernel: once for a chunk, a small part of it.
    """
    _check("prefill_attention", q, k, v, last, index)
    if causal and k.shape[2] != q.shape[1]:
        raise ValueError(f"prefill_attention: causal needs as many slots as tokens, got {k.shape[2]} and {q.shape[1]}")
    gpu = {"slots": 128, "stages": 2, "warpgroups": 2, "splits": 1}
    call = _Call("prefill_attention", implementation, tiling, gpu, {"rows": 256, "slots": 512}, causal=causal)
    return _attention(call, q, k, v, {"last": last, "index": index}, rotary)


def vision_attention(q, k, v, *, first, last, index, span: int, implementation: str = "auto", tiling=None):
    """Attention of patches inside their segments (windows, frames), each a range of neighbouring patches.

    Args:
        q: [B, P, N, H]; k, v: [B, K, P, H]: all rotated.
        first, last: [B, P] int32, the range of patches that a patch sees; empty (last < first) for padding.
        index: [B, P] int32: the patch's own number, or -1 for padding.
        span: static: no range is longer.
    """
    _check("vision_attention", q, k, v, last, index)
    if first.shape != last.shape or k.shape[2] != q.shape[1]:
        got = f"first {first.shape}, last {last.shape}, {q.shape[1]} patches, {k.shape[2]} keys"
        raise ValueError(f"vision_attention: got {got}; expected one range a patch and as many keys")
    gpu = {"slots": 64 if span <= 64 else 128, "stages": 2, "warpgroups": 1 if span <= 64 else 2, "splits": 1}
    tpu = {"rows": 128, "slots": 128 if span <= 128 else 512}
    call = _Call("vision_attention", implementation, tiling, gpu, tpu, span=span)
    return _attention(call, q, k, v, {"first": first, "last": last, "index": index})


def _check(op: str, q, k, v, last, index) -> None:
    batch, length, heads, width = q.shape
    fits = k.shape == v.shape == (batch, k.shape[1], k.shape[2], width) and heads % k.shape[1] == 0
    if not fits or last.shape != (batch, length) or index.shape != (batch, k.shape[2]):
        got = f"q {q.shape}, k {k.shape}, v {v.shape}, last {last.shape}, index {index.shape}"
        raise ValueError(f"{op}: got {got}; expected [B,T,N,H], [B,K,S,H] twice with N % K == 0, [B,T], [B,S]")


class _Call(NamedTuple):
    """What is static about a call. gpu, tpu: fields of the default tilings."""

    operation: str
    implementation: str
    tiling: Any
    gpu: dict[str, int]
    tpu: dict[str, int]
    span: int | None = None
    causal: bool = False


def _attention(call: _Call, q, k, v, where: dict, rotary: Rotary | None = None):
    chosen = choose(call.operation, call.implementation, q, call.causal)
    where = {"first": None} | {name: jnp.asarray(x) for name, x in where.items()}
    if chosen == "xla":
        return xla.attention(q, k, v, **where, rotary=rotary, span=call.span, causal=call.causal)
    if chosen == "cudnn":
        return cudnn.attention(q, k, v, **where, rotary=rotary, causal=call.causal)
    if chosen in ("tpu", "interpret_tpu"):
        from pallas_kernels import tpu as kernel

        tiling = call.tiling or kernel.Tiling(**call.tpu)
    else:
        from pallas_kernels import mosaic_gpu as kernel

        tiling = call.tiling or kernel.Tiling(**call.gpu)
    if rotary is not None and call.operation != "decode_attention":
        k, rotary = rotate(k, rotary, head_axis=1), None
    run = partial(kernel.flash, tiling=tiling, interpret=chosen.startswith("interpret"))
    static = {"span": call.span, "causal": call.causal}
    return _differentiable(run, tuple(static.items()), q, k, v, where, rotary)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _differentiable(run, static, q, k, v, where, rotary):
    return run(q, k, v, **where, rotary=rotary)


def _forward(run, static, q, k, v, where, rotary):
    return run(q, k, v, **where, rotary=rotary), (q, k, v, where, rotary)


def _backward(run, static, held, upstream):
    q, k, v, where, rotary = held
    _, pull = jax.vjp(lambda q, k, v: xla.attention(q, k, v, **where, rotary=rotary, **dict(static)), q, k, v)
    return (*pull(upstream), None, None)


_differentiable.defvjp(_forward, _backward)
