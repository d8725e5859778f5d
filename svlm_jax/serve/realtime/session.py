"""/v1/realtime: the text subset of OpenAI's Realtime API over a WebSocket, with video as input.

Owns one client's session: the settings that it chose, the text that waits to be asked, and which call of the hub each of its
events is. Knows no engine. docs/realtime.md is the protocol. Units: seconds.
"""

import asyncio
import itertools
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from svlm_jax.errors import InputError
from svlm_jax.serve.broadcast import Broadcast
from svlm_jax.serve.http.access import Access
from svlm_jax.serve.http.protocols import ABORT_EXTENSION, SEND_EXTENSION
from svlm_jax.serve.http.routes import Gate, Refusal, SocketRoute
from svlm_jax.serve.hub import Hub
from svlm_jax.serve.json_fields import Fields, RequestError
from svlm_jax.serve.realtime.client_events import (
    ClientEvent,
    FrameAppend,
    FrameCommit,
    ItemCreate,
    ResponseCancel,
    ResponseCreate,
    SessionUpdate,
    StreamJoin,
    StreamLeave,
    StreamStart,
    StreamStop,
    read_join,
)
from svlm_jax.serve.realtime.server_events import encode, session_object, user_item
from svlm_jax.serve.realtime.viewer import Viewer
from svlm_jax.serve.settings_json import read_settings, settings_json
from svlm_jax.serve.sources.catalog import MAX_SEED, StreamSource
from svlm_jax.stream.cache_view import KINDS
from svlm_jax.stream.stream_settings import StreamSettings

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

PATH, SUBPROTOCOL = "/v1/realtime", "realtime"
MAX_WAITING_TEXTS = 16  # of one question
MAX_OPEN_REQUESTS = 64  # of a client, whose ids are known for `response.cancel`


class RealtimeSession:
    """One client. `open` it once, then `handle` its events; both send to the viewer."""

    def __init__(self, hub: Hub, viewer: Viewer, gate: Gate, model: str) -> None:
        """Args:
        model: as the client names it.
        """
        self.hub, self.viewer, self.gate = hub, viewer, gate
        self.model = model or str(hub.page_info.get("model") or "svlm")
        self.session_id = f"sess_{secrets.token_hex(8)}"
        self.chosen: dict[str, Any] = {}  # settings of streams that this client starts, as it sent them
        self.has_openrealtime = False
        self.waiting: list[str] = []  # texts of the next question
        self.item_numbers, self.request_numbers = itertools.count(), itertools.count()
        self.requests: deque[str] = deque(maxlen=MAX_OPEN_REQUESTS)  # ids of the newest
        self.pushes: set[asyncio.Task[None]] = set()  # images without a stamp that are not decoded yet

    def open(self, query: Mapping[str, str]) -> None:
        """Greet the client, and join the stream that the query of its address names."""
        self._send("session.created", session=self._session())
        if "stream" in query:
            try:
                value: dict[str, Any] = {name: query[name] for name in ("stream", "key") if name in query}
                value["after"] = int(query.get("after", "-1")[:20])
                self._join(read_join(Fields(value)))
            except InputError as error:
                self.viewer.refuse(error)
            except ValueError:
                self.viewer.refuse(RequestError("after", "no number", "-1 or the number of a chunk", "correct the address"))

    async def handle(self, event: ClientEvent | bytes) -> None:
        """Carry out what the client asks for.

        Raises:
            InputError: it cannot be done; one line for the client.
        """
        match event:
            case bytes():
                await self._push(event, None)
            case FrameAppend():
                await self._push(event.image, event.timestamp, event_id=event.event_id)
            case ItemCreate():
                await self._create_item(event)
            case SessionUpdate():
                await self._update(event)
            case StreamStart():
                await self._start(event.source, self._settings(event.settings))
            case _:
                self._handle_at_once(event)
        if not isinstance(event, bytes | FrameAppend | ItemCreate):  # whether an image is valid shows when it is decoded
            self.viewer.invalid_messages = 0

    def _handle_at_once(self, event: ClientEvent) -> None:
        match event:
            case ResponseCreate():
                self._ask(event.texts, max_new_tokens=event.max_output_tokens, metadata=event.metadata)
            case ResponseCancel():
                self._cancel(event.response_id)
            case FrameCommit():
                self._commit(event)
            case StreamJoin():
                self._join(event)
            case StreamLeave():
                self.hub.leave(self.viewer)
                self._send("svlm.stream.left")
            case StreamStop():
                self.hub.stop(self._watched(), event.key)

    def _send(self, kind: str, **fields: Any) -> None:
        self.viewer.send(encode(kind, **fields))

    # settings

    def _settings(self, more: Mapping[str, Any] | None = None, path: str = "svlm") -> StreamSettings:
        """Of a stream that this client starts. more: that it wants for this one."""
        chosen = {**self.chosen, **(more or {})}
        settings = read_settings(chosen, self.hub.defaults, self.hub.limits, path)
        return settings if chosen.get("seed") is not None else replace(settings, seed=secrets.randbits(32))

    def _session(self) -> dict[str, Any]:
        hub = self.hub
        own = self.viewer.broadcast if self.viewer.is_owner else None
        settings = own.settings if own is not None else read_settings(self.chosen, hub.defaults, hub.limits)
        subscribe = sorted(self.viewer.subscriptions)
        session = session_object(self.session_id, self.model, settings_json(settings), subscribe, self._server())
        if self.has_openrealtime:
            box = hub.config.box
            video = {"format": "jpeg", "fps_cap": 2 * hub.config.fps, "max_dimension": max(box.width, box.height)}
            session["openrealtime"] = {"version": 1, "enabled": ["video.input"], "video": video}
        return session

    def _server(self) -> dict[str, Any]:
        """What does not change while the server runs."""
        hub, box, limits = self.hub, self.hub.config.box, self.hub.limits
        camera = {"fps": hub.config.fps, "max_bytes": limits.max_image_bytes, "width": box.width, "height": box.height}
        return {
            "cache_kinds": KINDS,
            "sources": [title for title, _ in hub.catalog.listed],
            "allow_addresses": hub.catalog.allow_addresses,
            "chunk_seconds": hub.config.chunk_seconds,
            "camera": camera,
            "max_question_chars": limits.max_question_chars,
            "max_seed": MAX_SEED,
            "default_query": hub.default_query,
            **hub.page_info,
        }

    async def _update(self, event: SessionUpdate) -> None:
        hub, broadcast = self.hub, self.viewer.broadcast
        if event.settings:
            self._settings(event.settings, "session.svlm")  # refused before anything is changed
        if event.settings and broadcast is not None and broadcast.is_running:
            if not self.viewer.is_owner:
                raise InputError("session.svlm", "settings for another's stream", "your own", "leave it, or start your own")
            await asyncio.sleep(self.viewer.join_limit.reserve())
            settings = read_settings(event.settings, broadcast.settings, hub.limits, "session.svlm", own=hub.defaults)
            await hub.change(broadcast, settings)
        if "max_new_tokens" in event.settings:  # the newest of two names counts
            self.chosen.pop("max_output_tokens", None)
        self.chosen |= event.settings
        self.has_openrealtime |= event.openrealtime
        if event.subscribe is not None:
            has_streams = "streams" in self.viewer.subscriptions
            self.viewer.subscriptions = event.subscribe
            if "streams" in event.subscribe and not has_streams:
                self.viewer.send(hub.streams_event())
        self._send("session.updated", session=self._session())

    # streams

    def _watched(self) -> Broadcast:
        if self.viewer.broadcast is None:
            raise InputError("event", "one to a stream", "a stream that is watched", "start or join one first")
        return self.viewer.broadcast

    async def _start(self, source: StreamSource, settings: StreamSettings) -> None:
        broadcast = await self.hub.start(source, settings)
        self._send("svlm.stream.started", stream=broadcast.name, key=broadcast.owner_key)
        self._join(StreamJoin(stream=broadcast.name, key=broadcast.owner_key))

    def _join(self, event: StreamJoin) -> None:
        previous = self.viewer.broadcast
        broadcast = self.hub.join(self.viewer, event.stream, event.key)
        if previous not in (None, broadcast):
            self.waiting.clear()  # they were about another video
        self.viewer.send(broadcast.joined_event(self.viewer.is_owner, event.after, self.hub.limits.max_missed_captions))

    # frames

    async def _push(self, image: bytes, second: float | None, *, event_id: str = "") -> None:
        """Add an image to the client's own stream; the first one starts it. One with a stamp waits until the stream has room,
        and everything that the client sends after it waits too."""
        if self.viewer.broadcast is None:
            await asyncio.sleep(self.viewer.join_limit.reserve())
            await self._start(StreamSource("push"), self._settings())
        broadcast = self._watched()
        if not self.viewer.is_owner or broadcast.source != "push":
            raise InputError("image", "one for another stream", "images for your own stream", "start one with them first")
        if broadcast.sender is not self.viewer:
            raise InputError("image", "one of a second client", "those of one", "close the other, or join again")
        if not broadcast.is_running:
            raise InputError("image", "one for a stream that has ended", "a running stream", "start another")
        if second is not None:
            await self._decode(broadcast, image, second)
            return
        task = asyncio.create_task(self._decode_newest(broadcast, image, event_id))
        self.pushes.add(task)  # the event loop alone would not keep it
        task.add_done_callback(self.pushes.discard)
        await asyncio.sleep(0)  # refusals by its header come before whatever is sent next

    async def _decode(self, broadcast: Broadcast, image: bytes, second: float | None) -> None:
        try:
            await self.hub.push_image(broadcast, image, second)
            self.viewer.invalid_messages = 0
        except InputError as error:
            if not broadcast.is_running or error.field == "timestamp":
                raise
            raise RequestError(error.field, error.got, error.expected, error.remedy, code="invalid_image") from None

    async def _decode_newest(self, broadcast: Broadcast, image: bytes, event_id: str) -> None:
        try:
            await self._decode(broadcast, image, None)
        except InputError as error:
            self.viewer.refuse(error, event_id=event_id)
        except RuntimeError:  # the server is stopping: the pool takes nothing more
            pass

    def _commit(self, event: FrameCommit) -> None:
        broadcast = self._watched()
        if event.query:
            self._ask((event.query,))
        if event.is_final:
            if not self.viewer.is_owner:
                raise InputError("final", "another's stream", "your own", "leave it instead")
            self.hub.finish(broadcast)

    # questions

    async def _create_item(self, event: ItemCreate) -> None:
        if len(self.waiting) + len(event.texts) > MAX_WAITING_TEXTS:
            raise InputError("item", f"more than {MAX_WAITING_TEXTS} texts", "fewer", "send response.create first")
        for image in event.images:
            await self._push(image, None, event_id=event.event_id)
        self.waiting += event.texts
        item = user_item(event.item_id or f"item_{self.session_id[5:]}_{next(self.item_numbers)}", event.content)
        self._send("conversation.item.added", previous_item_id=None, item=item)
        self._send("conversation.item.done", previous_item_id=None, item=item)

    def _ask(
        self, texts: tuple[str, ...], *, max_new_tokens: int | None = None, metadata: dict[str, str] | None = None
    ) -> None:
        """Ask what waits, then `texts`; without any text, for the next words."""
        broadcast = self._watched()
        question = " ".join([*self.waiting, *texts])
        request_id = f"req_{self.session_id[5:]}_{next(self.request_numbers)}"
        options = {"request_id": request_id, "max_new_tokens": max_new_tokens, "metadata": metadata}
        num_before = self.hub.ask(broadcast, question, **options)
        self.waiting.clear()
        self.requests.append(request_id)
        self._send("svlm.question.queued", request_id=request_id, question=question, num_before=num_before)

    def _cancel(self, response_id: str) -> None:
        """End the reply that is being written, or take back what this client asked and nobody answers yet."""
        broadcast = self._watched()
        response, name = broadcast.responses.open, broadcast.name
        if response is not None and response_id in ("", response.response_id):
            if self.viewer.is_owner or response.svlm.get("request_id") in self.requests:
                if self.hub.engine.cancel(name, number=response.svlm["number"]):
                    return
            elif response_id:
                raise InputError("response_id", "a response to others", "one of your own", "ask the owner of the stream")
        cancelled = (
            [] if response_id else [request_id for request_id in self.requests if self.hub.engine.cancel(name, request_id)]
        )
        if not cancelled:
            code, remedy = "response_cancel_not_active", "it may be complete already"
            raise RequestError("response_id", response_id or "nothing to cancel", "a response in progress", remedy, code=code)


class RealtimeSockets:
    """The route, and how many sockets there may be."""

    def __init__(self, hub: Hub, gate: Gate, access: Access) -> None:
        self.hub, self.gate, self.access = hub, gate, access

    def routes(self) -> list[SocketRoute]:
        return [SocketRoute(PATH, self.serve)]

    async def serve(self, socket: "WebSocket") -> None:
        """One client, from the handshake to the end of its socket."""
        address = socket.client.host if socket.client else ""
        if (refusal := self._add_socket(address)) is not None:
            await self.gate.deny(socket, refusal)
            return
        extensions = socket.scope["extensions"]  # of our own protocol under uvicorn
        viewer = Viewer(socket, self.hub.limits, self.hub.metrics, extensions[ABORT_EXTENSION], extensions[SEND_EXTENSION])
        try:  # from `add_socket` on everything must be undone, whatever fails
            # browsers with OpenAI's client offer it, and expect it back
            offered = [name.strip() for name in socket.headers.get("sec-websocket-protocol", "").split(",")]
            await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
            self.hub.add(viewer)
            session = RealtimeSession(self.hub, viewer, self.gate, socket.query_params.get("model", "")[:100])
            session.open(socket.query_params)
            await viewer.serve(session.handle)
        finally:
            self.hub.remove(viewer)
            self.access.remove_socket(address)

    def _add_socket(self, address: str) -> Refusal | None:
        """Count one more socket of an address. Why it is refused instead; None: it is not."""
        limits = self.hub.limits
        if len(self.hub.viewers) >= limits.max_viewers:
            return Refusal(503, f"{limits.max_viewers} viewers are connected already; come back later", "max_viewers")
        if not self.access.add_socket(address, limits.max_viewers_per_address):
            line = f"{limits.max_viewers_per_address} sockets of your address are open; close one"
            return Refusal(429, line, "max_viewers_per_address")
        return None
