"""A run of many streams that goes on where it was killed: what is saved now and then, and how it is read back.

One file holds the streams of the batch (`stream.state_io`) and what came of their jobs so far, so the two always fit. A stream
that goes on says what it would have said.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from svlm_jax.eval.commentator import Job
from svlm_jax.eval.job_video import Chunks
from svlm_jax.eval.watching import Watching
from svlm_jax.stream import state_io
from svlm_jax.stream.runner import Runner


class SavedRun(AbstractContextManager["SavedRun"]):
    """The file of a run; without a path nothing is saved."""

    def __init__(self, path: Path | None, runner: Runner, minutes: float) -> None:
        """minutes: between two saves."""
        self.path, self.runner, self.seconds = path, runner, 60 * minutes
        self.last = time.monotonic()
        self.writer: state_io.Writer | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            state_io.check(path)
            self.writer = state_io.Writer(path, runner.session)

    def resume(self, jobs: Sequence[Job], chunks: Callable[[Job], Chunks]) -> Iterator[Watching]:
        """Put the saved streams of these jobs back into the runner, and tell how far each is; others leave it.

        Raises:
            InputError: a file that is broken, or of another model or other settings.
        """
        if self.path is None or not self.path.is_file():
            return
        records = state_io.peek(self.path)["jobs"]
        self.runner.resume(self.path)
        by_key = {job.key: job for job in jobs}
        for key in [key for key in self.runner.batch_index if key not in by_key]:
            self.runner.leave(key)  # it has ended since
        for key in list(self.runner.batch_index):
            yield Watching.of_record(by_key[key], chunks(by_key[key]), records[key])

    def save_now_and_then(self, watching: Mapping[str, Watching]) -> None:
        """Save when it is time. A failure is reported, and tried again."""
        if self.writer is None:
            return
        if error := self.writer.failure():
            warnings.warn(f"streams not saved, tried again later: {error}", stacklevel=2)
        if time.monotonic() - self.last >= self.seconds:
            self._start_save(watching)

    def save(self, watching: Mapping[str, Watching]) -> None:
        """Save, and wait until the disk has it.

        Raises:
            Exception: why that failed.
        """
        if self.writer is not None:
            self._start_save(watching)
            self.writer.wait()
            if error := self.writer.failure():
                raise error

    def _start_save(self, watching: Mapping[str, Watching]) -> None:
        assert self.writer is not None
        self.runner.save(self.writer, {"jobs": {key: each.record() for key, each in watching.items()}})
        self.last = time.monotonic()

    def remove(self) -> None:
        """All jobs are done: there is nothing to go on with."""
        if self.writer is not None:
            self.writer.wait()
        self.discard(self.path)

    @staticmethod
    def discard(path: Path | None) -> None:
        if path is not None:
            path.unlink(missing_ok=True)

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.__exit__(*error)  # pyright: ignore[reportArgumentType]
