"""The k largest of many numbers, without sorting them all where that is slow.

A GPU sorts the whole row for `lax.top_k`: 152,064 logits for 50 of them, five kernels a token. Here the row is cut into chunks.
Every one of the k largest lies in one of the k chunks with the largest maxima, and among so few the ranks are found by counting
who goes before.

Axes: B batch, V numbers a row, n candidates, k.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

CHUNK = 64  # numbers
LOWEST = jnp.iinfo(jnp.int32).min


def top_k(x: Float32[Array, "B V"], k: int) -> tuple[Float32[Array, "B k"], Int32[Array, "B k"]]:
    """The k largest of each row in descending order, and where they are: `jax.lax.top_k` bit for bit, ties (the first wins),
    signed zeros and NaN included."""
    if not without_sort(x.shape[-1], k):
        return _sorted(x, k)
    return jax.lax.platform_dependent(x, cuda=partial(by_chunks, k=k), default=partial(_sorted, k=k))


def without_sort(size: int, k: int) -> bool:
    """Whether a GPU selects k of `size` numbers without a sort: only where the k chunks are a small part of all."""
    return 4 * k * CHUNK <= size


def by_chunks(x: Float32[Array, "B V"], k: int) -> tuple[Float32[Array, "B k"], Int32[Array, "B k"]]:
    """`top_k` by counting, on any device; at least k chunks."""
    keys = _total_order(x)
    padding = -keys.shape[1] % CHUNK
    # Padding ties with nothing that counts: it is behind all numbers, and no number is smaller.
    chunks = jnp.pad(keys, ((0, 0), (0, padding)), constant_values=LOWEST).reshape(len(keys), -1, CHUNK)
    number = jnp.broadcast_to(jnp.arange(chunks.shape[1], dtype=jnp.int32), chunks.shape[:2])
    # Chunks with equal maxima are taken in order, as their numbers are.
    _, chosen = _largest(chunks.max(-1), number, k)
    candidates = jnp.take_along_axis(chunks, chosen[..., None], axis=1).reshape(len(keys), -1)
    ids = (chosen[..., None] * CHUNK + jnp.arange(CHUNK, dtype=jnp.int32)).reshape(candidates.shape)
    keys, ids = _largest(candidates, ids, k)
    return _from_total_order(keys), ids


def _sorted(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    values, ids = jax.lax.top_k(x, k)
    return values, ids


def _largest(keys: Int32[Array, "B n"], ids: Int32[Array, "B n"], k: int) -> tuple[Int32[Array, "B k"], Int32[Array, "B k"]]:
    """The k largest keys in descending order, the smaller id first where two are equal, and their ids."""
    # n * n comparisons and k * n selections, which XLA fuses into reductions: nothing of that size is stored.
    key, other = keys[:, :, None], keys[:, None, :]
    goes_before = (other > key) | ((other == key) & (ids[:, None, :] < ids[:, :, None]))
    rank = goes_before.sum(-1, dtype=jnp.int32)
    has_rank = rank[:, None, :] == jnp.arange(k)[:, None]
    keys, ids = (jnp.where(has_rank, x[:, None, :], 0).sum(-1, dtype=jnp.int32) for x in (keys, ids))
    return keys, ids


def _total_order(x: Float32[Array, "B n"]) -> Int32[Array, "B n"]:
    """Integers in the order in which `lax.top_k` sees floats: -NaN, -inf ... -0, 0 ... inf, NaN."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)


def _from_total_order(keys: Int32[Array, "B n"]) -> Float32[Array, "B n"]:
    bits = jnp.where(keys < 0, keys ^ jnp.iinfo(jnp.int32).max, keys)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
