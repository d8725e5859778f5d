"""The vision-language model: vision features replace the embeddings of vision tokens, and the decoder runs over all tokens.

Axes: B batch, T tokens, M merged vision rows, D width, V vocabulary.
"""

import re
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int

from svlm_jax.config import ModelConfig
from svlm_jax.inputs import Inputs
from svlm_jax.model.cache import KVCache
from svlm_jax.model.text import Decoder
from svlm_jax.model.vision import Features, VisionTower


class QwenVL(nnx.Module):
    """Vision tower and decoder; one path for text, images, clips and batches of samples with different grids."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs | None) -> None:
        self.config = config
        self.vision = VisionTower(config, rngs)
        self.text = Decoder(config, rngs)

    def embed(
        self, inputs: Inputs, features: Features | None = None
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B T D"], ...]]:
        """Embeddings of text and vision tokens, and what is added to them after the first layers (`Features.by_layer`).

        The vision tower encodes `inputs.vision`; without it, `features` are those that were encoded before.
        """
        x = self.text.embed(jnp.asarray(inputs.ids))
        if inputs.vision is not None:
            features = self.vision(inputs.vision)
        if features is None:
            return x, ()
        rows = jnp.asarray(inputs.rows)[..., None]
        is_vision = rows >= 0

        def gather(feature: jax.Array) -> jax.Array:
            return jnp.take_along_axis(feature.astype(x.dtype), jnp.maximum(rows, 0), axis=1)

        deepstack = tuple(jnp.where(is_vision, gather(feature), 0) for feature in features.by_layer)
        return jnp.where(is_vision, gather(features.rows), x), deepstack

    def hidden(self, inputs: Inputs) -> Float[Array, "B T D"]:
        """Final hidden states of complete sequences."""
        x, deepstack = self.embed(inputs)
        return self.text(x, jnp.asarray(inputs.index), jnp.asarray(inputs.positions), deepstack)

    def extend(
        self, inputs: Inputs, slots: Int[Array, "B T"], cache: KVCache, features: Features | None = None
    ) -> tuple[Float[Array, "B T D"], KVCache]:
        """Final hidden states of new tokens on top of a KV cache that describes them, which gets them in `slots`."""
        x, deepstack = self.embed(inputs, features)
        return self.text.extend(x, jnp.asarray(inputs.index), jnp.asarray(inputs.positions), slots, cache, deepstack)

    def __call__(self, inputs: Inputs) -> Float32[Array, "B T V"]:
        """Logits of complete sequences under causal attention."""
        return self.text.logits(self.hidden(inputs))


Parameters = dict[str, jax.Array]


@cache
def abstract(config: ModelConfig) -> tuple[Any, Any]:
    """Structure of a model without its arrays: (graph, state of ShapeDtypeStructs). Costs no memory at any size."""
    return nnx.split(nnx.eval_shape(lambda: QwenVL(config, None)))


def shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter, by dotted path ("text.layers.0.mlp.up.kernel")."""
    return {_dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(abstract(config)[1])}


def parameters(model: QwenVL) -> Parameters:
    """Every parameter of a model, by dotted path."""
    return {_dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(model))}


def from_parameters(config: ModelConfig, values: Mapping[str, Any]) -> QwenVL:
    """A model around given arrays, which are not copied. Missing, unknown or wrong-shaped ones are one ValueError."""
    graph, state = abstract(config)
    flat = {_dotted(path): (path, leaf) for path, leaf in nnx.to_flat_state(state)}
    wrong = [f"missing {path}" for path in flat if path not in values]
    wrong += [f"unknown {path}" for path in values if path not in flat]
    wrong += [
        f"{path} {tuple(value.shape)} instead of {flat[path][1].get_value().shape}"
        for path, value in values.items()
        if path in flat and tuple(value.shape) != flat[path][1].get_value().shape
    ]
    if wrong:
        raise ValueError("parameters: " + "; ".join(wrong))
    filled = [(path, leaf.replace(values[dotted])) for dotted, (path, leaf) in flat.items()]
    return nnx.merge(graph, nnx.from_flat_state(filled))


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
        add(result, path, value, layers)
    return result


def add(stacks: Parameters, path: str, value: jax.Array, layers: int) -> None:
    """Put one parameter into the stacked form: a decoder layer's into its place in a stack of `layers`, written in place."""
    layer = stacked_path(path)
    if layer is None:
        stacks[path] = value
        return
    if layer[0] not in stacks:
        target = value.sharding
        if isinstance(target, NamedSharding):
            target = NamedSharding(target.mesh, PartitionSpec(None, *target.spec))
        stacks[layer[0]] = jnp.zeros((layers, *value.shape), value.dtype, device=target)
    stacks[layer[0]] = _set_layer(stacks[layer[0]], value, layer[1])


def unstack(values: Mapping[str, jax.Array]) -> Parameters:
    """The inverse of `stack`."""
    result: Parameters = {}
    for path, value in values.items():
        if path.startswith("text.layers.") and stacked_path(path) is None:
            rest = path.removeprefix("text.layers.")
            result |= {f"text.layers.{layer}.{rest}": layer_of(value, layer) for layer in range(value.shape[0])}
        else:
            result[path] = value
    return result


# Layers move as unsigned integers: on a CPU, XLA would widen bfloat16 to float32 and back (3x the time, 5x the memory).


@jax.jit
def layer_of(stacked: jax.Array, layer: int | jax.Array) -> jax.Array:
    """One layer [...] of a stacked parameter [L, ...]; compiles once for all layers."""
    taken = jax.lax.dynamic_index_in_dim(_bits(stacked), layer, keepdims=False)
    return jax.lax.bitcast_convert_type(taken, stacked.dtype)


@partial(jax.jit, donate_argnums=0)
def _set_layer(stacked: jax.Array, value: jax.Array, layer: int | jax.Array) -> jax.Array:
    written = jax.lax.dynamic_update_index_in_dim(_bits(stacked), _bits(value), layer, 0)
    return jax.lax.bitcast_convert_type(written, stacked.dtype)


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{x.dtype.itemsize * 8}"))
