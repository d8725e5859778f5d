"""The terminal of a stream: words, status line, typed questions, signals.

Owns stdout, stderr and stdin. Output never raises: a terminal that is closed does not end a stream, whose state must be saved.
"""

import io
import math
import os
import shutil
import signal
import stat
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any

from svlm_jax.cli.progress import live
from svlm_jax.errors import InputError
from svlm_jax.stream.captions import one_line
from svlm_jax.stream.events import Caption

STATUS_EVERY = 10.0  # seconds between status lines where there is no terminal
STAGES = ("vision", "prefill", "decode")
WIPE = "\r\033[K"  # to the beginning of the line, and clear it


class NullOutput(io.TextIOBase):
    """Replaces stdout or stderr after it was closed."""

    def write(self, text: str, /) -> int:
        return len(text)


class Screen:
    """Words on stdout. On stderr a status line: on a terminal it is rewritten in place, elsewhere printed every STATUS_EVERY.
    With typed input it stands one line above the one in which the user types.

    Attributes:
        line_open: the last words did not end their line.
        status_above: the status line is one line above the cursor.
        closed: stdout can no longer be written to.
    """

    def __init__(self, typed: bool = False) -> None:
        """Args:
        typed: the user types questions at the terminal.
        """
        self.live, self.typed, self.last_status, self.line_open = live(), typed, 0.0, False
        self.status_above = False
        self.step_seconds: deque[float] = deque(maxlen=16)  # of the last chunks
        self.closed = False
        with suppress(AttributeError, ValueError, OSError):  # a character that stdout's encoding lacks must not end the stream
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]

    def say(self, line: str) -> None:
        """A line on stderr."""
        self._write_err(self._clear_codes() + line + "\n")

    def interrupt(self, line: str) -> None:
        """As `say`, for signal handlers: they may interrupt a print, which is not reentrant."""
        with suppress(OSError):
            os.write(2, (self._clear_codes() + line + "\n").encode())

    def words(self, text: str, end: str = "\n") -> None:
        """Words of a reply on stdout; sets `closed` if that fails."""
        if self.closed:
            return
        if self.live and not self.line_open and sys.stdout.isatty():
            self._write_err(self._clear_codes())
        try:
            print(one_line(text), end=end, flush=True)
            self.line_open = end != "\n"
        except (OSError, ValueError) as error:
            self.closed, self.line_open = True, False
            sys.stdout = NullOutput()  # otherwise the interpreter reports an error of stdout at exit
            if not isinstance(error, BrokenPipeError):
                self.say(f"stdout: {getattr(error, 'strerror', None) or error}; no more words are shown")

    def status(self, caption: Caption, progress: str) -> None:
        """Show the status line after a caption. progress: " NUMBER/TOTAL" of its chunk."""
        self.step_seconds.append(sum(caption.ms.values()) / 1000)
        now = time.monotonic()
        if self.line_open or not (self.live or now - self.last_status > STATUS_EVERY):
            return
        self.last_status = now
        speed = (caption.end - caption.start) / (sum(self.step_seconds) / len(self.step_seconds))
        # A call of a loop may last as long as the loop, so the call is counted with its program.
        ms = {stage: caption.ms[stage] + caption.ms.get(f"{stage} dispatch", 0.0) for stage in STAGES}
        stages = ", ".join(f"{stage} {ms[stage]:.0f}" for stage in STAGES)
        slots = f"{caption.used_slots}/{caption.capacity} slots"
        line = f"{clock(caption.end)}{progress}  {speed:.1f}x real time  {slots}  ms: {stages}"
        if not self.live:
            self._write_err(line + "\n")
            return
        line = line[: shutil.get_terminal_size().columns - 1]  # a line that is wrapped could not be cleared
        if not self.typed:
            self._write_err(WIPE + line)
        elif self.status_above:  # save the cursor, rewrite the line above, restore the cursor: typed text stays
            self._write_err(f"\0337\033[1A{WIPE}{line}\0338")
        else:
            self._write_err(f"{WIPE}{line}\n")
            self.status_above = True

    def entered(self) -> None:
        """The user has entered a line: the cursor is one line lower, and the typed line stays."""
        self.status_above = False

    def _clear_codes(self) -> str:
        """Control codes that clear the status line."""
        above, self.status_above = self.status_above, False
        return (WIPE + "\033[1A\033[K" if above else WIPE) if self.live else ""

    def _write_err(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):  # closed
            sys.stderr = NullOutput()


def clock(second: float) -> str:
    """75.25 -> "00:01:15.2"."""
    tenths = int(10 * second + 1e-6)
    return f"{tenths // 36000:02}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


class Stopping:
    """Signals: SIGINT, SIGTERM and SIGHUP (a closed terminal) end the stream after the current chunk; a second one raises
    KeyboardInterrupt at once.

    Attributes:
        requested: a first signal came.
        wake: called with it, from the signal handler.
    """

    def __init__(self, screen: Screen) -> None:
        self.screen, self.requested = screen, False
        self.wake: Callable[[], None] = lambda: None
        self.signals = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it
            self.signals.append(signal.SIGHUP)

    def __enter__(self) -> "Stopping":
        self.previous_handlers = {number: signal.signal(number, self._on_signal) for number in self.signals}
        return self

    def _on_signal(self, number: int, _: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.screen.interrupt(f"{signal.Signals(number).name}: stopping after this chunk")
        self.wake()

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)


class Questions:
    """Questions of the user, at most one a chunk: lines of stdin for the next chunk, those of --ask for that of their second.

    Attributes:
        timed: (second, question) of --ask that are still to come, in order.
        done: those that were asked.
        lines: typed questions that wait.
    """

    def __init__(self, timed: list[str], typed: bool, entered: Callable[[], None] = lambda: None) -> None:
        """Args:
        timed: values of --ask, SECOND:QUESTION.
        typed: read stdin.
        entered: called after each line of stdin.
        """
        self.timed: list[tuple[float, str]] = []
        for argument in timed:
            text, _, question = argument.partition(":")
            try:
                second = float(text)
            except ValueError:
                second = math.nan  # "nan" itself is refused too
            if math.isnan(second):
                raise InputError("--ask", repr(argument), "SECOND:QUESTION", 'write "75:who scored?"')
            self.timed.append((second, one_line(question).strip()))
        self.timed.sort()
        self.done: list[tuple[float, str]] = []
        self.lines: deque[str] = deque()
        self.entered = entered
        if typed:
            Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(AttributeError, ValueError, OSError):  # invalid bytes must not end the reading
            sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        for line in sys.stdin:
            self.entered()
            if line.strip():
                self.lines.append(one_line(line.strip()))

    def before(self, end: float) -> str:
        """The question of the chunk that ends at `end`, or ""; the question of a dropped chunk comes in the next one."""
        if self.timed and self.timed[0][0] < end:
            self.done.append(self.timed.pop(0))
            return self.done[-1][1]
        return self.lines.popleft() if self.lines else ""

    def state(self) -> dict[str, Any]:
        """JSON for `resume`: the questions of --ask that were asked, and typed ones that wait."""
        return {"asked": list(self.done), "typed": list(self.lines.copy())}

    def resume(self, state: dict[str, Any]) -> None:
        """Continue a stream with the same --ask: no question is asked twice, and none that waits is lost."""
        for second, question in state.get("asked", []):
            if (second, question) in self.timed:
                self.timed.remove((second, question))
            self.done.append((second, question))
        self.lines.extendleft(reversed(state.get("typed", [])))


def stdin_has_input() -> bool:
    """Whether stdin is a pipe, or a terminal of which this process is in the foreground."""
    try:
        if sys.stdin.isatty():
            return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
        return stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # closed, or none
        return False
