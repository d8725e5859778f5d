"""Checksums over the bits of every array of a state: the same on any mesh, on the device and on the host, and another one when
any bit is another. Orbax's files have none over their data (zstd's is off), and a flipped bit of a weight loads.

A checksum is the sum of bits times odd weights (by the element's index) modulo 2^32: a single changed bit always changes it,
and so do two elements that changed places. It reads each array once, which costs nothing beside writing it.
"""

from functools import cache
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PRIMES = (2654435761, 2246822519, 3266489917, 668265263, 374761393, 2869860233)  # of axis 0, 1 ...
BLOCK = 1 << 24  # elements that the host sums at once


def state_checksums(state: Any) -> dict[str, int]:
    """{path in the state: checksum} of arrays on devices; on many hosts a program that all of them run."""
    sharding = jax.tree.leaves(state)[0].sharding
    replicated = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec()) if hasattr(sharding, "mesh") else None
    paths, _ = jax.tree_util.tree_flatten_with_path(_program(replicated)(state))
    return {jax.tree_util.keystr(path): int(value) for path, value in paths}


def array_checksum(array: np.ndarray) -> int:
    """The checksum of an array on this host, in blocks."""
    if not array.ndim:
        return int(_bits(array.reshape(1))[0])
    block_rows = max(1, BLOCK // max(1, int(np.prod(array.shape[1:]))))
    total = 0
    for first_row in range(0, len(array), block_rows):
        bits = _bits(array[first_row : first_row + block_rows])
        total += int(np.sum(bits * _weights(np, bits.shape, first_row), dtype=np.uint32))
    return total % 2**32


@cache  # compiled once a run, not once a save
def _program(replicated: jax.sharding.NamedSharding | None) -> Any:
    return jax.jit(lambda tree: jax.tree.map(_checksum, tree), out_shardings=replicated)


def _checksum(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{x.dtype.itemsize * 8}")).astype(jnp.uint32)
    return jnp.sum(bits * _weights(jnp, bits.shape, 0), dtype=jnp.uint32)


def _weights(xp: ModuleType, shape: tuple[int, ...], first_row: int) -> Any:
    """Of each element, [shape] by broadcasting, in numpy or jax.numpy; first_row: index of the first row on axis 0."""
    weights = xp.ones((), xp.uint32)
    for axis, size in enumerate(shape):
        index = xp.arange(size, dtype=xp.uint32) + xp.uint32(first_row if axis == 0 else 0)
        # An even multiple of the index: with the 1 of the start the weight is odd, so no bit is lost modulo 2^32.
        index = index * xp.uint32((2 * PRIMES[axis]) % 2**32)
        weights = weights + index.reshape(-1, *[1] * (len(shape) - 1 - axis))
    return weights


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").astype(np.uint32, copy=False)
