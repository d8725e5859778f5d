"""Work on the device that belongs to no stream (a chat completion), done in slices between the ticks of the streams.

Owns the queue and whose slice is next. Does not know what the work is. Units: seconds.
"""

import threading
import traceback
from collections import deque
from typing import Protocol

from svlm_jax.errors import InputError


class OneShotWork(Protocol):
    """A request that the engine's thread works on, one slice at a time. No two slices run at once."""

    def run_slice(self) -> bool:
        """Do the next piece, and wait until the device has done it: what is left behind in its queue delays every stream.
        A slice is what a stream may have to wait for, so it should take tens of milliseconds, and never compile.

        Returns:
            Whether work is left that can go on at once. Work that waits for something (a compilation in another thread)
            returns False, and is submitted again when that is there.

        Raises:
            Exception: given to `fail`; the work gets no further slice, and nothing else notices.
        """
        ...

    def fail(self, error: Exception) -> None:
        """The work gets no further slice: a slice raised this, or the engine has stopped. From any thread; must not block."""
        ...


class OneShotQueue:
    """Work that waits for slices, in turns: a short request is not kept waiting by a long one. `submit` may be called from any
    thread, `run_slice` belongs to the engine's."""

    def __init__(self, changed: threading.Condition) -> None:
        """Args:
        changed: notified when work comes; also the lock of the queue. Reentrant.
        """
        self.changed = changed
        self.waiting: deque[OneShotWork] = deque()
        self.is_closed = False

    def __len__(self) -> int:
        return len(self.waiting)

    def submit(self, work: OneShotWork) -> None:
        """Queue work for its next slice.

        Raises:
            InputError: the engine has stopped.
        """
        with self.changed:
            if self.is_closed:
                raise InputError("request", "one after the engine has stopped", "a running engine", "restart the server")
            self.waiting.append(work)
            self.changed.notify_all()

    def run_slice(self) -> bool:
        """One slice of the work whose turn it is, if any waits; whether it did. Whatever it raises is its own matter."""
        with self.changed:
            if not self.waiting:
                return False
            work = self.waiting.popleft()
        try:
            has_more = work.run_slice()
        except Exception as error:  # given to whoever waits for the work; the streams go on
            _fail(work, error)
            return True
        if has_more:
            with self.changed:
                self.waiting.append(work)
        return True

    def close(self, error: Exception) -> None:
        """Fail what waits, and take nothing more."""
        with self.changed:
            self.is_closed = True
            waiting, self.waiting = list(self.waiting), deque()
        for work in waiting:
            _fail(work, error)


def _fail(work: OneShotWork, error: Exception) -> None:
    try:
        work.fail(error)
    except Exception as broken:  # a client's request must not end the streams
        traceback.print_exception(broken)
