"""Parameters of a model as a flat dict of arrays by dotted path ("text.layers.0.mlp.up.kernel"), and back to a model.

Owns the two forms of a decoder's parameters: one array a layer, or stacked on a leading axis (`scan_layers`); and the tuple of
the parameters of one part of a model, which is what a program is given. Does not know files or checkpoints.

Axes: L layers.
"""

import re
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from svlm_jax.config import ModelConfig
from svlm_jax.model.vlm import QwenVL

Parameters = dict[str, jax.Array]
Part = Literal["vision", "text"]  # vision tower, decoder


@cache
def abstract(config: ModelConfig) -> tuple[nnx.GraphDef[QwenVL], nnx.State]:
    """Structure of a model without its arrays: (graph, state of ShapeDtypeStructs). Costs no memory at any size."""
    return nnx.split(nnx.eval_shape(lambda: QwenVL(config, None)))


def shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter."""
    return {_dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(abstract(config)[1])}


def parameters(model: QwenVL) -> Parameters:
    """Every parameter of a model."""
    return {_dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model))}


def from_parameters(config: ModelConfig, values: Mapping[str, Any]) -> QwenVL:
    """A model around existing arrays, which are not copied. Missing, unknown or wrong-shaped ones are one ValueError."""
    # The structure is traced without arrays and filled: an initialised model would need its memory a second time.
    graph, state = abstract(config)
    flat = {_dotted(path): (path, leaf) for path, leaf in nnx.to_flat_state(state)}
    problems = [f"missing {path}" for path in flat if path not in values]
    problems += [f"unknown {path}" for path in values if path not in flat]
    problems += [
        f"{path} {tuple(value.shape)} instead of {flat[path][1].get_value().shape}"
        for path, value in values.items()
        if path in flat and tuple(value.shape) != flat[path][1].get_value().shape
    ]
    if problems:
        raise ValueError("parameters: " + "; ".join(problems))
    leaves = [(path, leaf.replace(values[dotted])) for dotted, (path, leaf) in flat.items()]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def part_of(values: Mapping[str, jax.Array], part: Part) -> tuple[jax.Array, ...]:
    """The parameters of one part of a model, in the order of their paths.

    A program is called for every second of video: a tuple of what it uses is dispatched in about half the time that a dict of
    all parameters by name takes.
    """
    return tuple(values[path] for path in sorted(values) if path.startswith(part))


def from_part(config: ModelConfig, part: Part, arrays: tuple[jax.Array, ...]) -> QwenVL:
    """A model with the parameters that `part_of` returned; those of the other part are shapes (ShapeDtypeStruct)."""
    every = shapes(config)
    paths = [path for path in sorted(every) if path.startswith(part)]
    return from_parameters(config, every | dict(zip(paths, arrays, strict=True)))


def _dotted(path: tuple) -> str:
    return ".".join(str(part) for part in path)


def stacked_path(path: str) -> tuple[str, int] | None:
    """("text.layers.mlp.up.kernel", 3) for "text.layers.3.mlp.up.kernel"; None for what is not a decoder layer."""
    match = re.fullmatch(r"text\.layers\.(\d+)\.(.+)", path)
    return (f"text.layers.{match[2]}", int(match[1])) if match else None


def stack(values: Mapping[str, jax.Array]) -> Parameters:
    """Parameters of a decoder with one array a layer -> stacked on a leading axis (`scan_layers`); shardings follow."""
    layers = 1 + max((layer[1] for path in values if (layer := stacked_path(path))), default=-1)
    result: Parameters = {}
    for path, value in values.items():
        write_to_stack(result, path, value, layers)
    return result


def write_to_stack(stacks: Parameters, path: str, value: jax.Array, layers: int) -> None:
    """Add one parameter to the stacked form: a decoder layer's is written in place into its row of a stack of `layers`."""
    match = stacked_path(path)
    if match is None:
        stacks[path] = value
        return
    stack_path, layer = match
    if stack_path not in stacks:
        # Allocated once and donated to each write: stacking a list would need the layers twice.
        sharding = value.sharding
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
        stacks[stack_path] = jnp.zeros((layers, *value.shape), value.dtype, device=sharding)
    stacks[stack_path] = _set_layer(stacks[stack_path], value, layer)


def unstack(values: Mapping[str, jax.Array]) -> Parameters:
    """The inverse of `stack`."""
    result: Parameters = {}
    for path, value in values.items():
        if path.startswith("text.layers.") and stacked_path(path) is None:
            name = path.removeprefix("text.layers.")
            result |= {f"text.layers.{layer}.{name}": layer_of(value, layer) for layer in range(value.shape[0])}
        else:
            result[path] = value
    return result


# Layers move as unsigned integers: on a CPU, XLA would widen bfloat16 to float32 and back (3x the time, 5x the memory).


@jax.jit
def layer_of(stacked: jax.Array, layer: int | jax.Array) -> jax.Array:
    """One layer [...] of a stacked parameter [L, ...]; compiles once for all layers."""
    bits = jax.lax.dynamic_index_in_dim(_bits(stacked), layer, keepdims=False)
    return jax.lax.bitcast_convert_type(bits, stacked.dtype)


@partial(jax.jit, donate_argnums=0)
def _set_layer(stacked: jax.Array, value: jax.Array, layer: int | jax.Array) -> jax.Array:
    bits = jax.lax.dynamic_update_index_in_dim(_bits(stacked), _bits(value), layer, 0)
    return jax.lax.bitcast_convert_type(bits, stacked.dtype)


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{x.dtype.itemsize * 8}"))
