"""Checkpoints of a run: the state, how many samples it has seen and the resolved config, written while training goes on.

A directory RUN/checkpoints/STEP has `state` (trainable parameters, optimizer state, counters) and `meta` (JSON: samples,
config, fingerprint of the data, checksums over all bits). Frozen parameters are not in it: `config.model` still has them. A
step appears when it is complete. One that is damaged later, by a bit even, is skipped by all hosts with a warning, for the one
before. The state can be read into any mesh and number of hosts.
"""

import contextlib
import itertools
import json
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import jax
import numpy as np

from svlm_jax.checkpoint.abandoned_reads import silence_abandoned_reads
from svlm_jax.checkpoint.orbax import cause
from svlm_jax.cluster.coordination import Channel, PeerLost, is_peer_lost
from svlm_jax.errors import InputError
from svlm_jax.files import local_path
from svlm_jax.train import checksums
from svlm_jax.train.step import TrainState

FOLDER = "checkpoints"
DAMAGED = ".damaged"  # suffix of one that was passed over
WRITE_TIMEOUT_SECONDS = 1800
Result = TypeVar("Result")


class DamagedCheckpoint(Exception):
    """A checkpoint that is not what was written."""


class Checkpoints:
    """The checkpoints of a run."""

    def __init__(self, run_dir: str | Path, *, keep_last: int = 1, keep_every: int = 0, read_only: bool = False) -> None:
        """Args:
        keep_last, keep_every: which of them stay when another is saved.
        read_only: nothing will be saved; a run may be saving there meanwhile.
        """
        from orbax.checkpoint import v1 as ocp

        policies: list[Any] = [ocp.training.preservation_policies.LatestN(keep_last)]
        if keep_every:
            policies.append(ocp.training.preservation_policies.EveryNSteps(keep_every))
        context = ocp.Context()
        context.asynchronous.timeout_secs = WRITE_TIMEOUT_SECONDS
        # Of replicas (mesh axis data) the first is written, by its hosts. If every replica wrote a part, the first host would
        # have to see all parts at once to join them, which a bucket that is mounted with a cache does not guarantee.
        context.array.saving.use_replica_parallel = False
        self.directory = local_path(run_dir, "run_dir").absolute() / FOLDER
        self._orbax = ocp.training.Checkpointer(
            str(self.directory),
            context=context,
            preservation_policy=cast(Any, ocp.training.preservation_policies.AnyPreservationPolicy(policies)),
            cleanup_tmp_directories=not read_only,  # what is half-written is another run's, or of a run that was killed
        )
        self._pending: Any = None
        self.put_aside: list[str] = []  # new names of damaged ones that `load` passed over

    def steps(self) -> list[int]:
        """Those that are complete, newest first."""
        return sorted((checkpoint.step for checkpoint in self._orbax.checkpoints), reverse=True)

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any], *, wait: bool = False) -> None:
        """Start to write. Returns once the state is copied off the device, or (`wait`) written. One write at a time.

        Raises:
            InputError: a full or unwritable disk (of this write or, if it was not waited for, of the one before).
            PeerLost: another process has ended.
        """
        self.finish()
        if step in self.steps():  # the last step may be one of `save_every`, or a stop may come right after a save
            return
        sealed = _seal({**meta, "sums": checksums.state_checksums(state)})
        try:
            self._pending = self._orbax.save_checkpointables_async(step, {"state": state, "meta": sealed}, force=True)
        except Exception as error:  # Orbax wraps every cause in an error of its own
            raise _write_error(self.directory, error) from error
        if wait:
            self.finish()

    def finish(self) -> None:
        """Wait for the write in progress."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:
            raise _write_error(self.directory, error) from error

    def load(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest good state, into the shapes and shardings of `abstract` (ShapeDtypeStructs), and its meta; None when there
        is no checkpoint. All hosts take the same step: one that only some can read is skipped, and gets another name, so that
        the run can save that step again and counts it as none of those to keep.

        Raises:
            InputError: there are checkpoints, and none can be read.
        """
        channel = Channel("load")

        def read(step: int) -> tuple[TrainState, dict[str, Any]]:
            items, failure = None, ""
            # Each host reads for itself and reports afterwards: one that fails must not leave the others in a barrier.
            try:
                items = self._read(step, {"state": abstract, "meta": None})
                jax.block_until_ready(items["state"])
                _check_seal(items["meta"])
            except Exception as error:
                failure = cause(error)
            failures = channel.all_gather(failure)
            if items is None or any(failures):
                process = next(index for index, text in enumerate(failures) if text)
                raise DamagedCheckpoint(failures[process] + (f", on process {process}" if len(failures) > 1 else ""))
            # A program that all hosts run, with the same result on all: they take or skip the step alike.
            _compare_checksums(items["meta"], checksums.state_checksums(items["state"]))
            return items["state"], items["meta"]

        steps = channel.all_gather(self.steps())[0]
        if (newest := self._newest_readable(read, steps)) is None:
            return None
        step, loaded = newest
        if damaged := steps[: steps.index(step)]:
            if jax.process_index() == 0:
                self.put_aside = [_put_aside(self.directory / str(number)) for number in damaged]
            channel.all_gather(None)  # all see the directory without them
            self._orbax.reload()
        return loaded

    def load_trainable(self, shapes: Mapping[str, Any], *, ema: bool, dtype: np.dtype) -> dict[str, np.ndarray] | None:
        """Trainable parameters of the newest good checkpoint by path, on this host: read one by one and cast; nothing else of
        the state is read.

        Args:
            shapes: of the trainable parameters, by path; float32.
            ema: their average instead.
            dtype: to cast to.
        """

        def read(step: int) -> dict[str, np.ndarray]:
            name, values = "ema" if ema else "trainable", {}
            meta = self._read(step, {"meta": None})["meta"]
            _check_seal(meta)
            for path, leaf in shapes.items():
                # `np.empty` describes the array to Orbax, and takes no memory as long as nobody writes to it.
                abstract = {"state": {name: {path: np.empty(leaf.shape, np.float32)}}}
                value = self._read(step, abstract)["state"][name][path]
                key = f".{name}['{path}']"
                if "sums" in meta:
                    _compare_checksums({"sums": {key: meta["sums"].get(key)}}, {key: checksums.array_checksum(value)})
                values[path] = value.astype(dtype, copy=False)
            return values

        newest = self._newest_readable(read, self.steps())
        return None if newest is None else newest[1]

    def _newest_readable(self, read: Callable[[int], Result], steps: list[int]) -> tuple[int, Result] | None:
        """The newest step for which `read` succeeds, and what it gives."""
        causes = []
        # The same steps on all hosts: each of them must read, fail and go on alike.
        for step in steps:
            try:
                return step, read(step)
            except PeerLost:
                raise
            except Exception as error:
                causes.append(f"step {step}: {cause(error)}")
                path = self.directory / str(step)
                warnings.warn(f"checkpoint {path} does not load ({cause(error)}): trying the one before", stacklevel=3)
        if causes:
            got = "; ".join(causes[:2]) + (f"; and {len(causes) - 2} more" if len(causes) > 2 else "")
            raise InputError(str(self.directory), got, "a complete checkpoint of this run", "start another run_dir")
        return None

    def _read(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """Parts of a checkpoint, read by this process without the others."""
        from orbax.checkpoint import v1 as ocp

        silence_abandoned_reads()
        context, process = ocp.Context(), jax.process_index()
        context.pytree.loading.partial_load = set(abstract) == {"state"}
        # Orbax's barriers would be over all processes: this one is its own primary host, with barriers of its own name.
        context.multiprocessing.active_processes = {process}
        context.multiprocessing.primary_host = process
        context.multiprocessing.barrier_sync_key_prefix = f"alone_{process}"
        with context:
            return ocp.load_checkpointables(str(self.directory / str(step)), abstract)

    def close(self, quiet: bool = False) -> None:
        """`quiet`: another error is being raised already, and must not be hidden by one of the write."""
        with contextlib.suppress(Exception) if quiet else contextlib.nullcontext():
            self.finish()
        with contextlib.suppress(Exception) if quiet else contextlib.nullcontext():
            self._orbax.close()


def _put_aside(path: Path) -> str:
    """Rename a damaged checkpoint to the first free one of NAME.damaged, NAME.damaged.2 ..., and return that."""
    names = (f"{path.name}{DAMAGED}{f'.{number}' if number > 1 else ''}" for number in itertools.count(1))
    name = next(name for name in names if not path.with_name(name).exists())
    try:
        path.rename(path.with_name(name))
    except OSError as error:
        raise _write_error(path, error) from error
    return name


def _seal(meta: dict[str, Any]) -> dict[str, Any]:
    """The meta with a CRC over itself."""
    return {**meta, "seal": _crc(meta)}


def _check_seal(meta: Mapping[str, Any]) -> None:
    """Refuse a meta that is not what was written; those of old checkpoints have no seal."""
    if "seal" in meta and meta["seal"] != _crc(meta):
        raise DamagedCheckpoint("its meta is not what was written")


def _crc(meta: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps({name: meta[name] for name in meta if name != "seal"}, sort_keys=True).encode())


def _compare_checksums(meta: Mapping[str, Any], computed: Mapping[str, int]) -> None:
    for path, checksum in meta.get("sums", computed).items():
        if computed.get(path) != checksum:
            raise DamagedCheckpoint(f"bits of {path} are not what was written")


def _write_error(directory: Path, error: Exception) -> Exception:
    """The error of a write that failed, by its cause."""
    if is_peer_lost(error):
        return PeerLost("writing a checkpoint", error)
    got = f"a failed write ({cause(error)})"
    return InputError(str(directory), got, "room on a writable disk", "free some, start again")
