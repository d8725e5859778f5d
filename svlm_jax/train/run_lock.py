"""One run at a time in a run's directory: two would write over each other's metrics and delete each other's checkpoints."""

import os
import weakref
from pathlib import Path

import jax

from svlm_jax.errors import InputError
from svlm_jax.files import report_write_errors, try_lock

LOCK = "lock"


class RunLock:
    """Holds a run's directory until `close`, until nobody has it any more, or until the process ends, killed or not. Nothing is
    held on hosts other than the first, and where there are no locks (some file systems, Windows)."""

    def __init__(self, run_dir: str | Path) -> None:
        """Raises:
        InputError: another process holds it, or the directory cannot be written.
        """
        self.close = lambda: None
        if jax.process_index() != 0:
            return
        path = Path(run_dir) / LOCK
        with report_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.close = weakref.finalize(self, os.close, descriptor)
        if try_lock(descriptor, of_process=True) is False:
            got, expected = f"{run_dir}, where a run is under way", "one run at a time"
            raise InputError("run_dir", got, expected, "wait for it, or end it")
