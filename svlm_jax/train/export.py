"""A checkpoint of a training run as a Hugging Face or Orbax directory: trained parameters from the run, frozen ones from the
model it began with, adapters merged, tokenizer and processor files beside."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from svlm_jax import hf_config
from svlm_jax.checkpoint import convert, hf, store
from svlm_jax.config import Dtype, ModelConfig
from svlm_jax.data.processor import FILES
from svlm_jax.errors import InputError
from svlm_jax.model.prepare import merge
from svlm_jax.model.vlm import Parameters
from svlm_jax.sharding import make_mesh
from svlm_jax.train import begin
from svlm_jax.train.checkpoints import FOLDER, Checkpoints
from svlm_jax.train.config import Bucket, DataConfig, MeshConfig, OptimizerConfig, TrainConfig
from svlm_jax.train.optimizer import optimizer
from svlm_jax.train.run import CONFIG, read_config
from svlm_jax.train.step import Step


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
    progress: hf.Progress | None = None,
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
    stored = hf_config.read(directory, dtype).param_dtype
    base = begin.model_config(config, hf_config.read(directory, config.dtype))
    values = _values(config, base, directory, run_dir, ema)
    base, values = merge(base, values)
    written = replace(base.compute(stored), remat="none", attention="auto", scan_layers=True)
    with convert.whole(target) as draft:
        for place in dict.fromkeys((directory, Path(config.processor) if config.processor else directory)):
            for name in FILES:
                if (place / name).is_file():
                    shutil.copy(place / name, draft)
        cast = jax.jit(lambda x: x.astype(written.param_dtype))
        values = {path: cast(values.pop(path)) for path in sorted(values)}
        if to == "orbax":
            store.save(draft, written, values)
        else:
            hf.write(draft, written, values, max_shard_bytes=max_shard_bytes, progress=progress)
    return written


def _values(config: TrainConfig, base: ModelConfig, directory: Path, run_dir: str | Path, ema: bool) -> Parameters:
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        trained, frozen = begin.begin(config, base, directory, mesh)
        step = Step(base, optimizer(config.optimizer, 1), mesh, trained, config.ema)
        checkpoints = Checkpoints(run_dir, keep=config.keep)
        try:
            loaded = checkpoints.load(step.state)
        finally:
            checkpoints.close()
    if loaded is None:
        raise InputError(str(run_dir), "no checkpoint", "a run that has saved one", "train longer")
    state = loaded[0]
    return {**(state.ema if ema else state.trained), **frozen}


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
