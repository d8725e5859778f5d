"""Who watches what: streams with their viewers, captions so far, and who may stop them.

Owns names, keys and grace times. Between the engine (its thread calls `publish`) and sockets (`viewer`); all but
`publish` and `shown` runs in the event loop. Knows no HTTP. Units: seconds.
"""

import asyncio
import hmac
import json
import secrets
import string
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.media.sources import SCHEMES, Opener, scheme_of
from svlm_jax.serve.channel import Channel, Said
from svlm_jax.serve.engine import Engine
from svlm_jax.serve.feed import CameraFeed, Clock, Feed, OpenedFeed, masked
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.messages import LARGEST_SEED
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.retained import KINDS
from svlm_jax.serve.viewer import GOING_AWAY, Viewer
from svlm_jax.stream.captions import OPENINGS, cue

ANNOUNCED = 0.25  # seconds at least between two lists of streams
OPENERS, DECODERS = 4, 1  # threads
PICTURE = struct.Struct("<d")  # before each JPEG: second of the video


class Hub:
    """All streams and viewers. `attach` gives it the event loop, `engine` is set before the first viewer comes."""

    engine: Engine
    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        clock: Clock,
        *,
        limits: Limits,
        metrics: Metrics,
        sources: Sequence[tuple[str, str]] = (),
        addresses: bool = False,
        schemes: Mapping[str, Opener] = SCHEMES,
        new_match: Callable[[int], str] | None = None,
        query: str = "",
        told: dict[str, Any] | None = None,
    ) -> None:
        """Args:
        sources: (title, what `open_source` opens) of those that clients may choose by number.
        addresses: let clients name sources themselves.
        schemes: how each kind of source is opened, see `open_source`.
        new_match: the name of a generated game, of a seed up to the given one; without it the server has no games.
        query: what streams are asked for when the one who starts them says nothing.
        told: more for the page: the name of the model, windows.
        """
        self.clock, self.limits, self.metrics = clock, limits, metrics
        self.sources, self.addresses, self.query, self.told = list(sources), addresses, query, told or {}
        self.schemes, self.new_match = schemes, new_match
        self.channels: dict[str, Channel] = {}
        self.viewers: set[Viewer] = set()
        self.changed = asyncio.Event()
        self.opening = 0  # streams that are being opened
        self.opener = ThreadPoolExecutor(OPENERS, "open")  # of its own, for a source may take long to answer
        self.decoder = ThreadPoolExecutor(DECODERS, "picture")
        self.writer = ThreadPoolExecutor(1, "vtt")

    # from other threads

    def publish(self, name: str, event: dict[str, Any]) -> None:
        """What the engine tells of a stream."""
        self._soon(self._heard, name, event)

    def shown(self, name: str, second: float, jpeg: bytes) -> None:
        """A picture of a stream."""
        self._soon(self._picture, name, PICTURE.pack(second) + jpeg)

    def _soon(self, call: Any, *args: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            self.loop.call_soon_threadsafe(call, *args)

    # streams

    def _heard(self, name: str, event: dict[str, Any]) -> None:
        channel = self.channels.get(name)
        if channel is None:
            return
        if event["type"] in ("caption", "dropped"):
            words = (event.get("text", ""), event.get("question", ""), event.get("chunks", 0))
            channel.history.append(Said(event["number"], event["start"], event["end"], *words))
        if event["type"] == "ended":
            channel.over, channel.ended = event["reason"], time.monotonic()
            self.changed.set()
        line = json.dumps({**event, "stream": name})
        if event["type"] == "caption":
            channel.last = line
        for viewer in list(channel.viewers):
            viewer.tell(line)

    def _picture(self, name: str, data: bytes) -> None:
        channel = self.channels.get(name)
        if channel is None:
            return
        camera = isinstance(channel.feed, CameraFeed)
        for viewer in list(channel.viewers):
            if not (viewer.owner and camera):  # he sees himself
                viewer.show(data)

    async def tend(self) -> None:
        """End streams that nobody watches, forget those that ended, tell viewers of what changed; for ever."""
        announced = 0.0
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), timeout=1.0)
            self.changed.clear()
            now = time.monotonic()
            for channel in list(self.channels.values()):
                if channel.title and not channel.over and not channel.viewers and now - channel.alone > self.limits.grace:
                    self.engine.end(channel.name, f"nobody watched for {self.limits.grace:g} s")
            over = sorted((one for one in self.channels.values() if one.over), key=lambda one: one.ended)
            for number, channel in enumerate(reversed(over)):
                if number >= self.limits.ended or (now - channel.ended > self.limits.ended_kept and not channel.viewers):
                    del self.channels[channel.name]
            if self.viewers and now - announced > 0.9 * ANNOUNCED:
                announced, line = now, json.dumps(self.streams())
                for viewer in list(self.viewers):
                    viewer.tell(line)
            await asyncio.sleep(ANNOUNCED)

    def streams(self) -> dict[str, Any]:
        """What runs, for the page."""
        running = [channel.summary() for channel in self.channels.values() if not channel.over and channel.title]
        return {"type": "streams", "streams": running, "rows": self.engine.rows, "viewers": len(self.viewers)}

    async def vtt(self, name: str) -> str | None:
        """All captions of a stream that are kept, as WebVTT; None for no stream of that name. Made once a caption at most."""
        channel = self.channels.get(name)
        if channel is None:
            return None
        if channel.vtt is None or channel.vtt[0] != channel.newest:
            await asyncio.get_running_loop().run_in_executor(self.writer, self._write, channel, list(channel.history))
        assert channel.vtt is not None
        return channel.vtt[1]

    def _write(self, channel: Channel, history: list[Said]) -> None:
        """In a thread, one at a time: those who asked meanwhile get what the first one made."""
        newest = history[-1].number if history else -1
        if channel.vtt is not None and channel.vtt[0] >= newest:
            return
        parts = [OPENINGS[".vtt"].decode()]
        if history and history[0].number:
            kept = f"{self.limits.kept / 3600:g} h"
            parts.append(f"NOTE cut: the last {kept} are kept; captions before {history[0].start:.1f} s are not here\n\n")
        parts += [cue(".vtt", 0, one.start, one.end, one.text, {"question": one.question}) for one in history]
        channel.vtt = newest, "".join(parts)

    # viewers

    def greet(self, viewer: Viewer) -> None:
        """A socket that has just been accepted."""
        self.viewers.add(viewer)
        box, camera = self.clock.box, {"fps": self.clock.fps, "bytes": self.limits.camera_bytes}
        hello = {
            "type": "hello",
            "kinds": KINDS,
            "sources": [title for title, _ in self.sources],
            "addresses": self.addresses,
            "chunk": self.clock.seconds,
            "camera": camera | {"width": box.width, "height": box.height},
            "question": self.limits.question_chars,
            "seed": LARGEST_SEED,
            "query": self.query,
            **self.told,
        }
        viewer.tell(json.dumps(hello))
        viewer.tell(json.dumps(self.streams()))
        self.changed.set()

    def forget(self, viewer: Viewer) -> None:
        """A socket that is closed."""
        self.viewers.discard(viewer)
        self._leave(viewer)

    def farewell(self, reason: str) -> None:
        """Let all viewers go."""
        for viewer in list(self.viewers):
            viewer.part(GOING_AWAY, reason)
        for one in (self.opener, self.decoder, self.writer):
            one.shutdown(wait=False, cancel_futures=True)

    async def hear(self, viewer: Viewer, message: dict[str, Any] | bytes) -> None:
        """A message that a viewer sent.

        Raises:
            InputError: it cannot be done; one line.
        """
        if isinstance(message, bytes):
            self._camera(viewer, message)
        elif message["type"] == "start":
            await self._start(viewer, message)
        elif message["type"] == "join":
            self._join(viewer, message)
        elif message["type"] == "leave":
            self._leave(viewer)
        elif message["type"] == "ask":
            waiting = self.engine.ask(self._watched(viewer).name, message.get("question", ""))
            viewer.tell(json.dumps({"type": "asked", "question": message["question"].strip(), "waiting": waiting}))
        elif message["type"] == "stop":
            self._stop(viewer, message.get("key", ""))

    def _watched(self, viewer: Viewer) -> Channel:
        if viewer.channel is None:
            raise InputError("message", "one to a stream", "a stream that is watched", "start or join one first")
        return viewer.channel

    async def _start(self, viewer: Viewer, message: dict[str, Any]) -> None:
        if self.engine.free <= self.opening:  # each that is being opened gets a row
            raise self.engine.full()
        letters = string.ascii_lowercase + string.digits
        name = "".join(secrets.choice(letters) for _ in range(8))
        channel = Channel(name, message.get("source", "match"), max(1, round(self.limits.kept / self.clock.seconds)))
        self.channels[name] = channel
        self.opening += 1
        opened = asyncio.get_running_loop().run_in_executor(self.opener, self._open, channel, message)
        opened.add_done_callback(lambda done: self._opened(channel, done))
        await asyncio.shield(opened)  # who leaves meanwhile leaves a stream that nobody watches
        viewer.tell(json.dumps({"type": "started", "stream": name, "key": channel.key}))
        self._join(viewer, {"stream": name, "key": channel.key})

    def _opened(self, channel: Channel, done: "asyncio.Future[None]") -> None:
        self.opening -= 1
        if done.cancelled() or done.exception() is not None:
            self.channels.pop(channel.name, None)

    def _open(self, channel: Channel, message: dict[str, Any]) -> None:
        """Open what a stream shows and give it a row; in a thread, because it may take long."""
        shown = partial(self.shown, channel.name)
        feed = self._feed(channel, message, (self.clock, shown, lambda: bool(channel.viewers)))
        channel.feed, channel.title = feed, feed.name
        self.engine.open(channel.name, feed, query=message.get("query") or self.query, seed=secrets.randbits(32))

    def _feed(self, channel: Channel, message: dict[str, Any], rest: Any) -> Feed:
        source = channel.source
        if source == "match":
            if self.new_match is None:
                raise InputError("source", "match", "another source", "this server has no generated games")
            name = f"match:{message['seed']}" if "seed" in message else self.new_match(LARGEST_SEED)
            return OpenedFeed(name, name.replace(":", " "), False, self.schemes, *rest)
        if source == "webcam":
            return CameraFeed(self.limits, *rest)
        if source == "listed":
            number = message.get("number", 0)
            if number >= len(self.sources):
                raise InputError("number", number, f"less than {len(self.sources)}", "choose one of the list")
            title, address = self.sources[number]
            channel.game = scheme_of(address, self.schemes) == "match"
            try:
                return OpenedFeed(address, title, True, self.schemes, *rest)
            except InputError as error:  # names the operator's files
                print(f"{title}: {masked(str(error), address, title)}", file=sys.stderr, flush=True)
                raise InputError("source", "one that does not open", "one that does", "ask whoever runs the server") from None
        if not self.addresses:
            raise InputError("source", "an address", "one of the list", "the server was started without --allow-sources")
        address = message.get("address", "")
        channel.game = scheme_of(address, self.schemes) == "match"
        try:
            return OpenedFeed(address, "address", False, self.schemes, *rest)
        except InputError as error:
            error.args = (masked(str(error), address, "address"),)
            raise

    def _join(self, viewer: Viewer, message: dict[str, Any]) -> None:
        channel = self.channels.get(message.get("stream", ""))
        if channel is None or not channel.title:
            raise InputError("stream", "none of that name", "one of the list", "it may have ended: choose another")
        if len(channel.viewers) >= self.limits.viewers_a_stream and viewer not in channel.viewers:
            raise InputError("join", f"{len(channel.viewers)} viewers", "fewer", "come back later")
        self._leave(viewer)
        viewer.channel, viewer.owner = channel, _same(message.get("key", ""), channel.key)
        channel.viewers.add(viewer)
        if viewer.owner:
            channel.sender = viewer  # who comes back takes over, even while the server still holds the old socket
        missed, cut = channel.since(message.get("after", -1), self.limits.missed)
        told = json.dumps({"type": "joined", **channel.summary(), "owner": viewer.owner, "cut": cut})
        viewer.tell(f'{told[:-1]}, "last": {channel.last}, "missed": [{", ".join(missed)}]}}')
        self.changed.set()

    def _leave(self, viewer: Viewer) -> None:
        channel, viewer.channel, viewer.owner = viewer.channel, None, False
        if channel is not None:
            channel.viewers.discard(viewer)
            channel.alone = time.monotonic()
            if channel.sender is viewer:
                channel.sender = next((one for one in channel.viewers if one.owner), None)
        self.changed.set()

    def _stop(self, viewer: Viewer, key: str) -> None:
        channel = self._watched(viewer)
        present = any(one.owner for one in channel.viewers)
        if present and not _same(key, channel.key):
            raise InputError("stop", "a stream of somebody who is here", "your own", "ask them, or watch another")
        self.engine.end(channel.name, "stopped by its viewer")

    def _camera(self, viewer: Viewer, data: bytes) -> None:
        """A picture to be decoded, in place of one that still waits for it: the newest counts, one at a time a stream."""
        channel = self._watched(viewer)
        if not viewer.owner or not isinstance(channel.feed, CameraFeed):
            raise InputError("picture", "one for another stream", "pictures for your own camera", "start with it first")
        if channel.sender is not viewer:
            raise InputError("picture", "one of a second page", "those of one", "close the other page, or join again")
        channel.feed.check(data)
        channel.waiting = data
        if channel.decoding is None:
            channel.decoding = asyncio.create_task(self._decode(channel, channel.feed, viewer))

    async def _decode(self, channel: Channel, feed: CameraFeed, viewer: Viewer) -> None:
        """Decode what waits, no faster than twice what the model takes."""
        loop = asyncio.get_running_loop()
        try:
            while (data := channel.waiting) is not None and not channel.over:
                began, channel.waiting = loop.time(), None
                try:
                    await loop.run_in_executor(self.decoder, feed.put, data)
                    viewer.mistakes = 0
                except InputError as error:
                    viewer.refuse(error)
                await asyncio.sleep(max(0.0, began + 0.5 / self.clock.fps - loop.time()))
        except RuntimeError:  # the server is stopping: no thread takes anything
            pass
        finally:
            channel.decoding = channel.waiting = None


def _same(given: str, key: str) -> bool:
    return hmac.compare_digest(given.encode(), key.encode())
