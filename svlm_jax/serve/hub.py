"""Who watches what: streams with their viewers, captions so far, and who may stop them.

Owns names, keys, histories and grace times. Between the engine (its thread calls `publish`) and sockets (`viewer`); all but
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
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from svlm_jax.errors import InputError
from svlm_jax.serve.engine import Engine
from svlm_jax.serve.feed import CameraFeed, Clock, Feed, MatchFeed, OpenedFeed
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.messages import LARGEST_SEED
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.retained import KINDS
from svlm_jax.serve.viewer import GOING_AWAY, Viewer
from svlm_jax.stream.subtitles import OPENINGS, cue

ANNOUNCED = 0.25  # seconds at least between two lists of streams
PICTURE = struct.Struct("<d")  # before each JPEG: second of the video


class Said(NamedTuple):
    """A caption, or chunks that were dropped, as it is kept."""

    number: int
    start: float
    end: float
    text: str
    question: str
    dropped: int

    def line(self) -> dict[str, Any]:
        if self.dropped:
            told = {"type": "dropped", "number": self.number, "start": self.start, "end": self.end}
            return told | {"chunks": self.dropped}
        told = {"type": "caption", "number": self.number, "start": self.start, "end": self.end}
        return told | {"text": self.text, "question": self.question}


class Channel:
    """A stream as viewers see it."""

    def __init__(self, name: str, source: str, kept: int) -> None:
        self.name, self.source, self.title = name, source, ""
        self.key = secrets.token_urlsafe(16)
        self.feed: Feed | None = None
        self.history: deque[Said] = deque(maxlen=kept)
        self.last: dict[str, Any] | None = None
        self.viewers: set[Viewer] = set()
        self.began = self.alone = time.monotonic()
        self.over, self.ended = "", 0.0

    def summary(self) -> dict[str, Any]:
        seconds = self.history[-1].end if self.history else 0.0
        told = {"stream": self.name, "title": self.title, "source": self.source, "seconds": seconds}
        return told | {"viewers": len(self.viewers), "over": self.over}


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
        query: str = "",
        told: dict[str, Any] | None = None,
    ) -> None:
        """Args:
        sources: (title, what `open_source` opens) of those that clients may choose by number.
        addresses: let clients name sources themselves.
        query: what streams are asked for when the one who starts them says nothing.
        told: more for the page: the name of the model, windows.
        """
        self.clock, self.limits, self.metrics = clock, limits, metrics
        self.sources, self.addresses, self.query, self.told = list(sources), addresses, query, told or {}
        self.channels: dict[str, Channel] = {}
        self.viewers: set[Viewer] = set()
        self.changed = asyncio.Event()

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
        if event["type"] == "caption":
            channel.last = event
        if event["type"] == "ended":
            channel.over, channel.ended = event["reason"], time.monotonic()
            self.changed.set()
        line = json.dumps({**event, "stream": name})
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
        """All captions of a stream that are kept, as WebVTT; None for no stream of that name."""
        channel = self.channels.get(name)
        return None if channel is None else await asyncio.to_thread(self._vtt, list(channel.history))

    def _vtt(self, history: list[Said]) -> str:
        parts = [OPENINGS[".vtt"].decode()]
        if history and history[0].number:
            kept = f"{self.limits.kept / 3600:g} h"
            parts.append(f"NOTE cut: the last {kept} are kept; captions before {history[0].start:.1f} s are not here\n\n")
        parts += [cue(".vtt", 0, one.start, one.end, one.text, {"question": one.question}) for one in history]
        return "".join(parts)

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

    async def hear(self, viewer: Viewer, message: dict[str, Any] | bytes) -> None:
        """A message that a viewer sent.

        Raises:
            InputError: it cannot be done; one line.
        """
        if isinstance(message, bytes):
            await self._camera(viewer, message)
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
        if not self.engine.free:
            got = f"all {self.engine.rows} rows taken"
            raise InputError("start", got, "a free one", "join a running stream, or wait until one ends")
        letters = string.ascii_lowercase + string.digits
        name = "".join(secrets.choice(letters) for _ in range(8))
        channel = Channel(name, message.get("source", "match"), max(1, round(self.limits.kept / self.clock.seconds)))
        self.channels[name] = channel
        await asyncio.to_thread(self._open, channel, message)
        viewer.tell(json.dumps({"type": "started", "stream": name, "key": channel.key}))
        self._join(viewer, {"stream": name, "key": channel.key})

    def _open(self, channel: Channel, message: dict[str, Any]) -> None:
        """Open what a stream shows and give it a row; in a thread, because it may take long."""
        shown, name = partial(self.shown, channel.name), channel.name
        rest = (self.clock, shown, lambda: bool(channel.viewers))
        try:
            feed = self._feed(channel.source, message, rest)
            channel.feed, channel.title = feed, feed.name
            self.engine.open(name, feed, query=message.get("query") or self.query, seed=secrets.randbits(32))
        except BaseException:
            self._soon(self.channels.pop, name, None)
            raise

    def _feed(self, source: str, message: dict[str, Any], rest: Any) -> Feed:
        if source == "match":
            from svlm_jax.world.film import HELD_OUT

            return MatchFeed(message.get("seed", HELD_OUT + secrets.randbelow(LARGEST_SEED - HELD_OUT)), *rest)
        if source == "webcam":
            return CameraFeed(self.limits, *rest)
        if source == "listed":
            number = message.get("number", 0)
            if number >= len(self.sources):
                raise InputError("number", number, f"less than {len(self.sources)}", "choose one of the list")
            title, address = self.sources[number]
            try:
                return OpenedFeed(address, title, True, *rest)
            except InputError as error:  # names the operator's files
                print(f"{title}: {error}", file=sys.stderr, flush=True)
                raise InputError("source", "one that does not open", "one that does", "ask whoever runs the server") from None
        if not self.addresses:
            raise InputError("source", "an address", "one of the list", "the server was started without --allow-sources")
        return OpenedFeed(message.get("address", ""), "address", False, *rest)

    def _join(self, viewer: Viewer, message: dict[str, Any]) -> None:
        channel = self.channels.get(message.get("stream", ""))
        if channel is None or not channel.title:
            raise InputError("stream", "none of that name", "one of the list", "it may have ended: choose another")
        if len(channel.viewers) >= self.limits.viewers_a_stream and viewer not in channel.viewers:
            raise InputError("join", f"{len(channel.viewers)} viewers", "fewer", "come back later")
        self._leave(viewer)
        viewer.channel, viewer.owner = channel, _same(message.get("key", ""), channel.key)
        channel.viewers.add(viewer)
        after = message.get("after", -1)
        missed = [one for one in channel.history if one.number > after]
        told = {
            "type": "joined",
            **channel.summary(),
            "owner": viewer.owner,
            "missed": [one.line() for one in missed[-self.limits.missed :]],
            "cut": len(missed) > self.limits.missed or bool(missed and missed[0].number > after + 1),
            "last": channel.last,
        }
        viewer.tell(json.dumps(told))
        self.changed.set()

    def _leave(self, viewer: Viewer) -> None:
        channel, viewer.channel, viewer.owner = viewer.channel, None, False
        if channel is not None:
            channel.viewers.discard(viewer)
            channel.alone = time.monotonic()
        self.changed.set()

    def _stop(self, viewer: Viewer, key: str) -> None:
        channel = self._watched(viewer)
        present = any(one.owner for one in channel.viewers)
        if present and not _same(key, channel.key):
            raise InputError("stop", "a stream of somebody who is here", "your own", "ask them, or watch another")
        self.engine.end(channel.name, "stopped by its viewer")

    async def _camera(self, viewer: Viewer, data: bytes) -> None:
        channel = self._watched(viewer)
        if not viewer.owner or not isinstance(channel.feed, CameraFeed):
            raise InputError("picture", "one for another stream", "pictures for your own camera", "start with it first")
        await asyncio.to_thread(channel.feed.put, data)


def _same(given: str, key: str) -> bool:
    return hmac.compare_digest(given.encode(), key.encode())
