"""Replay of a recorded training sample (JSON + npz beside it): ours, computed anew from its annotation, against the recording.

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
from svlm_jax.replay.format import AGAIN, LOGITS, LOGITS_MEDIAN, PIXELS, difference, get, noise, whole
from svlm_jax.replay.format import arrays as stored_arrays
from svlm_jax.spans import positions, temporal_step
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
class Recording:
    """A recorded sample: its settings, what it was made of, and what came out (names as in the files)."""

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
class Ours:
    """What we make of the same window; gradients of all that is trained, by the names of the checkpoint; logits of the tail."""

    sample: Sample
    labels: np.ndarray
    positions: np.ndarray
    text: str
    loss: float
    gradients: dict[str, np.ndarray]
    logits: np.ndarray


def replay(path: str | Path, directory: str | Path, processor: str | Path) -> dict[str, Any]:
    """Compare a recording with our own computation of it.

    Args:
        path: its JSON file; the arrays lie beside it in an npz of the same name.
        directory: of the model that it was recorded on.
        processor: directory of its tokenizer and processor files.

    Returns:
        Flat, for JSON: what is equal (bool), by how much the rest differs (float; None where it cannot be compared, which is no
        agreement), and "ok".

    Raises:
        InputError: a malformed or truncated file, or one of another model.
    """
    recording = read(path)
    config = replace(config_json.read(directory).compute("float32"), scan_layers=False, remat="none")
    beside = Processor.from_directory(processor, config)
    check(recording, config, beside.video_config, str(path))
    return compare(recording, compute(recording, beside, convert.load(directory, config)))


def read(path: str | Path) -> Recording:
    """A recording from its two files.

    Raises:
        InputError: the file, key or array that is missing or wrong.
    """
    path = Path(path)
    raw = read_json(path, "a recorded training sample")
    norms = get(raw, "grad_norms", dict, path)
    return Recording(
        name=path.stem,
        fps=whole(raw, "fps", 1, path),
        sink=whole(raw, "text_sink", 0, path, null=0),
        text_window=whole(raw, "text_sliding_window", 0, path, null=0),
        height=whole(raw, "frame_height", 1, path),
        width=whole(raw, "frame_width", 1, path),
        seed=whole(raw, "seed", 0, path),
        annotation=annotation.parse(get(raw, "annotation", list, path), f"{path} annotation"),
        text=get(raw, "text", str, path),
        loss=get(raw, "loss", float, path),
        grad_norms={name: get(norms, name, float, f"{path} grad_norms") for name in norms},
        arrays=_arrays(path.with_suffix(".npz")),
    )


def check(recording: Recording, config: ModelConfig, pixels: PixelConfig, source: str) -> None:
    """Refuse a recording that was not made on this model.

    Raises:
        InputError: gradients, logits or frames of other names or sizes.
    """
    remedy = "give the model and the processor that the sample was recorded on"
    shapes = {row.name: row.file_shape for row in huggingface.rows(config) if _trained(row.path)}
    if other := sorted(set(shapes) ^ set(recording.grad_norms)):
        raise InputError(f"{source} grad_norms", f"{len(other)} other names ({other[0]})", "the model's tensors", remedy)
    for name, array in _gradients(recording).items():
        if array.shape != shapes.get(name):
            raise InputError(f"{source} {GRADIENT}{name}", array.shape, f"{shapes.get(name, 'no such array')}", remedy)
    tail = recording.arrays["logits_tail"].shape
    if tail[1] != config.text.vocab_size:
        raise InputError(f"{source} logits_tail", tail, f"rows of {config.text.vocab_size} logits", remedy)
    if recording.height % pixels.factor or recording.width % pixels.factor:
        got = f"{recording.height} x {recording.width} px"
        raise InputError(f"{source} frame_height and frame_width", got, f"multiples of {pixels.factor}", remedy)


def compute(recording: Recording, processor: Processor, parameters: Parameters) -> Ours:
    """Our side: the sample from the annotation alone, one forward and one backward pass."""
    config, vision = processor.config, processor.config.vision
    step = temporal_step(vision.tokens_per_second, vision.temporal_patch_size, recording.fps)
    clips = [
        Clip(*patchify(normalise(frames, processor.video_config), processor.video_config), step, video=True)
        for frames in frames_of(recording)
    ]
    said, sink, text_window = recording.annotation, recording.sink, recording.text_window
    sample, labels = annotation.build_sample(said, clips, processor.tokenizer, config, sink=sink, text_window=text_window)
    length, patches = len(sample.ids), sum(len(clip.patches) for clip in clips)
    padded = -(-length // TOKENS) * TOKENS
    inputs = collate([sample], vision, token_buckets=(padded,), patch_buckets=(patches,))
    targets = np.pad(labels, (0, padded - length), constant_values=annotation.NO_LOSS)[None]
    first = max(0, length - len(recording.arrays["logits_tail"]))

    def objective(trained, frozen, inputs, labels):
        model = from_parameters(config, trained | frozen)
        hidden = model.hidden(inputs)
        return cross_entropy(model.text, hidden, labels)[0], model.text.logits(hidden[0, first:length])

    trained = {path: value for path, value in parameters.items() if _trained(path)}
    frozen = {path: value for path, value in parameters.items() if not _trained(path)}
    with jax.default_matmul_precision("highest"):
        (loss, logits), found = jax.jit(jax.value_and_grad(objective, has_aux=True))(trained, frozen, inputs, targets)
    gradients = {row.name: row.write(np.asarray(found[row.path])) for row in huggingface.rows(config) if row.path in found}
    text = processor.tokenizer.decode(sample.ids.tolist(), skip_special_tokens=False)
    place = positions(sample.spans, vision.spatial_merge_size)
    return Ours(sample, labels, place, text, float(loss), gradients, np.asarray(logits))


def frames_of(recording: Recording) -> list[np.ndarray]:
    """The frames of each second, uint8 [fps, H, W, 3] (fewer in a last, broken second). Frames count from the video's start."""
    said, fps = recording.annotation, recording.fps
    first = round(said.start * fps)
    numbers = np.arange(first, first + int(np.ceil((said.end - said.start) * fps - annotation.SLACK)))
    frames = noise(recording.seed, numbers, recording.height, recording.width)
    return [frames[at : at + fps] for at in range(0, len(frames), fps)]


def compare(recording: Recording, ours: Ours) -> dict[str, Any]:
    """`replay`'s result."""
    arrays, sample = recording.arrays, ours.sample
    equal = {
        "ids_equal": np.array_equal(sample.ids, arrays["input_ids"]),
        "text_equal": ours.text == recording.text,
        "labels_equal": np.array_equal(ours.labels, arrays["labels"]),
        "positions_equal": np.array_equal(ours.positions, arrays["position_ids"]),
        "grids_equal": np.array_equal([clip.grid for clip in sample.clips], arrays["grid"]),
    }
    norms = {name: float(np.linalg.norm(gradient)) for name, gradient in ours.gradients.items()}
    logits = difference(ours.logits, arrays["logits_tail"])
    differences = {
        "pixels_max": (
            difference(np.concatenate([clip.patches for clip in sample.clips]), arrays["pixel_values"]).max(),
            PIXELS,
        ),
        "loss_relative": (max(_relative(ours.loss, loss) for loss in (recording.loss, arrays["loss"])), LOSS),
        "gradients_relative": (
            max(_relative(ours.gradients[name], array) for name, array in _gradients(recording).items()),
            GRADIENTS,
        ),
        "grad_norms_relative": (max(_relative(norms[name], norm) for name, norm in recording.grad_norms.items()), GRADIENTS),
        "logits_max": (logits.max(), LOGITS),
        "logits_median": (np.median(logits), LOGITS_MEDIAN),
    }
    told = {name: float(value) if np.isfinite(value) else None for name, (value, _) in differences.items()}
    ok = all(equal.values()) and all(value <= most for value, most in differences.values())  # a NaN is not <=
    return {"trace": recording.name, **equal, **told, "ok": bool(ok)}


def _trained(path: str) -> bool:
    return not path.startswith("vision.")


def _gradients(recording: Recording) -> dict[str, np.ndarray]:
    names = (name for name in recording.arrays if name.startswith(GRADIENT))
    return {name.removeprefix(GRADIENT): recording.arrays[name] for name in names}


def _relative(ours: Any, recorded: Any) -> float:
    """Norm of the difference over the recorded norm, as float64; 0 where both are nothing. Never less than a NaN."""
    ours, recorded = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
    difference, size = np.linalg.norm(ours - recorded), np.linalg.norm(recorded)
    relative = 0.0 if difference == 0 else float(np.divide(difference, size)) if size else np.inf
    return np.inf if np.isnan(relative) else relative


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a recording, whole, with axes and lengths that fit together."""
    arrays = stored_arrays(path)
    tokens = len(arrays["input_ids"]) if arrays.get("input_ids", np.zeros(())).ndim else None
    for name, (kinds, shape) in _SHAPES.items():
        wanted = tuple(tokens if axis == "n" else axis for axis in shape)
        got = arrays.get(name)
        fits = got is not None and got.dtype.kind in kinds and got.ndim == len(wanted) and got.size > 0
        if got is None or not fits or any(w is not None and w != g for w, g in zip(wanted, got.shape, strict=True)):
            described = "nothing" if got is None else f"{got.dtype} {list(got.shape)}"
            sizes = ", ".join("any" if axis is None else str(axis) for axis in shape)
            what = "whole numbers" if kinds == "iu" else "floats"
            raise InputError(f"{path} {name}", described, f"{what} [{sizes}]", AGAIN)
    if not any(name.startswith(GRADIENT) and array.dtype.kind == "f" for name, array in arrays.items()):
        raise InputError(f"{path} {GRADIENT}*", "nothing", "the gradient of one tensor or more", AGAIN)
    return arrays
