"""Linear, norms and MLPs, as Flax NNX modules. Parameters are stored in `param_dtype` and used in `dtype`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.remat import save_attention
from svlm_jax.config import Remat, Weights

INIT_SCALE = 0.02  # initializer_range of every published config


def matmul(x: jax.Array, kernel: jax.Array, contract: int, dtype=None) -> jax.Array:
    """Contract the last `contract` axes of x with the first ones of kernel, into `dtype` (that of x); float32 operands give a
    true float32 product."""
    # Without it a GPU multiplies float32 in TF32 and a TPU in bfloat16.
    precision = "highest" if x.dtype == jnp.float32 else None
    return jnp.tensordot(x, kernel.astype(x.dtype), axes=contract, precision=precision, preferred_element_type=dtype)


def normal(rngs: nnx.Rngs | None, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """An initial parameter; zeros without `rngs`, when only the shape is needed (tracing a random one is 10x slower)."""
    if rngs is None:
        return jnp.zeros(shape, dtype)
    return (INIT_SCALE * jax.random.normal(rngs.params(), shape, jnp.float32)).astype(dtype)


class Linear(nnx.Module):
    """y = x W + b. kernel [*ins, *outs], bias [*outs]; x [..., *ins] -> [..., *outs], so heads are an axis of their own.

    With `weights` "int8" the kernel is stored in 8 bits, to be multiplied by scale [*outs] (float32). `lora` (rank, alpha) adds
    alpha / rank * x A B with A [*ins, rank] and B [rank, *outs], which is zero at first.
    """

    def __init__(
        self, ins, outs, *, bias: bool, dtype: str, rngs: nnx.Rngs | None, weights: Weights = "full", lora=(0, 1.0)
    ) -> None:
        ins, outs = (tuple(n) if isinstance(n, tuple) else (n,) for n in (ins, outs))
        self.contract = len(ins)
        initial = normal(rngs, (*ins, *outs), dtype)
        self.bias = nnx.Param(jnp.zeros(outs, dtype)) if bias else None
        kernel, scale = (initial, None) if weights == "full" else to_int8(initial, self.contract)
        self.kernel = nnx.Param(kernel)
        self.scale = None if scale is None else nnx.Param(scale)
        rank, alpha = lora
        self.lora_a = nnx.Param(normal(rngs, (*ins, rank), dtype)) if rank else None
        self.lora_b = nnx.Param(jnp.zeros((rank, *outs), dtype)) if rank else None
        self.lora_scale = alpha / max(1, rank)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.scale is None:
            y = matmul(x, self.kernel[...], self.contract)
        else:
            # The scale is an output channel's, so it may multiply the product; int8 is exact in bfloat16.
            y = (matmul(x, self.kernel[...], self.contract, jnp.float32) * self.scale[...]).astype(x.dtype)
        if self.lora_a is not None and self.lora_b is not None:
            y = y + self.lora_scale * matmul(matmul(x, self.lora_a[...], self.contract), self.lora_b[...], 1)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def to_int8(kernel: jax.Array, contract: int) -> tuple[jax.Array, jax.Array]:
    """A kernel [*ins, *outs] rounded to 8 bits, and its scale [*outs]: 255 equal steps an output channel."""
    kernel = kernel.astype(jnp.float32)
    max_abs = jnp.max(jnp.abs(kernel), axis=tuple(range(contract)))
    scale = jnp.where(max_abs > 0, max_abs / 127, 1.0)
    return jnp.round(kernel / scale).astype(jnp.int8), scale


class RMSNorm(nnx.Module):
    """x / rms(x) in float32, cast back to x's dtype BEFORE the multiplication with scale [D], as the trained model did."""

    def __init__(self, size: int, eps: float, *, dtype: str) -> None:
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((size,), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / std * scale + bias in float32, with scale [D] and bias [D]."""

    def __init__(self, size: int, eps: float, *, dtype: str) -> None:
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((size,), dtype))
        self.bias = nnx.Param(jnp.zeros((size,), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class MLP(nnx.Module):
    """down(activation(up(x))): x [..., D] -> [..., D] through width F, with biases."""

    def __init__(self, size: int, hidden: int, activation: str, linear: Callable[..., Linear]) -> None:
        self.activation = activation
        self.up = linear(size, hidden, bias=True)
        self.down = linear(hidden, size, bias=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {  # by their names in config.json
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
}


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) * up(x)): x [..., D] -> [..., D] through width F; `linear` constructs its projections,
    gate and up as one [D, 2, F] if they are fused."""

    def __init__(self, size: int, hidden: int, linear: Callable[..., Linear], *, bias: bool, fused: bool) -> None:
        if fused:
            self.gate_up = linear(size, (2, hidden), bias=bias)
        else:
            self.gate = linear(size, hidden, bias=bias)
            self.up = linear(size, hidden, bias=bias)
        self.down = linear(hidden, size, bias=bias)
        self.fused = fused

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.fused:
            gate_up = self.gate_up(x)
            gate, up = gate_up[..., 0, :], gate_up[..., 1, :]  # moveaxis would be a transpose on the device
        else:
            gate, up = checkpoint_name(self.gate(x), "gate"), checkpoint_name(self.up(x), "up")  # for `text._SAVED`
        return self.down(jax.nn.silu(gate) * up)


def rematerialize(function: Callable, remat: Remat, saved: tuple[str, ...] = (), *, prevent_cse: bool = True) -> Callable:
    """`function` that is computed again for its backward pass: all of it with "full"; with the policies in between all but
    attention and the activations that are named `saved`; nothing with "none"."""
    if remat == "none":
        return function
    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable
    if remat != "full":
        policy = policies.save_from_both_policies(save_attention, policies.save_only_these_names(*saved))
    return jax.checkpoint(function, policy=policy, prevent_cse=prevent_cse)


def call_layer(layer: nnx.Module, *args: Any, method: str = "__call__", **static: Any) -> Any:
    """`layer(*args, **static)`, or another method, for one of many layers that are alike: traced and lowered once, called for
    each of them.

    XLA inlines the calls, so the compiled program is that of unrolled layers. Tracing 28 layers and lowering the kernel of each
    takes longer than XLA needs for them, and is paid at every start, with the compilation cache too.
    """
    return _call_layer(*nnx.split(layer), args, method, tuple(static.items()))


@partial(jax.jit, static_argnums=(0, 3, 4))
def _call_layer(graph: Any, state: Any, args: tuple, method: str, static: tuple[tuple[str, Any], ...]) -> Any:
    return getattr(nnx.merge(graph, state), method)(*args, **dict(static))
