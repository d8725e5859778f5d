"""Which streams of a batch are stepped together, and their rows of the KV cache: a free or waiting row costs nothing.

A step of n streams runs programs of the next batch size of 1, 2, 4 ... all rows. Unless it is all of them, the rows of the
cache are gathered into a smaller one on the device and scattered back in place. Rows that fill a group up are others that wait:
they see nothing, write nothing and come back as they were, so that no place of a group is special. The smaller cache is half of
the whole one at most.

Axes: B rows of the batch, n rows of a group.
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


def groups(taken: Sequence[int], sizes: Sequence[int], num_streams: int) -> Iterator[tuple[list[int], list[int]]]:
    """(streams to step together, all rows of their group) until all that are taken are stepped: one group, unless no size is
    large enough."""
    taken = list(taken)
    while taken:
        size = next((size for size in sorted(sizes) if size >= len(taken)), max(sizes))
        now, taken = taken[:size], taken[size:]
        others = [row for row in range(num_streams) if row not in now]
        yield now, sorted(now + others[: size - len(now)])


@jax.jit
def gather(cache: KVCache, rows: Int[Array | np.ndarray, " n"]) -> KVCache:
    """A cache of some rows [n] of another, which stays as it is."""
    return jax.tree.map(lambda one: jnp.take(one, rows, axis=0, mode="clip"), cache).constrain()


@partial(jax.jit, donate_argnames="cache")
def scatter(cache: KVCache, part: KVCache, rows: Int[Array | np.ndarray, " n"]) -> KVCache:
    """What `gather` took, back in its rows [n], which are all different."""

    def put(held: jax.Array, some: jax.Array) -> jax.Array:
        return held.at[rows].set(some, mode="promise_in_bounds", unique_indices=True)

    return jax.tree.map(put, cache, part).constrain()
