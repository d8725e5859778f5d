"""Checkpoints of a run: the state, where the data stands and the resolved config, written while training goes on.

A directory RUN/checkpoints/STEP has `state` (trained parameters, moments, counters), `meta` (JSON: the next micro-step, the
config) and nothing of what is frozen, which `config.model` still holds. A step appears when it is whole; one that is damaged
later is passed over with a warning for the one before. The state is read into any mesh and number of hosts.
"""

import contextlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax

from svlm_jax.errors import InputError
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
        self.directory = Path(run_dir).absolute() / FOLDER
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
        """
        self.finish()
        if step in self.steps():
            return
        try:
            self._pending = self._orbax.save_checkpointables_async(step, {"state": state, "meta": dict(meta)}, force=True)
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
        """The newest whole state, into the shapes and shardings of `abstract`, and its meta; None when there is none.

        Raises:
            InputError: checkpoints are there and none can be read.
        """
        causes = []
        for step in self.steps():
            try:
                out = self._orbax.load_checkpointables(step, {"state": abstract, "meta": None})
                jax.block_until_ready(out["state"])
                return out["state"], out["meta"]
            except Exception as error:
                causes.append(f"step {step}: {_cause(error)}")
                warnings.warn(
                    f"checkpoint {self.directory / str(step)} does not load ({_cause(error)}): trying the one before",
                    stacklevel=2,
                )
        if causes:
            raise InputError(str(self.directory), "; ".join(causes), "a checkpoint of this run", "begin in another run_dir")
        return None

    def meta(self) -> dict[str, Any] | None:
        """The meta of the newest checkpoint whose meta can be read."""
        for step in self.steps():
            try:
                return self._orbax.load_checkpointables(step, {"meta": None})["meta"]
            except Exception:
                continue
        return None

    def close(self, quiet: bool = False) -> None:
        """`quiet`: something has failed already, which is what should be told."""
        with contextlib.suppress(Exception) if quiet else contextlib.nullcontext():
            self.finish()
        with contextlib.suppress(Exception) if quiet else contextlib.nullcontext():
            self._orbax.close()


def _failed(directory: Path, error: Exception) -> InputError:
    return InputError(str(directory), f"a failed write ({_cause(error)})", "room on a writable disk", "free some, start again")


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__
