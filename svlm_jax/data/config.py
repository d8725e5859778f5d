"""What a training set is: files, frame rate, static batch sizes, and how many bad samples it may have. Frozen dataclasses.

Knows nothing of arrays, devices or the contents of files. Units: lengths in tokens and patches, frame rate in frames a second.
"""

from dataclasses import dataclass

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
        for name, minimum in (("workers", 0), ("threads", 1), ("sink", 0), ("text_window", 0), ("learn_previous", 0)):
            if getattr(self, name) < minimum:
                raise InputError(name, getattr(self, name), f"{minimum} or more", "raise it")
        if not 0 <= self.max_bad_fraction <= 1:
            raise InputError("max_bad_fraction", self.max_bad_fraction, "a fraction, 0 to 1", "0.01 is usual")
