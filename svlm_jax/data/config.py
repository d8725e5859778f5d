"""What a training set is: files, frame rate, static batch sizes, and how many bad samples it may have. Frozen dataclasses.

Knows nothing of arrays, devices or the contents of files. Units: lengths in tokens and patches, frame rate in frames a second.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from svlm_jax.errors import InputError


@dataclass(frozen=True)
class Bucket:
    """The static shape of a batch: for each sample so many `tokens`, `patches` and `labels` (tokens with a loss), and frames of
    at most `frame_patches` patches."""

    tokens: int
    patches: int
    labels: int
    frame_patches: int = 4096

    def __post_init__(self) -> None:
        for name in ("tokens", "patches", "labels", "frame_patches"):
            if getattr(self, name) < 1:
                raise InputError(f"bucket {name}", getattr(self, name), "1 or more", "raise it")


@dataclass(frozen=True)
class DataConfig:
    """The samples of a run.

    Attributes:
        paths: JSONL files of annotated windows, or one directory that `svlm windows --tfds` wrote.
        eval_paths: the same, for the evaluation loss; empty: no evaluation.
        root: directory that video paths are relative to.
        fps: frames a second.
        sink: first tokens of the previous text that stay; with `text_window` 0 too: all of it.
        text_window: last tokens of the previous text that stay.
        as_streamed: turns as a stream has them, to the token; by default as the original trains, which differs in two habits
            (docs/streaming.md). For a model trained from scratch.
        learn_previous: so many of the last tokens of the previous text have a loss too, not only replies. For a model trained
            from scratch: many more labels a step.
        buckets: static shapes, ascending; a batch takes the smallest that holds its samples.
        workers: processes that prepare samples; 0: threads of this one.
        threads: samples that each process prepares at a time.
        max_bad_fraction: bad samples over all that were read, past which the run stops; the same for an evaluation.
        allow_changed: resume from a checkpoint that was trained on other samples, which is refused by default.
    """

    paths: tuple[str, ...] = ()
    eval_paths: tuple[str, ...] = ()
    root: str = ""
    fps: float | int = 2.0
    sink: int = 512
    text_window: int = 512
    as_streamed: bool = False
    learn_previous: int = 0
    # 24 s of 720p at 2 fps: 24 x 756 vision tokens, and about 2,000 of text; 4 patches a vision token.
    buckets: tuple[Bucket, ...] = (Bucket(8192, 28672, 1024), Bucket(20480, 73728, 2048))
    workers: int = 0
    threads: int = 4
    max_bad_fraction: float | int = 0.01
    allow_changed: bool = False

    def __post_init__(self) -> None:
        if not self.buckets:
            raise InputError("buckets", "none", "at least one", "name the sizes of a batch")
        for small, large in zip(self.buckets, self.buckets[1:], strict=False):
            if not (small.tokens < large.tokens and small.patches <= large.patches and small.labels <= large.labels):
                raise InputError("buckets", f"{small} before {large}", "ascending sizes", "sort them")
        bounds = dict.fromkeys(("workers", "sink", "text_window", "learn_previous"), (0, math.inf))
        check_bounds(self, bounds | {"threads": (1, math.inf)})
        if not self.fps >= 1 or self.fps % 1:
            raise InputError("data.fps", self.fps, "a whole number of frames a second, 1 or more", "2 is usual")
        if not 0 <= self.max_bad_fraction <= 1:
            raise InputError("max_bad_fraction", self.max_bad_fraction, "a fraction, 0 to 1", "0.01 is usual")


def check_bounds(settings: Any, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Refuse numbers that are out of bounds (lowest, highest), not finite, or none ("nan" compares false with all).

    Raises:
        InputError: the first of them.
    """
    for name, (lowest, highest) in bounds.items():
        value = getattr(settings, name)
        if not (lowest <= value <= highest and math.isfinite(value)):
            expected = f"{lowest:g} or more" if highest == math.inf else f"{lowest:g} to {highest:g}"
            raise InputError(name, value, expected, "lower it" if value > lowest else "raise it")
