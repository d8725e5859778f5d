"""Linear, RMSNorm and the gated MLP, as Flax NNX modules. Parameters are held in `param_dtype` and used in `dtype`."""

import jax
import jax.numpy as jnp
from flax import nnx

INIT_SCALE = 0.02  # initializer_range of every published config


def matmul(x: jax.Array, kernel: jax.Array, contract: int) -> jax.Array:
    """Contract the last `contract` axes of x with the first ones of kernel; float32 operands give a true float32 product."""
    precision = "highest" if x.dtype == jnp.float32 else None
    return jnp.tensordot(x, kernel.astype(x.dtype), axes=contract, precision=precision)


def normal(rngs: nnx.Rngs | None, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """An initial parameter; zeros without `rngs`, for when only the shape is wanted (tracing a random one is 10x slower)."""
    if rngs is None:
        return jnp.zeros(shape, dtype)
    return (INIT_SCALE * jax.random.normal(rngs.params(), shape, jnp.float32)).astype(dtype)


class Linear(nnx.Module):
    """y = x W + b. kernel [*ins, *outs], bias [*outs]; x [..., *ins] -> [..., *outs], so heads are an axis of their own."""

    def __init__(self, ins, outs, *, bias: bool, dtype: str, rngs: nnx.Rngs | None) -> None:
        ins, outs = (tuple(n) if isinstance(n, tuple) else (n,) for n in (ins, outs))
        self.contract = len(ins)
        self.kernel = nnx.Param(normal(rngs, (*ins, *outs), dtype))
        self.bias = nnx.Param(jnp.zeros(outs, dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = matmul(x, self.kernel[...], self.contract)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) in float32, cast back to x's dtype BEFORE the multiplication with scale [D], as the trained model did."""

    def __init__(self, size: int, eps: float, *, dtype: str) -> None:
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((size,), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * self.scale[...].astype(x.dtype)


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) * up(x)): x [..., D] -> [..., D] through width F."""

    def __init__(self, size: int, hidden: int, *, bias: bool, dtype: str, rngs: nnx.Rngs | None) -> None:
        self.gate = Linear(size, hidden, bias=bias, dtype=dtype, rngs=rngs)
        self.up = Linear(size, hidden, bias=bias, dtype=dtype, rngs=rngs)
        self.down = Linear(hidden, size, bias=bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
