"""Checkpoints of a run: the state, where the data stands and the resolved config, written while training goes on.

A directory RUN/checkpoints/STEP has `state` (trained parameters, moments, counters), `meta` (JSON: samples seen, the config,
what the data was, sums over all bits) and nothing of what is frozen, which `config.model` still holds. A step appears when it
is whole; one that is damaged later, by a bit even, is passed over by all hosts with a warning for the one before. The state is
read into any mesh and number of hosts.
"""

import contextlib
import json
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from svlm_jax.checkpoint.orbax import cause
from svlm_jax.errors import InputError
from svlm_jax.files import local_path
from svlm_jax.train import checksums
from svlm_jax.train.hosts import Channel, PeerLost, is_lost
from svlm_jax.train.step import State

FOLDER = "checkpoints"
TIMEOUT = 1800  # seconds that a write may take


class Checkpoints:
    """The checkpoints of a run."""

    def __init__(self, run_dir: str | Path, *, keep: int, keep_every: int = 0) -> None:
        from orbax.checkpoint import v1 as ocp

        policies: list[Any] = [ocp.training.preservation_policies.LatestN(keep)]
        if keep_every:
            policies.append(ocp.training.preservation_policies.EveryNSteps(keep_every))
        context = ocp.Context()
        context.asynchronous.timeout_secs = TIMEOUT
        # Of copies (mesh axis data) the first is written, by its hosts: parts from all would have to be seen by the first host
        # at once to be put together, which a bucket that is mounted with a cache does not give.
        context.array.saving.use_replica_parallel = False
        self.directory = local_path(run_dir, "run_dir").absolute() / FOLDER
        self._orbax = ocp.training.Checkpointer(
            str(self.directory),
            context=context,
            preservation_policy=cast(Any, ocp.training.preservation_policies.AnyPreservationPolicy(policies)),
            cleanup_tmp_directories=True,
        )
        self._pending: Any = None

    def steps(self) -> list[int]:
        """Those that are whole, newest first."""
        return sorted((one.step for one in self._orbax.checkpoints), reverse=True)

    def save(self, step: int, state: State, meta: Mapping[str, Any], *, wait: bool = False) -> None:
        """Begin to write; returns once the state is copied off the device, or (`wait`) written. One write at a time.

        Raises:
            InputError: a full or unwritable disk (of this write or, if it was not waited for, of the one before).
            PeerLost: another process is gone.
        """
        self.finish()
        if step in self.steps():
            return
        sealed = _sealed({**meta, "sums": checksums.of_state(state)})
        try:
            self._pending = self._orbax.save_checkpointables_async(step, {"state": state, "meta": sealed}, force=True)
        except Exception as error:  # Orbax wraps every cause in an error of its own
            raise _failed(self.directory, error) from error
        if wait:
            self.finish()

    def finish(self) -> None:
        """Wait for the write that is under way."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:
            raise _failed(self.directory, error) from error

    def load(self, abstract: State) -> tuple[State, dict[str, Any]] | None:
        """The newest whole state, into the shapes and shardings of `abstract`, and its meta; None when there is none. All hosts
        take the same: one that is whole for some alone is passed over.

        Raises:
            InputError: checkpoints are there and none can be read.
        """
        channel = Channel("load")

        def read(step: int) -> tuple[State, dict[str, Any]]:
            """Alone, whatever the others do: a host that fails must not leave them in a barrier."""
            out, wrong = None, ""
            try:
                out = self._read(step, {"state": abstract, "meta": None})
                jax.block_until_ready(out["state"])
                _check(out["meta"])
            except Exception as error:
                wrong = cause(error)
            told = channel.gather(wrong)
            if out is None or any(told):
                process = next(number for number, one in enumerate(told) if one)
                raise Damaged(told[process] + (f", on process {process}" if len(told) > 1 else ""))
            _compare(out["meta"], checksums.of_state(out["state"]))  # a program of all hosts
            return out["state"], out["meta"]

        return self._newest(read, channel.gather(self.steps())[0])

    def trained(self, shapes: Mapping[str, Any], *, ema: bool, cast_to: Any) -> dict[str, np.ndarray] | None:
        """Trained parameters of the newest whole checkpoint by path, on this host: read one by one, cast, and nothing else of
        the state. `ema`: their average instead.

        Args:
            shapes: of what is trained, by path; float32.
        """

        def read(step: int) -> dict[str, np.ndarray]:
            name, values = "ema" if ema else "trained", {}
            meta = self._read(step, {"meta": None})["meta"]
            _check(meta)
            for path, leaf in shapes.items():
                wanted = {"state": {name: {path: np.empty(leaf.shape, np.float32)}}}  # what numpy has touched nothing of
                value = self._read(step, wanted)["state"][name][path]
                key = f".{name}['{path}']"
                if "sums" in meta:
                    _compare({"sums": {key: meta["sums"].get(key)}}, {key: checksums.of_array(value)})
                values[path] = value.astype(cast_to, copy=False)
            return values

        return self._newest(read, self.steps())

    def _newest(self, read: Callable[[int], Any], steps: list[int]) -> Any:
        """What `read` makes of the newest step of which it can."""
        causes = []
        for step in steps:
            try:
                return read(step)
            except PeerLost:
                raise
            except Exception as error:
                causes.append(f"step {step}: {cause(error)}")
                told = f"checkpoint {self.directory / str(step)} does not load ({cause(error)}): trying the one before"
                warnings.warn(told, stacklevel=3)
        if causes:
            got = "; ".join(causes[:2]) + (f"; and {len(causes) - 2} more" if len(causes) > 2 else "")
            raise InputError(str(self.directory), got, "a whole checkpoint of this run", "begin in another run_dir")
        return None

    def _read(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        """Parts of a checkpoint, read by this process for itself."""
        from orbax.checkpoint import v1 as ocp

        context, process = ocp.Context(), jax.process_index()
        context.pytree.loading.partial_load = set(wanted) == {"state"}
        context.multiprocessing.active_processes = {process}
        context.multiprocessing.primary_host = process
        context.multiprocessing.barrier_sync_key_prefix = f"alone_{process}"
        with context:
            return ocp.load_checkpointables(str(self.directory / str(step)), wanted)

    def close(self, quiet: bool = False) -> None:
        """`quiet`: something has failed already, which is what should be told."""
        with contextlib.suppress(Exception) if quiet else contextlib.nullcontext():
            self.finish()
        with contextlib.suppress(Exception) if quiet else contextlib.nullcontext():
            self._orbax.close()


class Damaged(Exception):
    """A checkpoint that is not what was written."""


def _sealed(meta: dict[str, Any]) -> dict[str, Any]:
    return {**meta, "seal": _seal(meta)}


def _check(meta: Mapping[str, Any]) -> None:
    """Refuse a meta that is not what was written; those of before there were seals have none."""
    if "seal" in meta and meta["seal"] != _seal(meta):
        raise Damaged("its meta is not what was written")


def _seal(meta: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps({name: meta[name] for name in meta if name != "seal"}, sort_keys=True).encode())


def _compare(meta: Mapping[str, Any], found: Mapping[str, int]) -> None:
    for path, sum_ in meta.get("sums", found).items():
        if found.get(path) != sum_:
            raise Damaged(f"bits of {path} are not what was written")


def _failed(directory: Path, error: Exception) -> Exception:
    """A write that failed, told by why."""
    if is_lost(error):
        return PeerLost("writing a checkpoint", error)
    got = f"a failed write ({cause(error)})"
    return InputError(str(directory), got, "room on a writable disk", "free some, start again")
