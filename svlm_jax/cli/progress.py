"""What a command shows while it works: a bar on a terminal or plain lines elsewhere, a line before programs are compiled, and
an end at once when the user interrupts that."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread, current_thread, main_thread

LINE_EVERY = 5.0  # seconds between plain progress lines
ENDING = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}  # exit code: 128 more, as of a shell
COMPILE_TIME = "seconds for a small model, a minute or more for one of billions of parameters"


def live() -> bool:
    """Whether stderr is a terminal that can clear a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"


def span(seconds: float) -> str:
    """75 -> "75 s", 600 -> "10 min", 20000 -> "5.6 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, Ctrl-C ends the process at once, with one line and exit code 130: Python hears of it only when the compiler, or
    whatever else is under way outside Python, is done. So do SIGTERM and SIGHUP, with codes of theirs, where Python handles
    them. Only where nothing is half written under its final name."""
    handlers = {number: handler for number in ENDING if callable(handler := signal.getsignal(number))}
    if current_thread() is not main_thread() or not handlers:
        yield
        return
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    previous_fd = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    for number in handlers:
        signal.signal(number, lambda *_: None)  # the thread alone acts
    Thread(target=_exit_on_signal, args=(read_fd,), daemon=True).start()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_fd)
        os.close(write_fd)  # which ends the thread


def _exit_on_signal(read_fd: int) -> None:
    while number := os.read(read_fd, 1):
        if number[0] in ENDING:
            os.write(2, b"\ninterrupted\n")
            os._exit(128 + number[0])
    os.close(read_fd)


@contextmanager
def compiling(description: str = "") -> Iterator[Callable[[int, int], None]]:
    """Say that programs are compiled, and where they are kept; inside, Ctrl-C ends the process at once. Gives what to call with
    (programs compiled so far, all of them), by whoever compiles several side by side."""
    from svlm_jax.compile_cache import where_kept

    note = f" (kept in {directory}: the next start is quicker)" if (directory := where_kept()) else ""
    print(f"compiling{' ' if description else ''}{description}{note} ...", file=sys.stderr, flush=True)
    progress = Progress("compiled", "programs")

    def report(done: int, total: int) -> None:
        if done == 0:
            print(f"{total} programs side by side: {COMPILE_TIME}", file=sys.stderr, flush=True)
        else:
            progress(done, total)

    with interruptible():
        yield report


class Progress:
    """Call with (done, total). A bar on a terminal; a plain line every few seconds and at the end otherwise, which says how
    long the rest takes once that can be told."""

    def __init__(self, description: str, unit: str = "tensors") -> None:
        self.description, self.unit = description, unit
        self.started = self.last_line = time.monotonic()
        self.first: tuple[float, int] | None = None
        self.bar = None

    def __call__(self, done: int, total: int) -> None:
        if live():
            from tqdm import tqdm

            if self.bar is None:
                self.bar = tqdm(total=total, desc=self.description, unit=f" {self.unit}", leave=True)
            self.bar.update(done - self.bar.n)
            if done == total:
                self.bar.close()
            return
        now = time.monotonic()
        self.first = self.first or (now, done)  # what came before it was not only work
        if done == total or now - self.last_line > LINE_EVERY:
            self.last_line = now
            line = f"{self.description}: {done}/{total} {self.unit}, {now - self.started:.0f} s"
            begun, before = self.first
            if done < total and done > before:
                line += f", about {span((now - begun) / (done - before) * (total - done))} left"
            print(line, file=sys.stderr, flush=True)
