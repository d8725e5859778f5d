"""Streams over plain HTTP, for clients without sockets: /v1/streaming/sessions, and events of all streams: /v1/events.

    POST   /v1/streaming/sessions              {"source": {"type": "push"}, "svlm": {...}}: a stream, with its owner's key
    POST   /v1/streaming/sessions/ID/frame     an image; answered once the chunk that it completes is watched
    POST   /v1/streaming/sessions/ID/ask       {"question": ...}
    GET    /v1/streaming/sessions[/ID]         what runs
    PATCH  /v1/streaming/sessions/ID           {"svlm": {...}}: other settings from the next chunk on
    GET    /v1/streaming/sessions/ID/events    captions and alerts as server-sent events
    DELETE /v1/streaming/sessions/ID

Owns these routes and their JSON. The settings are those of `settings_json`, the streams those of the hub: all of them can be
watched over sockets and on the page too. Starlette is imported inside functions. Units: seconds.
"""

import asyncio
import math
import secrets
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from svlm_jax.errors import InputError
from svlm_jax.serve.broadcast import Broadcast
from svlm_jax.serve.http.access import Access
from svlm_jax.serve.http.connections import address_group
from svlm_jax.serve.http.routes import REFUSED, HttpError, HttpRoute, read_body, read_json, renew_deadline, respond_json
from svlm_jax.serve.http.server_sent_events import KEEP_ALIVE_SECONDS, event_response, event_text
from svlm_jax.serve.hub import Hub, is_key_of
from svlm_jax.serve.json_fields import MAX_EVENT_ID, Fields, code_of
from svlm_jax.serve.notifications.notifier import KINDS
from svlm_jax.serve.rate_limit import RateLimit
from svlm_jax.serve.realtime.client_events import read_source
from svlm_jax.serve.rest.sessions import RestSession, RestSessions
from svlm_jax.serve.settings_json import read_settings, settings_json

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

SESSIONS = "/v1/streaming/sessions"
KEY_HEADER = "x-session-key"
MAX_JSON_BYTES = 64 * 1024
SLACK = 1e-6  # seconds: between the end of a chunk as it was announced and as it is told
LOOK_SECONDS = 1.0  # between two looks whether a client that waits is still there
RETRY_SECONDS = 5.0
Result = TypeVar("Result")


class Rest:
    """The routes of one server."""

    def __init__(self, hub: Hub, access: Access) -> None:
        self.hub, self.access, self.log, self.limits = hub, access, hub.log, hub.limits
        self.sessions = RestSessions(hub)
        hub.listeners.append(self.sessions.on_report)
        self.start_limits: dict[str, RateLimit] = {}  # by client address

    def routes(self) -> list[HttpRoute]:
        session_path = SESSIONS + "/{name:str}"
        return [
            HttpRoute(SESSIONS, self.create, methods=("POST",), starts_work=True),
            HttpRoute(SESSIONS, self.list),
            HttpRoute(session_path, self.get),
            HttpRoute(session_path, self.change, methods=("PATCH",)),
            HttpRoute(session_path, self.delete, methods=("DELETE",)),
            HttpRoute(session_path + "/frame", self.frame, methods=("POST",)),
            HttpRoute(session_path + "/ask", self.ask, methods=("POST",)),
            HttpRoute(session_path + "/events", self.session_events),
            HttpRoute("/v1/events", self.all_events),
        ]

    # streams

    async def create(self, request: "Request") -> "Response":
        """Start a stream: of the client's own images, or of a source as `svlm.stream.start` of /v1/realtime names it."""
        fields = Fields(await read_json(request, MAX_JSON_BYTES))
        source = read_source(fields.object("source") or Fields({"type": "push"}, "source"), self.limits)
        chosen = fields.object("svlm") or Fields({}, "svlm")
        fields.close("model")
        settings = read_settings(chosen.value, self.hub.defaults, self.limits)
        if chosen.value.get("seed") is None:
            settings = replace(settings, seed=secrets.randbits(32))
        self._check_start(request)
        broadcast = await self.hub.start(source, settings)
        session = self.sessions.of(broadcast)
        session.touch(broadcast.owner_key)
        location = {"Location": f"{SESSIONS}/{broadcast.name}"}
        return respond_json({**_session_json(broadcast), "key": broadcast.owner_key}, 201, location)

    def _check_start(self, request: "Request") -> None:
        address = _address(request)
        for other in [other for other, limit in self.start_limits.items() if limit.is_full]:
            del self.start_limits[other]
        limit = self.start_limits.setdefault(address, RateLimit(self.limits.joins_per_second, 3))
        if not limit.allow():
            raise HttpError(429, "start: too many of your address; one a second", code="rate_limit", retry_after=1)
        if self.hub.engine.num_free <= self.hub.num_opening:
            line = str(self.hub.engine.no_free_stream())
            raise HttpError(503, line, code="no_free_stream", retry_after=RETRY_SECONDS)

    async def list(self, request: "Request") -> "Response":
        running = [_session_json(broadcast) for broadcast in self.hub.broadcasts.values() if broadcast.is_running]
        return respond_json({"object": "list", "data": running})

    async def get(self, request: "Request") -> "Response":
        session = self._session(request)
        session.touch(self._key(request, session))
        return respond_json(_session_json(session.broadcast))

    async def change(self, request: "Request") -> "Response":
        """Change the settings of a stream while it plays: of those that are named."""
        session = self._owned(request)
        fields = Fields(await read_json(request, MAX_JSON_BYTES))
        chosen = fields.object("svlm") or Fields({}, "svlm")
        fields.close()
        settings = read_settings(chosen.value, session.broadcast.settings, self.limits, own=self.hub.defaults)
        await self.hub.change(session.broadcast, settings)
        return respond_json(_session_json(session.broadcast))

    async def delete(self, request: "Request") -> "Response":
        """End a stream: its owner may, and anybody once the owner has left."""
        session = self._session(request)
        try:
            self.hub.stop(session.broadcast, request.headers.get(KEY_HEADER, ""))
        except InputError as error:
            raise HttpError(403, str(error), code="not_owner") from None
        return respond_json({"id": session.broadcast.name, "object": "streaming.session.deleted", "deleted": True})

    async def frame(self, request: "Request") -> "Response":
        """Add an image. With `?timestamp=` its time in seconds, by which the stream is then watched at the client's own pace;
        with `?final=true` none follows, and the answer comes when all is watched."""
        session = self._owned(request)
        if session.num_waiting >= self.limits.max_waiting_frames:
            line = f"frame: {self.limits.max_waiting_frames} of the session wait; send the next one after an answer"
            raise HttpError(429, line, code="rate_limit", retry_after=1)
        session.num_waiting += 1
        try:
            await asyncio.sleep(session.frame_limit.reserve())
            second = await self._push(request, session)
        finally:
            session.num_waiting -= 1
            session.touch(session.broadcast.owner_key)
        replies, missed = session.take_replies()
        text = " ".join(reply["text"] for reply in replies if reply.get("text"))
        result = {"object": "streaming.frame", "session": session.broadcast.name, "second": second, "text": text}
        return respond_json({**result, "replies": replies, "missed": missed, "ended": session.has_ended})

    async def _push(self, request: "Request", session: RestSession) -> float | None:
        """Add the image of a request, and wait until the chunks that it completes are watched. Its second of the stream; None:
        a newer one came before it was decoded."""
        is_final = request.query_params.get("final", "false")
        if is_final not in ("true", "false"):
            raise HttpError(400, "final: expected true or false", param="final", code="invalid_value")
        stamp = _timestamp(request)
        data = await read_body(request, self.limits.max_image_bytes)
        try:
            pushed = await _while_connected(request, self.hub.push_image(session.broadcast, data, stamp))
        except InputError as error:
            code = {"image": "invalid_image", "timestamp": "invalid_value"}.get(error.field, code_of(error))
            raise HttpError(400, str(error), param=error.field, code=code) from None
        if is_final == "true":
            self.hub.finish(session.broadcast)
            await _while_connected(request, session.wait(lambda: session.has_ended))
        elif (end := pushed.complete_until - SLACK) > session.reported_until:
            await _while_connected(request, session.wait(lambda: session.reported_until >= end))
        return pushed.second

    async def ask(self, request: "Request") -> "Response":
        """Ask a question: it is part of the next chunk without one. With `"wait": true` the answer is in the response."""
        session = self._session(request)
        session.touch(self._key(request, session))
        fields = Fields(await read_json(request, MAX_JSON_BYTES))
        fields.require("question")
        question = fields.text("question", max_chars=self.limits.max_question_chars).strip()
        longest, waits = fields.integer("max_new_tokens", 1), fields.flag("wait")
        fields.close()
        if not question:
            raise HttpError(400, "question: got nothing, expected a question; write one", param="question")
        _check_running(session)
        if not session.ask_limit.allow():
            raise HttpError(429, "ask: too many questions; one a second", code="rate_limit", retry_after=1)
        request_id, before = session.ask(question, max_new_tokens=longest, keeps_answer=waits)
        result = {"object": "streaming.question", "id": request_id, "session": session.broadcast.name, "question": question}
        if not waits:
            return respond_json({**result, "num_before": before}, 202)
        try:
            await _while_connected(request, session.wait(lambda: session.answers[request_id] is not None))
        finally:
            answer = session.answers.pop(request_id, None)
        return respond_json({**result, **(answer or {"status": "ended"})})

    # events

    async def session_events(self, request: "Request") -> "Response":
        """Captions, alerts and changes of a stream, from its start on, or after the event that the client names."""
        session = self._session(request)
        session.touch(self._key(request, session))
        position = self._position(request, session.broadcast.first_event)
        return self._events(request, position, stream=session.broadcast.name)

    async def all_events(self, request: "Request") -> "Response":
        """Those of all streams, from now on, or after the event that the client names; `?types=` chooses some."""
        kinds = [kind for kind in request.query_params.get("types", "").split(",") if kind]
        for kind in kinds:
            if kind not in KINDS:
                raise HttpError(400, f"types: expected some of {', '.join(KINDS)}", param="types", code="invalid_value")
        return self._events(request, self._position(request, self.log.next_number), kinds=kinds)

    def _position(self, request: "Request", default: int) -> int:
        event_id = request.headers.get("last-event-id") or request.query_params.get("last_event_id", "")
        if not event_id:
            return default
        position = self.log.position_after(event_id[:MAX_EVENT_ID])
        return 0 if position is None else position  # of before a restart: all that there is has not been seen

    def _events(self, request: "Request", position: int, *, stream: str = "", kinds: "list[str] | None" = None) -> "Response":
        address = request.client.host if request.client else ""
        limit = self.limits.max_viewers_per_address
        if self.access.sockets.total() >= self.limits.max_viewers:
            self.hub.metrics.count(REFUSED, label="max_viewers")
            raise HttpError(503, f"{self.limits.max_viewers} clients listen already", retry_after=RETRY_SECONDS)
        if not self.access.add_socket(address, limit):
            self.hub.metrics.count(REFUSED, label="max_viewers_per_address")
            raise HttpError(429, f"{limit} sockets and listeners of your address are open; close one", code="rate_limit")

        async def texts() -> AsyncGenerator[str, None]:
            async for event in self.log.follow(position):
                if isinstance(event, int):
                    yield event_text(f'{{"type": "svlm.missed", "count": {event}}}', event="svlm.missed")
                elif (not stream or event.stream == stream) and (not kinds or event.kind in kinds):
                    yield event_text(event.data, event=event.kind, event_id=self.log.event_id(event.number))
                    if stream and event.kind == "svlm.stream.ended":
                        return

        # a comment before the deadline of the response, which starts anew with it
        keep_alive = min(KEEP_ALIVE_SECONDS, self.limits.response_timeout / 4)
        return event_response(request, texts(), keep_alive=keep_alive, on_close=lambda: self.access.remove_socket(address))

    # requests

    def _session(self, request: "Request") -> RestSession:
        """The session that a path names."""
        broadcast = self.hub.broadcasts.get(request.path_params["name"])
        if broadcast is None or not broadcast.title:
            raise HttpError(404, "session: none of that name; it may have ended", code="not_found")
        return self.sessions.of(broadcast)

    def _owned(self, request: "Request") -> RestSession:
        """The same, for what only the owner may do, and only while the stream runs."""
        session = self._session(request)
        if not (key := self._key(request, session)):
            raise HttpError(403, f"session: expected its key in the header {KEY_HEADER}", code="not_owner")
        _check_running(session)
        session.touch(key)
        return session

    def _key(self, request: "Request", session: RestSession) -> str:
        """The owner's key, if a request has it; "" otherwise."""
        key = request.headers.get(KEY_HEADER, "")
        return key if key and is_key_of(session.broadcast, key) else ""


def _check_running(session: RestSession) -> None:
    if session.broadcast.end_reason:
        raise HttpError(410, f"session: it has ended: {session.broadcast.end_reason}", code="stream_ended")


def _session_json(broadcast: Broadcast) -> dict[str, Any]:
    summary = broadcast.summary()
    own = {"id": summary.pop("stream"), "object": "streaming.session", "status": "running" if broadcast.is_running else "ended"}
    return {**own, **summary, "svlm": settings_json(broadcast.settings)}


def _timestamp(request: "Request") -> float | None:
    text = request.query_params.get("timestamp")
    if text is None:
        return None
    try:
        second = float(text)
    except ValueError:
        second = math.nan
    if not math.isfinite(second):
        raise HttpError(400, "timestamp: expected a number of seconds", param="timestamp", code="invalid_value")
    return second


def _address(request: "Request") -> str:
    return address_group(request.client.host if request.client else "")


async def _while_connected(request: "Request", awaitable: Awaitable[Result]) -> Result:
    """Wait as long as it takes while the client is there; its response keeps its deadline meanwhile.

    Raises:
        HttpError: the client has gone; nobody will read it.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        while not (await asyncio.wait({task}, timeout=LOOK_SECONDS))[0]:
            if await request.is_disconnected():
                raise HttpError(400, "the client has closed the connection")
            renew_deadline(request)
        return task.result()
    finally:
        task.cancel()
