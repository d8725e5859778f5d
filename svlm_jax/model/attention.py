"""Attention of the model: which operation of `pallas_kernels` runs, and on which devices.

Over a mesh each device runs the kernel on its own streams and heads: a kernel is opaque to XLA's partitioner, which would
gather everything. There is no attention mask but integers, so a sequence cut over devices (axis context) needs nothing more: a
device has its own queries, with the last index that each attends to, and all keys and values.

Axes: B batch, T queries, S slots, P patches, N query heads, K kv heads, H head dim.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels import api, dispatch
from pallas_kernels.rotary import Rotary
from svlm_jax.sharding import AXES, activation_spec

# Logical axes of the operands.
QUERIES, KEYS = ("batch", "length", "heads", None), ("batch", "heads", None, None)
LAST, INDEX, ANGLES = ("batch", "length"), ("batch", None), ("batch", None, None)
PATCHES, RANGES = ("batch", None, None, None), ("batch", None)  # the tower is not cut over heads


def text_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    *,
    last: Int[Array | np.ndarray, "B T"],
    index: Int[Array | np.ndarray, "B S"],
    rotary: Rotary | None = None,
    causal: bool = False,
    implementation: str = "auto",
) -> Float[Array, "B T N H"]:
    """Grouped-query attention of new tokens over the slots of a KV cache, or (`causal`: slot t holds token t) of a complete
    sequence over itself: see `pallas_kernels.decode_attention`, `prefill_attention`."""
    tokens, group = q.shape[1], q.shape[2] // k.shape[1]
    is_decode_step = tokens <= api.DECODE_TOKENS and tokens * group <= api.DECODE_ROWS and not causal
    operation = api.decode_attention if is_decode_step else api.prefill_attention
    arrays = {"q": (q, QUERIES), "k": (k, KEYS), "v": (v, KEYS), "last": (last, LAST), "index": (index, INDEX)}
    if rotary is not None:
        arrays |= {"cos": (rotary.cos, ANGLES), "sin": (rotary.sin, ANGLES)}

    def run(q, k, v, last, index, *angles):
        # On a device with a part of the queries and all keys, slot t is not token t: the promise of `causal` is dropped.
        promise = {"causal": True} if causal and q.shape[1] == k.shape[2] else {}
        local_rotary = Rotary(*angles) if angles else None
        return operation(q, k, v, last=last, index=index, rotary=local_rotary, implementation=implementation, **promise)

    return _over_devices(run, arrays, dispatch.choose(operation.__name__, implementation, q, causal))


def vision_attention(
    q: Float[Array, "B P N H"],
    k: Float[Array, "B N P H"],
    v: Float[Array, "B N P H"],
    *,
    first: Int[Array | np.ndarray, "B P"],
    last: Int[Array | np.ndarray, "B P"],
    index: Int[Array | np.ndarray, "B P"],
    span: int,
    implementation: str = "auto",
) -> Float[Array, "B P N H"]:
    """Attention of patches inside their windows or frames: see `pallas_kernels.vision_attention`."""

    def run(q, k, v, first, last, index):
        return api.vision_attention(q, k, v, first=first, last=last, index=index, span=span, implementation=implementation)

    arrays = {"q": (q, PATCHES), "k": (k, PATCHES), "v": (v, PATCHES)}
    arrays |= {"first": (first, RANGES), "last": (last, RANGES), "index": (index, RANGES)}
    return _over_devices(run, arrays, dispatch.choose("vision_attention", implementation, q))


def _over_devices(run: Callable, arrays: dict, implementation: str) -> jax.Array:
    """`run` on (array, logical axes) by name; the result has the axes of the first."""
    values = [jnp.asarray(value) for value, _ in arrays.values()]
    mesh = jax.sharding.get_abstract_mesh()
    # XLA partitions its own attention.
    if implementation == "xla" or mesh.empty or mesh.size == 1 or any(name not in mesh.axis_names for name in AXES):
        return run(*values)
    specs = [activation_spec(mesh, value.shape, axes) for value, (_, axes) in zip(values, arrays.values(), strict=True)]
    return jax.shard_map(run, mesh=mesh, in_specs=tuple(specs), out_specs=specs[0], check_vma=False)(*values)
