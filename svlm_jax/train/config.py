"""What a training run is: frozen dataclasses, checked where they meet. Knows nothing of arrays, devices or files' contents.

Units: windows in seconds, lengths in tokens and patches, sizes of a batch in samples.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from svlm_jax.config import Dtype, Remat
from svlm_jax.errors import InputError

Schedule = Literal["cosine", "constant"]
OptimizerName = Literal["adamw", "muon"]
Say = Callable[[str], None]  # told what happens, a line at a time


@dataclass(frozen=True)
class Bucket:
    """A static size of a batch: `tokens` a sequence, `patches` and `labels` (tokens that are learned) of it, and patches of a
    `frame` at most."""

    tokens: int
    patches: int
    labels: int
    frame: int = 4096

    def __post_init__(self) -> None:
        for name in ("tokens", "patches", "labels", "frame"):
            if getattr(self, name) < 1:
                raise InputError(f"bucket {name}", getattr(self, name), "1 or more", "raise it")


@dataclass(frozen=True)
class DataConfig:
    """What is learned from.

    Attributes:
        paths: JSONL files of annotated windows, or one directory that `svlm windows --tfds` made.
        evaluation: the same, for the evaluation loss; empty: none.
        root: directory that video paths are relative to.
        fps: frames a second.
        sink, text_window: tokens of the previous text that stay (the first, the last); 0 and 0: all.
        as_streamed: turns as a stream has them, to the token; by default as the original trains, which differs in two habits
            (docs/streaming.md). For a model trained from scratch.
        learn_previous: so many of the last tokens of the previous text are learned too, not only replies. For a model trained
            from scratch: much more text a step.
        buckets: static sizes, ascending; a batch takes the smallest that holds its samples.
        workers: processes that prepare samples; 0: threads of this one.
        threads: samples under way in each.
        max_bad: share of bad samples (of those seen) past which the run stops; of an evaluation too.
        changed: go on from a checkpoint that was made with other samples, which is refused without it.
    """

    paths: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()
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
    max_bad: float | int = 0.01
    changed: bool = False

    def __post_init__(self) -> None:
        if not self.buckets:
            raise InputError("buckets", "none", "at least one", "name the sizes of a batch")
        for small, large in zip(self.buckets, self.buckets[1:], strict=False):
            if not (small.tokens < large.tokens and small.patches <= large.patches and small.labels <= large.labels):
                raise InputError("buckets", f"{small} before {large}", "ascending sizes", "sort them")
        for name, least in (("workers", 0), ("threads", 1), ("sink", 0), ("text_window", 0), ("learn_previous", 0)):
            if getattr(self, name) < least:
                raise InputError(name, getattr(self, name), f"{least} or more", "raise it")
        if not 0 <= self.max_bad <= 1:
            raise InputError("max_bad", self.max_bad, "a share, 0 to 1", "0.01 is usual")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, as the paper has it (those of Hugging Face's Trainer where it says nothing), or Muon (arXiv 2502.16982).

    Attributes:
        name: "muon" moves the matrices inside layers by their orthogonalised momentum, and all else as AdamW does (with
            Nesterov's momentum). For a model trained from scratch.
        learning_rate: at its largest; warm-up is linear over a share of all steps, then `schedule`.
        b1, b2: decay of AdamW's moments; momentum: of Muon's.
        rms: root mean square of what Muon moves a matrix by, in learning rates; 0.2 is about what AdamW does.
        clip: largest global norm of the gradients; 0: none (what the original's DeepSpeed setting amounts to).
    """

    name: OptimizerName = "adamw"
    learning_rate: float | int = 1e-5
    schedule: Schedule = "cosine"
    warmup: float | int = 0.03
    b1: float | int = 0.9
    b2: float | int = 0.999
    eps: float | int = 1e-8
    weight_decay: float | int = 0.0
    momentum: float | int = 0.95
    rms: float | int = 0.2
    clip: float | int = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise InputError("schedule", repr(self.schedule), f"one of {', '.join(get_args(Schedule))}", "choose one")
        if self.name not in get_args(OptimizerName):
            raise InputError("optimizer name", repr(self.name), f"one of {', '.join(get_args(OptimizerName))}", "choose one")
        for name in ("learning_rate", "weight_decay", "clip", "warmup", "rms"):
            if getattr(self, name) < 0:
                raise InputError(name, getattr(self, name), "0 or more", "raise it")


@dataclass(frozen=True)
class MeshConfig:
    """Devices by axis; one of them may be -1 and takes what is left. data: replicas; fsdp: parameters and batch cut; context:
    sequences cut; tensor: heads and widths cut."""

    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class TrainConfig:
    """A run.

    Attributes:
        model: checkpoint directory (Hugging Face or Orbax) or hub id to begin from.
        processor: directory with tokenizer and processor files, if they are not in `model`.
        run_dir: where checkpoints, metrics and the resolved config go; a run that finds its own there goes on.
        trained: regular expression that the paths of trained parameters match; the vision tower is frozen by default.
        batch: samples of an optimiser step.
        micro_batch: samples of one forward and backward pass, over all devices.
        epochs, steps: how long; `steps` 0: as many as `epochs` make.
        lora_rank: of adapters, which are then all that is trained; 0: none.
        lora_alpha: an adapter counts for alpha / rank.
        ema: decay of an averaged copy of the trained parameters; 0: none.
        save_every, keep: steps between checkpoints, and how many stay; of every `keep_every` steps one stays for ever.
        evaluate_every: steps between evaluations; 0: only at the end.
        bad_steps: non-finite steps in a row that are skipped before the run stops.
        hang_seconds: without a finished micro-step for so long, the process writes its stacks and exits 70; 0: never.
        profile: (first step, how many) that the profiler watches; (0, 0): none.
    """

    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    processor: str = ""
    run_dir: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    trained: str = r"text\..*"
    batch: int = 512
    micro_batch: int = 8
    epochs: float | int = 1.0
    steps: int = 0
    seed: int = 0
    dtype: Dtype = "bfloat16"
    remat: Remat = "full"
    attention: str = "auto"
    lora_rank: int = 0
    lora_alpha: float | int = 16.0
    ema: float | int = 0.0
    save_every: int = 20
    keep: int = 3
    keep_every: int = 0
    evaluate_every: int = 100
    evaluate_batches: int = 16
    bad_steps: int = 3
    hang_seconds: float | int = 1800.0
    profile: tuple[int, int] = (0, 0)
    tensorboard: bool = False
    wandb: str = ""

    def __post_init__(self) -> None:
        for name in ("batch", "micro_batch", "save_every", "keep", "bad_steps"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "1 or more", "raise it")
        if self.batch % self.micro_batch:
            raise InputError("batch", self.batch, f"a multiple of micro_batch = {self.micro_batch}", "change one of them")
        if self.steps < 0 or self.epochs <= 0:
            raise InputError("steps and epochs", f"{self.steps} and {self.epochs:g}", "0 or more, and above 0", "set one")
        if not 0 <= self.ema < 1:
            raise InputError("ema", self.ema, "0 (none) to below 1", "0.999 is usual")
        if self.lora_rank < 0:
            raise InputError("lora_rank", self.lora_rank, "0 (none) or more", "16 is usual")

    def total_steps(self, samples: int) -> int:
        """Optimiser steps of a run over a set of that many samples."""
        return self.steps or max(1, int(self.epochs * samples) // self.batch)

    @property
    def accumulation(self) -> int:
        """Micro-steps of an optimiser step."""
        return self.batch // self.micro_batch
