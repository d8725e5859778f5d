"""A small real film with its annotated windows, and runs of the tiny model on them."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from svlm_jax.compile_cache import MAX_BYTES
from svlm_jax.data.config import Bucket, DataConfig
from svlm_jax.media.video import write_video
from svlm_jax.train.config import MeshConfig, OptimizerConfig, TrainConfig
from svlm_jax.train.run import build_trainer

SECONDS, WINDOW, SAMPLES = 40, 4, 8
BUCKETS = (Bucket(256, 64, 64, 16), Bucket(512, 64, 192, 16))


def film(path: Path) -> None:
    """Noise of a different colour every second, encoded."""
    rng = np.random.default_rng(0)
    seconds = rng.integers(0, 255, (SECONDS, 1, 1, 1, 3))
    frames = np.broadcast_to(seconds, (SECONDS, 4, 56, 56, 3)) // 2 + rng.integers(0, 90, (SECONDS, 4, 56, 56, 3))
    write_video(path, frames.reshape(-1, 56, 56, 3).astype(np.uint8), 4)


def record(video: str, number: int) -> list:
    """A window of which every second says a word of its own."""
    start = number * WINDOW
    return _record(video, start, start + WINDOW, "Before that.")


def film_record() -> list:
    """The whole film: second k says "wk"."""
    return _record("film.mp4", 0, SECONDS, "")


def _record(video: str, start: int, end: int, previous: str) -> list:
    words = [[second + 0.2, second + 0.7, f"w{second}"] for second in range(start, end)]
    clip = {"type": "video", "video": video, "video_start": start, "video_end": end}
    text_stream = {"type": "text_stream", "text_stream": words}
    query = {"type": "text", "text": "Commentate", "previous": previous}
    return [{"role": "user", "content": [clip, query]}, {"role": "assistant", "content": [text_stream]}]


@pytest.fixture(scope="package", autouse=True)
def programs(tmp_path_factory):
    """Most runs here are the same two programs: compiled once, read from a folder by the others. All processes of a session
    share it, with the same limit on its size: jax keeps times of use only with a limit, and fails where they are missing."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    names = {"jax_compilation_cache_dir": str(folder / "programs")}
    names |= {"jax_persistent_cache_min_compile_time_secs": 0.2, "jax_compilation_cache_max_size": MAX_BYTES}
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # jax holds on to the one of an earlier test
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def windows(tmp_path_factory) -> Path:
    """A JSONL file of windows, the film beside it."""
    folder = tmp_path_factory.mktemp("windows")
    film(folder / "film.mp4")
    lines = [json.dumps(record("film.mp4", number)) for number in range(SAMPLES)]
    (folder / "train.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder / "train.jsonl"


@pytest.fixture(scope="session")
def small_frames(tmp_path_factory, processor_dir) -> Path:
    """The tests' processor with frames of 4 vision tokens."""
    folder = tmp_path_factory.mktemp("processor")
    shutil.copytree(processor_dir, folder, dirs_exist_ok=True)
    settings = json.loads((folder / "preprocessor_config.json").read_text()) | {"min_pixels": 56 * 56, "max_pixels": 56 * 56}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def config(windows, shallow_dir, small_frames, tmp_path) -> TrainConfig:
    data = DataConfig(paths=(str(windows),), root=str(windows.parent), buckets=BUCKETS, threads=2, max_bad_fraction=0.0)
    return TrainConfig(
        model=str(shallow_dir),
        processor=str(small_frames),
        run_dir=str(tmp_path / "run"),
        data=data,
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_ratio=0.0),
        mesh=MeshConfig(fsdp=1),
        batch_size=4,
        micro_batch_size=4,
        steps=3,
        dtype="float32",
        remat="none",
        save_every=100,
        hang_seconds=0,
    )


@pytest.fixture
def train(shallow_dir, tmp_path):
    """Run a config to its end: (its trainer, what it said)."""

    def run(config: TrainConfig, devices: int = 1, **options: Any):
        log_lines: list[str] = []
        trainer = build_trainer(config, shallow_dir, devices=jax.devices()[:devices], log=log_lines.append, **options)
        trainer.run()
        return trainer, log_lines

    return run


def elsewhere(config: TrainConfig, name: str, **changes: Any) -> TrainConfig:
    """The same run in another directory."""
    return replace(config, run_dir=str(Path(config.run_dir).with_name(name)), **changes)
