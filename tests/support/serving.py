"""A server in a thread and viewers of it, for the tests of the live page. Real sockets on a free port."""

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from svlm_jax import from_pretrained
from svlm_jax.config import StreamConfig
from svlm_jax.media.video import write_video
from svlm_jax.serve.access import Access
from svlm_jax.serve.engine import Engine
from svlm_jax.serve.feed import Box, Clock
from svlm_jax.serve.hub import Hub
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.web import Serving, Site, listen
from svlm_jax.touchline.film import Film
from svlm_jax.touchline.source import SCHEMES, random_match

BOX = Box(168, 112)
CONFIG = StreamConfig(vision_window=3, text_rounds=3, sink=6, text_window=6, max_new_tokens=4, chunk_seconds=0.5, fps=4)
HANG = 120.0  # seconds after which a test has hung; none waits for them
# Times that run out by the clock are long beside what a busy machine takes for what must come before.
LIMITS = Limits(grace=6.0, slow=1.0, camera_silence=6.0, message_bytes=60_000, mistakes=4, sockets_an_address=12)


@lru_cache(1)
def engine_of(tiny_dir, processor_dir) -> Engine:
    """Two rows. Compiled once: its session is moved from engine to engine."""
    vlm = from_pretrained(tiny_dir, processor=processor_dir)
    return Engine(vlm, CONFIG, BOX, rows=2, publish=lambda name, event: None, limits=LIMITS)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, islice(Film(1, size=(168, 112)).pictures(10), 30), 10)
    return path


@pytest.fixture(scope="module")
def compiled(tiny_dir, processor_dir):
    return engine_of(tiny_dir, processor_dir)


@pytest.fixture(scope="module")
def server(compiled, film):
    with serving(compiled, film) as one:
        yield one


class Server:
    """A server in a thread, with an engine whose compiled session the others share."""

    def __init__(self, engine: Engine, hub: Hub, access: Access) -> None:
        self.engine, self.hub = engine, hub
        self.serving = Serving(Site(hub, access), listen("127.0.0.1", 0))
        self.http = self.serving.address.rstrip("/")
        self.thread = threading.Thread(target=lambda: asyncio.run(self.serving.run()))
        self.thread.start()

    def get(self, path: str, **headers: str) -> tuple[int, str, dict]:
        try:
            with urllib.request.urlopen(urllib.request.Request(self.http + path, headers=headers), timeout=HANG) as answer:
                return answer.status, answer.read().decode(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), dict(error.headers)

    def metric(self, name: str) -> float:
        return next(float(line.split()[-1]) for line in self.get("/metrics")[1].splitlines() if line.startswith(name + " "))

    def viewer(self, **options) -> "Client":
        return Client(self.http.replace("http", "ws") + "/ws", **options)

    def stop(self) -> None:
        self.serving.stop()
        self.thread.join(timeout=20)
        assert not self.thread.is_alive()


class Client:
    """A viewer; messages of other types are passed over."""

    def __init__(self, url: str, **options) -> None:
        self.socket = connect(url, max_size=None, max_queue=None, **options).__enter__()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.__exit__(None, None, None)

    def say(self, kind: str, **fields) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def hear(self, kind: str, seconds: float = HANG, **fields):
        """The next message of a type (b"": a picture) with those fields."""
        wanted = (
            (lambda m: isinstance(m, bytes))
            if kind == "picture"
            else (
                lambda m: isinstance(m, dict) and m["type"] == kind and all(m[name] == value for name, value in fields.items())
            )
        )
        until = time.monotonic() + seconds
        while True:
            message = self.socket.recv(timeout=max(0.01, until - time.monotonic()))
            message = json.loads(message) if isinstance(message, str) else message
            if wanted(message):
                return message

    def start(self, **fields) -> str:
        self.say("start", **fields)
        told = self.hear("started")
        self.key = told["key"]
        assert self.hear("joined")["owner"]
        return told["stream"]

    def stop(self) -> None:
        self.say("stop", key=self.key)
        self.hear("ended")

    def ending(self) -> str:
        """Why the stream that was just started has ended: `joined` says so when that was before."""
        return self.hear("joined")["over"] or self.hear("ended")["reason"]

    def closed(self, seconds: float = HANG) -> tuple[int, str]:
        until = time.monotonic() + seconds
        with pytest.raises(ConnectionClosed) as error:
            while time.monotonic() < until:
                self.socket.recv(timeout=max(0.01, until - time.monotonic()))
        received = error.value.rcvd
        return (received.code, received.reason) if received else (1006, "")


@contextmanager
def serving(compiled, film, *, limits: Limits = LIMITS, access: Access | None = None, **options):
    metrics = Metrics()
    hub = Hub(
        Clock(CONFIG.fps, CONFIG.chunk_seconds, BOX),
        limits=limits,
        metrics=metrics,
        sources=[("film.mp4", str(film)), ("gone.mp4", "/secret/gone.mp4"), ("hosts", "/etc/hosts")],
        query="Commentate on this match",
        schemes=SCHEMES,
        new_match=random_match,
        **options,
    )
    engine = object.__new__(Engine)
    engine.__dict__.update(compiled.__dict__)
    engine.publish, engine.limits, engine.metrics = hub.publish, limits, metrics
    engine.changed, engine.running, engine.seated = threading.Condition(), {}, [None] * engine.rows
    engine.state, engine.stopping, engine.error = engine.session.start(), False, ""
    engine.thread = threading.Thread(target=engine._run, daemon=True)
    engine.start()
    hub.engine = engine
    server = Server(engine, hub, access or Access())
    try:
        until = time.monotonic() + HANG
        while not server.serving.server.started:
            assert time.monotonic() < until
            time.sleep(0.01)
        yield server
    finally:
        server.stop()
        engine.stop()
