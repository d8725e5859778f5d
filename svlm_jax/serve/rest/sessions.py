"""Streams of clients without sockets: what was said since they last asked, and who waits for what.

Owns one `RestSession` a stream that is used over HTTP, from the first request to the end of the stream. Its owner counts as
present, as the owner of a socket does, for a while after each request. Runs in the event loop only. Knows no HTTP. Units:
seconds.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.serve.broadcast import Broadcast
from svlm_jax.serve.engine.reports import ChunkReport, Published, TimelineEvent, Unanswered
from svlm_jax.serve.hub import Hub
from svlm_jax.serve.notifications.notifier import words
from svlm_jax.serve.rate_limit import RateLimit
from svlm_jax.stream.events import Dropped, Ended


class Presence:
    """A watcher who sees nothing: it only counts as one, and as the owner if it joined with the key."""

    def __init__(self) -> None:
        self.broadcast: Broadcast | None = None
        self.is_owner = False
        self.subscriptions: frozenset[str] = frozenset()
        self.reads_words = False  # so that replies are decoded in one call, which is faster

    def send(self, message: str) -> None:
        pass

    def send_frame(self, frame: bytes) -> None:
        pass


class RestSession:
    """One stream over HTTP.

    replies: to chunks, since they were last taken, oldest first; `num_missed` more had no room. reported_until: second up to
    which every chunk is watched or dropped. answers: by the id of the request, those that somebody waits for.
    """

    def __init__(self, broadcast: Broadcast, hub: Hub) -> None:
        limits = hub.limits
        self.broadcast, self.hub = broadcast, hub
        self.presence = Presence()
        self.leaving: asyncio.TimerHandle | None = None
        self.replies: deque[dict[str, Any]] = deque()
        self.num_missed, self.num_waiting = 0, 0
        self.reported_until, self.has_ended = 0.0, bool(broadcast.end_reason)
        self.answers: dict[str, dict[str, Any] | None] = {}
        self.changed = asyncio.Event()
        self.frame_limit = RateLimit(limits.messages_per_second, limits.message_burst)
        self.ask_limit = RateLimit(limits.joins_per_second, limits.message_burst)

    def touch(self, key: str = "") -> None:
        """A request came. key: of the owner, who then counts as present for a while."""
        broadcast, hub = self.broadcast, self.hub
        broadcast.unwatched_since = time.monotonic()
        if not key or self.has_ended:
            return
        if self.presence.broadcast is None:
            hub.join(self.presence, broadcast.name, key)
        if self.leaving is not None:
            self.leaving.cancel()
        self.leaving = asyncio.get_running_loop().call_later(hub.limits.unwatched_timeout, self.leave)

    def leave(self) -> None:
        """The owner does not count as present any more."""
        if self.leaving is not None:
            self.leaving.cancel()
            self.leaving = None
        if self.presence.broadcast is not None:
            self.hub.leave(self.presence)

    def on_report(self, report: Published) -> None:
        """Take what the engine has published about the stream."""
        match report:
            case ChunkReport():
                reply = {"number": report.number, "start": report.start, "end": report.end, **words(report)}
                reply["latency_seconds"] = round(report.latency_seconds, 3)
                self._add(reply, report.end)
                if report.request_id in self.answers:
                    self.answers[report.request_id] = {"status": "completed", **reply}
            case TimelineEvent(event=Dropped() as dropped):
                span = {"number": report.number, "start": float(dropped.start), "end": float(dropped.end)}
                self._add({**span, "kind": "dropped", "chunks": dropped.chunks}, float(dropped.end))
            case Unanswered() if report.request_id in self.answers:
                error = str(report.error) if report.error is not None else None
                self.answers[report.request_id] = {"status": report.reason, "question": report.question, "error": error}
            case Ended():
                self.has_ended = True
                self.leave()
            case _:
                return
        self.changed.set()

    def _add(self, reply: dict[str, Any], end: float) -> None:
        self.replies.append(reply)
        self.reported_until = max(self.reported_until, end)
        if len(self.replies) > self.hub.limits.max_kept_replies:
            self.replies.popleft()
            self.num_missed += 1

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Wait for something that a report changes, or for the end of the stream."""
        while not condition() and not self.has_ended:
            self.changed.clear()  # all who wait are woken by the next report, whoever clears
            await self.changed.wait()

    def take_replies(self) -> tuple[list[dict[str, Any]], int]:
        """Replies that nobody has had yet, and how many before them are missing."""
        replies, missed = list(self.replies), self.num_missed
        self.replies.clear()
        self.num_missed = 0
        return replies, missed

    def ask(self, question: str, *, max_new_tokens: int | None, keeps_answer: bool) -> tuple[str, int]:
        """Queue a question. Its id, and how many wait before it. keeps_answer: the caller waits for it.

        Raises:
            InputError: as `Hub.ask`.
        """
        request_id = f"req_{secrets.token_hex(8)}"
        if keeps_answer:
            self.answers[request_id] = None
        try:
            before = self.hub.ask(self.broadcast, question, request_id=request_id, max_new_tokens=max_new_tokens)
        except InputError:
            self.answers.pop(request_id, None)
            raise
        return request_id, before


class RestSessions:
    """All of them. `on_report` is one of the hub's listeners."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.sessions: dict[str, RestSession] = {}

    def on_report(self, report: Published) -> None:
        if (session := self.sessions.get(report.stream)) is not None:
            session.on_report(report)
        for name in [name for name in self.sessions if name not in self.hub.broadcasts]:
            del self.sessions[name]

    def of(self, broadcast: Broadcast) -> RestSession:
        """The session of a stream, made if it has none: streams that were started over a socket can be used over HTTP too."""
        session = self.sessions.get(broadcast.name)
        if session is None:
            session = self.sessions[broadcast.name] = RestSession(broadcast, self.hub)
        return session
