"""Metrics of a run: one JSON line a step, always; TensorBoard and Weights & Biases where they are installed and switched on.

Written by the first process alone. A run that resumes from a checkpoint drops the lines of the steps that it repeats. The
metrics are described in docs/training.md.
"""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.files import atomic_write, local_path, report_write_errors

FILE = "metrics.jsonl"


class MetricsWriter:
    """Open until `close`."""

    def __init__(
        self, run_dir: str | Path, step: int, *, tensorboard: bool = False, wandb: str = "", config: Any = None
    ) -> None:
        """Args:
        step: the last that is done; lines after it are dropped.
        wandb: project to log to; the run keeps its id over restarts.
        """
        self.path = local_path(run_dir, "run_dir") / FILE
        _drop_after(self.path, step)
        with report_write_errors(self.path):
            self.file = self.path.open("a")
        self.tensorboard = _tensorboard(Path(run_dir) / "tensorboard", step) if tensorboard else None
        self.wandb = _wandb(Path(run_dir), wandb, config) if wandb else None

    def write(self, metrics: dict[str, Any]) -> None:
        """One line; "step" is in it."""
        # JSON has no NaN, and most readers end at one.
        finite = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in metrics.items()}
        with report_write_errors(self.path):
            self.file.write(json.dumps(finite) + "\n")
            self.file.flush()  # a run that is killed has all its lines
        scalars = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        if self.tensorboard is not None:
            for name, value in scalars.items():
                self.tensorboard.add_scalar(name, value, metrics["step"])
        if self.wandb is not None:
            self.wandb.log(scalars, step=metrics["step"])

    def close(self) -> None:
        with suppress(OSError):  # of a line that could not be written, which `write` has said
            self.file.close()
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish()


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run, of one under way too."""
    return [line for _, line in _lines(Path(run_dir) / FILE)]


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(line, what it says) of those that are whole: of the last one a run that was killed, or is writing, may have left a part,
    and a machine without power a block of zeros."""
    for text in path.read_bytes().splitlines():
        with suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield text, line


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = [text for text, line in _lines(path) if line["step"] <= step]
    # Atomic: a crash between two writes would lose the metrics of the whole run.
    with report_write_errors(path), atomic_write(path) as draft:
        draft.write_bytes(b"".join(text + b"\n" for text in lines))


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
    # The id in the run's directory: a run that resumes goes on with its curves.
    id_file = run_dir / "wandb_id"
    if not id_file.exists():
        id_file.write_text(wandb.util.generate_id())
    return wandb.init(project=project, id=id_file.read_text(), resume="allow", dir=str(run_dir), config=config)
