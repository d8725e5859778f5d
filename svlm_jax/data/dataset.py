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
from svlm_jax.data.fingerprint import fingerprint, sampled_records, videos
from svlm_jax.data.frames import by_second, window_frames
from svlm_jax.data.pipeline import Examples, Window
from svlm_jax.data.records import Records
from svlm_jax.data.tfds import TfdsDataset
from svlm_jax.errors import InputError
from svlm_jax.files import local_path
from svlm_jax.inputs import Clip, Sample, patch_times
from svlm_jax.media.pixels import preprocess
from svlm_jax.media.processor import Processor

MAX_TFDS_RECORDS = 32  # that the fingerprint reads: the frames, some MB each, are read with them


class JsonlWindows:
    """Windows from JSONL records and their video files."""

    def __init__(self, records: Records, fps: float | int, root: str) -> None:
        self.records, self.fps, self.root = records, fps, local_path(root, "data.root") if root else None

    def __len__(self) -> int:
        return len(self.records)

    def name(self, number: int) -> str:
        return self.records.name(number)

    def fingerprint(self) -> dict[str, Any]:
        lines = [self._line(number) for number in sampled_records(len(self))]
        media = (Path(self.root or "", video) for video in videos(lines))
        return fingerprint(len(self), [self.records.lengths().tobytes(), *(line.rstrip() for line in lines)], media)

    def _line(self, number: int) -> bytes:
        try:
            return self.records[number].line
        except InputError:  # a bad sample: reported when training reads it
            return b""

    def __getitem__(self, number: int) -> Window:
        record = self.records[number]
        window = annotation.parse_line(record.line, record.id)
        return Window(record.id, window, window_frames(window, self.fps, self.root))


class TfdsWindows:
    """Windows whose frames were decoded beforehand."""

    def __init__(self, dataset: TfdsDataset, fps: float | int, factor: int) -> None:
        """Args:
        factor: of the model (`PixelConfig.factor`). Frames that were resized for another would be resized twice.
        """
        self.dataset, self.fps = dataset, fps
        if dataset.fps != fps:
            raise InputError("data.fps", fps, f"{dataset.fps:g}, at which {dataset.directory} was made", "set it to that")
        if dataset.factor != factor:
            got = f"{dataset.directory}, with frames for vision tokens of {dataset.factor} px"
            raise InputError("data.paths", got, f"{factor} px, the model's", "make it again with svlm windows --family")

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, number: int) -> str:
        return f"{self.dataset.directory} window {number}"

    def fingerprint(self) -> dict[str, Any]:
        lines = [self.dataset.line(number) for number in sampled_records(len(self), MAX_TFDS_RECORDS)]
        return fingerprint(len(self), lines, self.dataset.files())

    def __getitem__(self, number: int) -> Window:
        id_, window, frames = self.dataset[number]
        return Window(id_, window, by_second(frames, self.fps))


class SampleBuilder:
    """A window -> its sample and labels, as the original builds them."""

    def __init__(self, processor: Processor, data: DataConfig) -> None:
        self.processor, self.data = processor, data

    def __call__(self, window: Window) -> tuple[Sample, np.ndarray]:
        model, pixels = self.processor.config, self.processor.video_config
        step = model.vision.temporal_step(self.data.fps)
        raw = self.processor.tower_normalises  # workers move a quarter of the bytes
        first = window.annotation.start + window.annotation.hidden
        clips = [
            Clip(*preprocess(frames, pixels, raw=raw), step, video=True, times=self._times(first + second, len(frames)))
            for second, frames in enumerate(window.frames)
        ]
        options = {name: getattr(self.data, name) for name in ("sink", "text_window", "as_streamed", "learn_previous")}
        return annotation.build_sample(window.annotation, clips, self.processor.tokenizer, model, **options)

    def _times(self, start: float, num_frames: int) -> tuple[float, ...]:
        """Of the temporal patches of frames from a second on."""
        seconds = start + np.arange(num_frames) / self.data.fps
        return patch_times(seconds, self.processor.config.vision.temporal_patch_size)


def load_examples(paths: Sequence[str], data: DataConfig, processor: Processor) -> Examples:
    """The samples of a training or an evaluation set.

    Raises:
        InputError: no paths, no records, or files that are no annotations.
    """
    if not paths:
        raise InputError("data.paths", "nothing", "JSONL files, or a directory of svlm windows --tfds", "name them")
    if len(paths) == 1 and Path(paths[0]).is_dir():
        source: Any = TfdsWindows(TfdsDataset(paths[0]), data.fps, processor.video_config.factor)
    else:
        source = JsonlWindows(Records(paths), data.fps, data.root)
    if not len(source):
        raise InputError("data.paths", f"no records in {', '.join(paths)}", "at least one", "check the files")
    return Examples(source, SampleBuilder(processor, data), data.buckets[-1])
