"""A server in a thread and clients of it, for the tests of the live page. Real sockets on a free port."""

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from svlm_jax import from_pretrained
from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import COMMENTARY
from svlm_jax.inputs import Clip
from svlm_jax.media.processor import Processor
from svlm_jax.media.video import write_video
from svlm_jax.serve.engine.engine import Engine
from svlm_jax.serve.engine.session import session_for
from svlm_jax.serve.http.access import Access
from svlm_jax.serve.http.routes import HttpRoute
from svlm_jax.serve.hub import Hub
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.realtime.client_events import SUBSCRIPTIONS
from svlm_jax.serve.rest.routes import Rest
from svlm_jax.serve.server import Server, listen
from svlm_jax.serve.site import Site
from svlm_jax.serve.sources.catalog import SourceCatalog
from svlm_jax.serve.sources.feed import FeedConfig
from svlm_jax.serve.sources.images import Box
from svlm_jax.stream.session import Session
from svlm_jax.touchline.film import Film
from svlm_jax.touchline.source import SCHEMES, random_match
from tests.support import HANG, wait_until
from tests.support.fake_engine import FEED, Script, fake_engine

BOX = Box(168, 112)
CONFIG = StreamConfig(vision_window=3, text_rounds=3, sink=6, text_window=6, max_new_tokens=4, chunk_seconds=0.5, fps=4)
# No timeout ends on its own what a busy machine is slow with: tests of timeouts advance them.
LIMITS = Limits(
    unwatched_timeout=HANG,
    send_timeout=HANG,
    camera_timeout=HANG,
    max_message_bytes=60_000,
    max_image_bytes=40_000,
    max_invalid_messages=4,
    max_viewers_per_address=12,
)


@lru_cache(1)
def compiled_parts(shallow_dir, processor_dir) -> tuple[Processor, Session, Clip]:
    """What an engine is made of, for two streams at a time. Compiled once for all tests."""
    vlm = from_pretrained(shallow_dir, processor=processor_dir)
    return vlm.processor, *session_for(vlm, CONFIG, BOX, 2, COMMENTARY)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, islice(Film(1, size=(168, 112)).frames(10), 30), 10)
    return path


@pytest.fixture(scope="module")
def compiled(shallow_dir, processor_dir):
    return compiled_parts(shallow_dir, processor_dir)


@pytest.fixture(scope="module")
def server(compiled, film):
    with serving(compiled, film) as server:
        yield server


class ServerThread:
    """A server in a thread, with an engine whose compiled session the others share."""

    def __init__(self, engine: Engine, hub: Hub, access: Access, routes: Sequence[HttpRoute] = ()) -> None:
        self.engine, self.hub = engine, hub
        site = Site(hub, access, [*routes, *Rest(hub, access).routes()])
        self.server = Server(site, listen("127.0.0.1", 0), drain_seconds=HANG)
        self.http = self.server.url.rstrip("/")
        self.address = self.server.bound.getsockname()[:2]
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.run()))
        self.thread.start()

    def wait_until_started(self) -> None:
        wait_until(lambda: self.server.uvicorn.started)

    def get(self, path: str, **headers: str) -> tuple[int, str, dict]:
        try:
            with urllib.request.urlopen(urllib.request.Request(self.http + path, headers=headers), timeout=HANG) as response:
                return response.status, response.read().decode(), dict(response.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), dict(error.headers)

    def metric(self, name: str) -> float:
        return next(float(line.split()[-1]) for line in self.get("/metrics")[1].splitlines() if line.startswith(name + " "))

    @property
    def url(self) -> str:
        return self.http.replace("http", "ws") + "/v1/realtime"

    def viewer(self, subscribe: tuple[str, ...] = SUBSCRIPTIONS, query: str = "", **options) -> "Client":
        """A client that gets every kind of event; subscribe: (): as clients of OpenAI's API are, without more."""
        client = Client(self.url + query, **options)
        if subscribe:
            client.update(subscribe=list(subscribe))
        return client

    def stop(self) -> None:
        self.server.stop()
        self.thread.join(timeout=HANG)
        assert not self.thread.is_alive()


class Client:
    """A client of /v1/realtime; events of other types are passed over."""

    key = ""

    def __init__(self, url: str, **options) -> None:
        self.socket = connect(url, max_size=None, max_queue=None, **options).__enter__()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.__exit__(None, None, None)

    def send(self, kind: str, **fields) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def update(self, **settings) -> None:
        self.send("session.update", session={"type": "realtime", "svlm": settings})

    def ask(self, question: str = "", **response) -> None:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": question}]}
        self.send("response.create", response={"input": [item] if question else [], **response})

    def receive(self, kind: str, seconds: float = HANG, **fields):
        """The next event of a type that has these fields; "frame": the next binary one."""

        def matches(message) -> bool:
            if isinstance(message, bytes):
                return kind == "frame"
            return message["type"] == kind and all(message[name] == value for name, value in fields.items())

        deadline = time.monotonic() + seconds
        while True:
            message = self.socket.recv(timeout=max(0.01, deadline - time.monotonic()))
            message = json.loads(message) if isinstance(message, str) else message
            if matches(message):
                return message

    def chunk(self, **fields) -> dict:
        """The next chunk that was watched, with its caption; it needs the subscription."""
        return self.receive("svlm.chunk.done", **fields)

    def error(self) -> str:
        """The line of the next error."""
        return self.receive("error")["error"]["message"]

    def send_start(self, kind: str = "match", svlm: dict | None = None, **source) -> None:
        self.send("svlm.stream.start", source={"type": kind, **source}, svlm=svlm or {})

    def start(self, kind: str = "match", svlm: dict | None = None, **source) -> str:
        self.send_start(kind, svlm, **source)
        started = self.receive("svlm.stream.started")
        self.key = started["key"]
        assert self.receive("svlm.stream.joined")["is_owner"]
        return started["stream"]

    def join(self, stream: str, **fields) -> dict:
        self.send("svlm.stream.join", stream=stream, **fields)
        return self.receive("svlm.stream.joined")

    def stop(self) -> None:
        self.send("svlm.stream.stop", key=self.key)
        self.receive("svlm.stream.ended")

    def end_reason(self) -> str:
        """Why the stream that was just started has ended: `joined` says so if that was before."""
        return self.receive("svlm.stream.joined")["end_reason"] or self.receive("svlm.stream.ended")["reason"]

    def close_reason(self, seconds: float = HANG) -> tuple[int, str]:
        """Code and reason with which the server closes the socket."""
        deadline = time.monotonic() + seconds
        with pytest.raises(ConnectionClosed) as error:
            while time.monotonic() < deadline:
                self.socket.recv(timeout=max(0.01, deadline - time.monotonic()))
        close = error.value.rcvd
        return (close.code, close.reason) if close else (1006, "")


@contextmanager
def serving_script(
    script: Script, *, limits: Limits = LIMITS, access: Access | None = None, replica: str = "", num_streams: int = 2
):
    """A server whose engine has no model: chunks of 1 s, 2 frames each, are complete when a client has pushed them, and the
    replies are those of the script."""
    hub = Hub(FEED, limits=limits, metrics=Metrics(), default_query="Say what you see", replica=replica)
    with fake_engine(script, num_streams=num_streams, limits=limits, publish=hub.publish) as (engine, _, _):
        hub.attach(engine)
        thread = ServerThread(engine, hub, access or Access())
        try:
            thread.wait_until_started()
            yield thread
        finally:
            thread.stop()


@contextmanager
def serving(compiled, film, *, limits: Limits = LIMITS, access: Access | None = None, allow_addresses: bool = False):
    metrics = Metrics()
    listed = [("film.mp4", str(film)), ("gone.mp4", "/secret/gone.mp4"), ("hosts", "/etc/hosts")]
    catalog = SourceCatalog(listed, allow_addresses=allow_addresses, schemes=SCHEMES, new_match=random_match)
    config = FeedConfig(CONFIG.fps, CONFIG.chunk_seconds, BOX)
    hub = Hub(config, limits=limits, metrics=metrics, catalog=catalog, default_query="Commentate on this match")
    engine = Engine(*compiled, publish=hub.publish, limits=limits, metrics=metrics)
    engine.start()
    hub.attach(engine)
    thread = ServerThread(engine, hub, access or Access())
    try:
        thread.wait_until_started()
        yield thread
    finally:
        thread.stop()
        engine.stop()
