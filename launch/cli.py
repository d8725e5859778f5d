"""What every command shares: one line for bad input, and progress as a bar on a terminal or plain lines elsewhere."""

import logging
import sys
import time
import warnings
from collections.abc import Callable

from svlm_jax.errors import InputError

BAD_INPUT = 2  # exit code
LINE_EVERY = 5.0  # seconds between plain progress lines


def run(main: Callable[[], None]) -> None:
    """Run a command; InputError becomes one line on stderr and exit code 2, warnings become one line each."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs whole tracebacks of what we say in one line
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(130)


class Progress:
    """Call with (done, total). A bar on a terminal; a plain line every few seconds and at the end otherwise."""

    def __init__(self, what: str, unit: str = "tensors") -> None:
        self.what, self.unit = what, unit
        self.started = self.spoken = time.monotonic()
        self.bar = None

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            from tqdm import tqdm

            if self.bar is None:
                self.bar = tqdm(total=total, desc=self.what, unit=f" {self.unit}", leave=True)
            self.bar.update(done - self.bar.n)
            if done == total:
                self.bar.close()
            return
        now = time.monotonic()
        if done == total or now - self.spoken > LINE_EVERY:
            self.spoken = now
            print(f"{self.what}: {done}/{total} {self.unit}, {now - self.started:.0f} s", file=sys.stderr, flush=True)
