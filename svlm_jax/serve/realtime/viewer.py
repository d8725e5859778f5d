"""One socket: what waits to be sent to it, how fast its messages are read, and when it is disconnected.

Owns the send queue. A viewer who is slow loses frames first (only the newest waits), then the socket; nobody else notices.
Knows no stream. Runs in the event loop only. Units: seconds, bytes.
"""

import asyncio
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from svlm_jax.errors import InputError
from svlm_jax.serve.json_fields import code_of
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.rate_limit import RateLimit
from svlm_jax.serve.realtime.client_events import ClientEvent, StreamJoin, StreamStart, StreamStop, parse
from svlm_jax.serve.realtime.server_events import error_event

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from svlm_jax.serve.broadcast import Broadcast

POLICY, GOING_AWAY, INTERNAL_ERROR, SLOW_CLIENT = 1008, 1001, 1011, 4008  # WebSocket close codes
COSTLY_EVENTS = (StreamStart, StreamJoin, StreamStop)  # they make work for others
TIMELY_CODES = ("refused", "response_cancel_not_active")  # of events that may be right at another time
CLOSE_TIMEOUT = 2.0  # for a socket to accept the last messages and the close frame

MAX_WRITE = 16_384  # characters of messages that are sent in one write, unless a single one is larger

Handler = Callable[[ClientEvent | bytes], Awaitable[None]]
SendTexts = Callable[[Sequence[str]], Awaitable[None]]


class Viewer:
    """Call `serve` once; it returns when the socket is closed. The hub sets `broadcast` and `is_owner`."""

    def __init__(
        self, socket: "WebSocket", limits: Limits, metrics: Metrics, abort: Callable[[], None], send_texts: SendTexts
    ) -> None:
        """Args:
        abort: closes the connection at once, for a client that reads nothing.
        send_texts: sends several messages at once.
        """
        self.socket, self.limits, self.metrics, self.abort, self.send_texts = socket, limits, metrics, abort, send_texts
        self.broadcast: Broadcast | None = None
        self.is_owner = False
        self.subscriptions: frozenset[str] = frozenset()
        self.reads_words = True
        self.queue: deque[str] = deque()
        self.frame: bytes | None = None
        self.has_data, self.is_leaving = asyncio.Event(), asyncio.Event()
        self.close_reason: tuple[int, str] | None = None
        self.invalid_messages = 0  # in a row
        self.message_limit = RateLimit(limits.messages_per_second, limits.message_burst)
        self.byte_limit = RateLimit(limits.bytes_per_second, 2 * limits.max_message_bytes)
        self.join_limit = RateLimit(limits.joins_per_second, 3)

    def send(self, message: str) -> None:
        """Queue a JSON message. A viewer whose queue is full is disconnected: messages are never skipped."""
        if len(self.queue) >= self.limits.max_queued_messages:
            self.disconnect(SLOW_CLIENT, "too slow: the message queue is full")
            return
        self.queue.append(message)
        self.has_data.set()

    def send_frame(self, frame: bytes) -> None:
        """Queue a frame of the video; it replaces one that still waits."""
        if self.frame is not None:
            self.metrics.count("svlm_dropped_frames_total")
        self.frame = frame
        self.has_data.set()

    def disconnect(self, code: int, reason: str) -> None:
        """Close the socket; the first reason counts."""
        if self.close_reason is None:
            self.close_reason = (code, reason)
            if code != GOING_AWAY:
                label = {SLOW_CLIENT: "slow_client", POLICY: "policy"}.get(code, "internal_error")
                self.metrics.count("svlm_refused_total", label=label)
            self.is_leaving.set()

    async def serve(self, handler: Handler) -> None:
        """Send and receive until the client or `disconnect` ends it. handler: called with each valid event and with each
        binary message; it sets `invalid_messages` to 0 where one was right."""
        # Three tasks, because `send` of a client that reads nothing blocks for up to `send_timeout`: meanwhile its messages are
        # still read, and a disconnect takes effect at once.
        coroutines = (self._send_loop(), self._receive_loop(handler), self.is_leaving.wait())
        tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for error in results:
            if isinstance(error, Exception):  # a bug of the server ends one socket, not the server
                traceback.print_exception(error)
                self.disconnect(INTERNAL_ERROR, "internal error of the server")
        if self.close_reason is not None:
            await self._close(*self.close_reason)

    async def _close(self, code: int, reason: str) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                for message in self.queue if code != SLOW_CLIENT else ():
                    await self.socket.send_text(message)
                await self.socket.close(code, reason)
        except TimeoutError:
            self.abort()
        except (RuntimeError, OSError):  # closed already
            pass

    async def _send_loop(self) -> None:
        from starlette.websockets import WebSocketDisconnect

        with suppress(WebSocketDisconnect, RuntimeError, OSError):
            while True:
                await self.has_data.wait()
                self.has_data.clear()
                try:
                    while self.queue or self.frame is not None:
                        async with asyncio.timeout(self.limits.send_timeout):
                            await self._send_next()
                except TimeoutError:
                    self.disconnect(SLOW_CLIENT, f"too slow: nothing read for {self.limits.send_timeout:g} s")
                    return

    async def _send_next(self) -> None:
        if self.queue:
            texts = [self.queue.popleft()]
            size = len(texts[0])
            while self.queue and (size := size + len(self.queue[0])) <= MAX_WRITE:
                texts.append(self.queue.popleft())
            await self.send_texts(texts)
            self.metrics.count("svlm_sent_bytes_total", sum(map(len, texts)), "text")
        elif self.frame is not None:
            frame, self.frame = self.frame, None  # before the await: a newer frame may come meanwhile
            await self.socket.send_bytes(frame)
            self.metrics.count("svlm_sent_bytes_total", len(frame), "frame")

    def refuse(self, error: InputError, *, event_id: str = "") -> None:
        """Tell the client why an event is refused. Too many in a row that could never be right end the socket."""
        self.metrics.count("svlm_refused_total", label="message")
        self.send(error_event(error, event_id=event_id or getattr(error, "event_id", "")))
        self.invalid_messages += code_of(error) not in TIMELY_CODES
        if self.invalid_messages >= self.limits.max_invalid_messages:
            self.disconnect(POLICY, "too many invalid messages")

    async def _receive_loop(self, handler: Handler) -> None:
        message = await self._first_message()
        while message is not None and message["type"] != "websocket.disconnect" and self.close_reason is None:
            text, event_id = message.get("text"), ""
            await self._keep_pace(len(text if text is not None else message.get("bytes") or b""))
            try:
                event = bytes(message.get("bytes") or b"") if text is None else parse(text, self.limits)
                if isinstance(event, ClientEvent):
                    event_id = event.event_id
                if isinstance(event, COSTLY_EVENTS):
                    await asyncio.sleep(self.join_limit.reserve())
                await handler(event)
            except InputError as error:
                self.refuse(error, event_id=event_id)
            message = await self.socket.receive() if self.close_reason is None else None

    async def _keep_pace(self, size: int) -> None:
        """Wait if the client sends too fast: meanwhile nothing is read from its socket."""
        await asyncio.sleep(max(self.message_limit.reserve(), self.byte_limit.reserve(size)))

    async def _first_message(self) -> Any:
        """The first message of the socket; None, and the socket is closed, when none comes in time and it watches nothing."""
        receiving = asyncio.ensure_future(self.socket.receive())
        try:
            await asyncio.wait({receiving}, timeout=self.limits.first_message_timeout)
            if not receiving.done() and self.broadcast is None:
                self.disconnect(POLICY, f"no message for {self.limits.first_message_timeout:g} s")
                return None
            return await receiving
        finally:
            receiving.cancel()
