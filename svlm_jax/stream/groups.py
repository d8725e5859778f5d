"""Which streams of a batch are stepped together, and their part of the KV cache: a stream that waits costs nothing.

A step of n streams runs programs of the next batch size of 1, 2, 4 ... all streams. Unless it is all of them, their part of the
cache is gathered into a smaller one on the device and scattered back in place. A group is filled up with streams that wait:
they see nothing, write nothing and come back as they were, so no member of a group is special. The smaller cache is at most
half as large as the whole.

Axes: B streams of the batch, n of a group.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from svlm_jax.model.cache import KVCache


def batch_sizes(num_streams: int) -> tuple[int, ...]:
    """Batch sizes to compile for: powers of two, and all streams at once."""
    return (*(2**power for power in range(num_streams.bit_length()) if 2**power < num_streams), num_streams)


def groups(stream_ids: Sequence[int], sizes: Sequence[int], num_streams: int) -> Iterator[tuple[list[int], list[int]]]:
    """(members: streams to step together, group: these and streams that wait, as many as the batch size) until all streams are
    stepped: one group, unless no size is large enough."""
    remaining = list(stream_ids)
    while remaining:
        size = next((size for size in sorted(sizes) if size >= len(remaining)), max(sizes))
        members, remaining = remaining[:size], remaining[size:]
        waiting = [b for b in range(num_streams) if b not in members]
        yield members, sorted(members + waiting[: size - len(members)])


@jax.jit
def gather(cache: KVCache, stream_ids: Int[Array | np.ndarray, " n"]) -> KVCache:
    """The cache of some streams of another one, which stays as it is."""
    return jax.tree.map(lambda x: jnp.take(x, stream_ids, axis=0, mode="clip"), cache).constrain()


@partial(jax.jit, donate_argnames="cache")
def scatter(cache: KVCache, part: KVCache, stream_ids: Int[Array | np.ndarray, " n"]) -> KVCache:
    """Write what `gather` took back for its streams, which are all different."""

    def write(x: jax.Array, part_x: jax.Array) -> jax.Array:
        return x.at[stream_ids].set(part_x, mode="promise_in_bounds", unique_indices=True)

    return jax.tree.map(write, cache, part).constrain()
