"""Replay of a recorded stream through the real session, and recording of a new one.

Owns the file format: NAME.json (config and rounds) with NAME.npz beside it (logits, positions, pixels; not of every round).
`replay` compares, `record` writes. All in float32 on the frames that the recording stands for, which are never resized.
"""

import json
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
from svlm_jax.replay import format
from svlm_jax.replay.format import AGAIN, get, whole
from svlm_jax.spans import temporal_step
from svlm_jax.stream.results import Reply, require_reply
from svlm_jax.stream.sequence import Chunk, Sequence
from svlm_jax.stream.session import Session

POSITIONS: dict[str, RopePositions] = {"shrink": "contiguous", "append": "native"}  # as the recordings call them
MODES = ("forced", "overflow", "greedy")  # the first two: the generated tokens are dictated
FOR_EVER = 100_000  # chunks; a window as long as this stands for full attention
TEXT_TAIL = 4  # characters that the original cuts off a reply, normally " ..."


class Trace(NamedTuple):
    """A recording: its settings as the file has them, what they mean to us, its rounds and arrays."""

    name: str
    settings: dict[str, Any]
    config: StreamConfig
    sampling: Sampling
    rounds: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]


def read(path: str | Path) -> Trace:
    """A recording from its two files.

    Raises:
        InputError: the file or key that is missing or wrong.
    """
    raw = read_json(Path(path), "a recorded stream")
    settings, rounds = get(raw, "config", dict, path), get(raw, "rounds", list, path)
    if not rounds:
        raise InputError(f"{path} rounds", "none", "at least one", AGAIN)
    for number, one in enumerate(rounds):
        where = f"{path} rounds[{number}]"
        if not isinstance(one, dict):
            raise InputError(where, f"{one!r:.40}", "a JSON object", AGAIN)
        for key in ("input_ids", "generated", "frames"):
            if not all(type(item) is int and item >= 0 for item in get(one, key, list, where)) or not one[key]:
                raise InputError(f"{where} {key}", "something else", "whole numbers, one or more", AGAIN)
        for key in ("cached_before", "cached_after"):
            whole(one, key, 0, where)
        for key, kind in (("text", str), ("start", float), ("end", float)):
            get(one, key, kind, where)
    config, sampling = settings_of(settings, f"{path} config")
    return Trace(Path(path).stem, settings, config, sampling, rounds, format.arrays(path))


def settings_of(settings: dict[str, Any], source: str) -> tuple[StreamConfig, Sampling]:
    """What the settings of a recording mean to a session."""
    if get(settings, "mode", str, source) not in MODES:
        raise InputError(f"{source} mode", repr(settings["mode"]), f"one of {', '.join(MODES)}", AGAIN)
    for key in ("previous_text", "query"):
        get(settings, key, str, source)
    for key in ("seed", "frame_height", "frame_width"):
        whole(settings, key, 0, source)
    mode_of_positions = get(settings, "pos_mode", str, source)
    if mode_of_positions not in POSITIONS:
        raise InputError(f"{source} pos_mode", repr(mode_of_positions), f"one of {', '.join(POSITIONS)}", AGAIN)
    vision, rounds = (whole(settings, key, 1, source) for key in ("window_size", "text_round"))
    mode = "recompute" if get(settings, "recompute", bool, source) else "streaming"
    if min(vision, rounds) >= FOR_EVER:
        mode = "full"
    config = StreamConfig(
        mode=mode,
        vision_window=vision,
        text_rounds=rounds,
        sink=whole(settings, "text_sink", 0, source, null=None),
        text_window=whole(settings, "text_sliding_window", 0, source, null=None),
        rope_positions=POSITIONS[mode_of_positions],
        mrope_axes=1 if get(settings, "all_text", bool, source) else 3,
        fps=get(settings, "fps", float, source),
        chunk_seconds=get(settings, "chunk_duration", float, source),
        max_new_tokens=whole(settings, "max_new_tokens", 1, source),
    )
    suppressed = tuple(get(settings, "suppressed_token_ids", list, source))
    return config, Sampling(0.0, repetition_penalty=get(settings, "repetition_penalty", float, source), suppressed=suppressed)


def replay(trace: Trace, model: QwenVL, tokenizer: Tokenizer, pixels: PixelConfig, most: float | int = format.LOGITS):
    """Run the recorded stream and compare.

    Args:
        model: in float32.
        pixels: of the processor's frames of video.
        most: largest difference of a logit; a tenth of it at the median.

    Returns:
        Flat, for JSON: what is equal (bool; None where nothing is recorded), by how much logits and pixels differ, and "ok".

    Raises:
        InputError: a recording of another model or processor.
    """
    told: dict[str, list[bool]] = {
        name: [] for name in ("ids_equal", "cache_lengths_equal", "positions_equal", "tokens_equal", "text_equal")
    }
    logits, looks = [], []
    for number, (one, held, reply, clip) in enumerate(run(trace, model, tokenizer, pixels)):
        length = len(one["input_ids"])
        told["ids_equal"].append(held.ids[:length].tolist() == one["input_ids"] and _grids(one, held, trace.config))
        told["cache_lengths_equal"].append((reply.before, reply.after) == (one["cached_before"], one["cached_after"]))
        told["tokens_equal"].append(reply.tokens.tolist() == one["generated"])
        said = tokenizer.decode(reply.tokens.tolist(), skip_special_tokens=True)
        told["text_equal"].append(said[:-TEXT_TAIL] == one["text"])
        for name, end in (("pos_prefill", length), ("pos_last", reply.after)):
            if (recorded := trace.arrays.get(f"{name}_{number}")) is not None:
                first = end - recorded.shape[-1]
                told["positions_equal"].append(first >= 0 and np.array_equal(held.positions[:, first:end], recorded))
        if (recorded := trace.arrays.get(f"logits_{number}")) is not None and reply.logits is not None:
            logits.append(format.difference(reply.logits, recorded).ravel())
        if (recorded := trace.arrays.get(f"pixels_{number}")) is not None:
            looks.append(format.difference(clip.patches, recorded).max())
    every = {name: all(equal) if equal else None for name, equal in told.items()}
    apart = np.concatenate(logits) if logits else np.full(1, np.nan)  # no logits recorded: nothing is proven
    differences = {"logits_max": (apart.max(), most), "logits_median": (np.median(apart), most / 10)}
    if looks:
        differences["pixels_max"] = (max(looks), format.PIXELS)
    ok = all(equal is not False for equal in every.values()) and all(value <= at for value, at in differences.values())
    shown = {name: float(value) if np.isfinite(value) else None for name, (value, _) in differences.items()}
    return {"trace": trace.name, "rounds": len(trace.rounds), **every, "pixels_max": None, **shown, "ok": bool(ok)}


def run(trace: Trace, model: QwenVL, tokenizer: Tokenizer, pixels: PixelConfig):
    """Yields (round, what is retained after the reply, the reply, the frames) of every round."""
    settings, config = trace.settings, trace.config
    height, width = settings["frame_height"], settings["frame_width"]
    if height % pixels.factor or width % pixels.factor:
        raise InputError(f"{trace.name} frame size", f"{width} x {height}", f"multiples of {pixels.factor}", AGAIN)
    most = max(max(max(one["input_ids"]), max(one["generated"])) for one in trace.rounds)
    if most >= model.config.text.vocab_size:
        got, expected = f"the id {most}", f"ids below {model.config.text.vocab_size}"
        raise InputError(trace.name, got, expected, "give the model it was recorded on")
    vision = model.config.vision
    step = temporal_step(vision.tokens_per_second, vision.temporal_patch_size, config.fps)
    pairs = -(-config.chunk_frames // vision.temporal_patch_size)
    grid = (pairs, height // pixels.patch_size, width // pixels.patch_size)
    session = Session(model, tokenizer, config, grid, sampling=trace.sampling, markup=True)
    state = session.join(session.start(), query=settings["query"], previous=settings["previous_text"])
    for one in trace.rounds:
        frames = format.noise(settings["seed"], one["frames"], height, width)
        clip = Clip(*patchify(normalise(frames, pixels), pixels), step, video=True)
        forced = None if settings["mode"] == "greedy" else [np.array(one["generated"], np.int32)]
        state, (result,) = session.step(state, [Chunk(one["start"], one["end"], clip)], forced=forced, record=True)
        held = state.streams[0]
        assert held is not None
        yield one, held, require_reply(result), clip


def _grids(one: dict[str, Any], held: Sequence, config: StreamConfig) -> bool:
    """Whether the frames that the tower looked at are the recorded ones."""
    grids = [list(span.grid) for span in held.spans if span.grid is not None]
    return one.get("grid_thw") in (None, grids if config.mode == "recompute" else grids[-1:])


def record(trace: Trace, path: Path, model: QwenVL, tokenizer: Tokenizer, pixels: PixelConfig, checkpoint: str) -> None:
    """Run the stream of a recording and write what we make of it as a new one, whole or not at all.

    Args:
        path: NAME.json; the arrays go to NAME.npz.
        checkpoint: name of the model, for the file.
    """
    arrays: dict[str, np.ndarray] = {}
    rounds = []
    for number, (one, held, reply, clip) in enumerate(run(trace, model, tokenizer, pixels)):
        rounds.append(_round(one, held, reply, trace.config, tokenizer))
        length, after = len(rounds[-1]["input_ids"]), reply.after
        first = 0 if trace.config.rope_positions == "contiguous" or trace.config.mode == "recompute" else reply.before
        arrays[f"pos_prefill_{number}"] = held.positions[:, first:length]
        arrays[f"pos_last_{number}"] = held.positions[:, first if first == 0 else after - 1 : after]
        arrays[f"logits_{number}"] = reply.logits if reply.logits is not None else np.zeros(0)
        if number < 2:
            arrays[f"pixels_{number}"] = clip.patches
    text = json.dumps({"name": path.stem, "model": checkpoint, "config": trace.settings, "rounds": rounds})
    with report_write_errors(path), atomic_write(path) as draft, atomic_write(path.with_suffix(".npz")) as arrays_draft:
        with arrays_draft.open("wb") as file:  # given a name, numpy would append .npz to it
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
        draft.write_text(text)


def _round(one: dict[str, Any], held: Sequence, reply: Reply, config: StreamConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    length = reply.after - len(reply.tokens) + 1
    grids = [list(span.grid) for span in held.spans if span.grid is not None]
    return {
        "input_ids": held.ids[:length].tolist(),
        "cached_before": reply.before,
        "cached_after": reply.after,
        "generated": reply.tokens.tolist(),
        "grid_thw": grids if config.mode == "recompute" else grids[-1:],
        "frames": one["frames"],
        "text": tokenizer.decode(reply.tokens.tolist(), skip_special_tokens=True)[:-TEXT_TAIL],
        "start": one["start"],
        "end": one["end"],
    }
