"""A stream's state in a file: saved between two chunks, resumed with the very same words.

One safetensors file: the keys and values of the retained tokens in the order of the sequence, their ids, slots and positions,
and JSON for the rest. Slots are restored as they were, so that sums run in the same order. Written beside the target and
renamed, so a file under its own name is whole.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from svlm_jax.data.batch import Clip
from svlm_jax.data.chat import Tokens
from svlm_jax.errors import InputError
from svlm_jax.model.cache import Cache
from svlm_jax.model.vlm import Parameters
from svlm_jax.spans import Kind, Part, Span
from svlm_jax.stream.sequence import Sequence
from svlm_jax.stream.session import Session, StreamState

VERSION = 1


def save(path: str | Path, session: Session, state: StreamState, extra: dict[str, Any] | None = None) -> None:
    """Write a state, whole or not at all.

    Args:
        extra: JSON of the caller's own (where the video stands).

    Raises:
        InputError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = Path(path)
    tensors: dict[str, np.ndarray] = {}
    streams = []
    for b, stream in enumerate(state.streams):
        streams.append(None if stream is None else _described(stream))
        if stream is not None:
            tensors |= {f"{b}.{name}": np.ascontiguousarray(array) for name, array in _tensors(stream).items()}
            held = _gather(state.cache, b, stream.slots[: stream.cached])
            for name, layers in (("keys", held[0]), ("values", held[1])):
                tensors |= {f"{b}.{name}.{layer}": np.asarray(one) for layer, one in enumerate(layers)}
    told = {"settings": _settings(session), "capacity": state.cache.capacity, "streams": streams, "extra": extra or {}}
    partial_path = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial_path, {"svlm_state": str(VERSION), "state": json.dumps(told)})
        os.replace(partial_path, path)
    except (OSError, SafetensorError) as error:
        raise InputError(str(path), f"a file that cannot be written ({error})", "a place with room", "choose another") from None
    finally:
        partial_path.unlink(missing_ok=True)


def peek(path: str | Path) -> dict[str, Any]:
    """The caller's own part of a saved state.

    Raises:
        InputError: no such file, a broken one, one of another version.
    """
    return _open(path)[0]["extra"]


def load(path: str | Path, session: Session) -> StreamState:
    """A saved state.

    Raises:
        InputError: as `peek`; or a state of another model or of other settings.
    """
    told, tensors = _open(path, partial(_compare, ours=_settings(session), source=str(path)))
    cache, streams = session.start(told["capacity"]).cache, []
    for b, described in enumerate(told["streams"]):
        if described is None:
            streams.append(None)
            continue
        mine = {name.removeprefix(f"{b}."): array for name, array in tensors.items() if name.startswith(f"{b}.")}
        streams.append(_sequence(described, mine))
        layers = range(len(cache.keys))
        held = tuple(tuple(mine[f"{name}.{layer}"] for layer in layers) for name in ("keys", "values"))
        cache = _scatter(cache, b, streams[-1].slots[: streams[-1].cached], held)
    return StreamState(cache, tuple(streams))


def _open(path: str | Path, check: Callable[[dict[str, Any]], None] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON of a file and, when `check` (which is given the settings) has passed, its tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            told = _told(file.metadata() or {}, str(path))
            if check is None:
                return told, {}
            check(told["settings"])
            return told, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise InputError(str(path), f"an unreadable file ({error})", "a saved state", "check the path") from None


def _told(notes: dict[str, str], source: str) -> dict[str, Any]:
    if notes.get("svlm_state") != str(VERSION):
        got = f"version {notes['svlm_state']}" if "svlm_state" in notes else "another kind of file"
        raise InputError(source, got, f"a state of version {VERSION}", "save it again with this release")
    return json.loads(notes["state"])


def _settings(session: Session) -> dict[str, Any]:
    """All that must be the same for the same words."""
    whole = {
        "model": repr(session.model_config),
        "weights": int(_checksum(session.values)),
        "rows": session.batch,
        "grid": session.grid,
        **asdict(session.config),
        **asdict(session.sampling),
        "banned": np.flatnonzero(session.banned).tolist(),
    }
    return json.loads(json.dumps(whole))


def _compare(saved: dict[str, Any], ours: dict[str, Any], source: str) -> None:
    for name in {**saved, **ours}:
        if saved.get(name) != ours.get(name):
            then, now = (f"{one.get(name)!r:.60}" for one in (saved, ours))
            raise InputError(
                f"{source} {name}", then, f"{now}, as the session has it", "resume with the settings it was saved with"
            )


def _described(stream: Sequence) -> dict[str, Any]:
    return {
        "query": stream.query,
        "seed": stream.seed,
        "chunk": stream.chunk,
        "since": stream.since,
        "spans": stream.spans,
        "opening": stream.opening.spans,
        "clips": [(turn, clip.grid, clip.step) for turn, clip in stream.clips],
    }


def _tensors(stream: Sequence) -> dict[str, np.ndarray]:
    arrays = {"ids": stream.ids, "slots": stream.slots, "positions": stream.positions, "opening": stream.opening.ids}
    return arrays | {f"clip.{number}": clip.patches for number, (_, clip) in enumerate(stream.clips)}


def _sequence(described: dict[str, Any], tensors: dict[str, np.ndarray]) -> Sequence:
    clips = tuple(
        (turn, Clip(tensors[f"clip.{number}"], tuple(grid), step, video=True))
        for number, (turn, grid, step) in enumerate(described["clips"])
    )
    return Sequence(
        opening=Tokens(tensors["opening"], _spans(described["opening"])),
        query=described["query"],
        seed=described["seed"],
        chunk=described["chunk"],
        since=described["since"],
        ids=tensors["ids"],
        slots=tensors["slots"],
        positions=tensors["positions"],
        spans=_spans(described["spans"]),
        clips=clips,
    )


def _spans(listed: list[list[Any]]) -> tuple[Span, ...]:
    return tuple(
        Span(Kind(kind), length, turn, None if grid is None else tuple(grid), step, Part(part))
        for kind, length, turn, grid, step, part in listed
    )


@jax.jit
def _checksum(values: Parameters) -> jax.Array:
    """Of every bit of the weights: another number when one of them changes."""
    total = jnp.uint32(0)
    for path in sorted(values):
        value = values[path]
        bits = jax.lax.bitcast_convert_type(value, jnp.dtype(f"uint{value.dtype.itemsize * 8}")).astype(jnp.uint32)
        weights = jax.lax.iota(jnp.uint32, bits.shape[-1]) * jnp.uint32(2) + jnp.uint32(1)
        total = total * jnp.uint32(31) + jnp.sum(bits * weights, dtype=jnp.uint32)
    return total


@jax.jit
def _gather(cache: Cache, row: int | jax.Array, slots: jax.Array) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    keys, values = (tuple(one[row][:, slots] for one in held) for held in (cache.keys, cache.values))
    return keys, values


@partial(jax.jit, donate_argnames="cache")
def _scatter(cache: Cache, row: int | jax.Array, slots: jax.Array, held) -> Cache:
    def put(all_layers, saved):
        return tuple(one.at[row, :, slots].set(layer.swapaxes(0, 1)) for one, layer in zip(all_layers, saved, strict=True))

    return cache._replace(keys=put(cache.keys, held[0]), values=put(cache.values, held[1]))
