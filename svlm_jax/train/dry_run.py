"""Does a run fit? Its step compiled ahead of time for devices that are not at hand, and the memory of one of them.

Nothing is run and no weight is read; `svlm_jax.topology` says which compilers this needs. Units: bytes inside, GB in reports.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from pallas_kernels import dispatch
from svlm_jax.config import ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.families import config_json, family_names, presets
from svlm_jax.topology import MEMORY_FRACTION, TOPOLOGIES, abstract_devices
from svlm_jax.train.config import TrainConfig
from svlm_jax.train.memory import AbstractStep, Memory
from svlm_jax.train.remat import choose_remat, local_capacity
from svlm_jax.train.setup import build_mesh, training_model_config

LOCAL = "local"  # the devices of this machine, instead of a topology
CUDNN = 91000  # the version that is compiled for


def device_memory(topology: str) -> float:
    """Bytes of memory of one device that a process may use; of a CPU, those of the machine."""
    if topology != LOCAL:
        platform, _, memory_bytes = TOPOLOGIES[topology]
        return memory_bytes * (MEMORY_FRACTION if platform == "cuda" else 1)
    return local_capacity() or float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


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
    with target(topology) as devices:
        mesh, model = build_mesh(config.mesh, devices), training_model_config(config, read_shape(config.model))
        capacity = device_memory(topology) if topology != LOCAL else local_capacity()
        model = replace(model, remat=choose_remat(config, model, mesh, capacity, print))
        step = AbstractStep(config, model, mesh)
        functions = {"micro-step": step.micro_step(), "optimizer step": step.optimizer_step()}
    return [columns(name, model, memory) for name, memory in functions.items()]


@contextmanager
def target(topology: str) -> Iterator[list[Any]]:
    """The devices of a topology; kernels are chosen for them meanwhile."""
    if topology == LOCAL:
        yield jax.devices()
        return
    devices = list(abstract_devices(topology, "--dry-run"))
    with ExitStack() as stack:
        stack.enter_context(dispatch.compiling_for(devices[0]))
        if TOPOLOGIES[topology].platform == "cuda":
            # jax asks for the version of a cuDNN on this machine even where it compiles for another.
            name = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
            stack.enter_context(mock.patch(name, lambda: CUDNN))
        yield devices


def columns(name: str, model: ModelConfig, memory: Memory) -> dict[str, Any]:
    """A row of a report."""
    return {
        "function": name,
        "remat": model.remat,
        "memory (GB)": round(memory.total / 1e9, 2),
        "arguments (GB)": round(memory.arguments / 1e9, 2),
        "temporary (GB)": round(memory.temporary / 1e9, 2),
        "idle (GB)": round(memory.idle / 1e9, 2),
        "compile (s)": round(memory.seconds, 1),
    }


def read_shape(model: str) -> ModelConfig:
    """The shape of a checkpoint directory, or of a published model by its name, which is not downloaded."""
    if (Path(model) / "config.json").is_file():
        return config_json.read(model)
    for name, config in presets().items():
        if name in model.lower():  # "Qwen/Qwen2.5-VL-7B-Instruct" holds "qwen2.5-vl-7b"
            return config
    expected = f"a directory, or a published {family_names()}"
    raise InputError("model", model, expected, "give the directory of your checkpoint")
