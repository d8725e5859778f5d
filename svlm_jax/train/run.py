"""A run from its config: what svlm train calls. Puts together the parts that `begin`, `step` and `loop` own."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from svlm_jax import hf_config
from svlm_jax.errors import InputError
from svlm_jax.files import local_path
from svlm_jax.media.processor import Processor
from svlm_jax.train import setup
from svlm_jax.train.config import Say, TrainConfig
from svlm_jax.train.loop import Trainer
from svlm_jax.train.optimizer import optimizer
from svlm_jax.train.step import Step

CONFIG = "config.json"
SAME = ("model", "trained", "lora_rank", "lora_alpha", "ema", "optimizer.name")  # what a checkpoint's state depends on


def trainer(
    config: TrainConfig,
    directory: Path,
    *,
    devices: Sequence[Any] | None = None,
    say: Say = lambda line: None,
    stop: Callable[[int], bool] = lambda micro_step: False,
) -> Trainer:
    """A trainer ready to run, at its beginning or where its last checkpoint stands.

    Args:
        directory: of the model, `config.model` made local.
        say, stop: as of `Trainer`.

    Raises:
        InputError: a setting, a file or a checkpoint that does not fit.
    """
    if not config.run_dir:
        raise InputError("run_dir", "nothing", "a directory for checkpoints and metrics", "set --run-dir")
    local_path(config.run_dir, "run_dir")
    _remember(config, say)
    model = setup.model_config(config, hf_config.read(directory, config.dtype))
    processor = Processor.from_directory(config.processor or directory, model)
    learned = setup.examples(config.data.paths, config.data, processor)
    evaluated = setup.examples(config.data.evaluation, config.data, processor) if config.data.evaluation else None
    mesh = setup.mesh_of(config.mesh, devices)
    with jax.set_mesh(mesh):
        trained, frozen = setup.begin(config, model, directory, mesh)
        step = Step(model, optimizer(config.optimizer, config.total_steps(len(learned))), mesh, trained, config.ema)
        return Trainer(config, model, step, trained, frozen, (learned, evaluated), say=say, stop=stop)


def _remember(config: TrainConfig, say: Say) -> None:
    """The resolved config in the run's directory; what it was before must not contradict it."""
    path = Path(config.run_dir) / CONFIG
    now = json.loads(json.dumps(asdict(config)))
    if path.exists():
        before = json.loads(path.read_text())
        before["optimizer"] = {"name": "adamw"} | before["optimizer"]  # which it was before there was a choice
        for name in SAME:
            if (got := _setting(now, name)) != (expected := _setting(before, name)):
                remedy = "begin another run_dir, or set it back"
                raise InputError(name, repr(got), f"{expected!r}, as {config.run_dir} began with", remedy)
        if changed := sorted(name for name in now if now[name] != before.get(name)):
            say(f"settings changed since this run began: {', '.join(changed)}")
    if jax.process_index() == 0:
        Path(config.run_dir).mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(now, indent=2) + "\n")
        os.replace(part, path)


def _setting(values: dict[str, Any], name: str) -> Any:
    """By dotted name."""
    top, _, rest = name.partition(".")
    return _setting(values[top], rest) if rest else values.get(top)


def read_config(run_dir: str | Path) -> dict[str, Any]:
    """The resolved config of a run, as plain values."""
    path = Path(run_dir) / CONFIG
    if not path.is_file():
        raise InputError(str(run_dir), f"no {CONFIG}", "the directory of a training run", "check the path")
    return json.loads(path.read_text())
