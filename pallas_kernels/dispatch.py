"""Which implementation runs. A named one runs or raises NotImplementedError; "auto" looks at the device and logs once
its choice and the reason (logger "pallas_kernels").
"""

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

# mosaic_gpu_pingpong has not run on a GPU yet, so "auto" does not take it: `python -m benchmarks kernels --quick` measures it.
Implementation = Literal[
    "auto", "xla", "cudnn", "mosaic_gpu", "mosaic_gpu_pingpong", "tpu", "interpret", "interpret_pingpong", "interpret_tpu"
]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

log = logging.getLogger("pallas_kernels")
_target: ContextVar[Any] = ContextVar("target", default=None)


@contextmanager
def compiling_for(device: Any) -> Iterator[None]:
    """Where "auto" chooses for `device`, which need not exist, instead of for the devices of this process. For functions that
    are traced inside: jax does not trace again what it has traced before."""
    token = _target.set(device)
    try:
        yield
    finally:
        _target.reset(token)


def choose(op: str, implementation: str, q: jax.Array, causal: bool = False) -> str:
    """The implementation for queries q [B, T, N, H], `causal`: of complete sequences; see `IMPLEMENTATIONS`.

    Raises:
        ValueError: an unknown name.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"{op} implementation: got {implementation!r}; expected one of {', '.join(IMPLEMENTATIONS)}")
    if implementation != "auto":
        return implementation
    return _auto(op, platform(), _capability(), jnp.dtype(q.dtype).name, q.shape[-1], causal)


def implementation_for(implementation: str, dtype: str, head_dim: int) -> str:
    """What `choose` chooses for a decoder of that dtype and head dim on the devices of this machine."""
    if implementation != "auto":
        return implementation
    return _best("decode_attention", platform(), _capability(), dtype, head_dim)[0]


@functools.cache
def _auto(op: str, backend: str, capability: str, dtype: str, head_dim: int, causal: bool) -> str:
    implementation, reason = _best(op, backend, capability, dtype, head_dim, causal)
    log.log(
        logging.WARNING if backend == "gpu" and implementation == "xla" else logging.INFO,
        "%s: %s, %s",
        op,
        implementation,
        reason,
    )
    return implementation


def _best(op: str, backend: str, capability: str, dtype: str, head_dim: int, causal: bool = False) -> tuple[str, str]:
    """(implementation, why)."""
    if backend == "tpu":
        return "tpu", "the device is a TPU"
    if backend != "gpu":
        return "xla", f"no kernel for a {backend}"
    if not capability.startswith("9."):
        return "xla", f"the GPU kernels are for compute capability 9.x (Hopper), the device has {capability}"
    if dtype != "bfloat16" or head_dim > 128:
        return "xla", f"the GPU kernels take bfloat16 and head dims up to 128, not {dtype} and {head_dim}"
    if causal and head_dim % 8 == 0:
        return "cudnn", "complete causal sequences are those of training, and cuDNN has a backward pass of its own"
    # The tensor cores take multiples of 16. Patches are written padded to one: 72 of Qwen3-VL's larger towers to 80.
    if head_dim % 16 and op != "vision_attention":
        return "xla", f"a KV cache of head dim {head_dim}, no multiple of 16, would be copied in every call of a GPU kernel"
    return "mosaic_gpu", f"the device is a Hopper GPU ({capability})"


def platform() -> str:
    """Of the devices that are compiled for: "cpu", "gpu" or "tpu"."""
    return jax.default_backend() if _target.get() is None else _target.get().platform


def _capability() -> str:
    return "" if platform() != "gpu" else _capability_of(_target.get())


@functools.cache
def _capability_of(device: Any) -> str:
    return str(getattr(device or jax.devices()[0], "compute_capability", ""))
