"""Attention of the model: which operation of `pallas_kernels`, and on which devices.

Over a mesh each device runs the kernel on its own streams and heads: a kernel is opaque to XLA's partitioner, which would
gather everything. Visibility being integers, a sequence cut over devices (axis context) needs nothing more: a device has its
own queries, with the indexes that they see, and the whole of keys and values.

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

QUERY, KEY = ("batch", "length", "heads", None), ("batch", "heads", None, None)
PLACE, SLOT, ANGLE = ("batch", "length"), ("batch", None), ("batch", None, None)


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
    """Attention of new tokens over the slots of a cache, or (`causal`: slot t holds token t) of a whole sequence over itself:
    see `pallas_kernels.decode_attention`, `prefill_attention`."""
    few = q.shape[1] <= api.DECODE_TOKENS and q.shape[1] * (q.shape[2] // k.shape[1]) <= api.DECODE_ROWS
    operation = api.decode_attention if few and not causal else api.prefill_attention
    arrays = {"q": (q, QUERY), "k": (k, KEY), "v": (v, KEY), "last": (last, PLACE), "index": (index, SLOT)}
    if rotary is not None:
        arrays |= {"cos": (rotary.cos, ANGLE), "sin": (rotary.sin, ANGLE)}

    def run(q, k, v, last, index, *angles):
        turn = Rotary(*angles) if angles else None
        whole = {"causal": True} if causal and q.shape[1] == k.shape[2] else {}  # not where the sequence is cut over devices
        return operation(q, k, v, last=last, index=index, rotary=turn, implementation=implementation, **whole)

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
    """Attention of patches inside their segments: see `pallas_kernels.vision_attention`. The tower is not cut over heads."""

    def run(q, k, v, first, last, index):
        return api.vision_attention(q, k, v, first=first, last=last, index=index, span=span, implementation=implementation)

    whole = ("batch", None, None, None)
    arrays = {"q": (q, whole), "k": (k, whole), "v": (v, whole), "first": (first, SLOT), "last": (last, SLOT)}
    return _over_devices(run, arrays | {"index": (index, SLOT)}, dispatch.choose("vision_attention", implementation, q))


def _over_devices(run: Callable, arrays: dict, chosen: str) -> jax.Array:
    """`run` on (array, logical axes) by name; the result has the axes of the first."""
    values = [jnp.asarray(value) for value, _ in arrays.values()]
    mesh = jax.sharding.get_abstract_mesh()
    if chosen == "xla" or mesh.empty or mesh.size == 1 or any(name not in mesh.axis_names for name in AXES):
        return run(*values)
    specs = [activation_spec(mesh, value.shape, axes) for value, (_, axes) in zip(values, arrays.values(), strict=True)]
    return jax.shard_map(run, mesh=mesh, in_specs=tuple(specs), out_specs=specs[0], check_vma=False)(*values)
