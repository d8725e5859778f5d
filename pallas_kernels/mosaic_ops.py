"""What the kernels for Hopper do in registers and on tensor cores, and what stands for it in GPU interpret mode.

Axes: m rows, n slots, H head dim.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

ROWS = 64  # query rows of a compute warpgroup: the M of a wgmma
COLUMNS = 16  # the K of a wgmma in 16 bits: a head dim is padded to a multiple of it
MAX_HEAD_DIM = 128
ACC = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]
LOG2E = math.log2(math.e)
BEFORE_JAX_0_11 = jax.__version_info__ < (0, 11)
MATRIX = plgpu.Layout.WGMMA
ROW, COLUMN = MATRIX.reduce(1), MATRIX.reduce(0)  # one value for each row, for each column of such a matrix


def check_dtype(name: str, q) -> None:
    """Refuse queries [B, T, N, H] that the tensor cores do not take.

    Raises:
        NotImplementedError: which names the kernel.
    """
    if q.dtype != jnp.bfloat16 or q.shape[-1] > MAX_HEAD_DIM:
        raise NotImplementedError(f"{name}: got {q.dtype} and head dim {q.shape[-1]}; takes bfloat16, up to {MAX_HEAD_DIM}")


class Ops:
    """What GPU interpret mode lacks: on a GPU the register layouts and wgmma, on a CPU plain array code.

    `scores` and `accumulate` wait for their product. The others call `issued` when theirs is issued, before they wait.
    """

    def __init__(self, interpret: bool) -> None:
        self.interpret = interpret

    def cast(self, x, layout):
        return x if self.interpret else plgpu.layout_cast(x, layout)

    def load(self, ref, layout):
        if self.interpret:
            return ref[...]
        return plgpu.load(ref, (), layout=layout) if BEFORE_JAX_0_11 else plgpu.load(ref, layout=layout)  # pyright: ignore[reportCallIssue]

    def scores(self, q, k):
        """q [m, H] @ k [n, H]^T, both in shared memory, in float32."""
        if self.interpret:
            return lax.dot_general(q[...], k[...], (((1,), (1,)), ((), ())), "highest", jnp.float32)

        def product(acc):
            self._issue_scores(acc, q, k)
            return acc[...]

        return pl.run_scoped(product, ACC((q.shape[0], k.shape[0]), jnp.float32))

    def accumulate(self, acc, weights, v):
        """acc + weights [m, n] @ v [n, H]; weights in registers, v in shared memory."""
        if self.interpret:
            return acc + lax.dot_general(weights, v[...], (((1,), (0,)), ((), ())), "highest", jnp.float32)
        return pl.run_state(lambda ref: plgpu.wgmma(ref, weights, v))(ACC.init(acc))

    def scores_alone(self, q, k, issued):
        """(q [m, H] @ k [n, H]^T, what `issued` returned)."""
        if self.interpret:
            return self.scores(q, k), issued()

        def product(scores):
            self._issue_scores(scores, q, k)
            pending = issued()
            return plgpu.wgmma_accumulator_load(scores, wait_n=0), pending

        return pl.run_scoped(product, ACC((q.shape[0], k.shape[0]), jnp.float32))

    def accumulate_alone(self, acc, weights, v, issued) -> Any:
        """acc + weights [m, n] @ v [n, H]."""
        if self.interpret:
            issued()
            return self.accumulate(acc, weights, v)

        def product(out):
            plgpu.wgmma(out, weights, v)
            issued()

        return pl.run_state(product)(ACC.init(acc))

    def accumulate_under(self, acc, weights, v, q, k, issued, softmax) -> Any:
        """(acc + weights @ v, `softmax` of the scores q @ k^T and what `issued` returned): the latter runs under the former."""
        if self.interpret:
            pending = issued()
            return self.accumulate(acc, weights, v), softmax(self.scores(q, k), pending)

        def products(scores, out):
            out[...] = acc
            self._issue_scores(scores, q, k)
            plgpu.wgmma(out, weights, v)
            pending = issued()
            result = softmax(plgpu.wgmma_accumulator_load(scores, wait_n=1), pending)
            result = lax.optimization_barrier(result)  # of the second wait, which may not move in front of the softmax
            return plgpu.wgmma_accumulator_load(out, wait_n=0), result

        return pl.run_scoped(products, ACC((q.shape[0], k.shape[0]), jnp.float32), ACC(acc.shape, jnp.float32))

    def _issue_scores(self, scores, q, k) -> None:
        plgpu.wgmma(scores, q, plgpu.transpose_ref(k, (1, 0)) if BEFORE_JAX_0_11 else k.transpose((1, 0)))


def swizzle_transforms(width: int, dtype) -> tuple:
    """Tiles and swizzle of rows of that many elements: the widest swizzle (in bytes) that they fill."""
    size = jnp.dtype(dtype).itemsize
    for swizzle in (128, 64, 32):
        if width * size % swizzle == 0:
            return plgpu.TilingTransform((8, swizzle // size)), plgpu.SwizzleTransform(swizzle)
    return ()
