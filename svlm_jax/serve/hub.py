"""Streams and their viewers: who watches what, the captions so far, and who may stop a stream.

Owns broadcasts, their owner keys and their timeouts. Stands between the engine and sockets (`viewer`). Everything but `publish`
and `publish_frame` runs in the event loop. Knows no HTTP. Units: seconds.
"""

import asyncio
import hmac
import json
import secrets
import string
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.serve.broadcast import Broadcast, HistoryEntry
from svlm_jax.serve.catalog import SourceCatalog
from svlm_jax.serve.engine import Engine
from svlm_jax.serve.feed import CameraFeed, FeedConfig, FrameSink
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.messages import MAX_SEED, encode
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.viewer import GOING_AWAY, Viewer
from svlm_jax.stream.cache_view import KINDS
from svlm_jax.stream.captions import OPENINGS, cue

LIST_INTERVAL = 0.25  # seconds at least between two `streams` messages
OPEN_THREADS, DECODE_THREADS = 4, 1
FRAME_HEADER = struct.Struct("<d")  # before each JPEG: second of the video
NAME_ALPHABET, NAME_LENGTH = string.ascii_lowercase + string.digits, 8


class Hub:
    """All streams and viewers. `loop` and `engine` are set before the first viewer connects."""

    engine: Engine
    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        config: FeedConfig,
        *,
        limits: Limits,
        metrics: Metrics,
        catalog: SourceCatalog | None = None,
        default_query: str = "",
        page_info: dict[str, Any] | None = None,
    ) -> None:
        """Args:
        catalog: sources that clients may start.
        default_query: of streams whose `start` has no query.
        page_info: further fields of `hello`: `model`, `is_game_model`, `settings`.
        """
        self.config, self.limits, self.metrics = config, limits, metrics
        self.catalog, self.default_query, self.page_info = catalog or SourceCatalog(), default_query, page_info or {}
        self.broadcasts: dict[str, Broadcast] = {}
        self.viewers: set[Viewer] = set()
        self.list_changed = asyncio.Event()
        self.num_opening = 0  # streams whose source is being opened
        # Pools of their own: asyncio's default pool is shared, and a source may take long to answer. One thread decodes images:
        # they must not take more than one core from the model, however many cameras send.
        self.open_pool = ThreadPoolExecutor(OPEN_THREADS, "open")
        self.decode_pool = ThreadPoolExecutor(DECODE_THREADS, "decode image")
        self.vtt_pool = ThreadPoolExecutor(1, "vtt")

    # from other threads

    def publish(self, name: str, event: dict[str, Any]) -> None:
        """An event of the engine about a stream: a message to its viewers but for the field `stream`."""
        self._call_soon(self._on_event, name, event)

    def publish_frame(self, name: str, second: float, jpeg: bytes) -> None:
        """A frame of a stream."""
        self._call_soon(self._on_frame, name, FRAME_HEADER.pack(second) + jpeg)

    def _call_soon(self, function: Any, *args: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: no viewer is left
            self.loop.call_soon_threadsafe(function, *args)

    # streams

    def _on_event(self, name: str, event: dict[str, Any]) -> None:
        broadcast = self.broadcasts.get(name)
        if broadcast is None:
            return
        if event["type"] in ("caption", "dropped"):
            text, question, chunks = event.get("text", ""), event.get("question", ""), event.get("chunks", 0)
            broadcast.history.append(HistoryEntry(event["number"], event["start"], event["end"], text, question, chunks))
        if event["type"] == "ended":
            broadcast.end_reason, broadcast.end_time = event["reason"], time.monotonic()
            self.list_changed.set()
        message = json.dumps({**event, "stream": name})  # encoded once for all viewers
        if event["type"] == "caption":
            broadcast.last_caption = message
        for viewer in list(broadcast.viewers):
            viewer.send(message)

    def _on_frame(self, name: str, data: bytes) -> None:
        broadcast = self.broadcasts.get(name)
        if broadcast is None:
            return
        is_camera = isinstance(broadcast.feed, CameraFeed)
        for viewer in list(broadcast.viewers):
            if not (viewer.is_owner and is_camera):  # the owner's page shows the camera itself
                viewer.send_frame(data)

    async def run_housekeeping(self) -> None:
        """End streams that nobody watches, forget those that ended, send the list of streams when it changed; for ever."""
        last_sent = 0.0
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.list_changed.wait(), timeout=1.0)
            self.list_changed.clear()
            now = time.monotonic()
            self._end_unwatched(now)
            self._forget_ended(now)
            if self.viewers and now - last_sent > 0.9 * LIST_INTERVAL:
                last_sent, message = now, self.streams_message()
                for viewer in list(self.viewers):
                    viewer.send(message)
            await asyncio.sleep(LIST_INTERVAL)

    def _end_unwatched(self, now: float) -> None:
        timeout = self.limits.unwatched_timeout
        for broadcast in list(self.broadcasts.values()):
            is_running = bool(broadcast.title) and not broadcast.end_reason
            if is_running and not broadcast.viewers and now - broadcast.unwatched_since > timeout:
                self.engine.end(broadcast.name, f"nobody watched for {timeout:g} s")

    def _forget_ended(self, now: float) -> None:
        ended = [broadcast for broadcast in self.broadcasts.values() if broadcast.end_reason]
        newest_first = sorted(ended, key=lambda broadcast: broadcast.end_time, reverse=True)
        for index, broadcast in enumerate(newest_first):
            is_old = now - broadcast.end_time > self.limits.ended_stream_ttl and not broadcast.viewers
            if index >= self.limits.max_ended_streams or is_old:
                del self.broadcasts[broadcast.name]

    def streams_message(self) -> str:
        """The list of running streams."""
        running = [item.summary() for item in self.broadcasts.values() if item.title and not item.end_reason]
        return encode("streams", streams=running, num_streams=self.engine.num_streams, num_viewers=len(self.viewers))

    async def vtt(self, name: str) -> str | None:
        """The captions of a stream that are kept, as WebVTT; None: no such stream. Written at most once per caption."""
        broadcast = self.broadcasts.get(name)
        if broadcast is None:
            return None
        if broadcast.vtt is None or broadcast.vtt[0] != broadcast.last_number:
            # in a thread, and from a copy: six hours of captions take longer than the event loop may stand still
            history = list(broadcast.history)
            await asyncio.get_running_loop().run_in_executor(self.vtt_pool, self._write_vtt, broadcast, history)
        assert broadcast.vtt is not None
        return broadcast.vtt[1]

    def _write_vtt(self, broadcast: Broadcast, history: list[HistoryEntry]) -> None:
        """In the one thread of `vtt_pool`: requests that came meanwhile find the file written by the first."""
        last_number = history[-1].number if history else -1
        if broadcast.vtt is not None and broadcast.vtt[0] >= last_number:
            return
        parts = [OPENINGS[".vtt"].decode()]
        if history and history[0].number:
            hours = f"{self.limits.history_seconds / 3600:g} h"
            parts.append(f"NOTE cut: the last {hours} are kept; captions before {history[0].start:.1f} s are missing\n\n")
        parts += [cue(".vtt", 0, entry.start, entry.end, entry.text, {"question": entry.question}) for entry in history]
        broadcast.vtt = last_number, "".join(parts)

    # viewers

    def add(self, viewer: Viewer) -> None:
        """A socket that has just been accepted."""
        self.viewers.add(viewer)
        box = self.config.box
        camera = {"fps": self.config.fps, "max_bytes": self.limits.max_image_bytes, "width": box.width, "height": box.height}
        hello = encode(
            "hello",
            cache_kinds=KINDS,
            sources=[title for title, _ in self.catalog.listed],
            allow_addresses=self.catalog.allow_addresses,
            chunk_seconds=self.config.chunk_seconds,
            camera=camera,
            max_question_chars=self.limits.max_question_chars,
            max_seed=MAX_SEED,
            default_query=self.default_query,
            **self.page_info,
        )
        viewer.send(hello)
        viewer.send(self.streams_message())
        self.list_changed.set()

    def remove(self, viewer: Viewer) -> None:
        """A socket that is closed."""
        self.viewers.discard(viewer)
        self._leave(viewer)

    def close(self, reason: str) -> None:
        """Disconnect all viewers and stop the threads."""
        for viewer in list(self.viewers):
            viewer.disconnect(GOING_AWAY, reason)
        for pool in (self.open_pool, self.decode_pool, self.vtt_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    async def handle(self, viewer: Viewer, message: dict[str, Any] | bytes) -> None:
        """Carry out a valid message of a viewer.

        Raises:
            InputError: it cannot be done; one line for the viewer.
        """
        if isinstance(message, bytes):
            self._receive_image(viewer, message)
        elif message["type"] == "start":
            await self._start(viewer, message)
        elif message["type"] == "join":
            self._join(viewer, message)
        elif message["type"] == "leave":
            self._leave(viewer)
        elif message["type"] == "ask":
            question = message["question"].strip()
            num_before = self.engine.ask(self._watched_by(viewer).name, question)
            viewer.send(encode("question_queued", question=question, num_before=num_before))
        elif message["type"] == "stop":
            self._stop(viewer, message.get("key", ""))

    def _watched_by(self, viewer: Viewer) -> Broadcast:
        if viewer.broadcast is None:
            raise InputError("message", "one to a stream", "a stream that is watched", "start or join one first")
        return viewer.broadcast

    async def _start(self, viewer: Viewer, message: dict[str, Any]) -> None:
        if self.engine.num_free <= self.num_opening:  # each stream that is being opened will need one of the free places
            raise self.engine.no_free_stream()
        name = "".join(secrets.choice(NAME_ALPHABET) for _ in range(NAME_LENGTH))
        max_history = max(1, round(self.limits.history_seconds / self.config.chunk_seconds))
        broadcast = Broadcast(name, message.get("source", "match"), max_history)
        self.broadcasts[name] = broadcast
        self.num_opening += 1
        opening = asyncio.get_running_loop().run_in_executor(self.open_pool, self._open, broadcast, message)
        opening.add_done_callback(lambda future: self._on_opened(broadcast, future))
        await asyncio.shield(opening)  # a viewer who disconnects now leaves a stream that nobody watches, not a half-open one
        viewer.send(encode("started", stream=name, key=broadcast.owner_key))
        self._join(viewer, {"stream": name, "key": broadcast.owner_key})

    def _on_opened(self, broadcast: Broadcast, future: "asyncio.Future[None]") -> None:
        self.num_opening -= 1
        if future.cancelled() or future.exception() is not None:
            self.broadcasts.pop(broadcast.name, None)

    def _open(self, broadcast: Broadcast, message: dict[str, Any]) -> None:
        """Open a stream's source and hand it to the engine; in a thread of `open_pool`."""
        name = broadcast.name
        sink = FrameSink(lambda second, jpeg: self.publish_frame(name, second, jpeg), lambda: bool(broadcast.viewers))
        feed = self.catalog.open(message, self.config, sink, self.limits)
        broadcast.feed, broadcast.title = feed, feed.name
        query = message.get("query") or self.default_query
        self.engine.open(name, feed, query=query, seed=secrets.randbits(32))

    def _join(self, viewer: Viewer, message: dict[str, Any]) -> None:
        broadcast = self.broadcasts.get(message.get("stream", ""))
        if broadcast is None or not broadcast.title:
            raise InputError("stream", "none of that name", "one of the list", "it may have ended: choose another")
        if len(broadcast.viewers) >= self.limits.max_viewers_per_stream and viewer not in broadcast.viewers:
            raise InputError("join", f"{len(broadcast.viewers)} viewers", "fewer", "come back later")
        self._leave(viewer)
        viewer.broadcast, viewer.is_owner = broadcast, _same_key(message.get("key", ""), broadcast.owner_key)
        broadcast.viewers.add(viewer)
        if viewer.is_owner:
            # an owner who reconnects takes over, even while the server has not noticed that the old socket is dead
            broadcast.camera_viewer = viewer
        missed, is_truncated = broadcast.missed_since(message.get("after", -1), self.limits.max_missed_captions)
        joined = encode("joined", **broadcast.summary(), is_owner=viewer.is_owner, is_truncated=is_truncated)
        # the captions are JSON already: joined as text, a join costs no encoding
        viewer.send(f'{joined[:-1]}, "last_caption": {broadcast.last_caption}, "missed": [{", ".join(missed)}]}}')
        self.list_changed.set()

    def _leave(self, viewer: Viewer) -> None:
        broadcast, viewer.broadcast, viewer.is_owner = viewer.broadcast, None, False
        if broadcast is not None:
            broadcast.viewers.discard(viewer)
            broadcast.unwatched_since = time.monotonic()
            if broadcast.camera_viewer is viewer:
                broadcast.camera_viewer = next((other for other in broadcast.viewers if other.is_owner), None)
        self.list_changed.set()

    def _stop(self, viewer: Viewer, key: str) -> None:
        broadcast = self._watched_by(viewer)
        owner_is_present = any(other.is_owner for other in broadcast.viewers)
        if owner_is_present and not _same_key(key, broadcast.owner_key):
            raise InputError("stop", "a stream whose owner is present", "your own", "ask the owner, or watch another")
        self.engine.end(broadcast.name, "stopped by its viewer")

    def _receive_image(self, viewer: Viewer, data: bytes) -> None:
        """Keep an image for decoding, in place of one that still waits: only the newest counts, one at a time per stream."""
        broadcast = self._watched_by(viewer)
        if not viewer.is_owner or not isinstance(broadcast.feed, CameraFeed):
            raise InputError("image", "one for another stream", "images for your own camera", "start with it first")
        if broadcast.camera_viewer is not viewer:
            raise InputError("image", "one of a second page", "those of one", "close the other page, or join again")
        broadcast.feed.check(data)
        broadcast.next_image = data
        if broadcast.decode_task is None:
            broadcast.decode_task = asyncio.create_task(self._decode_images(broadcast, broadcast.feed, viewer))

    async def _decode_images(self, broadcast: Broadcast, feed: CameraFeed, viewer: Viewer) -> None:
        """Decode images until none waits, at most twice as many a second as the model takes."""
        loop = asyncio.get_running_loop()
        try:
            while (data := broadcast.next_image) is not None and not broadcast.end_reason:
                start, broadcast.next_image = loop.time(), None
                try:
                    await loop.run_in_executor(self.decode_pool, feed.set_image, data)
                    viewer.invalid_messages = 0
                except InputError as error:
                    viewer.refuse(error)
                await asyncio.sleep(max(0.0, start + 0.5 / self.config.fps - loop.time()))
        except RuntimeError:  # the server is stopping: the pool takes nothing more
            pass
        finally:
            broadcast.decode_task = broadcast.next_image = None


def _same_key(key: str, owner_key: str) -> bool:
    return hmac.compare_digest(key.encode(), owner_key.encode())
