"""A training set from its config: annotated windows of JSONL or TFDS files, as samples and labels.

Owns which kind of source a path is, and what a sample is built from. Knows nothing of batches, devices or training. Host side,
never jax.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from svlm_jax.data import annotation
from svlm_jax.data.config import DataConfig
from svlm_jax.data.fingerprint import fingerprint, looked_at, videos
from svlm_jax.data.frames import by_second, window_frames
from svlm_jax.data.pipeline import Examples, Window
from svlm_jax.data.records import Records
from svlm_jax.data.tfds import Prepared
from svlm_jax.errors import InputError
from svlm_jax.inputs import Clip, Sample
from svlm_jax.media.pixels import preprocess
from svlm_jax.media.processor import Processor
from svlm_jax.spans import temporal_step

FEW = 32  # prepared windows, some MB each, that are looked at to see whether they are the same


class JsonlWindows:
    """Windows from JSONL records and their video files."""

    def __init__(self, records: Records, fps: float | int, root: str) -> None:
        self.records, self.fps, self.root = records, fps, Path(root) if root else None

    def __len__(self) -> int:
        return len(self.records)

    def name(self, number: int) -> str:
        return self.records.name(number)

    def fingerprint(self) -> dict[str, Any]:
        lines = [self._line(number) for number in looked_at(len(self))]
        media = (Path(self.root or "", video) for video in videos(lines))
        return fingerprint(len(self), [self.records.lengths().tobytes(), *(line.rstrip() for line in lines)], media)

    def _line(self, number: int) -> bytes:
        try:
            return self.records[number].line
        except InputError:  # a bad sample, told as one when its turn comes
            return b""

    def __getitem__(self, number: int) -> Window:
        record = self.records[number]
        said = annotation.parse_line(record.line, record.id)
        return Window(record.id, said, window_frames(said, self.fps, self.root))


class TfdsWindows:
    """Windows whose frames were decoded beforehand."""

    def __init__(self, prepared: Prepared, fps: float | int) -> None:
        self.prepared, self.fps = prepared, fps
        if prepared.fps != fps:
            raise InputError("data.fps", fps, f"{prepared.fps:g}, at which {prepared.directory} was made", "set it to that")

    def __len__(self) -> int:
        return len(self.prepared)

    def name(self, number: int) -> str:
        return f"{self.prepared.directory} window {number}"

    def fingerprint(self) -> dict[str, Any]:
        said = [self.prepared.said(number) for number in looked_at(len(self), FEW)]
        return fingerprint(len(self), said, self.prepared.files())

    def __getitem__(self, number: int) -> Window:
        id_, said, frames = self.prepared[number]
        return Window(id_, said, by_second(frames, self.fps))


class SampleBuilder:
    """A window -> its sample and labels, as the original makes them."""

    def __init__(self, processor: Processor, data: DataConfig) -> None:
        self.processor, self.data = processor, data

    def __call__(self, window: Window) -> tuple[Sample, np.ndarray]:
        model, pixels = self.processor.config, self.processor.video_config
        step = temporal_step(model.vision.tokens_per_second, model.vision.temporal_patch_size, self.data.fps)
        clips = [Clip(*preprocess(frames, pixels, raw=True), step, video=True) for frames in window.frames]
        options = {name: getattr(self.data, name) for name in ("sink", "text_window", "as_streamed", "learn_previous")}
        return annotation.sample(window.annotation, clips, self.processor.tokenizer, model, **options)


def load_examples(paths: Sequence[str], data: DataConfig, processor: Processor) -> Examples:
    """What is learned from (or evaluated on)."""
    if not paths:
        raise InputError("data.paths", "nothing", "JSONL files, or a directory of svlm windows --tfds", "name them")
    if len(paths) == 1 and Path(paths[0]).is_dir():
        source: Any = TfdsWindows(Prepared(paths[0]), data.fps)
    else:
        source = JsonlWindows(Records(paths), data.fps, data.root)
    if not len(source):
        raise InputError("data.paths", f"no records in {', '.join(paths)}", "at least one", "check the files")
    return Examples(source, SampleBuilder(processor, data), data.buckets[-1])
