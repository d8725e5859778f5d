"""What a run tells: one JSON line a step, always; TensorBoard and Weights & Biases where they are installed and asked for.

Written by the first process alone. A run that goes on from a checkpoint drops the lines of the steps that it makes again.
"""

import json
import os
from pathlib import Path
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.files import local_path

FILE = "metrics.jsonl"


class Logs:
    """Open until `close`."""

    def __init__(
        self, run_dir: str | Path, step: int, *, tensorboard: bool = False, wandb: str = "", config: Any = None
    ) -> None:
        """Args:
        step: the run goes on after this one.
        wandb: project to log to; the run keeps its id over restarts.
        """
        self.path = local_path(run_dir, "run_dir") / FILE
        _cut(self.path, step)
        self.file = self.path.open("a")
        self.board = _tensorboard(Path(run_dir) / "tensorboard", step) if tensorboard else None
        self.wandb = _wandb(Path(run_dir), wandb, config) if wandb else None

    def write(self, line: dict[str, Any]) -> None:
        """One line; "step" is in it."""
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, line["step"])
        if self.wandb is not None:
            self.wandb.log(numbers, step=line["step"])

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def read(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run."""
    return [json.loads(line) for line in (Path(run_dir) / FILE).read_text().splitlines()]


def _cut(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):  # the last line of a run that was killed while it wrote
            continue
    part = path.with_suffix(".part")
    part.write_text("".join(f"{line}\n" for line in kept))
    os.replace(part, path)


def _tensorboard(directory: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError("tensorboard", "not installed", "tensorboardX", "pip install 'svlm-jax[tensorboard]'") from None
    return SummaryWriter(str(directory), purge_step=step + 1)


def _wandb(run_dir: Path, project: str, config: Any) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError("wandb", "not installed", "wandb", "pip install 'svlm-jax[wandb]'") from None
    known = run_dir / "wandb_id"
    if not known.exists():
        known.write_text(wandb.util.generate_id())
    return wandb.init(project=project, id=known.read_text(), resume="allow", dir=str(run_dir), config=config)
