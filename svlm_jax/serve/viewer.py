"""One socket: what waits to be sent to it, how fast it may talk, and how it is let go.

Owns the queue. A viewer who is slow loses pictures first (only the newest waits), then the socket; nobody else notices. Knows
no stream. Everything here runs in the event loop. Units: seconds, bytes.
"""

import asyncio
import json
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from svlm_jax.errors import InputError
from svlm_jax.serve.allowance import Allowance
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.messages import parse
from svlm_jax.serve.metrics import Metrics

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

POLICY, GOING_AWAY, BROKEN, SLOW = 1008, 1001, 1011, 4008  # close codes
DEAR = ("start", "join", "stop")  # messages that cost more than others
FAREWELL = 2.0  # seconds that a socket has to take its close

Heard = Callable[["Viewer", dict[str, Any] | bytes], Awaitable[None]]


class Viewer:
    """Call `serve` once; it returns when the socket is closed. `channel` and `owner` are the hub's to set."""

    def __init__(self, socket: "WebSocket", limits: Limits, metrics: Metrics, abort: Callable[[], None]) -> None:
        """abort: drops the connection with all that waits in it, for one who takes nothing."""
        self.socket, self.limits, self.metrics, self.abort = socket, limits, metrics, abort
        self.channel: Any = None
        self.owner = False
        self.lines: deque[str] = deque()
        self.picture: bytes | None = None
        self.news, self.leaving = asyncio.Event(), asyncio.Event()
        self.closing: tuple[int, str] | None = None
        self.mistakes = 0
        self.messages = Allowance(limits.messages_a_second, limits.burst)
        self.joins = Allowance(limits.joins_a_second, 3)

    def tell(self, line: str) -> None:
        """Queue a JSON message; a viewer who is too far behind is let go instead."""
        if len(self.lines) >= self.limits.lines_waiting:
            self.part(SLOW, "too slow: captions were waiting")
            return
        self.lines.append(line)
        self.news.set()

    def show(self, picture: bytes) -> None:
        """Queue a picture in place of one that still waits."""
        if self.picture is not None:
            self.metrics.count("svlm_dropped_pictures_total")
        self.picture = picture
        self.news.set()

    def part(self, code: int, reason: str) -> None:
        """Close the socket; the first reason counts."""
        if self.closing is None:
            self.closing = (code, reason)
            if code != GOING_AWAY:
                self.metrics.count("svlm_refused_total", label={SLOW: "slow", POLICY: "garbage"}.get(code, "mistake"))
            self.leaving.set()

    async def serve(self, heard: Heard) -> None:
        tasks = [asyncio.create_task(one) for one in (self._send(), self._receive(heard), self.leaving.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ends:
            if isinstance(error, Exception):  # a mistake of ours: one viewer's, not the server's
                traceback.print_exception(error)
                self.part(BROKEN, "the server made a mistake")
        if self.closing is None:
            return
        try:
            async with asyncio.timeout(FAREWELL):
                for line in self.lines if self.closing[0] != SLOW else ():
                    await self.socket.send_text(line)
                await self.socket.close(*self.closing)
        except TimeoutError:
            self.abort()
        except (RuntimeError, OSError):  # closed already
            pass

    async def _send(self) -> None:
        from starlette.websockets import WebSocketDisconnect

        with suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self.news.wait()
                self.news.clear()
                try:
                    while self.lines or self.picture is not None:
                        async with asyncio.timeout(self.limits.slow):
                            await self._send_next()
                except TimeoutError:
                    self.part(SLOW, f"too slow: nothing taken for {self.limits.slow:g} s")
                    return

    async def _send_next(self) -> None:
        if self.lines:
            line = self.lines.popleft()
            await self.socket.send_text(line)
            self.metrics.count("svlm_sent_bytes_total", len(line), "text")
        elif self.picture is not None:
            picture, self.picture = self.picture, None
            await self.socket.send_bytes(picture)
            self.metrics.count("svlm_sent_bytes_total", len(picture), "picture")

    def refuse(self, error: InputError, *, mistake: bool = True) -> None:
        """Tell why something cannot be done. mistake: it never can; who makes too many in a row is let go."""
        self.metrics.count("svlm_refused_total", label="message")
        self.tell(json.dumps({"type": "error", "error": str(error)}))
        self.mistakes += mistake
        if self.mistakes >= self.limits.mistakes:
            self.part(POLICY, "too many messages that were refused")

    async def _receive(self, heard: Heard) -> None:
        message = await self._first()
        while message is not None and message["type"] != "websocket.disconnect" and self.closing is None:
            await asyncio.sleep(self.messages.debt())  # it talks faster than it may: meanwhile nothing is read from it
            text, data = message.get("text"), message.get("bytes")
            wrong = True  # pictures and what cannot be read; not what cannot be done just now
            try:
                said = bytes(data or b"") if text is None else parse(text, self.limits)
                wrong = text is None
                if isinstance(said, dict) and said["type"] in DEAR:
                    await asyncio.sleep(self.joins.debt())
                await heard(self, said)
                self.mistakes = self.mistakes if text is None else 0  # of a picture it shows when it is decoded
            except InputError as error:
                self.refuse(error, mistake=wrong)
            message = await self.socket.receive() if self.closing is None else None

    async def _first(self) -> Any:
        """The first message; None, and the socket is closed, when none comes in time."""
        try:
            async with asyncio.timeout(self.limits.first_message):
                return await self.socket.receive()
        except TimeoutError:
            self.part(POLICY, f"nothing was said for {self.limits.first_message:g} s")
            return None
