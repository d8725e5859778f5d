"""A small real film with its annotated windows, and runs of the tiny model on them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from svlm_jax.data.video import write_video
from svlm_jax.train.config import Bucket, DataConfig, MeshConfig, OptimizerConfig, TrainConfig
from svlm_jax.train.run import trainer

SECONDS, WINDOW, SAMPLES = 40, 4, 8
BUCKETS = (Bucket(768, 1600, 96, 512), Bucket(1024, 2048, 192, 512))


def film(path: Path) -> None:
    """Noise of a different colour every second, encoded."""
    rng = np.random.default_rng(0)
    seconds = rng.integers(0, 255, (SECONDS, 1, 1, 1, 3))
    frames = np.broadcast_to(seconds, (SECONDS, 4, 112, 112, 3)) // 2 + rng.integers(0, 90, (SECONDS, 4, 112, 112, 3))
    write_video(path, frames.reshape(-1, 112, 112, 3).astype(np.uint8), 4)


def record(video: str, number: int) -> list:
    """A window of which every second says two words of its own."""
    start = number * WINDOW
    words = [[start + 0.5 * k, start + 0.5 * k + 0.4, f"say{number}{k}"] for k in range(2 * WINDOW)]
    clip = {"type": "video", "video": video, "video_start": start, "video_end": start + WINDOW}
    said = {"type": "text_stream", "text_stream": words}
    asked = {"type": "text", "text": "Commentate", "previous": "Before that."}
    return [{"role": "user", "content": [clip, asked]}, {"role": "assistant", "content": [said]}]


@pytest.fixture(scope="session")
def windows(tmp_path_factory) -> Path:
    """A JSONL file of windows, the film beside it."""
    folder = tmp_path_factory.mktemp("windows")
    film(folder / "film.mp4")
    lines = [json.dumps(record("film.mp4", number)) for number in range(SAMPLES)]
    (folder / "train.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder / "train.jsonl"


@pytest.fixture
def config(windows, tiny_dir, processor_dir, tmp_path) -> TrainConfig:
    data = DataConfig(paths=(str(windows),), root=str(windows.parent), buckets=BUCKETS, threads=2, max_bad=0.0)
    return TrainConfig(
        model=str(tiny_dir),
        processor=str(processor_dir),
        run_dir=str(tmp_path / "run"),
        data=data,
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup=0.0),
        mesh=MeshConfig(fsdp=1),
        batch=4,
        micro_batch=4,
        steps=3,
        dtype="float32",
        remat="none",
        save_every=100,
        hang_seconds=0,
    )


@pytest.fixture
def train(tiny_dir, tmp_path):
    """Run a config to its end: (its trainer, what it said)."""

    def run(config: TrainConfig, devices: int = 1, **options: Any):
        said: list[str] = []
        made = trainer(config, tiny_dir, devices=jax.devices()[:devices], say=said.append, **options)
        made.run()
        return made, said

    return run


def elsewhere(config: TrainConfig, name: str, **changes: Any) -> TrainConfig:
    """The same run in another directory."""
    return replace(config, run_dir=str(Path(config.run_dir).with_name(name)), **changes)
