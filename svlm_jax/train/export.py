"""A checkpoint of a training run as a Hugging Face or Orbax directory: trained parameters from the run, frozen ones from the
model it began with, adapters merged, tokenizer and processor files beside."""

import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from svlm_jax import hf_config
from svlm_jax.checkpoint import convert, huggingface, orbax
from svlm_jax.config import Dtype, ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.media.processor import FILES
from svlm_jax.model.parameters import shapes, stacked_path
from svlm_jax.model.transforms import merge_lora
from svlm_jax.sharding import make_mesh
from svlm_jax.train import setup
from svlm_jax.train.checkpoints import FOLDER, Checkpoints
from svlm_jax.train.config import Bucket, DataConfig, MeshConfig, OptimizerConfig, TrainConfig
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
    """Write the newest whole checkpoint of a run.

    Args:
        dtype: of the parameters written; by default that of the model that the run began with.
        ema: the averaged parameters instead of the last ones.
        model: where the run's `model` is now, if not where its config says.

    Raises:
        InputError: no checkpoint, a run without the average that is asked for, a target that exists, a full disk.
    """
    config = settings(read_config(run_dir))
    directory = model or Path(config.model)
    if ema and not config.ema:
        raise InputError("--ema", "a run without an average", "one trained with ema above 0", "leave the flag out")
    if not directory.is_dir():
        raise InputError("model", config.model, "the directory that the run began with", "give its place with --model")
    stored = hf_config.read(directory, dtype)
    base = setup.model_config(config, hf_config.read(directory, config.dtype))
    with convert.whole(target) as draft:
        written, values = _values(config, base, directory, run_dir, ema, dtype or stored.param_dtype)
        for place in dict.fromkeys((directory, Path(config.processor) if config.processor else directory)):
            for name in FILES:
                if (place / name).is_file():
                    shutil.copy(place / name, draft)
        if to == "orbax":
            orbax.save(draft, written, values)
        else:
            huggingface.write(draft, written, values, max_shard_bytes=max_shard_bytes, progress=progress)
    return written


def _values(
    config: TrainConfig, base: ModelConfig, directory: Path, run_dir: str | Path, ema: bool, dtype: Dtype
) -> tuple[ModelConfig, dict[str, Any]]:
    """(config, stacked parameters) of what is written, in `dtype` and in the memory of this host: a tensor at a time is read
    and cast, so no more is held than the result and a tensor. Accelerators hold nothing."""
    leaves, target = shapes(base), np.dtype(jnp.dtype(dtype))
    trained = {path: leaf for path, leaf in leaves.items() if re.fullmatch(setup.trained_paths(config), path)}
    merged = bool(config.lora_rank)  # adapters are added in float32, and what they are added to is cast afterwards
    checkpoints = Checkpoints(run_dir, keep=config.keep)
    try:
        values = checkpoints.trained(trained, ema=ema, cast_to=np.float32 if merged else target)
    finally:
        checkpoints.close()
    if values is None:
        raise InputError(str(run_dir), "no checkpoint", "a run that has saved one", "train longer")
    computed = np.dtype(jnp.dtype(config.dtype))  # what is frozen is rounded as it was while the others learned
    for path, tensor in tensors(directory, replace(base, lora_rank=0), skip=trained):
        values[path] = _merged(path, tensor.astype(computed), values, base).astype(target)
    written = replace(base.compute(dtype), remat="none", attention="auto", scan_layers=True, lora_rank=0)
    return written, {path: values[path] for path in sorted(values)}


def _merged(path: str, tensor: np.ndarray, values: dict[str, Any], base: ModelConfig) -> np.ndarray:
    """A frozen tensor with its adapters, if it has some, which are then gone from `values`."""
    names = [f"{path.removesuffix('kernel')}lora_{side}" for side in "ab"]
    if names[0] not in values:
        return tensor
    given = {name: jax.device_put(values.pop(name), _cpu()) for name in names}
    return np.asarray(merge_lora(base, given | {path: jax.device_put(tensor, _cpu())})[1][path])


def tensors(directory: Path, config: ModelConfig, skip: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(path, parameter) of a directory of either form, decoder stacked, one at a time on this host; those in `skip` are not
    read."""
    if orbax.is_store(directory):
        mesh = make_mesh(devices=[_cpu()])
        for path in shapes(config).keys() - set(skip):
            yield path, np.asarray(orbax.load(directory, config, mesh, only=path)[path])
        return
    files, table = huggingface.Files(directory), huggingface.rows(config)
    huggingface.check(files, table, config)
    layers: dict[str, list[huggingface.Row]] = {}
    for row in table:
        layers.setdefault((stacked_path(row.path) or (row.path,))[0], []).append(row)
    for path in layers.keys() - set(skip):
        first, *rest = layers[path]
        one = first.read(files.read(first.name))
        if stacked_path(first.path) is None:
            yield path, one
            continue
        whole = np.empty((1 + len(rest), *one.shape), one.dtype)
        whole[0] = one
        for layer, row in enumerate(rest, 1):
            whole[layer] = row.read(files.read(row.name))
        yield path, whole


def _cpu() -> Any:
    """This host's memory, as far as jax has it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names others alone
        return jax.local_devices()[0]


def settings(raw: dict[str, Any]) -> TrainConfig:
    """A TrainConfig from the plain values of a run's config.json."""
    data = {**raw["data"], "buckets": tuple(Bucket(**one) for one in raw["data"]["buckets"])}
    data |= {name: tuple(data[name]) for name in ("paths", "evaluation")}
    values: dict[str, Any] = {**raw, "profile": tuple(raw["profile"])}
    try:
        values |= {"data": DataConfig(**data), "optimizer": OptimizerConfig(**raw["optimizer"])}
        values |= {"mesh": MeshConfig(**raw["mesh"])}
        return TrainConfig(**values)
    except TypeError as error:
        raise InputError(CONFIG, f"settings of another version ({error})", "those of this one", "use that version") from None
