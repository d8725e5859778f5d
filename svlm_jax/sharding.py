"""Sharding of arrays over a mesh, in two tables: PARAMETERS gives the logical axes of every parameter, RULES the mesh axes of a
logical axis.

Mesh axes: data (replicas), fsdp (parameters and batch), context (sequence), tensor (heads, mlp width, vocabulary).
Knows paths and shapes, no module. The vision tower is sharded over fsdp along its width and never over tensor: its MLP width
(3420) divides by nothing useful, and it is small.
"""

import math
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import combinations
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from svlm_jax.config import ModelConfig
from svlm_jax.errors import InputError

AXES = ("data", "fsdp", "context", "tensor")

RULES: dict[str | None, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": ("context",),
    "embed": ("fsdp", "context"),  # width D of a parameter
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "vision": ("fsdp",),  # width E of a vision parameter
    None: (),
}

PARAMETERS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"text\.embedding", ("vocab", "embed")),
    (r"text\.head\.kernel", ("embed", "vocab")),
    (r"text\.layers\..*attention\.[qkv]\.kernel", ("embed", "heads", None)),
    (r"text\.layers\..*attention\.[qkv]\.(bias|scale)", ("heads", None)),
    (r"text\.layers\..*attention\.qkv\.kernel", ("embed", "heads", None, None)),  # fused, as for inference
    (r"text\.layers\..*attention\.qkv\.(bias|scale)", ("heads", None, None)),
    (r"text\.layers\..*attention\.out\.kernel", ("heads", None, "embed")),
    (r"text\.layers\..*mlp\.(gate|up)\.kernel", ("embed", "mlp")),
    (r"text\.layers\..*mlp\.gate_up\.kernel", ("embed", None, "mlp")),
    (r"text\.layers\..*mlp\.gate_up\.scale", (None, "mlp")),
    (r"text\.layers\..*mlp\.down\.kernel", ("mlp", "embed")),
    (r"text\.layers\..*mlp\.(gate|up)\.scale", ("mlp",)),
    (r"text\.layers\..*\.(out|down)\.scale", (None,)),
    (r"text\.head\.scale", ("vocab",)),
    (r"text\.layers\..*(\.[qkv]|gate|up)\.lora_a", ("embed", None)),
    (r"text\.layers\..*\.[qkv]\.lora_b", (None, "heads", None)),
    (r"text\.layers\..*\.(gate|up)\.lora_b", (None, "mlp")),
    (r"text\.layers\..*attention\.out\.lora_a", ("heads", None, None)),
    (r"text\.layers\..*mlp\.down\.lora_a", ("mlp", None)),
    (r"text\.layers\..*\.(out|down)\.lora_b", (None, "embed")),
    (r".*norm\d?\.scale", (None,)),
    (r"vision\.patch_embed\.kernel", (None, "vision")),
    (r"vision\.position_embedding", (None, "vision")),
    (r"vision\.blocks\..*attention\.qkv\.kernel", ("vision", None, None, None)),
    (r"vision\.blocks\..*attention\.qkv\.bias", (None, None, None)),
    (r"vision\.blocks\..*attention\.out\.kernel", (None, None, "vision")),
    (r"vision\.blocks\..*mlp\.(gate|up)\.kernel", ("vision", None)),
    (r"vision\.blocks\..*mlp\.gate_up\.kernel", ("vision", None, None)),
    (r"vision\.blocks\..*mlp\.gate_up\.bias", (None, None)),
    (r"vision\.blocks\..*mlp\.down\.kernel", (None, "vision")),
    (r"vision\.(merger|deepstack\.\d+)\.(up|down)\.kernel", ("vision", None)),
    (r"vision\..*\.bias", (None,)),
)


def make_mesh(data: int = 1, fsdp: int = 1, context: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh over `devices` (all by default); one axis may be -1 and takes what is left."""
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, context, tensor]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = len(devices) // max(1, math.prod(size for size in sizes if size != -1))
    if min(sizes) < 1 or math.prod(sizes) > len(devices):
        got = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise InputError("mesh", got, f"positive sizes with a product of at most {len(devices)} devices", "change the sizes")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 4, devices=devices[: math.prod(sizes)])


def mesh_of(values: Mapping[str, jax.Array]) -> Mesh | None:
    """The mesh that parameters are sharded over; None on one device."""
    first = next(iter(values.values())).sharding
    return first.mesh if isinstance(first, NamedSharding) and isinstance(first.mesh, Mesh) else None


def batch_shards(mesh: Mesh | None) -> int:
    """Devices that a batch is divided over."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in RULES["batch"])


def on_mesh(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """A context in which kernels are partitioned over the mesh: outside of it a TPU refuses them. No-op without a mesh."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def check(config: ModelConfig, mesh: Mesh) -> None:
    """Refuse a tensor axis that would cut a head in two or leave a device without a kv head."""
    text, tensor = config.text, mesh.shape["tensor"]
    # A device with no kv head of its own would have to hold the keys of another.
    legal = [n for n in range(1, text.num_key_value_heads + 1) if _divides(n, text)]
    if tensor not in legal:
        got = f"{tensor} ways for {text.num_attention_heads} query and {text.num_key_value_heads} kv heads"
        raise InputError("mesh axis tensor", got, f"one of {legal}", "give the other devices to fsdp")


def _divides(ways: int, text) -> bool:
    sizes = (text.num_attention_heads, text.num_key_value_heads, text.intermediate_size, text.vocab_size)
    return all(size % ways == 0 for size in sizes)


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
    """Logical axes of the parameter at a dotted path; a stacked parameter has a leading layer axis, never sharded."""
    for pattern, axes in PARAMETERS:
        if re.fullmatch(pattern, path):
            return (None,) * (ndim - len(axes)) + axes
    raise ValueError(f"parameter {path}: no row in sharding.PARAMETERS")


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Logical axes -> PartitionSpec."""
    return PartitionSpec(*((RULES[axis] if len(RULES[axis]) != 1 else RULES[axis][0]) if axis else None for axis in axes))


def shardings(shapes: Mapping[str, tuple[int, ...]], mesh: Mesh) -> dict[str, NamedSharding]:
    """Sharding of each parameter, by dotted path. Sizes that do not divide are an error, never a silent replica."""
    result, problems = {}, []
    for path, shape in shapes.items():
        axes = logical_axes(path, len(shape))
        for size, axis in zip(shape, axes, strict=True):
            # jax would pad or refuse uneven shards depending on the operation: uneven is refused here, for all.
            ways = math.prod(mesh.shape[name] for name in RULES[axis])
            if size % ways:
                problems.append(f"{path} {shape} axis {axis} by {ways}")
        result[path] = NamedSharding(mesh, spec(axes))
    if problems:
        got = f"{len(problems)} parameters that do not divide ({problems[0]})"
        raise InputError("mesh", got, "sizes that divide", "use fewer ways")
    return result


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Inputs: the leading axis over data and fsdp, the rest replicated."""
    return NamedSharding(mesh, spec(("batch", *(None,) * (ndim - 1))))


def sharding(mesh: Mesh, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> NamedSharding:
    """Sharding of an activation or a cache by its logical axes; one that does not divide (a batch of one) is
    replicated, or cut over fewer devices."""
    return NamedSharding(mesh, activation_spec(mesh, shape, axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pin an activation to its logical axes when a mesh is set (`jax.set_mesh`), as `sharding` does."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(name not in mesh.axis_names for name in AXES):
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(mesh, x.shape, axes))


def activation_spec(mesh, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> PartitionSpec:
    """PartitionSpec of an activation on a mesh (abstract or not); an axis is cut over as many of its mesh axes as divide it
    and replicated over the others: a batch of 4 on data 2 x fsdp 4 is cut over fsdp."""
    return PartitionSpec(*(_dividing(mesh, size, RULES[axis]) for size, axis in zip(shape, axes, strict=True)))


def _dividing(mesh, size: int, names: tuple[str, ...]) -> str | tuple[str, ...] | None:
    """The mesh axes, of those of a logical axis, that cut it into the most parts."""
    subsets = [subset for count in range(len(names) + 1) for subset in combinations(names, count)]
    parts = {subset: math.prod(mesh.shape[name] for name in subset) for subset in subsets}
    best = max((subset for subset in subsets if size % parts[subset] == 0), key=lambda subset: (parts[subset], len(subset)))
    return best if len(best) > 1 else (best[0] if best else None)
