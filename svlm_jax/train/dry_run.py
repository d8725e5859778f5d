"""Does a run fit? Its step compiled ahead of time for devices that are not at hand, and the memory of one of them.

Nothing is run and no weight is read; `svlm_jax.topology` says which compilers this needs. Units: bytes inside, GB in reports.
"""

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from svlm_jax.config import ModelConfig
from svlm_jax.data.config import Bucket
from svlm_jax.data.pipeline import Batch
from svlm_jax.errors import InputError
from svlm_jax.families import config_json, family_names, presets
from svlm_jax.inputs import Inputs, VisionInput
from svlm_jax.model.parameters import shapes
from svlm_jax.sharding import batch_sharding, shardings
from svlm_jax.topology import TOPOLOGIES, abstract_devices
from svlm_jax.train.config import TrainConfig
from svlm_jax.train.optimizer import build_optimizer
from svlm_jax.train.prefetch import check_micro_batch
from svlm_jax.train.setup import build_mesh, trainable_pattern, training_model_config
from svlm_jax.train.step import TrainStep, split_parameters

LOCAL = "local"  # the devices of this machine, instead of a topology
STEPS = 100  # of the optimizer's schedule: any number, nothing is run


def device_memory(topology: str) -> float:
    """Bytes of memory of one device; of a CPU, those of the machine."""
    if topology != LOCAL:
        return TOPOLOGIES[topology].memory_bytes
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return float(limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


class Memory(NamedTuple):
    """Bytes of one device: arguments and outputs that are not written over them, and temporaries."""

    arguments: float
    temporary: float


def report(config: TrainConfig, topology: str) -> None:
    """Print one JSON line for each function of the step, and whether they fit."""
    rows = measure(config, topology)
    for row in rows:
        print(json.dumps(row))
    capacity = device_memory(topology) / 1e9
    peak_gb = max(row["memory (GB)"] for row in rows)
    print(f"{topology}: {peak_gb:.1f} of {capacity:.0f} GB a device, {'fits' if peak_gb < capacity else 'DOES NOT FIT'}")


def measure(config: TrainConfig, topology: str) -> list[dict[str, Any]]:
    """Memory of a device during a micro-step of the largest bucket and during the optimizer step, in GB.

    Args:
        topology: a name of `TOPOLOGIES`, or `LOCAL`: the devices of this machine.

    Raises:
        InputError: an unknown topology, a missing compiler, a mesh that does not fit it.
    """
    if topology == LOCAL:
        devices, kernels = jax.devices(), "auto"
    else:
        devices = abstract_devices(topology, "--dry-run")
        kernels = "tpu" if TOPOLOGIES[topology].platform == "tpu" else "mosaic_gpu"
    mesh = build_mesh(config.mesh, devices)
    attention = kernels if config.attention == "auto" else config.attention
    # "auto" asks the devices of this process, which are not the ones compiled for: the kernels are named here.
    model = replace(training_model_config(config, read_shape(config.model)), attention=attention)
    trainable, frozen = split_parameters(_abstract_parameters(model, mesh), trainable_pattern(config))
    step = TrainStep(model, build_optimizer(config.optimizer, STEPS), mesh, trainable, config.ema_decay)
    frozen = {path: _with_dtype(leaf, config.dtype) for path, leaf in frozen.items()}
    check_micro_batch(mesh, config.micro_batch_size)
    batch = _abstract_batch(config.data.buckets[-1], config.micro_batch_size, model, mesh)
    state, accumulator = step.abstract_state, step.abstract_accumulator
    # In device memory during a micro-step without being an argument of it.
    idle_bytes = _device_bytes((state.opt_state, state.ema))
    with jax.set_mesh(mesh):
        return [
            _measure_function(
                "micro-step", step.accumulate, (state.trainable, accumulator, frozen, batch), idle_bytes, attention
            ),
            _measure_function("optimizer step", step.apply_gradients, (state, accumulator), 0, attention),
        ]


def _measure_function(name: str, function: Any, arguments: tuple, idle_bytes: int, attention: str) -> dict[str, Any]:
    start_time = time.monotonic()
    memory = _compiled_memory(function, arguments)
    return {
        "function": name,
        "memory (GB)": round((memory.arguments + memory.temporary + idle_bytes) / 1e9, 2),
        "arguments (GB)": round(_device_bytes(arguments) / 1e9, 2),
        "temporary (GB)": round(memory.temporary / 1e9, 2),
        "idle optimizer state (GB)": round(idle_bytes / 1e9, 2),
        "attention": attention,
        "compile (s)": round(time.monotonic() - start_time, 1),
    }


def _compiled_memory(function: Any, arguments: tuple) -> Memory:
    try:
        memory = function.trace(*arguments).lower().compile().memory_analysis()
    except RuntimeError as error:  # a TPU's compiler refuses a program that does not fit, and says by how much
        match = re.search(r"temporaries \(([\d.]+)G\) exceeds", str(error))
        if match is None:
            raise
        return Memory(_device_bytes(arguments), float(match[1]) * 2**30)
    # Donated arguments are aliased by outputs: those count once.
    arguments_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Memory(arguments_bytes, memory.temp_size_in_bytes)


def read_shape(model: str) -> ModelConfig:
    """The shape of a checkpoint directory, or of a published model by its name, which is not downloaded."""
    if (Path(model) / "config.json").is_file():
        return config_json.read(model)
    for name, config in presets().items():
        if name in model.lower():  # "Qwen/Qwen2.5-VL-7B-Instruct" holds "qwen2.5-vl-7b"
            return config
    expected = f"a directory, or a published {family_names()}"
    raise InputError("model", model, expected, "give the directory of your checkpoint")


def _abstract_parameters(model: ModelConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    leaves = shapes(model)
    sharding = shardings({path: leaf.shape for path, leaf in leaves.items()}, mesh)
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding[path]) for path, leaf in leaves.items()}


def _with_dtype(leaf: jax.ShapeDtypeStruct, dtype: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)


def _abstract_batch(bucket: Bucket, batch_size: int, model: ModelConfig, mesh: Mesh) -> Batch:
    def array(*shape: int, dtype: str = "int32") -> Any:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=batch_sharding(mesh, len(shape) + 1))

    pair = array(bucket.patches, 2)
    patches = array(bucket.patches, model.vision.patch_dim, dtype="uint8")
    vision = VisionInput(patches, pair, pair, pair, bucket.frame_patches)
    tokens = array(bucket.tokens)
    inputs = Inputs(tokens, tokens, array(3, bucket.tokens, dtype="float32"), tokens, vision)
    return Batch(inputs, array(bucket.labels), array(bucket.labels))


def _device_bytes(tree: Any) -> int:
    """Of one device's shards."""
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree))
    return sum(int(np.prod(shape)) * itemsize for shape, itemsize in shards)
