"""A run from its config: what `svlm train` calls. Puts together the parts that `setup`, `step` and `loop` own."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax

from svlm_jax.data.config import Bucket, DataConfig
from svlm_jax.data.dataset import load_examples
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.files import atomic_write, local_path, read_json, report_write_errors
from svlm_jax.media.processor import Processor
from svlm_jax.train import model_check, setup
from svlm_jax.train.config import Log, MeshConfig, OptimizerConfig, TrainConfig, check_names
from svlm_jax.train.loop import Trainer
from svlm_jax.train.optimizer import build_optimizer
from svlm_jax.train.remat import choose_remat, local_capacity
from svlm_jax.train.run_lock import RunLock
from svlm_jax.train.step import TrainStep

CONFIG = "config.json"
# Settings that the state in a checkpoint depends on: a run keeps them, and its model (`model_check`).
FIXED = ("trainable", "lora_rank", "lora_alpha", "ema_decay", "optimizer.name")


def build_trainer(
    config: TrainConfig,
    directory: Path,
    *,
    devices: Sequence[Any] | None = None,
    log: Log = lambda line: None,
    should_stop: Callable[[int], bool] = lambda micro_step: False,
) -> Trainer:
    """A trainer ready to run, from the start or from its last checkpoint.

    Args:
        directory: of the model, `config.model` on a local disk.
        log, should_stop: as of `Trainer`.

    Raises:
        InputError: a setting, a file or a checkpoint that does not fit.
    """
    if not config.run_dir:
        raise InputError("run_dir", "nothing", "a directory for checkpoints and metrics", "set --run-dir")
    for name in ("run_dir", "processor"):
        local_path(getattr(config, name), name)
    _check_config(config, log)
    lock = RunLock(config.run_dir)
    model = setup.training_model_config(config, config_json.read(directory, config.dtype))
    processor = Processor.from_directory(config.processor or directory, model)
    train_set = load_examples(config.data.paths, config.data, processor)
    eval_set = load_examples(config.data.eval_paths, config.data, processor) if config.data.eval_paths else None
    mesh = setup.build_mesh(config.mesh, devices)
    model = replace(model, remat=choose_remat(config, model, mesh, local_capacity(), log))
    with jax.set_mesh(mesh):  # constraints on activations are resolved against the mesh that is set
        trainable, frozen = setup.load_parameters(config, model, directory, mesh)
        optimizer = build_optimizer(config.optimizer, config.total_steps(len(train_set)))
        step = TrainStep(model, optimizer, mesh, trainable, config.ema_decay)
        options = {"model_fingerprint": model_check.fingerprint(directory), "lock": lock}
        trainer = Trainer(config, step, trainable, frozen, (train_set, eval_set), log=log, should_stop=should_stop, **options)
    _write_config(config)  # what is refused above changes nothing in the run's directory
    return trainer


def _check_config(config: TrainConfig, log: Log) -> None:
    """Compare the config with that in the run's directory, if one is there."""
    if not (Path(config.run_dir) / CONFIG).exists():
        return
    new, old = (json.loads(json.dumps(asdict(part))) for part in (config, read_config(config.run_dir)))
    for name in FIXED:
        if (got := _setting(new, name)) != (expected := _setting(old, name)):
            remedy = "start another run_dir, or set it back"
            raise InputError(name, repr(got), f"{expected!r}, as {config.run_dir} started with", remedy)
    if changed := sorted(name for name in new if new[name] != old.get(name)):
        log(f"settings changed since this run started: {', '.join(changed)}")


def _write_config(config: TrainConfig) -> None:
    """The resolved config into the run's directory."""
    if jax.process_index() == 0:
        path = Path(config.run_dir) / CONFIG
        # Atomic: a process that starts meanwhile reads the old config or the new one.
        with report_write_errors(path), atomic_write(path) as draft:
            draft.write_text(json.dumps(asdict(config), indent=2) + "\n")


def _setting(values: dict[str, Any], name: str) -> Any:
    """By dotted name."""
    head, _, tail = name.partition(".")
    return _setting(values[head], tail) if tail else values.get(head)


def read_config(run_dir: str | Path) -> TrainConfig:
    """The resolved config of a run.

    Raises:
        InputError: no training run, or settings of another version.
    """
    path = Path(run_dir) / CONFIG
    if not path.is_file():
        raise InputError(str(run_dir), f"no {CONFIG}", "the directory of a training run", "check the path")
    raw = read_json(path, "the config of a training run")
    parts = ("data", "optimizer", "mesh")
    if not all(isinstance(raw.get(name), dict) for name in parts):  # that of a model, for example
        raise InputError(str(path), "a file of something else", "the config of a training run", "choose another run_dir")
    data, optimizer, mesh = (raw.pop(name) for name in parts)
    buckets = data.pop("buckets", ())
    for kind, values in ((TrainConfig, raw), (DataConfig, data), (OptimizerConfig, optimizer), (MeshConfig, mesh)):
        check_names(str(path), kind, values)
    for bucket in buckets:
        check_names(str(path), Bucket, bucket)
    try:
        data |= {name: tuple(data[name]) for name in ("paths", "eval_paths")}
        return TrainConfig(
            **{**raw, "profile": tuple(raw["profile"])},
            data=DataConfig(**data, buckets=tuple(Bucket(**bucket) for bucket in buckets)),
            optimizer=OptimizerConfig(**optimizer),
            mesh=MeshConfig(**mesh),
        )
    except (KeyError, TypeError) as error:  # changed by hand, or a damaged disk
        got = f"settings that are incomplete or of another type ({error})"
        raise InputError(str(path), got, "the config of a training run", "restore it, or choose another run_dir") from None
