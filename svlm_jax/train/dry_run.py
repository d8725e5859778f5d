"""Does a run fit? Its step compiled ahead of time for devices that are not there, and the memory of one of them.

Needs the compiler of the target: the CUDA plugin of this jax version and ptxas, or libtpu. Nothing is run, no weight is read.
"""

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from svlm_jax import hf_config
from svlm_jax.config import ModelConfig, preset
from svlm_jax.errors import InputError
from svlm_jax.train.config import Bucket, TrainConfig

H100 = Path(__file__).with_name("h100.txtpb")  # what the compiler must know of the device
# Name of a topology -> platform, what the compiler calls it, and bytes of memory of a device.
TOPOLOGIES: dict[str, tuple[str, str, float]] = {
    "h100x1": ("cuda", "1x1x1", 80e9),
    "h100x8": ("cuda", "1x1x8", 80e9),
    "h100x16": ("cuda", "1x2x8", 80e9),
    "h100x64": ("cuda", "1x8x8", 80e9),
    "v5p-8": ("tpu", "v5:2x2x1", 95 * 2**30),
    "v5p-64": ("tpu", "v5:2x4x4", 95 * 2**30),
    "v5p-128": ("tpu", "v5:4x4x4", 95 * 2**30),
}


def report(config: TrainConfig, topology: str) -> None:
    """Print one JSON line for each function of the step, and whether they fit."""
    rows = measure(config, topology)
    for row in rows:
        print(json.dumps(row))
    room = TOPOLOGIES[topology][2] / 1e9
    most = max(row["memory (GB)"] for row in rows)
    print(f"{topology}: {most:.1f} of {room:.0f} GB a device, {'fits' if most < room else 'DOES NOT FIT'}")


def measure(config: TrainConfig, topology: str) -> list[dict[str, Any]]:
    """Memory of a device while a micro-step of the largest bucket and the optimiser step run, in GB.

    Raises:
        InputError: an unknown topology, a missing compiler, a mesh that does not fit it.
    """
    import jax

    from svlm_jax.train.optimizer import optimizer
    from svlm_jax.train.setup import mesh_of, model_config, trained_paths
    from svlm_jax.train.step import Step, split

    devices = _devices(topology)
    mesh = mesh_of(config.mesh, devices)
    attention = "tpu" if TOPOLOGIES[topology][0] == "tpu" else "mosaic_gpu"
    kernels = attention if config.attention == "auto" else config.attention
    model = replace(model_config(config, shape(config.model)), attention=kernels)
    trained, frozen = split(_parameters(model, mesh), trained_paths(config))
    step = Step(model, optimizer(config.optimizer, 100), mesh, trained, config.ema)
    frozen = {path: _cast(leaf, config.dtype) for path, leaf in frozen.items()}
    batch = _batch(config.data.buckets[-1], config.micro_batch, model, mesh)
    state, sums = step.state, step.sums
    rows = []
    with jax.set_mesh(mesh):
        for name, function, arguments in (
            ("micro-step", step.micro, (state.trained, sums, frozen, batch)),
            ("optimiser step", step.apply, (state, sums)),
        ):
            started = time.monotonic()
            moments = _bytes((state.moments, state.ema)) if name == "micro-step" else 0  # held, and no argument of it
            taken, temporary = _compiled(function, arguments)
            row: dict[str, Any] = {"function": name, "memory (GB)": round((taken + temporary + moments) / 1e9, 2)}
            row |= {"arguments (GB)": round(_bytes(arguments) / 1e9, 2), "temporary (GB)": round(temporary / 1e9, 2)}
            row |= {"moments held (GB)": round(moments / 1e9, 2), "attention": kernels}
            rows.append(row | {"compile (s)": round(time.monotonic() - started, 1)})
    return rows


def _compiled(function: Any, arguments: tuple) -> tuple[float, float]:
    """Bytes of a device: arguments and what is not written over them, and temporaries."""
    try:
        memory = function.trace(*arguments).lower().compile().memory_analysis()
    except RuntimeError as error:  # a TPU's compiler refuses what does not fit, and says by how much
        found = re.search(r"temporaries \(([\d.]+)G\) exceeds", str(error))
        if found is None:
            raise
        return _bytes(arguments), float(found[1]) * 2**30
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return held, memory.temp_size_in_bytes


def shape(model: str) -> ModelConfig:
    """The shape of a checkpoint directory, or of a published model by its name, which is not downloaded."""
    if (Path(model) / "config.json").is_file():
        return hf_config.read(model)
    found = re.search(r"Qwen2\.5-VL-(\d+)B", model)
    if not found:
        raise InputError("model", model, "a directory, or a published Qwen2.5-VL", "give the directory of your checkpoint")
    return preset(f"{found[1]}b")


def _devices(topology: str) -> Any:
    if topology not in TOPOLOGIES:
        raise InputError("--dry-run", topology, f"one of {', '.join(TOPOLOGIES)}", "choose one of them")
    platform, name, _ = TOPOLOGIES[topology]
    os.environ |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    from jax.experimental import topologies

    try:
        if platform == "cuda":
            return topologies.get_topology_desc("h100", "cuda", target_config=H100.read_text(), topology=name).devices
        options = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1), "num_slices": 1}
        return topologies.get_topology_desc(name, "tpu", **options).devices
    except (RuntimeError, ValueError) as error:  # NotImplementedError and JaxRuntimeError are RuntimeErrors
        got = f"{topology} ({str(error).splitlines()[0]})"
        remedy = "pip install libtpu" if platform == "tpu" else "pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt"
        raise InputError("--dry-run", got, "the compiler of the target", remedy) from None


def _parameters(model: ModelConfig, mesh: Any) -> dict[str, Any]:
    import jax

    from svlm_jax.model.parameters import shapes
    from svlm_jax.sharding import shardings

    leaves = shapes(model)
    places = shardings({path: leaf.shape for path, leaf in leaves.items()}, mesh)
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[path]) for path, leaf in leaves.items()}


def _cast(leaf: Any, dtype: str) -> Any:
    import jax

    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)


def _batch(size: Bucket, rows: int, model: ModelConfig, mesh: Any) -> Any:
    import jax

    from svlm_jax.data.pipeline import Batch
    from svlm_jax.inputs import Inputs, VisionInput
    from svlm_jax.sharding import batch_sharding

    def made(*shape: int, dtype: str = "int32") -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=batch_sharding(mesh, len(shape) + 1))

    pair = made(size.patches, 2)
    vision = VisionInput(made(size.patches, model.vision.patch_dim, dtype="uint8"), pair, pair, pair, size.frame)
    tokens = made(size.tokens)
    inputs = Inputs(tokens, tokens, made(3, size.tokens, dtype="float32"), tokens, vision)
    return Batch(inputs, made(size.labels), made(size.labels))


def _bytes(tree: Any) -> int:
    """Of one device's share."""
    import jax
    import numpy as np

    shares = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree))
    return sum(int(np.prod(share)) * size for share, size in shares)
