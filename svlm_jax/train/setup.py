"""What a run starts from: the model's config in its training form, and its parameters on the mesh."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from svlm_jax.checkpoint import convert
from svlm_jax.config import ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.model.parameters import Parameters, shapes
from svlm_jax.sharding import make_mesh, shardings
from svlm_jax.train.config import MeshConfig, TrainConfig
from svlm_jax.train.step import split_parameters

ADAPTERS = r".*\.lora_[ab]"


def training_model_config(config: TrainConfig, model: ModelConfig) -> ModelConfig:
    """A model in its training form: decoder layers stacked, float32 parameters, compute in the run's dtype; with `remat`
    "auto" the most careful policy, until `remat.choose_remat` has chosen."""
    model = model.compute(config.dtype, "float32")
    remat = "full" if config.remat == "auto" else config.remat
    changes = {"remat": remat, "attention": config.attention}
    return replace(model, scan_layers=True, lora_rank=config.lora_rank, lora_alpha=config.lora_alpha, **changes)


def trainable_pattern(config: TrainConfig) -> str:
    """Regular expression of the paths of trainable parameters: the adapters, where there are any."""
    return ADAPTERS if config.lora_rank else config.trainable


def build_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    return make_mesh(config.data, config.fsdp, config.context, config.tensor, devices)


def load_parameters(config: TrainConfig, model: ModelConfig, directory: Path, mesh: Mesh) -> tuple[Parameters, Parameters]:
    """(trainable, frozen) parameters of a checkpoint on the mesh: trainable in float32, frozen in the compute dtype. New
    adapters change nothing yet: their B is zero.

    Raises:
        InputError: a pattern that matches no parameter.
    """
    parameters = convert.load(directory, replace(model, lora_rank=0), mesh)
    adapters = {path: leaf for path, leaf in shapes(model).items() if path not in parameters}
    adapter_shardings = shardings({path: leaf.shape for path, leaf in adapters.items()}, mesh)
    for number, (path, leaf) in enumerate(sorted(adapters.items())):
        # A key for each path, in sorted order: the values do not depend on the mesh.
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        init = _init_lora_a if path.endswith("lora_a") else _init_zeros
        parameters[path] = jax.jit(init, static_argnums=1, out_shardings=adapter_shardings[path])(key, leaf.shape)
    trainable, frozen = split_parameters(parameters, trainable_pattern(config))
    if not trainable:
        raise InputError("trainable", repr(config.trainable), "an expression that matches parameters", r"text\..* is usual")
    # Donated, one by one: the float32 and the cast copy of all frozen parameters would not fit side by side.
    cast = jax.jit(lambda x: x.astype(config.dtype), donate_argnums=0) if config.dtype != "float32" else lambda x: x
    return trainable, {path: cast(frozen[path]) for path in sorted(frozen)}


def _init_lora_a(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal, with the variance of one over the number of inputs [*stack, *inputs, rank]."""
    return jax.random.normal(key, shape, jnp.float32) / np.sqrt(np.prod(shape[1:-1]))


def _init_zeros(_: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.zeros(shape, jnp.float32)
