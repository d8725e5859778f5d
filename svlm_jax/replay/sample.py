"""Replay of a recorded training sample (JSON and npz): computed again from its annotation and compared with the recording.

Owns the file format, the frames it stands for and the tolerances. A recording holds what the original code made of an annotated
window: ids, labels, positions, pixels, mean loss, gradients and the last logits. All in float32, matmul precision "highest".
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from svlm_jax.checkpoint import convert, huggingface
from svlm_jax.config import ModelConfig
from svlm_jax.data import annotation
from svlm_jax.data.batch import collate
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.files import read_json
from svlm_jax.inputs import Clip, Sample
from svlm_jax.media.pixels import PixelConfig, normalise, patchify
from svlm_jax.media.processor import Processor
from svlm_jax.model.parameters import Parameters, from_parameters
from svlm_jax.replay.format import (
    LOGITS_MAX,
    LOGITS_MEDIAN,
    PIXELS_MAX,
    REMEDY,
    abs_difference,
    load_arrays,
    noise_frames,
    require,
    require_int,
)
from svlm_jax.spans import positions
from svlm_jax.train.loss import cross_entropy

LOSS = 1e-4  # relative
GRADIENTS = 1e-3  # norm of the difference over the recorded norm; also of norms

TOKENS = 128  # sequences are padded to a multiple of it
GRADIENT = "grad."  # prefix of the gradients in the npz
_SHAPES: dict[str, tuple[str, tuple[int | str | None, ...]]] = {  # kinds of dtype; n: tokens, None: any
    "input_ids": ("iu", ("n",)),
    "labels": ("iu", ("n",)),
    "grid": ("iu", (None, 3)),
    "position_ids": ("fiu", (3, "n")),
    "pixel_values": ("f", (None, None)),
    "loss": ("f", ()),
    "logits_tail": ("f", (None, None)),
}


@dataclass(frozen=True)
class SampleRecording:
    """A recorded sample: its settings, its annotation, and the original's results (arrays by their names in the file)."""

    name: str
    fps: int
    sink: int
    text_window: int
    height: int
    width: int
    seed: int
    annotation: annotation.Annotation
    text: str
    loss: float
    grad_norms: dict[str, float]
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class SampleResult:
    """This library's results of the same window; gradients of all trainable parameters, by their names in the checkpoint;
    logits of the last tokens."""

    sample: Sample
    labels: np.ndarray
    positions: np.ndarray
    text: str
    loss: float
    gradients: dict[str, np.ndarray]
    logits: np.ndarray


def replay(path: str | Path, directory: str | Path, processor_directory: str | Path) -> dict[str, Any]:
    """Compute the sample of a recording and compare.

    Args:
        path: its JSON file, with an npz of the same name next to it.
        directory: of the model that it was recorded on.
        processor_directory: of its tokenizer and processor files.

    Returns:
        Flat, for JSON: what is equal (bool), by how much the rest differs (float; None where it cannot be compared, which is no
        agreement), and "ok".

    Raises:
        InputError: a malformed or truncated file, or one of another model.
    """
    recording = read(path)
    config = replace(config_json.read(directory).compute("float32"), scan_layers=False, remat="none")
    processor = Processor.from_directory(processor_directory, config)
    check(recording, config, processor.video_config, str(path))
    return compare(recording, compute(recording, processor, convert.load(directory, config)))


def read(path: str | Path) -> SampleRecording:
    """A recording from its two files.

    Raises:
        InputError: the file, key or array that is missing or wrong.
    """
    path = Path(path)
    raw = read_json(path, "a recorded training sample")
    norms = require(raw, "grad_norms", dict, path)
    return SampleRecording(
        name=path.stem,
        fps=require_int(raw, "fps", 1, path),
        sink=require_int(raw, "text_sink", 0, path, null=0),
        text_window=require_int(raw, "text_sliding_window", 0, path, null=0),
        height=require_int(raw, "frame_height", 1, path),
        width=require_int(raw, "frame_width", 1, path),
        seed=require_int(raw, "seed", 0, path),
        annotation=annotation.parse(require(raw, "annotation", list, path), f"{path} annotation"),
        text=require(raw, "text", str, path),
        loss=require(raw, "loss", float, path),
        grad_norms={name: require(norms, name, float, f"{path} grad_norms") for name in norms},
        arrays=_load_arrays(path.with_suffix(".npz")),
    )


def check(recording: SampleRecording, config: ModelConfig, pixels: PixelConfig, source: str) -> None:
    """Refuse a recording that was not made on this model.

    Raises:
        InputError: gradients, logits or frames of other names or sizes.
    """
    remedy = "give the model and the processor that the sample was recorded on"
    shapes = {row.name: row.file_shape for row in huggingface.rows(config) if _is_trainable(row.path)}
    if other := sorted(set(shapes) ^ set(recording.grad_norms)):
        raise InputError(f"{source} grad_norms", f"{len(other)} other names ({other[0]})", "the model's tensors", remedy)
    for name, array in _gradients(recording).items():
        if array.shape != shapes.get(name):
            raise InputError(f"{source} {GRADIENT}{name}", array.shape, f"{shapes.get(name, 'no such array')}", remedy)
    logits_shape = recording.arrays["logits_tail"].shape
    if logits_shape[1] != config.text.vocab_size:
        expected = f"rows of {config.text.vocab_size} logits"
        raise InputError(f"{source} logits_tail", logits_shape, expected, remedy)
    if recording.height % pixels.factor or recording.width % pixels.factor:
        got = f"{recording.height} x {recording.width} px"
        raise InputError(f"{source} frame_height and frame_width", got, f"multiples of {pixels.factor}", remedy)


def compute(recording: SampleRecording, processor: Processor, parameters: Parameters) -> SampleResult:
    """The sample from the annotation alone, and one forward and backward pass."""
    config, vision = processor.config, processor.config.vision
    sample, labels = _build_sample(recording, processor)
    length, patches = len(sample.ids), sum(len(clip.patches) for clip in sample.clips)
    padded = -(-length // TOKENS) * TOKENS
    inputs = collate([sample], vision, token_buckets=(padded,), patch_buckets=(patches,))
    targets = np.pad(labels, (0, padded - length), constant_values=annotation.NO_LOSS)[None]
    tail = max(0, length - len(recording.arrays["logits_tail"]))  # the first token whose logits are recorded

    def objective(trainable, frozen, inputs, labels):
        model = from_parameters(config, trainable | frozen)
        hidden = model.hidden(inputs)
        return cross_entropy(model.text, hidden, labels)[0], model.text.logits(hidden[0, tail:length])

    trainable = {path: value for path, value in parameters.items() if _is_trainable(path)}
    frozen = {path: value for path, value in parameters.items() if not _is_trainable(path)}
    with jax.default_matmul_precision("highest"):
        value_and_grad = jax.jit(jax.value_and_grad(objective, has_aux=True))
        (loss, logits), gradients = value_and_grad(trainable, frozen, inputs, targets)
    table = [row for row in huggingface.rows(config) if row.path in gradients]
    return SampleResult(
        sample=sample,
        labels=labels,
        positions=positions(sample.spans, vision.spatial_merge_size),
        text=processor.tokenizer.decode(sample.ids.tolist(), skip_special_tokens=False),
        loss=float(loss),
        gradients={row.name: row.write(np.asarray(gradients[row.path])) for row in table},
        logits=np.asarray(logits),
    )


def _build_sample(recording: SampleRecording, processor: Processor) -> tuple[Sample, np.ndarray]:
    """The training sample and its labels [n]."""
    vision, pixels = processor.config.vision, processor.video_config
    step = vision.temporal_step(recording.fps)
    clips = [Clip(*patchify(normalise(frames, pixels), pixels), step, video=True) for frames in frames_of(recording)]
    return annotation.build_sample(
        recording.annotation,
        clips,
        processor.tokenizer,
        processor.config,
        sink=recording.sink,
        text_window=recording.text_window,
    )


def frames_of(recording: SampleRecording) -> list[np.ndarray]:
    """The frames of each second, uint8 [fps, H, W, 3] (fewer in a last, incomplete second). Frames count from the video's
    start."""
    start, end, fps = recording.annotation.start, recording.annotation.end, recording.fps
    first = round(start * fps)
    numbers = np.arange(first, first + int(np.ceil((end - start) * fps - annotation.SLACK)))
    frames = noise_frames(recording.seed, numbers, recording.height, recording.width)
    return [frames[index : index + fps] for index in range(0, len(frames), fps)]


def compare(recording: SampleRecording, result: SampleResult) -> dict[str, Any]:
    """`replay`'s result."""
    arrays, sample = recording.arrays, result.sample
    equal = {
        "ids_equal": np.array_equal(sample.ids, arrays["input_ids"]),
        "text_equal": result.text == recording.text,
        "labels_equal": np.array_equal(result.labels, arrays["labels"]),
        "positions_equal": np.array_equal(result.positions, arrays["position_ids"]),
        "grids_equal": np.array_equal([clip.grid for clip in sample.clips], arrays["grid"]),
    }
    norms = {name: float(np.linalg.norm(gradient)) for name, gradient in result.gradients.items()}
    pixels = abs_difference(np.concatenate([clip.patches for clip in sample.clips]), arrays["pixel_values"])
    logits = abs_difference(result.logits, arrays["logits_tail"])
    losses = [_relative(result.loss, loss) for loss in (recording.loss, arrays["loss"])]
    gradients = [_relative(result.gradients[name], array) for name, array in _gradients(recording).items()]
    grad_norms = [_relative(norms[name], norm) for name, norm in recording.grad_norms.items()]
    limits = {
        "pixels_max": (pixels.max(), PIXELS_MAX),
        "loss_relative": (max(losses), LOSS),
        "gradients_relative": (max(gradients), GRADIENTS),
        "grad_norms_relative": (max(grad_norms), GRADIENTS),
        "logits_max": (logits.max(), LOGITS_MAX),
        "logits_median": (np.median(logits), LOGITS_MEDIAN),
    }
    differences = {name: float(value) if np.isfinite(value) else None for name, (value, _) in limits.items()}
    ok = all(equal.values()) and all(value <= limit for value, limit in limits.values())  # a NaN is not <=
    return {"recording": recording.name, **equal, **differences, "ok": bool(ok)}


def _is_trainable(path: str) -> bool:
    return not path.startswith("vision.")


def _gradients(recording: SampleRecording) -> dict[str, np.ndarray]:
    names = (name for name in recording.arrays if name.startswith(GRADIENT))
    return {name.removeprefix(GRADIENT): recording.arrays[name] for name in names}


def _relative(computed: Any, recorded: Any) -> float:
    """Norm of the difference over the recorded norm, as float64; 0 where both are 0. Infinite in place of NaN: `max` of a list
    with a NaN in it need not be NaN."""
    computed, recorded = np.asarray(computed, np.float64), np.asarray(recorded, np.float64)
    difference, norm = np.linalg.norm(computed - recorded), np.linalg.norm(recorded)
    relative = 0.0 if difference == 0 else float(np.divide(difference, norm)) if norm else np.inf
    return np.inf if np.isnan(relative) else relative


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a recording, complete, with axes and lengths that fit together."""
    arrays = load_arrays(path)
    num_tokens = len(arrays["input_ids"]) if arrays.get("input_ids", np.zeros(())).ndim else None
    for name, (kinds, axes) in _SHAPES.items():
        shape = tuple(num_tokens if axis == "n" else axis for axis in axes)
        array = arrays.get(name)
        if array is None or not _fits(array, kinds, shape):
            got = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            sizes = ", ".join("any" if axis is None else str(axis) for axis in axes)
            numbers = "whole numbers" if kinds == "iu" else "floats"
            raise InputError(f"{path} {name}", got, f"{numbers} [{sizes}]", REMEDY)
    if not any(name.startswith(GRADIENT) and array.dtype.kind == "f" for name, array in arrays.items()):
        raise InputError(f"{path} {GRADIENT}*", "nothing", "the gradient of one tensor or more", REMEDY)
    return arrays


def _fits(array: np.ndarray, kinds: str, shape: tuple[int | str | None, ...]) -> bool:
    """Whether an array has a dtype of one of the kinds and the sizes of `shape`, where None is any, and is not empty."""
    if array.dtype.kind not in kinds or array.ndim != len(shape) or not array.size:
        return False
    return all(expected is None or expected == size for expected, size in zip(shape, array.shape, strict=True))
