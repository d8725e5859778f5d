"""Attention that jax ships for a GPU, beside the kernels of this project: a bound of what is possible, not a product.

None of them takes a ring buffer, so each attends to what it can express: a chunk to every slot of the cache. For a frame or for
windows that is the same work; for a chunk it lacks what is causal in it, a twentieth.

Axes: B batch, T tokens, N query heads, K kv heads, S slots, H head dim.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Rival(NamedTuple):
    """layout: workload, arguments -> what `attend` takes, queries first; done once, outside what is timed.
    attend: -> a result like the queries. unfold: workload, result -> [B, T, N, H]."""

    layout: Callable[[Any, dict[str, Any]], tuple[jax.Array, ...]]
    attend: Callable[..., jax.Array]
    unfold: Callable[[Any, jax.Array], jax.Array]


def visibility(work, arguments: dict[str, Any]) -> dict[str, jax.Array]:
    """What the queries of a rival attend to, as arguments of `reference.attention`."""
    if work.span is not None:
        return {name: arguments[name] for name in ("first", "last", "index")}
    last = jnp.full((work.batch, work.tokens), work.slots - 1, jnp.int32)
    index = jnp.broadcast_to(jnp.arange(work.slots, dtype=jnp.int32), (work.batch, work.slots))
    return {"first": jnp.zeros_like(last), "last": last, "index": index}


def _cudnn_layout(work, arguments: dict[str, Any]) -> tuple[jax.Array, ...]:
    """Segments of patches as a batch, padded to the longest; sequence lengths instead of a mask."""
    q, k, v = arguments["q"], *(arguments[name].swapaxes(1, 2) for name in "kv")
    if work.span is None:
        return q, k, v, jnp.full((work.batch,), work.slots, jnp.int32)
    segments = -(-work.tokens // work.span)
    padding = ((0, 0), (0, segments * work.span - work.tokens), (0, 0), (0, 0))
    q, k, v = (jnp.pad(x, padding).reshape(-1, work.span, *x.shape[2:]) for x in (q, k, v))
    lengths = jnp.minimum(work.span, work.tokens - jnp.arange(segments) * work.span)
    return q, k, v, jnp.tile(lengths.astype(jnp.int32), work.batch)


def _cudnn(q, k, v, lengths) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")


def _cudnn_unfold(work, out: jax.Array) -> jax.Array:
    return out.reshape(work.batch, -1, *out.shape[2:])[:, : work.tokens]


Q_BLOCK, KV_BLOCK = 64, 128  # of jax's kernel: queries of each of two warpgroups, slots at a time


def _mgpu_layout(work, arguments: dict[str, Any]) -> tuple[jax.Array, ...]:
    """The query heads of a kv head as rows of one sequence; the scale in the queries; float16, as its shared memory is."""
    if work.span not in (None, work.tokens) or work.head_dim % 64 or work.slots % KV_BLOCK:
        got = f"{work.slots} slots, head dim {work.head_dim}, segments of {work.span}"
        raise NotImplementedError(f"jax_mgpu: got {got}; takes whole sequences, slots in tiles of 128, head dims of 64, 128")
    q = arguments["q"].reshape(work.batch, work.tokens, work.kv_heads, -1, work.head_dim).swapaxes(2, 3)
    q = q.reshape(work.batch, -1, work.kv_heads, work.head_dim) * work.head_dim**-0.5
    q = jnp.pad(q, ((0, 0), (0, -q.shape[1] % (2 * Q_BLOCK)), (0, 0), (0, 0)))
    return tuple(x.astype(jnp.float16) for x in (q, *(arguments[name].swapaxes(1, 2) for name in "kv")))


def _mgpu(q, k, v) -> jax.Array:
    from jax.experimental.pallas.ops.gpu import attention_mgpu

    try:
        return attention_mgpu.attention(q, k, v, attention_mgpu.TuningConfig(Q_BLOCK, KV_BLOCK, max_concurrent_steps=2))
    except AssertionError:  # of the versions of CUDA, which a jax for CPUs does not know
        raise NotImplementedError("jax_mgpu: needs jax with CUDA") from None


def _mgpu_unfold(work, out: jax.Array) -> jax.Array:
    group = work.heads // work.kv_heads
    out = out[:, : work.tokens * group].reshape(work.batch, work.tokens, group, work.kv_heads, work.head_dim)
    return out.swapaxes(2, 3).reshape(work.batch, work.tokens, work.heads, work.head_dim)


RIVALS = {
    "cudnn_lengths": Rival(_cudnn_layout, _cudnn, _cudnn_unfold),  # jax.nn.dot_product_attention with sequence lengths
    "jax_mgpu": Rival(_mgpu_layout, _mgpu, _mgpu_unfold),  # jax.experimental.pallas.ops.gpu.attention_mgpu, FlashAttention-3
}
