"""A stream's state in a file: saved between two chunks, resumed with the very same words.

One sealed file (`sealed`): the keys and values of the retained tokens in the order of the sequence, their ids, slots and
positions, and JSON for the rest. Slots are restored as they were, so that sums run in the same order. Neither a save nor a load
compiles anything: the one copies the cache on the device and cuts it on the host, the other lays it out on the host.

Axes: B streams, K kv heads, S slots, H head dim.
"""

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np

from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError, shortened
from svlm_jax.families.chat import Tokens
from svlm_jax.inputs import Clip
from svlm_jax.model.cache import KVCache
from svlm_jax.model.parameters import Parameters
from svlm_jax.spans import Kind, Part, Span, grid_index, merged_tokens, total
from svlm_jax.stream import state_file
from svlm_jax.stream.sequence import Sequence
from svlm_jax.stream.session import Session, StreamState
from svlm_jax.stream.state_file import BROKEN, VERSION, absurd, check

__all__ = ["VERSION", "Snapshot", "Writer", "check", "load", "peek", "save", "snapshot", "write"]
LARGEST = 64  # times what the session has and the streams hold: the slots that a state may claim
_known: WeakKeyDictionary[Session, dict[str, Any]] = WeakKeyDictionary()


class Snapshot(NamedTuple):
    """A state as it was, whatever becomes of the stream: JSON, arrays of the streams, and a copy of the keys and values, one
    [B, K, S, H] a layer, that the device may still be making."""

    told: dict[str, Any]
    streams: tuple[Sequence | None, ...]
    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


def snapshot(session: Session, state: StreamState, extra: dict[str, Any] | None = None) -> Snapshot:
    """What `write` writes. Costs one copy of the cache in the device's memory and waits for nothing: the stream may go on.

    Args:
        extra: JSON of the caller's own (where the video stands).
    """
    streams = [None if stream is None else _described(stream) for stream in state.streams]
    told = {"settings": settings(session), "capacity": state.cache.capacity, "streams": streams, "extra": extra or {}}
    told["held"] = state.cache.keys[0].dtype.name
    # A transfer, not a program: there is nothing to compile. The stream's own arrays are donated by its next step.
    keys, values = jax.device_put((state.cache.keys, state.cache.values), may_alias=False)
    for one in (*keys, *values):
        one.copy_to_host_async()
    return Snapshot(told, state.streams, keys, values)


def write(path: str | Path, taken: Snapshot, go_on: Callable[[], bool] = lambda: True) -> None:
    """Write a snapshot, whole or not at all, and wait until it is on the disk; in any thread.

    Raises:
        InputError: the file cannot be written.
        Stopped: `go_on` was False.
    """
    tensors: dict[str, np.ndarray] = {}
    for b, stream in enumerate(taken.streams):
        if stream is not None:
            tensors |= {f"{b}.{name}": array for name, array in _tensors(stream).items()}
    for name, layers in (("keys", taken.keys), ("values", taken.values)):
        for layer, held in enumerate(layers):
            whole = np.asarray(held)
            for b, stream in enumerate(taken.streams):
                if stream is not None:
                    tensors[f"{b}.{name}.{layer}"] = whole[b][:, stream.slots[: stream.cached]]
    state_file.write(path, taken.told, tensors, go_on)


def save(path: str | Path, session: Session, state: StreamState, extra: dict[str, Any] | None = None) -> None:
    """Write a state, whole or not at all, and wait until it is on the disk.

    Args:
        extra: JSON of the caller's own (where the video stands).

    Raises:
        InputError: the file cannot be written.
    """
    write(path, snapshot(session, state, extra))


class Writer(AbstractContextManager["Writer"]):
    """Saves the states of a session to one file, in a thread, so that the stream goes on; one at a time."""

    def __init__(self, path: str | Path, session: Session) -> None:
        """Looks at every weight, once: this takes as long as that takes."""
        self.path, self.session = path, session
        self.thread: Thread | None = None
        self.error: Exception | None = None
        self.left = False
        settings(session)

    @property
    def busy(self) -> bool:
        """Whether the last save is still being written."""
        return self.thread is not None and self.thread.is_alive()

    def save(self, state: StreamState, extra: dict[str, Any], first: Callable[[], object] = lambda: None) -> None:
        """Save the state as it is now; waits for a save before it, not for this one.

        Args:
            first: done in the thread before the file takes its name (what it refers to goes to the disk before it).
        """
        self.wait()
        self.error = None
        self.thread = Thread(target=self._write, args=(snapshot(self.session, state, extra), first), name="save", daemon=True)
        self.thread.start()

    def failure(self) -> Exception | None:
        """Why the last save has failed, told once; None while it is being written, and when it has not."""
        if self.busy:
            return None
        error, self.error = self.error, None
        return error

    def wait(self) -> None:
        """Until the last save has ended."""
        if self.thread is not None:
            self.thread.join()

    def __exit__(self, error: type | None, *_: object) -> None:
        """Waits for the last save; when the block was left by an interrupt, calls it off."""
        self.left = error is not None and not issubclass(error, Exception)
        self.wait()

    def _write(self, taken: Snapshot, first: Callable[[], object]) -> None:
        try:
            first()
            write(self.path, taken, lambda: not self.left)
        except state_file.Stopped:
            pass
        except Exception as error:  # told by who asks: a stream does not end because a disk is full
            self.error = error


def peek(path: str | Path) -> dict[str, Any]:
    """The caller's own part of a saved state, all of which has been checked against its checksum.

    Raises:
        InputError: no such file, a broken one, one of another version.
    """
    extra = state_file.read(path)[0].get("extra")
    if not isinstance(extra, dict):
        raise absurd(shortened(path), TypeError("no extra"))
    return extra


def load(path: str | Path, session: Session) -> StreamState:
    """A saved state.

    Raises:
        InputError: as `peek`; or a state of another model or of other settings.
    """
    field = shortened(path)
    told, tensors = state_file.read(path)
    try:
        _compare(told["settings"], settings(session), field)
        streams = tuple(None if one is None else _sequence(one, _of(b, tensors)) for b, one in enumerate(told["streams"]))
        _check(streams, told["capacity"], session)
        cache = session.start(told["capacity"]).cache
        if told["held"] != (now := cache.keys[0].dtype.name):
            remedy = "resume on a device of the kind that it was saved on"
            raise InputError(f"{field} keys and values", f"{told['held']:.20}", f"{now}, as this device holds them", remedy)
        return StreamState(_laid_out(streams, cache, tensors, session), streams)
    except InputError:
        raise
    except jax.errors.JaxRuntimeError as error:
        got = f"a state of {told['capacity']} slots that the device has no room for ({error!s:.60})"
        raise InputError(field, got, "memory for it", "end what else runs there, or use a larger device") from None
    except BROKEN as error:
        raise absurd(field, error) from None


def settings(session: Session) -> dict[str, Any]:
    """All that must be the same for the same words. Found out once a session: it is a look at every weight."""
    if session not in _known:
        whole = {
            "model": repr(session.model_config),
            "weights": int(_checksum(session.values)),
            "rows": session.batch,
            "grid": session.grid,
            **asdict(session.config),
            **asdict(session.sampling),
            "max_top_k": session.max_top_k,
            "suppressed_ids": np.flatnonzero(session.suppressed).tolist(),
        }
        _known[session] = json.loads(json.dumps(whole))
    return _known[session]


def _compare(saved: dict[str, Any], ours: dict[str, Any], source: str) -> None:
    for name in {**saved, **ours}:
        if saved.get(name) != ours.get(name):
            then, now = (f"{one.get(name)!r:.60}" for one in (saved, ours))
            raise InputError(
                f"{source} {name:.40}", then, f"{now}, as the session has it", "resume with the settings it was saved with"
            )


def _check(streams: tuple[Sequence | None, ...], capacity: int, session: Session) -> None:
    """Refuse, before memory is taken for it, what a stream could not go on from.

    Raises:
        ValueError: what it is.
    """

    def need(right: object, what: str) -> None:
        if not right:
            raise ValueError(what)

    need(len(streams) == session.batch, f"{len(streams)} streams in {session.batch} rows")
    most = LARGEST * (session.capacity + max((len(stream.ids) for stream in streams if stream), default=0))
    need(type(capacity) is int and session.capacity <= capacity <= most, f"{capacity} slots")
    merge = session.model_config.vision.spatial_merge_size
    for stream in filter(None, streams):
        need(type(stream.max_new_tokens) is int, "a reply of no whole number of tokens")
        session.check_sampling(stream.sampling, stream.max_new_tokens)
        length, cached, slots = len(stream.ids), stream.cached, stream.slots
        whole = (stream.ids.dtype, slots.dtype, stream.positions.dtype) == (np.int32, np.int32, np.float32)
        need(whole and slots.shape == (length,) and stream.positions.shape == (3, length), "arrays of other shapes")
        for ids in (stream.ids, stream.opening.ids):
            need(((ids >= 0) & (ids < len(session.suppressed))).all(), "ids outside the vocabulary")
        need((slots[:cached] >= 0).all() and len(set(slots[:cached].tolist())) == cached, "slots that are taken twice")
        need(slots.max(initial=-1) < capacity, "slots outside the cache")
        for spans, tokens in ((stream.spans, length), (stream.opening.spans, len(stream.opening.ids))):
            need(total(spans) == tokens and all(span.length > 0 for span in spans), "spans that are not its tokens")
            need(all(_fits_grid(span, merge) for span in spans), "vision tokens that are not of their grid")
        need(np.isfinite(stream.positions).all() and 0 <= stream.since <= stream.chunk, "no place in time")
        need(all(math.prod(clip.grid) == len(clip.patches) for _, clip in stream.clips), "frames of another size")


def _fits_grid(span: Span, merge: int) -> bool:
    if span.grid is None:
        return span.keep is None
    index, merged = grid_index(span), merged_tokens(span.grid, merge)
    return len(index) == span.length and int(index.max()) < merged and (span.keep is not None or span.length == merged)


def _laid_out(
    streams: tuple[Sequence | None, ...], cache: KVCache, tensors: dict[str, np.ndarray], session: Session
) -> KVCache:
    """An empty cache with all that was held, layer by layer."""
    held: dict[str, list[jax.Array]] = {"keys": list(cache.keys), "values": list(cache.values)}
    cache = cache._replace(keys=(), values=())  # each layer goes as its successor comes
    for name, layers in held.items():
        for layer, empty in enumerate(layers):
            whole = np.zeros(empty.shape, empty.dtype)
            for b, stream in enumerate(streams):
                if stream is not None:
                    one = tensors[f"{b}.{name}.{layer}"]
                    if (one.shape, one.dtype) != ((empty.shape[1], stream.cached, empty.shape[3]), whole.dtype):
                        raise ValueError(f"{name} {one.dtype} {one.shape}")
                    whole[b][:, stream.slots[: stream.cached]] = one
            # As `KVCache.empty` places it, or the programs of the session would be compiled anew.
            layers[layer] = jax.device_put(whole, None if session.mesh is None else empty.sharding)
    return cache._replace(keys=tuple(held["keys"]), values=tuple(held["values"]))


def _of(row: int, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{row}."): array for name, array in tensors.items() if name.startswith(f"{row}.")}


def _described(stream: Sequence) -> dict[str, Any]:
    return {
        "query": stream.query,
        "seed": stream.seed,
        "sampling": asdict(stream.sampling),
        "max_new_tokens": stream.max_new_tokens,
        "chunk": stream.chunk,
        "since": stream.since,
        "spans": _listed(stream.spans),
        "opening": _listed(stream.opening.spans),
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
        sampling=_sampling(described["sampling"]),
        max_new_tokens=described["max_new_tokens"],
        chunk=described["chunk"],
        since=described["since"],
        ids=tensors["ids"],
        slots=tensors["slots"],
        positions=tensors["positions"],
        spans=_spans(described["spans"]),
        clips=clips,
    )


def _sampling(described: dict[str, Any]) -> Sampling:
    """The sampling settings of a stream.

    Raises:
        ValueError, KeyError, TypeError: no release writes such settings.
    """
    settings: dict[str, Any] = described | {"suppressed": tuple(described["suppressed"])}
    sampling = Sampling(**settings)
    numbers = (sampling.temperature, sampling.top_p, sampling.repetition_penalty)
    if not (np.isfinite(numbers).all() and all(type(number) is int for number in (sampling.top_k, *sampling.suppressed))):
        raise ValueError("sampling settings of another type")
    return sampling


def _listed(spans: tuple[Span, ...]) -> list[list[Any]]:
    """Spans as JSON."""
    return [[*span[:-1], None if span.keep is None else span.keep.hex()] for span in spans]


def _spans(listed: list[list[Any]]) -> tuple[Span, ...]:
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
        for kind, length, turn, grid, step, part, keep in listed
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
