"""What a training run is: frozen dataclasses, checked where they are built. Knows nothing of arrays, devices or the contents of
files.

Units: batch sizes in samples, times in seconds.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from svlm_jax.config import Dtype, Remat
from svlm_jax.data.config import DataConfig, check_bounds
from svlm_jax.errors import InputError

Schedule = Literal["cosine", "constant"]
OptimizerName = Literal["adamw", "muon"]
MAX_STEPS = 10**8  # of a run; the rates of all of them are computed at its start
MAX_SEED = 2**32 - 1
Log = Callable[[str], None]  # is called with what happens in a run, a line at a time


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, as the paper has it (with the defaults of Hugging Face's Trainer where it says nothing), or Muon (arXiv
    2502.16982).

    Attributes:
        name: "muon" moves the matrices inside layers by their orthogonalised momentum, and all else as AdamW does (with
            Nesterov's momentum). For a model trained from scratch.
        learning_rate: at its peak; warm-up is linear, then `schedule`.
        schedule: after the warm-up: "cosine" down to 0, or "constant".
        warmup_ratio: share of all steps that warm up.
        b1: decay of AdamW's first moment.
        b2: decay of AdamW's second moment.
        eps: of AdamW and Muon.
        weight_decay: of matrices; norms and biases have none.
        momentum: decay of Muon's momentum.
        muon_rms: root mean square of Muon's update of a matrix, in learning rates; 0.2 is about what AdamW does.
        max_grad_norm: global norm that gradients are clipped to; 0: no clipping (what the original's DeepSpeed setting amounts
            to).
    """

    name: OptimizerName = "adamw"
    learning_rate: float | int = 1e-5
    schedule: Schedule = "cosine"
    warmup_ratio: float | int = 0.03
    b1: float | int = 0.9
    b2: float | int = 0.999
    eps: float | int = 1e-8
    weight_decay: float | int = 0.0
    momentum: float | int = 0.95
    muon_rms: float | int = 0.2
    max_grad_norm: float | int = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise InputError("schedule", repr(self.schedule), f"one of {', '.join(get_args(Schedule))}", "choose one")
        if self.name not in get_args(OptimizerName):
            raise InputError("optimizer name", repr(self.name), f"one of {', '.join(get_args(OptimizerName))}", "choose one")
        positive = dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "muon_rms"), (0, math.inf))
        check_bounds(self, positive | {"warmup_ratio": (0, 1)})
        for name in ("b1", "b2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "0 to below 1", "0.9 to 0.999 are usual")
        if not 0 < self.eps < math.inf:  # with 0 a parameter without a gradient yet becomes 0 / 0
            raise InputError("eps", self.eps, "a number above 0", "1e-8 is usual")


@dataclass(frozen=True)
class MeshConfig:
    """Devices by axis; one of them may be -1 and takes what is left.

    Attributes:
        data: replicas of the parameters.
        fsdp: shards of parameters, optimizer state and batch.
        context: shards of sequences.
        tensor: shards of heads and widths.
    """

    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class TrainConfig:
    """A run.

    Attributes:
        model: checkpoint directory (Hugging Face or Orbax) or hub id of the initial parameters.
        processor: directory with tokenizer and processor files, if they are not in `model`.
        run_dir: directory of checkpoints, metrics and the resolved config; a run that finds its own there resumes.
        trainable: regular expression that the paths of trainable parameters match; the vision tower is frozen by default.
        batch_size: samples of an optimizer step.
        micro_batch_size: samples of one forward and backward pass, over all devices.
        epochs: length of the run, in passes over the data.
        steps: length of the run in optimizer steps; 0: as many as `epochs` give.
        seed: of the order of samples and of new adapters.
        dtype: of the computation and of frozen parameters.
        remat: which activations of a layer are saved for the backward pass: "full" saves none; "auto" as many as fit the
            devices, for which it compiles the step once more before the run.
        attention: kernels; "auto" takes those of the device.
        lora_rank: of adapters, which are then all that is trainable; 0: none.
        lora_alpha: an adapter counts for alpha / rank.
        ema_decay: of an averaged copy of the trainable parameters; 0: none.
        save_every: steps between checkpoints.
        keep_last: how many of the newest checkpoints stay.
        keep_every: of every so many steps a checkpoint stays for ever; 0: none.
        eval_every: steps between evaluations; 0: only at the end.
        eval_batches: micro-batches of an evaluation.
        max_skipped_steps: steps in a row with non-finite gradients, at which the run stops.
        hang_seconds: without a finished micro-step for so long, the process prints its stacks and exits 70; 0: never.
        profile: (first step, number of steps) that the profiler traces; (0, 0): none.
        tensorboard: write metrics for TensorBoard too.
        wandb: project of Weights & Biases to log to; empty: none.
    """

    model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    processor: str = ""
    run_dir: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    trainable: str = r"text\..*"
    batch_size: int = 512
    micro_batch_size: int = 8
    epochs: float | int = 1.0
    steps: int = 0
    seed: int = 0
    dtype: Dtype = "bfloat16"
    remat: Remat | Literal["auto"] = "auto"
    attention: str = "auto"
    lora_rank: int = 0
    lora_alpha: float | int = 16.0
    ema_decay: float | int = 0.0
    save_every: int = 20
    keep_last: int = 3
    keep_every: int = 0
    eval_every: int = 100
    eval_batches: int = 16
    max_skipped_steps: int = 3
    hang_seconds: float | int = 1800.0
    profile: tuple[int, int] = (0, 0)
    tensorboard: bool = False
    wandb: str = ""

    def __post_init__(self) -> None:
        counts = ("batch_size", "micro_batch_size", "save_every", "keep_last", "max_skipped_steps", "eval_batches")
        bounds = dict.fromkeys(counts, (1, math.inf))
        bounds |= dict.fromkeys(("keep_every", "eval_every", "hang_seconds", "lora_alpha"), (0, math.inf))
        check_bounds(self, bounds | {"seed": (0, MAX_SEED)})
        if min(self.profile) < 0:
            raise InputError("profile", self.profile, "a first step and a number of steps", "(0, 0) traces none")
        try:
            re.compile(self.trainable)
        except re.error as error:
            got, expected = repr(self.trainable), f"a regular expression ({error})"
            raise InputError("trainable", got, expected, r"text\..* is usual") from None
        if self.batch_size % self.micro_batch_size:  # all micro-steps have one static shape
            expected = f"a multiple of micro_batch_size = {self.micro_batch_size}"
            raise InputError("batch_size", self.batch_size, expected, "change one of them")
        if not (0 <= self.steps <= MAX_STEPS and 0 < self.epochs <= MAX_STEPS):
            expected = f"0 or more, and above 0; at most {MAX_STEPS:.0e}"
            raise InputError("steps and epochs", f"{self.steps} and {self.epochs:g}", expected, "set one")
        if not 0 <= self.ema_decay < 1:
            raise InputError("ema_decay", self.ema_decay, "0 (none) to below 1", "0.999 is usual")
        if self.lora_rank < 0:
            raise InputError("lora_rank", self.lora_rank, "0 (none) or more", "16 is usual")

    def total_steps(self, num_samples: int) -> int:
        """Optimizer steps of a run over a set of that many samples.

        Raises:
            InputError: more than `MAX_STEPS`.
        """
        steps = self.steps or max(1, int(self.epochs * num_samples) // self.batch_size)
        if steps > MAX_STEPS:
            raise InputError("epochs", f"{self.epochs:g}, which are {steps} steps", f"at most {MAX_STEPS:.0e}", "set steps")
        return steps

    @property
    def accumulation(self) -> int:
        """Micro-steps of an optimizer step."""
        return self.batch_size // self.micro_batch_size


# Old names of settings, for the line that refuses one.
RENAMED = {
    "trained": "trainable",
    "batch": "batch_size",
    "micro_batch": "micro_batch_size",
    "ema": "ema_decay",
    "keep": "keep_last",
    "evaluate_every": "eval_every",
    "evaluate_batches": "eval_batches",
    "bad_steps": "max_skipped_steps",
    "evaluation": "eval_paths",
    "slide": "text_window",
    "max_bad": "max_bad_fraction",
    "changed": "allow_changed",
    "warmup": "warmup_ratio",
    "rms": "muon_rms",
    "clip": "max_grad_norm",
    "frame": "frame_patches",
}


def check_names(source: str, kind: type, names: Iterable[str]) -> None:
    """Refuse settings that a config class does not have.

    Raises:
        InputError: an unknown name.
    """
    known = {attribute.name for attribute in fields(kind)}
    for name in names:
        if name not in known:
            raise unknown_setting(source, name, "use the version that wrote it")


def unknown_setting(source: str, name: str, remedy: str) -> InputError:
    """The error for a name that no config class has; of an old name it tells the new one."""
    got, expected = ("an old name", RENAMED[name]) if name in RENAMED else ("an unknown setting", "a field of TrainConfig")
    return InputError(f"{source} {name}", got, expected, remedy)
