"""What this device can do: bytes a second of a copy, operations a second of a matrix product, many of each in one program.

One call at a time would measure the dispatch too: on an H200 that gives half of the bandwidth that the engine's own products
reach.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

CALLS, REPEATS = 20, 5  # in a program; of the program


class Ceilings(NamedTuple):
    """copy: bytes a second, read and written. product: operations a second in bfloat16, two a multiplication."""

    copy: float
    product: float

    def seconds(self, bytes_moved: float, flops: float) -> float:
        """The roofline: the least time for this work."""
        return max(bytes_moved / self.copy, flops / self.product)

    def text(self) -> str:
        return f"copy {self.copy / 1e9:.0f} GB/s, matrix product {self.product / 1e12:.1f} TFLOP/s"


def measure_ceilings() -> Ceilings:
    import jax
    import jax.numpy as jnp

    # More than the caches of the device hold.
    size, side = (1 << 24, 512) if jax.default_backend() == "cpu" else (1 << 30, 8192)  # bytes; rows of a square matrix
    block = jax.random.normal(jax.random.key(0), (size // 2,), jnp.bfloat16)
    lhs, rhs = jax.random.normal(jax.random.key(1), (2, side, side), jnp.bfloat16)
    rhs = rhs / side**0.5  # so that the values stay as they are: a product of zeros or infinities draws less power
    copies = jax.jit(lambda x: jax.lax.fori_loop(0, CALLS, lambda _, x: x + 1, x))
    products = jax.jit(lambda x, y: jax.lax.fori_loop(0, CALLS, lambda _, x: x @ y, x))
    copy_seconds, product_seconds = (
        median_seconds(lambda: copies(block)),
        median_seconds(lambda: products(lhs, rhs)),
    )
    return Ceilings(2 * size * CALLS / copy_seconds, 2 * side**3 * CALLS / product_seconds)


def median_seconds(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Of one call, which is waited for; the first one, which compiles, does not count."""
    import jax

    jax.block_until_ready(call())
    durations = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(call())
        durations.append(time.perf_counter() - started)
    return float(np.median(durations))
