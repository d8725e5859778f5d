"""Replay of a recorded stream through the real session, and recording of a new one.

Owns the file format: NAME.json (config and rounds) with NAME.npz next to it (logits, positions, pixels; not of every round),
and the translation of its settings, which have the original's names, to a StreamConfig. `replay` compares, `record` writes. All
in float32 on the frames that the recording stands for, which are never resized.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from svlm_jax.config import RopePositions, StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.families.chat import Tokenizer
from svlm_jax.files import atomic_write, read_json, report_write_errors
from svlm_jax.inputs import Clip
from svlm_jax.media.pixels import PixelConfig, normalise, patchify
from svlm_jax.model.vlm import QwenVL
from svlm_jax.replay.format import (
    LOGITS_MAX,
    PIXELS_MAX,
    REMEDY,
    abs_difference,
    load_arrays,
    noise_frames,
    require,
    require_int,
)
from svlm_jax.stream.events import Caption
from svlm_jax.stream.runner import VIDEO, Runner
from svlm_jax.stream.sequence import Chunk, StreamSequence
from svlm_jax.stream.session import Session
from svlm_jax.stream.stream_settings import StreamSettings

ROPE_POSITIONS: dict[str, RopePositions] = {"shrink": "contiguous", "append": "native"}  # by their name in recordings
MODES = ("forced", "overflow", "greedy")  # the first two: the generated tokens are forced to be the recorded ones
FULL_ATTENTION = 100_000  # chunks; a window as long as this stands for full attention
TEXT_TAIL = 4  # characters that the original cuts off a reply, normally " ..."


class StreamRecording(NamedTuple):
    """A recording: its settings as the file has them, the same as config and sampling of a session, its rounds and arrays."""

    name: str
    settings: dict[str, Any]
    config: StreamConfig
    sampling: Sampling
    rounds: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]


class Round(NamedTuple):
    """recorded: a round as the file has it; seq: what the stream retains after the reply; clip: the frames of the round."""

    recorded: dict[str, Any]
    seq: StreamSequence
    caption: Caption
    clip: Clip


def read(path: str | Path) -> StreamRecording:
    """A recording from its two files.

    Raises:
        InputError: the file or key that is missing or wrong.
    """
    raw = read_json(Path(path), "a recorded stream")
    settings, rounds = require(raw, "config", dict, path), require(raw, "rounds", list, path)
    if not rounds:
        raise InputError(f"{path} rounds", "none", "at least one", REMEDY)
    for number, recorded in enumerate(rounds):
        _check_round(recorded, f"{path} rounds[{number}]")
    config, sampling = translate_settings(settings, f"{path} config")
    return StreamRecording(Path(path).stem, settings, config, sampling, rounds, load_arrays(path))


def _check_round(recorded: Any, source: str) -> None:
    if not isinstance(recorded, dict):
        raise InputError(source, f"{recorded!r:.40}", "a JSON object", REMEDY)
    for key in ("input_ids", "generated", "frames"):
        ids = require(recorded, key, list, source)
        if not ids or not all(type(item) is int and item >= 0 for item in ids):
            raise InputError(f"{source} {key}", "something else", "whole numbers, one or more", REMEDY)
    for key in ("cached_before", "cached_after"):
        require_int(recorded, key, 0, source)
    for key, kind in (("text", str), ("start", float), ("end", float)):
        require(recorded, key, kind, source)


def translate_settings(settings: dict[str, Any], source: str) -> tuple[StreamConfig, Sampling]:
    """The settings of a recording, in the original's words, as config and sampling of a session."""
    if require(settings, "mode", str, source) not in MODES:
        raise InputError(f"{source} mode", repr(settings["mode"]), f"one of {', '.join(MODES)}", REMEDY)
    for key in ("previous_text", "query"):
        require(settings, key, str, source)
    for key in ("seed", "frame_height", "frame_width"):
        require_int(settings, key, 0, source)
    pos_mode = require(settings, "pos_mode", str, source)
    if pos_mode not in ROPE_POSITIONS:
        raise InputError(f"{source} pos_mode", repr(pos_mode), f"one of {', '.join(ROPE_POSITIONS)}", REMEDY)
    vision_window, text_rounds = (require_int(settings, key, 1, source) for key in ("window_size", "text_round"))
    mode = "recompute" if require(settings, "recompute", bool, source) else "streaming"
    if min(vision_window, text_rounds) >= FULL_ATTENTION:
        mode = "full"
    config = StreamConfig(
        mode=mode,
        vision_window=vision_window,
        text_rounds=text_rounds,
        sink=require_int(settings, "text_sink", 0, source, null=None),
        text_window=require_int(settings, "text_sliding_window", 0, source, null=None),
        rope_positions=ROPE_POSITIONS[pos_mode],
        mrope_axes=1 if require(settings, "all_text", bool, source) else 3,
        fps=require(settings, "fps", float, source),
        chunk_seconds=require(settings, "chunk_duration", float, source),
        max_new_tokens=require_int(settings, "max_new_tokens", 1, source),
    )
    suppressed = tuple(require(settings, "suppressed_token_ids", list, source))
    penalty = require(settings, "repetition_penalty", float, source)
    return config, Sampling(0.0, repetition_penalty=penalty, suppressed=suppressed)


def replay(
    recording: StreamRecording,
    model: QwenVL,
    tokenizer: Tokenizer,
    pixels: PixelConfig,
    logits_tolerance: float | int = LOGITS_MAX,
) -> dict[str, Any]:
    """Run the recorded stream and compare.

    Args:
        model: in float32.
        pixels: of the processor's frames of video.
        logits_tolerance: largest difference of a logit; a tenth of it at the median.

    Returns:
        Flat, for JSON: what is equal (bool; None where nothing is recorded), by how much logits and pixels differ, and "ok".

    Raises:
        InputError: a recording of another model or processor.
    """
    names = ("ids_equal", "cache_lengths_equal", "positions_equal", "tokens_equal", "text_equal")
    equal: dict[str, list[bool]] = {name: [] for name in names}
    logits, pixels_max = [], []
    for number, result in enumerate(run(recording, model, tokenizer, pixels)):
        _compare_round(number, result, recording, tokenizer, equal)
        recorded_logits, recorded_pixels = (recording.arrays.get(f"{name}_{number}") for name in ("logits", "pixels"))
        if recorded_logits is not None and result.caption.logits is not None:
            logits.append(abs_difference(result.caption.logits, recorded_logits).ravel())
        if recorded_pixels is not None:
            pixels_max.append(abs_difference(result.clip.patches, recorded_pixels).max())
    all_equal = {name: all(rounds) if rounds else None for name, rounds in equal.items()}
    all_logits = np.concatenate(logits) if logits else np.full(1, np.nan)  # without recorded logits nothing is proven
    logits_median = np.median(all_logits)
    limits = {"logits_max": (all_logits.max(), logits_tolerance), "logits_median": (logits_median, logits_tolerance / 10)}
    if pixels_max:
        limits["pixels_max"] = (max(pixels_max), PIXELS_MAX)
    # A NaN is not <= its limit: it is never ok.
    ok = all(value is not False for value in all_equal.values()) and all(value <= limit for value, limit in limits.values())
    differences = {name: float(value) if np.isfinite(value) else None for name, (value, _) in limits.items()}
    summary = {"recording": recording.name, "rounds": len(recording.rounds)}
    return summary | all_equal | {"pixels_max": None} | differences | {"ok": bool(ok)}


def _compare_round(
    number: int, result: Round, recording: StreamRecording, tokenizer: Tokenizer, equal: dict[str, list[bool]]
) -> None:
    """Append to each list of `equal` whether that part of a round is as recorded."""
    recorded, seq, caption, _ = result
    length = len(recorded["input_ids"])
    same_ids = seq.ids[:length].tolist() == recorded["input_ids"]
    equal["ids_equal"].append(same_ids and _same_grids(recorded, seq, recording.config))
    cached = (recorded["cached_before"], recorded["cached_after"])
    equal["cache_lengths_equal"].append((caption.cached_before, caption.used_slots) == cached)
    equal["tokens_equal"].append(caption.tokens.tolist() == recorded["generated"])
    text = tokenizer.decode(caption.tokens.tolist(), skip_special_tokens=True)
    equal["text_equal"].append(text[:-TEXT_TAIL] == recorded["text"])
    for name, end in (("pos_prefill", length), ("pos_last", caption.used_slots)):
        if (positions := recording.arrays.get(f"{name}_{number}")) is not None:
            # Recorded are the last ones up to `end`: all, or those that were computed in this round.
            first = end - positions.shape[-1]
            equal["positions_equal"].append(first >= 0 and np.array_equal(seq.positions[:, first:end], positions))


def run(recording: StreamRecording, model: QwenVL, tokenizer: Tokenizer, pixels: PixelConfig) -> Iterator[Round]:
    """The rounds of a recording, run in a session of their own."""
    settings, config = recording.settings, recording.config
    height, width = settings["frame_height"], settings["frame_width"]
    _check_model(recording, model, pixels)
    vision = model.config.vision
    step = vision.temporal_step(config.fps)
    frame_pairs = -(-config.chunk_frames // vision.temporal_patch_size)
    grid = (frame_pairs, height // pixels.patch_size, width // pixels.patch_size)
    runner = Runner(Session(model, tokenizer, config, grid, sampling=recording.sampling, markup=True))
    runner.join(VIDEO, StreamSettings(query=settings["query"], previous=settings["previous_text"]))
    for recorded in recording.rounds:
        frames = noise_frames(settings["seed"], recorded["frames"], height, width)
        clip = Clip(*patchify(normalise(frames, pixels), pixels), step, video=True)
        forced = None if settings["mode"] == "greedy" else np.array(recorded["generated"], np.int32)
        chunk = Chunk(recorded["start"], recorded["end"], clip)
        caption = runner.caption(VIDEO, chunk, forced=forced, record=True)
        yield Round(recorded, runner.sequence(VIDEO), caption, clip)


def _check_model(recording: StreamRecording, model: QwenVL, pixels: PixelConfig) -> None:
    height, width = recording.settings["frame_height"], recording.settings["frame_width"]
    if height % pixels.factor or width % pixels.factor:
        raise InputError(f"{recording.name} frame size", f"{width} x {height}", f"multiples of {pixels.factor}", REMEDY)
    max_id = max(max(*recorded["input_ids"], *recorded["generated"]) for recorded in recording.rounds)
    if max_id >= model.config.text.vocab_size:
        expected = f"ids below {model.config.text.vocab_size}"
        raise InputError(recording.name, f"the id {max_id}", expected, "give the model it was recorded on")


def _grids(seq: StreamSequence, config: StreamConfig) -> list[list[int]]:
    """Grids of the frames that the vision tower encoded in the last round."""
    by_turn: dict[int, list[int]] = {}
    for turn, (t, h, w) in ((span.turn, span.grid) for span in seq.spans if span.grid is not None):
        by_turn[turn] = [t + by_turn.get(turn, [0])[0], h, w]
    grids = list(by_turn.values())
    return grids if config.mode == "recompute" else grids[-1:]


def _same_grids(recorded: dict[str, Any], seq: StreamSequence, config: StreamConfig) -> bool:
    return recorded.get("grid_thw") in (None, _grids(seq, config))


def record(
    recording: StreamRecording, path: Path, model: QwenVL, tokenizer: Tokenizer, pixels: PixelConfig, checkpoint: str
) -> None:
    """Run the stream of a recording and write the results as a new one, complete or not at all.

    Args:
        path: NAME.json; the arrays go to NAME.npz.
        checkpoint: name of the model, for the file.
    """
    arrays: dict[str, np.ndarray] = {}
    rounds = []
    config = recording.config
    for number, result in enumerate(run(recording, model, tokenizer, pixels)):
        _, seq, caption, clip = result
        rounds.append(_round_json(result, config, tokenizer))
        length, after = len(rounds[-1]["input_ids"]), caption.used_slots
        # Where positions change in every round all are recorded, else those that the round computed.
        first = 0 if config.rope_positions == "contiguous" or config.mode == "recompute" else caption.cached_before
        arrays[f"pos_prefill_{number}"] = seq.positions[:, first:length]
        arrays[f"pos_last_{number}"] = seq.positions[:, first if first == 0 else after - 1 : after]
        arrays[f"logits_{number}"] = caption.logits if caption.logits is not None else np.zeros(0)
        if number < 2:
            arrays[f"pixels_{number}"] = clip.patches
    text = json.dumps({"name": path.stem, "model": checkpoint, "config": recording.settings, "rounds": rounds})
    _write_pair(path, text, arrays)


def _write_pair(path: Path, text: str, arrays: dict[str, np.ndarray]) -> None:
    """The JSON file and its npz. The JSON file appears last: a recording that is there is complete."""
    with report_write_errors(path), atomic_write(path) as draft, atomic_write(path.with_suffix(".npz")) as arrays_draft:
        with arrays_draft.open("wb") as file:  # given a name, numpy would append .npz to it
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
        draft.write_text(text)


def _round_json(result: Round, config: StreamConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    recorded, seq, caption, _ = result
    # The last token of a reply is chosen and not computed: the prompt ended len(tokens) - 1 slots before the cache does.
    length = caption.used_slots - len(caption.tokens) + 1
    return {
        "input_ids": seq.ids[:length].tolist(),
        "cached_before": caption.cached_before,
        "cached_after": caption.used_slots,
        "generated": caption.tokens.tolist(),
        "grid_thw": _grids(seq, config),
        "frames": recorded["frames"],
        "text": tokenizer.decode(caption.tokens.tolist(), skip_special_tokens=True)[:-TEXT_TAIL],
        "start": recorded["start"],
        "end": recorded["end"],
    }
