"""A stream's state in a file: saved between two chunks, resumed with the very same words.

One file (`state_file`): the keys and values of the cached tokens in the order of the sequence, their ids, slots and positions,
and JSON for the rest. Slots are restored as they were, so that sums run in the same order. Neither a save nor a load compiles
anything: one copies the cache on the device and cuts it on the host, the other lays it out on the host.

Axes: B streams, K kv heads, S slots, H head dim.
"""

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from threading import Lock, Thread
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np

from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError, shortened
from svlm_jax.families.chat import Tokens
from svlm_jax.inputs import Clip
from svlm_jax.model.cache import KVCache
from svlm_jax.model.parameters import Parameters
from svlm_jax.spans import Kind, Part, Span, grid_index, merged_tokens, total
from svlm_jax.stream import state_file, state_settings
from svlm_jax.stream.sequence import StreamSequence
from svlm_jax.stream.session import Session, StreamState
from svlm_jax.stream.state_file import MALFORMED_ERRORS, VERSION, check, malformed

__all__ = ["VERSION", "Snapshot", "Writer", "check", "load", "peek", "save", "snapshot", "write"]
MAX_GROWTH = 64  # slots that a state may claim, in multiples of what the session has and the streams retain
_settings_cache: WeakKeyDictionary[Session, dict[str, Any]] = WeakKeyDictionary()


class Snapshot(NamedTuple):
    """A state as it was, whatever becomes of the stream: JSON, the sequences, and a copy of the keys and values, one [B, K, S,
    H] a layer, that the device may still be making."""

    metadata: dict[str, Any]
    streams: tuple[StreamSequence | None, ...]
    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


def snapshot(session: Session, state: StreamState, extra: dict[str, Any] | None = None) -> Snapshot:
    """What `write` writes. Costs one copy of the cache in the device's memory and waits for nothing: the stream may go on.

    Args:
        extra: JSON of the caller's own (where the video stands).
    """
    metadata = {
        "settings": settings(session),
        "capacity": state.cache.capacity,
        "kv_dtype": state.cache.keys[0].dtype.name,
        "streams": [None if seq is None else _sequence_metadata(seq) for seq in state.streams],
        "extra": extra or {},
    }
    # A transfer, not a program: there is nothing to compile. The stream's own arrays are donated by its next step.
    keys, values = jax.device_put((state.cache.keys, state.cache.values), may_alias=False)
    for layer in (*keys, *values):
        layer.copy_to_host_async()
    return Snapshot(metadata, state.streams, keys, values)


def write(path: str | Path, state: Snapshot) -> None:
    """Write a snapshot, completely or not at all, and wait until it is on the disk; in any thread.

    Raises:
        InputError: the file cannot be written.
    """
    with state_file.StateFile(path) as file:
        file.write(state.metadata, _tensors(state))


def _tensors(state: Snapshot) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for b, seq in enumerate(state.streams):
        if seq is not None:
            tensors |= {f"{b}.{name}": array for name, array in _sequence_tensors(seq).items()}
    for name, layers in (("keys", state.keys), ("values", state.values)):
        for number, layer in enumerate(layers):
            array = np.asarray(layer)
            for b, seq in enumerate(state.streams):
                if seq is not None:
                    tensors[f"{b}.{name}.{number}"] = array[b][:, seq.slots[: seq.cached]]
    return tensors


def save(path: str | Path, session: Session, state: StreamState, extra: dict[str, Any] | None = None) -> None:
    """Write a state, completely or not at all, and wait until it is on the disk.

    Args:
        extra: JSON of the caller's own (where the video stands).

    Raises:
        InputError: the file cannot be written.
    """
    write(path, snapshot(session, state, extra))


class Writer(AbstractContextManager["Writer"]):
    """Saves the states of a session to one file, in a thread, so that the stream goes on. A state that is saved while another
    is being written is written after it, unless a newer one has come by then. That takes one more copy of the cache."""

    def __init__(self, path: str | Path, session: Session) -> None:
        """Computes the checksum of the weights, once a session: this takes its time.

        Raises:
            InputError: another process saves there.
        """
        self.file, self.session = state_file.StateFile(path), session
        self.thread: Thread | None = None
        self.error: Exception | None = None
        self.cancelled = self.busy = False  # busy: something is being written
        self._waiting: tuple[Snapshot, Callable[[], object]] | None = None
        self._lock = Lock()  # of `busy` and `_waiting`
        settings(session)

    def save(self, state: StreamState, extra: dict[str, Any], first: Callable[[], object] = lambda: None) -> None:
        """Save the state as it is now; waits for nothing.

        Args:
            first: done in the thread before the file takes its name (what it refers to goes to the disk before it).
        """
        saved = snapshot(self.session, state, extra)
        with self._lock:
            self._waiting = saved, first
            if not self.busy:
                self.busy = True
                self.thread = Thread(target=self._write_all, name="save", daemon=True)
                self.thread.start()

    def failure(self) -> Exception | None:
        """Why the last state that was to be written was not, returned once; None when it was. Also while the next one is being
        written: on a slow disk one always is."""
        error, self.error = self.error, None
        return error

    def wait(self) -> None:
        """Until all that was saved is written."""
        if self.thread is not None:
            self.thread.join()

    def __exit__(self, error: type | None, *_: object) -> None:
        """Waits for the last save; cancels it when the block was left by an interrupt."""
        self.cancelled = error is not None and not issubclass(error, Exception)
        self.wait()
        self.file.close()

    def _write_all(self) -> None:
        while True:
            with self._lock:
                waiting, self._waiting = self._waiting, None
                if waiting is None or self.cancelled:
                    self.busy = False
                    return
            self._write(*waiting)

    def _write(self, state: Snapshot, first: Callable[[], object]) -> None:
        try:
            first()
            self.file.write(state.metadata, _tensors(state), lambda: not self.cancelled)
            self.error = None
        except state_file.Stopped:
            pass
        except Exception as error:  # for `failure`: a stream does not end because a disk is full
            self.error = error


def peek(path: str | Path, config: StreamConfig | None = None, sampling: Sampling | None = None) -> dict[str, Any]:
    """The caller's own part of a saved state, all of which has been checked against its checksum.

    Args:
        config, sampling: with which it is to be resumed, to know before a model is loaded that `load` will refuse them.

    Raises:
        InputError: no such file, a broken one, one of another version; other settings.
    """
    field, (metadata, _) = shortened(path), state_file.read(path)
    extra, saved = metadata.get("extra"), metadata.get("settings")
    if not isinstance(extra, dict):
        raise malformed(field, TypeError("no extra"))
    parts = [asdict(part) for part in (config, sampling) if part is not None]
    if parts and isinstance(saved, dict):
        current = json.loads(json.dumps({name: value for part in parts for name, value in part.items()}))
        _compare({name: saved[name] for name in current if name in saved}, current, field)
    return extra


def load(path: str | Path, session: Session) -> StreamState:
    """A saved state.

    Raises:
        InputError: as `peek`; or a state of another model or of other settings.
    """
    field = shortened(path)
    metadata, tensors = state_file.read(path)
    try:
        _compare(metadata["settings"], settings(session), field)
        streams = tuple(
            None if sequence is None else _sequence(sequence, _with_prefix(f"{b}.", tensors), session)
            for b, sequence in enumerate(metadata["streams"])
        )
        _check(streams, metadata["capacity"], session)
        cache = session.init_state(metadata["capacity"]).cache
        if metadata["kv_dtype"] != (kv_dtype := cache.keys[0].dtype.name):
            got, expected = f"{metadata['kv_dtype']:.20}", f"{kv_dtype}, as this device holds them"
            remedy = "resume on a device of the kind that it was saved on"
            raise InputError(f"{field} keys and values", got, expected, remedy)
        return StreamState(_filled(cache, streams, tensors, session), streams)
    except InputError:
        raise
    except jax.errors.JaxRuntimeError as error:
        got = f"a state of {metadata['capacity']} slots that the device has no room for ({error!s:.60})"
        raise InputError(field, got, "memory for it", "end what else runs there, or use a larger device") from None
    except MALFORMED_ERRORS as error:
        raise malformed(field, error) from None


def settings(session: Session) -> dict[str, Any]:
    """All that must be the same for the same words. Computed once a session: it reads every weight."""
    if session not in _settings_cache:
        all_settings = {
            "model": repr(session.model_config),
            "weights": int(_checksum(session.params)),
            "num_streams": session.num_streams,
            "grid": session.grid,
            **asdict(session.config),
            **asdict(session.sampling),
            "max_top_k": session.max_top_k,
            "suppressed_ids": np.flatnonzero(session.suppressed).tolist(),
        }
        _settings_cache[session] = json.loads(json.dumps(all_settings))
    return _settings_cache[session]


def _compare(saved: dict[str, Any], current: dict[str, Any], source: str) -> None:
    # A setting that a state does not know came later than it: the state was made as its default does.
    saved = asdict(StreamConfig()) | asdict(Sampling()) | saved
    for name in {**saved, **current}:
        if saved.get(name) != current.get(name):
            field, got, expected = _difference(name, saved.get(name), current.get(name))
            remedy = "resume with the settings it was saved with"
            raise InputError(f"{source} {field:.60}", f"{got:.60}", f"{expected:.60}, as the session has it", remedy)


def _difference(name: str, saved: object, current: object) -> tuple[str, str, str]:
    """(name, value saved, value now) of a setting, or of the first field of a model that differs."""
    if name == "model":
        for old, new in zip(str(saved).split(", "), str(current).split(", "), strict=False):
            if old != new:
                field, _, value = new.rpartition("=")
                return f"model {field.rpartition('(')[2]}", old.rpartition("=")[2].strip("()'"), value.strip("()'")
    if name == "weights":
        return "weights", "those of another model", "those of this one"
    return name, repr(saved), repr(current)


def _check(streams: tuple[StreamSequence | None, ...], capacity: int, session: Session) -> None:
    """Refuse, before memory is allocated for it, what a stream could not go on from.

    Raises:
        ValueError: the first thing that is wrong.
    """
    _require(len(streams) == session.num_streams, f"{len(streams)} streams in a batch of {session.num_streams}")
    max_capacity = MAX_GROWTH * (session.capacity + max((len(seq.ids) for seq in streams if seq), default=0))
    _require(type(capacity) is int and session.capacity <= capacity <= max_capacity, f"{capacity} slots")
    for seq in filter(None, streams):
        _check_sequence(seq, capacity, session)


def _check_sequence(seq: StreamSequence, capacity: int, session: Session) -> None:
    length, cached, slots = len(seq.ids), seq.cached, seq.slots
    dtypes = (seq.ids.dtype, slots.dtype, seq.positions.dtype) == (np.int32, np.int32, np.float32)
    _require(dtypes and slots.shape == (length,) and seq.positions.shape == (3, length), "arrays of other shapes")
    for ids in (seq.ids, seq.opening.ids):
        _require(((ids >= 0) & (ids < len(session.suppressed))).all(), "ids outside the vocabulary")
    _require((slots[:cached] >= 0).all() and len(set(slots[:cached].tolist())) == cached, "slots that are used twice")
    _require(slots.max(initial=-1) < capacity, "slots outside the cache")
    merge = session.model_config.vision.spatial_merge_size
    for spans, tokens in ((seq.spans, length), (seq.opening.spans, len(seq.opening.ids))):
        _require(total(spans) == tokens and all(span.length > 0 for span in spans), "spans that are not its tokens")
        _require(all(_fits_grid(span, merge) for span in spans), "vision tokens that are not of their grid")
    _require(np.isfinite(seq.positions).all() and 0 <= seq.window_start <= seq.chunk, "impossible positions or chunks")
    _require(all(math.prod(clip.grid) == len(clip.patches) for _, clip in seq.clips), "frames of another size")


def _require(condition: object, error: str) -> None:
    if not condition:
        raise ValueError(error)


def _fits_grid(span: Span, merge: int) -> bool:
    if span.grid is None:
        return span.keep is None
    index, merged = grid_index(span), merged_tokens(span.grid, merge)
    return len(index) == span.length and int(index.max()) < merged and (span.keep is not None or span.length == merged)


def _filled(
    cache: KVCache, streams: tuple[StreamSequence | None, ...], tensors: dict[str, np.ndarray], session: Session
) -> KVCache:
    """An empty cache with the saved keys and values, layer by layer."""
    all_layers: dict[str, list[jax.Array]] = {"keys": list(cache.keys), "values": list(cache.values)}
    cache = cache._replace(keys=(), values=())  # frees each empty layer when its successor comes
    for name, layers in all_layers.items():
        for number, empty in enumerate(layers):
            array = np.zeros(empty.shape, empty.dtype)
            for b, seq in enumerate(streams):
                if seq is not None:
                    saved = tensors[f"{b}.{name}.{number}"]
                    if (saved.shape, saved.dtype) != ((empty.shape[1], seq.cached, empty.shape[3]), array.dtype):
                        raise ValueError(f"{name} {saved.dtype} {saved.shape}")
                    array[b][:, seq.slots[: seq.cached]] = saved
            # Sharded as `KVCache.empty` does it, or the programs of the session would be compiled anew.
            layers[number] = jax.device_put(array, None if session.mesh is None else empty.sharding)
    return cache._replace(keys=tuple(all_layers["keys"]), values=tuple(all_layers["values"]))


def _with_prefix(prefix: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _sequence_metadata(seq: StreamSequence) -> dict[str, Any]:
    return {
        "settings": state_settings.to_json(seq.settings),
        "chunk": seq.chunk,
        "window_start": seq.window_start,
        "spans": _span_lists(seq.spans),
        "opening": _span_lists(seq.opening.spans),
        "clips": [(turn, clip.grid, clip.step) for turn, clip in seq.clips],
    }


def _sequence_tensors(seq: StreamSequence) -> dict[str, np.ndarray]:
    arrays = {"ids": seq.ids, "slots": seq.slots, "positions": seq.positions, "opening": seq.opening.ids}
    return arrays | {f"clip.{number}": clip.patches for number, (_, clip) in enumerate(seq.clips)}


def _sequence(metadata: dict[str, Any], tensors: dict[str, np.ndarray], session: Session) -> StreamSequence:
    settings = state_settings.from_json(metadata["settings"])
    opening = Tokens(tensors["opening"], _spans(metadata["opening"]))
    config, sampling = session.admission.resumed(settings, opening)
    clips = tuple(
        (turn, Clip(tensors[f"clip.{number}"], tuple(grid), step, video=True))
        for number, (turn, grid, step) in enumerate(metadata["clips"])
    )
    return StreamSequence(
        opening=opening,
        settings=settings,
        config=config,
        sampling=sampling,
        chunk=metadata["chunk"],
        window_start=metadata["window_start"],
        ids=tensors["ids"],
        slots=tensors["slots"],
        positions=tensors["positions"],
        spans=_spans(metadata["spans"]),
        clips=clips,
    )


def _span_lists(spans: tuple[Span, ...]) -> list[list[Any]]:
    """Spans as JSON."""
    return [[*span[:-1], None if span.keep is None else span.keep.hex()] for span in spans]


def _spans(lists: list[list[Any]]) -> tuple[Span, ...]:
    return tuple(
        Span(
            kind=Kind(kind),
            length=length,
            turn=turn,
            grid=None if grid is None else tuple(grid),
            step=step,
            part=Part(part),
            keep=None if keep is None else bytes.fromhex(keep),
        )
        for kind, length, turn, grid, step, part, keep in lists
    )


@jax.jit
def _checksum(params: Parameters) -> jax.Array:
    """Of every bit of the weights: another number when one of them changes."""
    total = jnp.uint32(0)
    for path in sorted(params):
        value = params[path]
        bits = jax.lax.bitcast_convert_type(value, jnp.dtype(f"uint{value.dtype.itemsize * 8}")).astype(jnp.uint32)
        weights = jax.lax.iota(jnp.uint32, bits.shape[-1]) * jnp.uint32(2) + jnp.uint32(1)
        total = total * jnp.uint32(31) + jnp.sum(bits * weights, dtype=jnp.uint32)
    return total
