"""What a person sees of a stream, and what reaches it from one: words, status line, questions, signals.

Owns the terminal. Nothing here raises because of what it shows or to whom: a terminal that has gone takes no stream with it.
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


class Nowhere(io.TextIOBase):
    """Where words go when nobody reads them any more."""

    def write(self, text: str, /) -> int:
        return len(text)


class Screen:
    """Words on stdout; on stderr a status line that stays in its place on a terminal and comes now and then elsewhere. Where
    someone types, the line below it is theirs."""

    def __init__(self, typed: bool = False) -> None:
        """Args:
        typed: someone types at the terminal.
        """
        self.live, self.typed, self.spoken, self.open = live(), typed, 0.0, False
        self.above = False  # the status line is above the cursor, which waits for a question
        self.recent: deque[float] = deque(maxlen=16)
        self.closed = False
        with suppress(AttributeError, ValueError, OSError):  # words that stdout has no letters for are no reason to end
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]

    def say(self, line: str) -> None:
        """Something that happened, on stderr."""
        self._err(self._free() + line + "\n")

    def interrupt(self, line: str) -> None:
        """The same from a signal handler, where a print may be under way; print is not reentrant."""
        with suppress(OSError):
            os.write(2, (self._free() + line + "\n").encode())

    def words(self, text: str, end: str = "\n") -> None:
        """What was said, or a piece of it, on stdout. `closed` from the first that could not be shown."""
        if self.closed:
            return
        if self.live and not self.open and sys.stdout.isatty():
            self._err(self._free())
        try:
            print(one_line(text), end=end, flush=True)
            self.open = end != "\n"
        except (OSError, ValueError) as error:
            self.closed, self.open = True, False
            sys.stdout = Nowhere()  # else the interpreter complains about stdout at exit
            if not isinstance(error, BrokenPipeError):
                self.say(f"stdout: {getattr(error, 'strerror', None) or error}; words are shown no more")

    def status(self, caption: Caption, progress: str) -> None:
        """progress: which chunk it is of how many."""
        self.recent.append(sum(caption.ms.values()) / 1000)
        now = time.monotonic()
        if self.open or not (self.live or now - self.spoken > STATUS_EVERY):
            return
        self.spoken = now
        speed = (caption.end - caption.start) / (sum(self.recent) / len(self.recent))
        stages = ", ".join(f"{stage} {caption.ms[stage]:.0f}" for stage in STAGES)
        slots = f"{caption.slots}/{caption.capacity} slots"
        line = f"{clock(caption.end)}{progress}  {speed:.1f}x real time  {slots}  ms: {stages}"
        if not self.live:
            self._err(line + "\n")
            return
        line = line[: shutil.get_terminal_size().columns - 1]  # a line that is wrapped could not be cleared
        if not self.typed:
            self._err(WIPE + line)
        elif self.above:  # what has been typed so far stays where it is, and the cursor behind it
            self._err(f"\0337\033[1A{WIPE}{line}\0338")
        else:
            self._err(f"{WIPE}{line}\n")
            self.above = True

    def entered(self) -> None:
        """Someone has ended a line: the cursor has gone down, and what was typed stays to be read."""
        self.above = False

    def _free(self) -> str:
        """What frees a line of a terminal for something new."""
        above, self.above = self.above, False
        return (WIPE + "\033[1A\033[K" if above else WIPE) if self.live else ""

    def _err(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):  # nobody is left to be told
            sys.stderr = Nowhere()


def clock(second: float) -> str:
    """75.25 -> "00:01:15.2"."""
    tenths = int(10 * second + 1e-6)
    return f"{tenths // 36000:02}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


class Stopping:
    """SIGINT, SIGTERM and a terminal that goes away end the stream after the chunk that is being watched; a second one ends it
    at once."""

    def __init__(self, screen: Screen) -> None:
        self.screen, self.asked = screen, False
        self.wake: Callable[[], None] = lambda: None
        self.heard = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it
            self.heard.append(signal.SIGHUP)

    def __enter__(self) -> "Stopping":
        self.before = {number: signal.signal(number, self._heard) for number in self.heard}
        return self

    def _heard(self, number: int, _: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.screen.interrupt(f"{signal.Signals(number).name}: stopping after this chunk")
        self.wake()

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Questions:
    """What viewers ask: lines typed on stdin, at once; those of --ask in the chunk that holds their second; one a chunk."""

    def __init__(self, asked: list[str], typed: bool, entered: Callable[[], None] = lambda: None) -> None:
        """Args:
        typed: listen to stdin.
        entered: called when a line has come.
        """
        self.timed: list[tuple[float, str]] = []
        for one in asked:
            second, _, question = one.partition(":")
            try:
                at = float(second)
            except ValueError:
                at = math.nan
            self.timed.append((at, one_line(question).strip()))
            if math.isnan(at):
                raise InputError("--ask", repr(one), "SECOND:QUESTION", 'write "75:who scored?"')
        self.timed.sort()
        self.asked: list[tuple[float, str]] = []  # of those
        self.lines: deque[str] = deque()
        self.entered = entered
        if typed:
            Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(AttributeError, ValueError, OSError):  # bytes that are no letters are no reason to stop listening
            sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        for line in sys.stdin:
            self.entered()
            if line.strip():
                self.lines.append(one_line(line.strip()))

    def before(self, end: float) -> str:
        """The question of the chunk that ends there, or "" (chunks that were dropped leave theirs to the next)."""
        if self.timed and self.timed[0][0] < end:
            self.asked.append(self.timed.pop(0))
            return self.asked[-1][1]
        return self.lines.popleft() if self.lines else ""

    def state(self) -> dict[str, Any]:
        """JSON for `resume`: what has been asked, and what was typed and waits."""
        return {"asked": list(self.asked), "typed": list(self.lines.copy())}

    def resume(self, told: dict[str, Any]) -> None:
        """Go on where a stream with the same --ask stood: nothing is asked twice, nothing that waited is forgotten."""
        for second, question in told.get("asked", []):
            if (second, question) in self.timed:
                self.timed.remove((second, question))
            self.asked.append((second, question))
        self.lines.extendleft(reversed(told.get("typed", [])))


def someone_types() -> bool:
    """Whether stdin is a terminal that is ours to read, or a pipe."""
    try:
        if sys.stdin.isatty():
            return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
        return stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # closed, or none
        return False
