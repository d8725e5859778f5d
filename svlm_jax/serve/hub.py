"""Streams and those who watch them: who watches what, who may ask, change and stop it, and when it ends because nobody watches.

Owns broadcasts, their owner keys and their timeouts. Stands between the engine and the protocols (`realtime`, `rest`). All but
`publish` and `publish_frame` runs in the event loop. Knows no HTTP and no message of a client. Units: seconds.
"""

import asyncio
import hmac
import secrets
import string
import struct
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.serve.broadcast import Broadcast, Watcher
from svlm_jax.serve.caption_files import CaptionFiles
from svlm_jax.serve.engine.engine import Engine
from svlm_jax.serve.engine.reports import Published
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.notifications.event_log import EventLog
from svlm_jax.serve.notifications.notifier import Notifier
from svlm_jax.serve.realtime.server_events import encode
from svlm_jax.serve.realtime.viewer import GOING_AWAY, Viewer
from svlm_jax.serve.sources.catalog import SourceCatalog, StreamSource
from svlm_jax.serve.sources.feed import Feed, FeedConfig, FrameSink
from svlm_jax.serve.sources.push_feed import PushedImage, PushFeed
from svlm_jax.stream.events import Ended
from svlm_jax.stream.stream_settings import DEFAULT_SETTINGS, StreamSettings

LIST_INTERVAL = 0.25  # seconds at least between two lists of streams
OPEN_THREADS, DECODE_THREADS = 4, 1
FRAME_HEADER = struct.Struct("<d")  # before each JPEG: second of the video
NAME_ALPHABET, NAME_LENGTH = string.ascii_lowercase + string.digits, 8


class Hub:
    """All streams and viewers. `loop`, `engine` and `defaults` are set before the first viewer connects."""

    engine: Engine
    loop: asyncio.AbstractEventLoop
    defaults: StreamSettings  # of a stream whose starter says nothing; complete

    def __init__(
        self,
        config: FeedConfig,
        *,
        limits: Limits,
        metrics: Metrics,
        catalog: SourceCatalog | None = None,
        default_query: str = "",
        page_info: Mapping[str, Any] | None = None,
        replica: str = "",
    ) -> None:
        """Args:
        catalog: sources that clients may start.
        default_query: of streams that are started without one.
        page_info: what clients are told of the model: `model`, `is_game_model`, `settings`.
        replica: name of this server among others; names of its streams begin with it, so that a proxy knows where they are.
        """
        self.config, self.limits, self.metrics = config, limits, metrics
        self.catalog, self.default_query, self.page_info = catalog or SourceCatalog(), default_query, page_info or {}
        self.name_prefix = f"{replica}-" if replica else ""
        self.broadcasts: dict[str, Broadcast] = {}
        self.viewers: set[Viewer] = set()  # sockets
        self.list_changed = asyncio.Event()
        self.num_opening = 0  # streams whose source is being opened
        self.is_draining = False  # no new streams: the server is about to stop
        self.log = EventLog(limits.max_logged_events)  # of all streams, for clients without sockets
        self.listeners: list[Callable[[Published], None]] = [Notifier(self.log, self._title_of).publish]
        # Pools of their own: asyncio's default pool is shared, and a source may take long to answer. One thread decodes images:
        # they must not take more than one core from the model, however many cameras send.
        self.open_pool = ThreadPoolExecutor(OPEN_THREADS, "open")
        self.decode_pool = ThreadPoolExecutor(DECODE_THREADS, "decode image")
        self.caption_files = CaptionFiles(limits.history_seconds)

    def attach(self, engine: Engine, defaults: StreamSettings = DEFAULT_SETTINGS) -> None:
        """Use an engine, and `defaults` or else its session's settings where a stream has none."""
        session = engine.session
        self.engine = engine
        self.defaults = replace(
            defaults,
            query=self.default_query,
            config=session.config,
            sampling=session.sampling,
            max_new_tokens=session.config.max_new_tokens,
        )

    # from other threads

    def wants_tokens(self, name: str) -> bool:
        """Whether anybody reads the words of a stream as they come."""
        broadcast = self.broadcasts.get(name)
        return broadcast is not None and any(viewer.reads_words for viewer in list(broadcast.viewers))

    def publish(self, event: Published) -> None:
        """An event of the engine about a stream."""
        self._call_soon(self._on_event, event)

    def publish_frame(self, name: str, second: float, jpeg: bytes) -> None:
        """A frame of a stream."""
        self._call_soon(self._on_frame, name, FRAME_HEADER.pack(second) + jpeg)

    def _call_soon(self, function: Any, *args: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: no viewer is left
            self.loop.call_soon_threadsafe(function, *args)

    def _on_event(self, event: Published) -> None:
        broadcast = self.broadcasts.get(event.stream)
        if broadcast is None:
            return
        broadcast.on_report(event)
        for listener in self.listeners:
            listener(event)
        if isinstance(event, Ended):
            self.list_changed.set()

    def _title_of(self, name: str) -> str:
        return self.broadcasts[name].title

    def _on_frame(self, name: str, data: bytes) -> None:
        if (broadcast := self.broadcasts.get(name)) is not None:
            broadcast.send_frame(data)

    # housekeeping

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
                last_sent, event = now, self.streams_event()
                for viewer in list(self.viewers):
                    if "streams" in viewer.subscriptions:
                        viewer.send(event)
            await asyncio.sleep(LIST_INTERVAL)

    def _end_unwatched(self, now: float) -> None:
        timeout = self.limits.unwatched_timeout
        for broadcast in list(self.broadcasts.values()):
            is_watched = broadcast.viewers or broadcast.is_always_on
            if broadcast.is_running and not is_watched and now - broadcast.unwatched_since > timeout:
                self.engine.end(broadcast.name, f"nobody watched for {timeout:g} s")

    def _forget_ended(self, now: float) -> None:
        ended = [broadcast for broadcast in self.broadcasts.values() if broadcast.end_reason]
        newest_first = sorted(ended, key=lambda broadcast: broadcast.end_time, reverse=True)
        for index, broadcast in enumerate(newest_first):
            is_old = now - broadcast.end_time > self.limits.ended_stream_ttl and not broadcast.viewers
            if index >= self.limits.max_ended_streams or is_old:
                del self.broadcasts[broadcast.name]

    def streams_event(self) -> str:
        """`svlm.streams`: those that run."""
        running = [item.summary() for item in self.broadcasts.values() if item.is_running]
        return encode("svlm.streams", streams=running, num_streams=self.engine.num_streams, num_viewers=len(self.viewers))

    async def vtt(self, name: str) -> str | None:
        """The captions of a stream that are kept, as WebVTT; None: no such stream."""
        broadcast = self.broadcasts.get(name)
        return None if broadcast is None else await self.caption_files.vtt(broadcast)

    def add(self, viewer: Viewer) -> None:
        """A socket that has just been accepted."""
        self.viewers.add(viewer)
        self.list_changed.set()

    def remove(self, viewer: Viewer) -> None:
        """A socket that is closed."""
        self.viewers.discard(viewer)
        self.leave(viewer)

    def close(self, reason: str) -> None:
        """End all streams, then disconnect all viewers, and stop the threads."""
        self.is_draining = True
        for name in [broadcast.name for broadcast in self.broadcasts.values() if broadcast.is_running]:
            self.engine.end(name, reason)
        asyncio.get_running_loop().call_soon(self._disconnect, reason)  # after the ends, which the engine has queued there
        for pool in (self.open_pool, self.decode_pool, self.caption_files.pool):
            pool.shutdown(wait=False, cancel_futures=True)

    def _disconnect(self, reason: str) -> None:
        for viewer in list(self.viewers):
            viewer.disconnect(GOING_AWAY, reason)
        self.log.close()

    # streams

    @property
    def is_busy(self) -> bool:
        """Whether a server that is about to stop has anything to wait for: one-shot work, or a stream that does not play on for
        ever."""
        streams = any(broadcast.is_running and not broadcast.is_always_on for broadcast in self.broadcasts.values())
        return streams or bool(self.engine.one_shot)

    def find(self, name: str) -> Broadcast:
        """A stream that runs, or whose captions can still be read.

        Raises:
            InputError: there is none.
        """
        broadcast = self.broadcasts.get(name)
        if broadcast is None or not broadcast.title:
            raise InputError("stream", "none of that name", "one of the list", "it may have ended: choose another")
        return broadcast

    async def start(self, source: StreamSource, settings: StreamSettings) -> Broadcast:
        """Start a stream; nobody watches it yet.

        Args:
            settings: complete.

        Raises:
            InputError: no place is free, the source does not open, or the session has no room for the settings.
        """
        if self.is_draining:
            raise InputError("start", "a server that is about to stop", "one that goes on", "connect again: to another one")
        if self.engine.num_free <= self.num_opening:  # each stream that is being opened will need one of the free places
            raise self.engine.no_free_stream()
        name = self.name_prefix + "".join(secrets.choice(NAME_ALPHABET) for _ in range(NAME_LENGTH))
        max_history = max(1, round(self.limits.history_seconds / self.config.chunk_seconds))
        broadcast = Broadcast(name, source.kind, settings, max_history)
        broadcast.first_event = self.log.next_number
        self.broadcasts[name] = broadcast
        self.num_opening += 1
        opening = asyncio.get_running_loop().run_in_executor(self.open_pool, self._open, broadcast, source)
        opening.add_done_callback(lambda future: self._on_opened(broadcast, future))
        await asyncio.shield(opening)  # a client who leaves now leaves a stream that nobody watches, not a half-open one
        return broadcast

    def _on_opened(self, broadcast: Broadcast, future: "asyncio.Future[None]") -> None:
        self.num_opening -= 1
        broadcast.unwatched_since = time.monotonic()  # opening may have taken long
        self.list_changed.set()
        if future.cancelled() or future.exception() is not None:
            self.broadcasts.pop(broadcast.name, None)

    def _open(self, broadcast: Broadcast, source: StreamSource) -> None:
        """Open a stream's source and hand it to the engine; in a thread of `open_pool`."""
        name = broadcast.name
        sink = FrameSink(lambda second, jpeg: self.publish_frame(name, second, jpeg), broadcast.wants_frames)
        config = broadcast.settings.config
        feed_config = self.config if config is None else self.config._replace(fps=config.fps)
        feed = self._new_feed(source, feed_config, sink)
        broadcast.feed, broadcast.title = feed, feed.name
        self.engine.open(name, feed, broadcast.settings)

    def _new_feed(self, source: StreamSource, config: FeedConfig, sink: FrameSink) -> Feed:
        if source.kind == "push":
            return PushFeed(config, sink, self.limits, pool=self.decode_pool)
        return self.catalog.open(source, config, sink)

    def join(self, watcher: Watcher, name: str, key: str = "") -> Broadcast:
        """Watch a stream from now on, as its owner if the key is right.

        Raises:
            InputError: no such stream, or too many watch it.
        """
        broadcast = self.find(name)
        if len(broadcast.viewers) >= self.limits.max_viewers_per_stream and watcher not in broadcast.viewers:
            raise InputError("join", f"{len(broadcast.viewers)} viewers", "fewer", "come back later")
        self.leave(watcher)
        watcher.broadcast, watcher.is_owner = broadcast, is_key_of(broadcast, key)
        broadcast.viewers.add(watcher)
        if watcher.is_owner:
            # an owner who reconnects takes over, even while the server has not noticed that the old socket is dead
            broadcast.sender = watcher
        self.list_changed.set()
        return broadcast

    def leave(self, watcher: Watcher) -> None:
        """Watch nothing any more."""
        broadcast, watcher.broadcast, watcher.is_owner = watcher.broadcast, None, False
        if broadcast is not None:
            broadcast.viewers.discard(watcher)
            broadcast.unwatched_since = time.monotonic()
            if broadcast.sender is watcher:
                broadcast.sender = next((other for other in broadcast.viewers if other.is_owner), None)
        self.list_changed.set()

    def stop(self, broadcast: Broadcast, key: str = "") -> None:
        """End a stream: its owner may, and anybody once the owner has left; nobody one that the operator keeps playing.

        Raises:
            InputError: the owner is present, and the key is another one.
        """
        if broadcast.is_always_on:
            raise InputError("stop", "a source that the server keeps playing", "a stream of your own", "leave it")
        if any(other.is_owner for other in broadcast.viewers) and not is_key_of(broadcast, key):
            raise InputError("stop", "a stream whose owner is present", "your own", "ask the owner, or watch another")
        self.engine.end(broadcast.name, "stopped by its viewer")

    def ask(
        self,
        broadcast: Broadcast,
        question: str,
        *,
        request_id: str,
        max_new_tokens: int | None = None,
        metadata: dict[str, str] | None = None,
    ) -> int:
        """Queue a question, or with "" a request for the next words.

        Args:
            max_new_tokens: a bound of the reply, which the stream's own may be below.
            metadata: that the response will have.

        Returns:
            How many requests wait before it.

        Raises:
            InputError: as `Engine.ask` does, or it is too long.
        """
        if len(question) > self.limits.max_question_chars:
            got, expected = f"{len(question)} characters", f"at most {self.limits.max_question_chars}"
            raise InputError("question", got, expected, "shorten it")
        longest = broadcast.settings.max_new_tokens
        if max_new_tokens is not None and longest is not None:
            max_new_tokens = min(max_new_tokens, longest)
        if metadata is not None:  # first: the reply may begin before `ask` has returned
            broadcast.responses.metadata[request_id] = metadata
        try:
            return self.engine.ask(broadcast.name, question, request_id=request_id, max_new_tokens=max_new_tokens)
        except InputError:
            broadcast.responses.metadata.pop(request_id, None)
            raise

    async def change(self, broadcast: Broadcast, settings: StreamSettings) -> None:
        """Change the settings of a stream from its next chunk on; all who watch are told.

        Raises:
            InputError: it has ended, or something of it cannot change.
        """
        previous = broadcast.settings.config
        if settings.config is not None and previous is not None and settings.config.fps != previous.fps:
            raise InputError("fps", f"{settings.config.fps:g}", f"{previous.fps:g}, as it began", "start another stream")
        applied = await asyncio.wrap_future(self.engine.change(broadcast.name, settings))
        broadcast.settings = complete(applied, self.defaults)
        broadcast.send(broadcast.updated_event())

    async def push_image(self, broadcast: Broadcast, data: bytes, second: float | None = None) -> PushedImage:
        """Add an image to a stream whose frames a client sends; waits as `PushFeed.push_image` does.

        Raises:
            InputError: the stream has another source or has ended; the image is refused.
        """
        if not isinstance(broadcast.feed, PushFeed):
            raise InputError("image", "one for another kind of stream", "images for a stream that takes them", "start one")
        return await broadcast.feed.push_image(data, second)

    def finish(self, broadcast: Broadcast) -> None:
        """No image follows: the stream ends once those that were sent are watched.

        Raises:
            InputError: the stream has another source.
        """
        if not isinstance(broadcast.feed, PushFeed):
            raise InputError("commit", "another kind of stream", "one that takes images", "start one")
        broadcast.feed.finish()


def complete(settings: StreamSettings, defaults: StreamSettings) -> StreamSettings:
    """Settings without None where the session decides."""
    names = ("config", "sampling", "max_new_tokens")
    return replace(settings, **{name: getattr(defaults, name) for name in names if getattr(settings, name) is None})


def is_key_of(broadcast: Broadcast, key: str) -> bool:
    """Whether it is the owner's key; in constant time."""
    return hmac.compare_digest(key.encode(), broadcast.owner_key.encode())
