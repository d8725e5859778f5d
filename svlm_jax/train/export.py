"""A checkpoint of a training run as a Hugging Face or Orbax directory: trainable parameters from the run, frozen ones from its
initial model, adapters merged, with the tokenizer and processor files."""

import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from svlm_jax.checkpoint import convert, huggingface, orbax
from svlm_jax.config import Dtype, ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.files import atomic_directory
from svlm_jax.media.processor import PROCESSOR_FILES
from svlm_jax.model.parameters import shapes, stacked_path
from svlm_jax.model.transforms import merge_lora
from svlm_jax.sharding import make_mesh
from svlm_jax.train import setup
from svlm_jax.train.checkpoints import FOLDER, Checkpoints
from svlm_jax.train.config import TrainConfig
from svlm_jax.train.run import CONFIG, read_config


def is_run(directory: str | Path) -> bool:
    """Whether a directory is that of a training run."""
    return (Path(directory) / CONFIG).is_file() and (Path(directory) / FOLDER).is_dir()


def export(
    run_dir: str | Path,
    target: str | Path,
    *,
    to: convert.Form = "hf",
    dtype: Dtype | None = None,
    ema: bool = False,
    model: Path | None = None,
    max_shard_bytes: int = 4 * 10**9,
    progress: huggingface.Progress | None = None,
) -> ModelConfig:
    """Write the newest complete checkpoint of a run.

    Args:
        dtype: of the parameters written; by default that of the run's initial model.
        ema: the averaged parameters instead of the last ones.
        model: where the run's `model` is now, if not where its config says.

    Raises:
        InputError: no checkpoint, `ema` of a run without an average, a target that exists, a full disk.
    """
    config = read_config(run_dir)
    directory = model or Path(config.model)
    if ema and not config.ema_decay:
        raise InputError("--ema", "a run without an average", "one trained with ema_decay above 0", "leave the flag out")
    if not directory.is_dir():
        raise InputError("model", config.model, "the directory of the run's initial model", "give its path with --model")
    source_config = config_json.read(directory, dtype)
    training_config = setup.training_model_config(config, config_json.read(directory, config.dtype))
    # Refuses a target that exists before anything is read.
    with atomic_directory(target) as draft:
        parameters = _parameters(config, training_config, directory, run_dir, ema, dtype or source_config.param_dtype)
        _copy_processor_files(directory, Path(config.processor) if config.processor else directory, draft)
        exported = replace(training_config.compute(dtype or source_config.param_dtype), remat="none", attention="auto")
        exported = replace(exported, scan_layers=True, lora_rank=0)
        if to == "orbax":
            orbax.save(draft, exported, parameters)
        else:
            huggingface.write(draft, exported, parameters, max_shard_bytes=max_shard_bytes, progress=progress)
    return exported


def _copy_processor_files(model: Path, processor: Path, target: Path) -> None:
    """Of a file in both directories, the processor's."""
    for directory in (model, processor):
        for name in PROCESSOR_FILES:
            if (directory / name).is_file():
                shutil.copy(directory / name, target)


def _parameters(
    config: TrainConfig, model: ModelConfig, directory: Path, run_dir: str | Path, ema: bool, dtype: Dtype
) -> dict[str, np.ndarray]:
    """Stacked parameters to be written, in `dtype` and in the memory of this host. A tensor at a time is read and cast, so the
    peak is the result and a tensor. Accelerators hold nothing."""
    target_dtype = np.dtype(jnp.dtype(dtype))
    pattern = setup.trainable_pattern(config)
    trainable = {path: leaf for path, leaf in shapes(model).items() if re.fullmatch(pattern, path)}
    # Adapters are added in float32, and the sum is cast.
    read_dtype = np.dtype(np.float32) if config.lora_rank else target_dtype
    checkpoints = Checkpoints(run_dir, read_only=True)
    try:
        parameters = checkpoints.load_trainable(trainable, ema=ema, dtype=read_dtype)
    finally:
        checkpoints.close()
    if parameters is None:
        raise InputError(str(run_dir), "no checkpoint", "a run that has saved one", "train longer")
    compute_dtype = np.dtype(jnp.dtype(config.dtype))  # frozen parameters are rounded as they were in training
    for path, tensor in read_stacked(directory, replace(model, lora_rank=0), skip=trainable):
        parameters[path] = _merge_adapter(path, tensor.astype(compute_dtype), parameters, model).astype(target_dtype)
    return {path: parameters[path] for path in sorted(parameters)}


def _merge_adapter(path: str, tensor: np.ndarray, parameters: dict[str, np.ndarray], model: ModelConfig) -> np.ndarray:
    """A frozen tensor with its adapter added, if it has one, which is removed from `parameters`."""
    names = [f"{path.removesuffix('kernel')}lora_{side}" for side in "ab"]
    if names[0] not in parameters:
        return tensor
    # On the CPU backend: the sum is the same on every machine, and an accelerator may be in use.
    values = {name: jax.device_put(parameters.pop(name), _cpu()) for name in names}
    return np.asarray(merge_lora(model, values | {path: jax.device_put(tensor, _cpu())})[1][path])


def read_stacked(directory: Path, config: ModelConfig, skip: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(path, parameter) of a Hugging Face or Orbax directory, decoder layers stacked, one at a time on this host; those in
    `skip` are not read."""
    if orbax.is_store(directory):
        mesh = make_mesh(devices=[_cpu()])
        for path in shapes(config).keys() - set(skip):
            yield path, np.asarray(orbax.load(directory, config, mesh, only=path)[path])
        return
    files, table = huggingface.open_files(directory, config), huggingface.rows(config)
    huggingface.check(files, table, config)
    layers: dict[str, list[huggingface.Row]] = {}
    for row in table:
        layers.setdefault((stacked_path(row.path) or (row.path,))[0], []).append(row)
    for path in layers.keys() - set(skip):
        first, *others = layers[path]
        tensor = first.read(files.read(first.name))
        if stacked_path(first.path) is None:
            yield path, tensor
            continue
        # Filled layer by layer: a list of layers to be stacked would need twice the memory.
        stack = np.empty((1 + len(others), *tensor.shape), tensor.dtype)
        stack[0] = tensor
        for layer, row in enumerate(others, 1):
            stack[layer] = row.read(files.read(row.name))
        yield path, stack


def _cpu() -> Any:
    """This host's memory, where jax has a CPU backend."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names only others
        return jax.local_devices()[0]
