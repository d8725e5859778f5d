"""The newest events of all streams, for whoever follows them from outside: server-sent events and webhooks.

Owns a ring of events that are JSON already, numbered without gaps. A follower has a position in the ring and nothing else: one
who is slow costs no memory, holds nobody up, and learns how many events it has missed. Events are added and followed from any
thread. Knows no stream, no socket. Units: seconds.
"""

import asyncio
import contextlib
import secrets
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import NamedTuple

BATCH = 256  # events that a follower takes at a time


class LoggedEvent(NamedTuple):
    """kind: the `type` in the JSON. stream: its name; "" for the server itself. data: JSON, one line."""

    number: int
    kind: str
    stream: str
    data: str


class EventLog:
    """The ring. `close` ends all who follow it."""

    def __init__(self, max_events: int = 10_000) -> None:
        """max_events: about 300 bytes each; 10,000 are 40 minutes of four streams that never fall silent."""
        # an id of before a restart must not be taken for one of this log
        self.run_id = secrets.token_hex(4)
        self.ring: list[LoggedEvent | None] = [None] * max_events
        self.next_number = 0
        self.is_closed = False
        self.changed = threading.Condition()
        self._wakers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def add(self, kind: str, stream: str, data: str) -> None:
        """One more event."""
        with self.changed:
            self.ring[self.next_number % len(self.ring)] = LoggedEvent(self.next_number, kind, stream, data)
            self.next_number += 1
            self._wake()

    def close(self) -> None:
        """No more events; those who follow get the ones that they have not had yet."""
        with self.changed:
            self.is_closed = True
            self._wake()

    def _wake(self) -> None:
        self.changed.notify_all()
        for waker, loop in self._wakers.items():
            with contextlib.suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(waker.set)

    def event_id(self, number: int) -> str:
        """What a client names to go on after this event."""
        return f"{self.run_id}-{number}"

    def position_after(self, event_id: str) -> int | None:
        """The number that follows an id; None: the id is of no event of this log, for example one of before a restart."""
        run_id, _, number = event_id.rpartition("-")
        if run_id != self.run_id or not number.isascii() or not number.isdigit() or len(number) > 15:
            return None
        return min(int(number) + 1, self.next_number)

    def read(self, position: int) -> tuple[list[LoggedEvent], int]:
        """Events from a position on, at most `BATCH`, and how many before them are not stored any more."""
        with self.changed:
            first = max(position, self.next_number - len(self.ring), 0)
            numbers = range(first, min(self.next_number, first + BATCH))
            return [event for number in numbers if (event := self.ring[number % len(self.ring)])], first - position

    def wait(self, position: int, timeout: float | None = None) -> bool:
        """Wait, in a thread, for an event at a position; whether there is one."""
        with self.changed:
            self.changed.wait_for(lambda: self.next_number > position or self.is_closed, timeout)
            return self.next_number > position

    async def follow(self, position: int) -> AsyncGenerator[LoggedEvent | int, None]:
        """Events from a position on, for ever; a number: so many are not stored any more. In an event loop."""
        waker = asyncio.Event()
        with self._waking(waker):
            while True:
                waker.clear()
                events, missed = self.read(position)
                if missed:
                    yield missed
                for event in events:
                    yield event
                position += missed + len(events)
                if not events:
                    if self.is_closed:
                        return
                    await waker.wait()

    @contextlib.contextmanager
    def _waking(self, waker: asyncio.Event) -> Iterator[None]:
        with self.changed:
            self._wakers[waker] = asyncio.get_running_loop()
        try:
            yield
        finally:
            with self.changed:
                del self._wakers[waker]
