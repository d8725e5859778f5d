"""A sum over the bits of every array of a state: the same on any mesh, on the device and on the host, and another one when any
bit is another. Orbax's files have none over their data (zstd's is off), and a flipped bit of a weight loads.

A sum is that of bits times odd weights (of the element's place) modulo 2^32: a single changed bit always changes it, and so do
two elements that changed places. It reads each array once, which is nothing beside writing it.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ODD = (2654435761, 2246822519, 3266489917, 668265263, 374761393, 2869860233)  # of axis 0, 1 ...; primes
BLOCK = 1 << 24  # elements that the host sums at once


def of_state(state: Any) -> dict[str, int]:
    """{path in the state: sum} of arrays on devices; on many hosts a program that all of them run."""
    first = jax.tree.leaves(state)[0].sharding
    whole = jax.sharding.NamedSharding(first.mesh, jax.sharding.PartitionSpec()) if hasattr(first, "mesh") else None
    flat, _ = jax.tree_util.tree_flatten_with_path(_program(whole)(state))
    return {jax.tree_util.keystr(path): int(value) for path, value in flat}


def of_array(array: np.ndarray) -> int:
    """That of an array on this host, in blocks."""
    if not array.ndim:
        return int(_bits(array.reshape(1))[0])
    step = max(1, BLOCK // max(1, int(np.prod(array.shape[1:]))))
    total = 0
    for first in range(0, len(array), step):
        block = _bits(array[first : first + step])
        total += int(np.sum(block * _weights(np, block.shape, first), dtype=np.uint32))
    return total % 2**32


@cache
def _program(whole: Any) -> Any:
    """Compiled once a run, not once a save."""
    return jax.jit(lambda tree: jax.tree.map(_sum, tree), out_shardings=whole)


def _sum(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{x.dtype.itemsize * 8}")).astype(jnp.uint32)
    return jnp.sum(bits * _weights(jnp, bits.shape, 0), dtype=jnp.uint32)


def _weights(xp: Any, shape: tuple[int, ...], first: int) -> Any:
    """Of each element, [shape] by broadcasting; `first`: place of the first on axis 0."""
    total = xp.ones((), xp.uint32)
    for axis, size in enumerate(shape):
        place = xp.arange(size, dtype=xp.uint32) + xp.uint32(first if axis == 0 else 0)
        place = place * xp.uint32((2 * ODD[axis]) % 2**32)  # even, so that the sum with 1 is odd
        total = total + place.reshape(-1, *[1] * (len(shape) - 1 - axis))
    return total


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").astype(np.uint32, copy=False)
