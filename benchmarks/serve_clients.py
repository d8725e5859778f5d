"""Clients of `svlm serve` for benchmarks: each notes what it was told of one stream. And the streams that they watch: two
played by the server, two whose frames a client sends, each with settings of its own. Units: seconds, bytes."""

import asyncio
import http.client
import io
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from svlm_jax.errors import InputError

REALTIME, SESSIONS = "/v1/realtime", "/v1/streaming/sessions"
NUMBERED = ("svlm.chunk.done", "svlm.chunk.dropped", "svlm.source.lost", "svlm.source.back", "svlm.alert")
WARM_CHUNKS, WARM_SECONDS = 10, 240.0  # chunks in a row on time, after which all programs are compiled; at most
FPS = 2  # frames a second that clients send
Kind = Literal["page", "api", "sse", "rest"]
# How the streams of a server differ: one is started as each line says, in turns.
STREAMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("match", {}),
    ("match", {"silence": 0.3, "vision_window": 8}),
    ("camera", {"temperature": 0, "text_rounds": 8}),  # images without stamps over a socket
    ("rest", {"max_new_tokens": 12, "min_gap": 2}),  # images with stamps over HTTP
)


@dataclass
class Client:
    """What one client was told of a stream.

    kind: "page" is told of every chunk, "api" of replies alone, as OpenAI's clients are; "sse" and "rest" as these routes do.
    key: of the stream's owner, as whom it watches. first: number of the first entry that it must get. numbers: of all entries,
    of a page. captions: number -> words. times: number -> when. latencies: (when, seconds from the chunk's last frame to its
    reply, as the server says). drops: (when, chunks). steps: number -> milliseconds of its step, all stages.
    """

    kind: Kind
    stream: str
    key: str = ""
    first: int = 0
    numbers: list[int] = field(default_factory=list)
    captions: dict[int, str] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    drops: list[tuple[float, int]] = field(default_factory=list)
    steps: dict[int, float] = field(default_factory=dict)
    num_frames: int = 0
    num_bytes: int = 0
    has_ended: bool = False
    error: str = ""

    def take(self, data: str | bytes) -> None:
        """A message of the server."""
        self.num_bytes += len(data)
        if isinstance(data, bytes):
            self.num_frames += 1
        else:
            self.event(json.loads(data))

    def event(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        if kind == "svlm.stream.joined":
            self.first = event["missed"][-1]["number"] + 1 if event["missed"] else 0
        elif kind in NUMBERED and self.kind == "page":
            self._entry(event)
        elif kind == "response.done" and self.kind == "api":
            response = event["response"]
            if response["output"] and response["status"] != "failed":  # the stream's end cuts its last reply off
                self.caption(response["svlm"]["number"], response["output"][0]["content"][0]["text"])
        elif kind == "svlm.caption":
            self.caption(event["number"], event["text"])
        elif kind == "svlm.stream.ended":
            self.has_ended = True

    def _entry(self, event: Mapping[str, Any]) -> None:
        now = time.monotonic()
        self.numbers.append(event["number"])
        self.times[event["number"]] = now
        if event["type"] == "svlm.chunk.done":
            self.caption(event["number"], event["text"])
            self.latencies.append((now, event["latency_seconds"]))
            self.steps[event["number"]] = sum(event["stage_ms"].values())
        if event["type"] == "svlm.chunk.dropped":
            self.drops.append((now, event["chunks"]))

    def caption(self, number: int, text: str) -> None:
        if text.strip():
            self.captions[number] = text.strip()

    async def watch(self, url: str, subscribe: Iterable[str] = ()) -> None:
        """Over a socket, until the stream ends."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed

        try:
            address = f"{websocket(url)}?stream={self.stream}&key={self.key}"
            async with connect(address, max_size=None) as socket:
                if subscribe:
                    await send(socket, "session.update", session={"type": "realtime", "svlm": {"subscribe": [*subscribe]}})
                while not self.has_ended:
                    self.take(await socket.recv())
        except (ConnectionClosed, OSError) as error:
            self.error = str(error) or type(error).__name__

    async def listen(self, url: str) -> None:
        """To server-sent events, from the start of the stream to its end."""
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**20)
        try:
            head = f"GET {SESSIONS}/{self.stream}/events HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n"
            writer.write(head.encode())
            while not self.has_ended:
                line = await reader.readline()
                self.num_bytes += len(line)
                if not line:
                    raise ConnectionError("closed")
                if line.startswith(b"data: "):
                    self.event(json.loads(line[6:]))
        except OSError as error:
            self.error = str(error) or type(error).__name__
        finally:
            writer.transport.abort()


def losses(clients: Iterable[Client]) -> list[str]:
    """Which client was not told what others were told of the same stream, a line each.

    Pages are told of every chunk: their numbers must have no gaps. All others must have the words that the pages have, from
    the chunk on with which they began.
    """
    lines, by_stream = [], defaultdict(list)
    for client in clients:
        by_stream[client.stream].append(client)
    for stream, group in by_stream.items():
        pages = [client for client in group if client.kind == "page" and client.numbers]
        first_number = min((page.numbers[0] for page in pages), default=0)
        last = max((page.numbers[-1] for page in pages), default=-1)
        words: dict[int, str] = {}
        for page in pages:
            words |= page.captions
        for client in group:
            first = max(client.first, first_number)
            end = max(client.captions, default=-1) if client.kind == "rest" else last  # the next response would have the rest
            expected = {number: text for number, text in words.items() if first <= number <= end}
            got = {number: text for number, text in client.captions.items() if number >= first}
            has_gaps = client.kind == "page" and client.numbers != list(range(client.first, last + 1))
            if has_gaps or got != expected or client.error or not client.has_ended:
                differ = sorted(number for number in expected.keys() | got.keys() if expected.get(number) != got.get(number))
                why = client.error or f"chunks {differ[:5]} differ" + (", gaps" if has_gaps else "")
                lines.append(f"{client.kind} of {stream}: {why}" + ("" if client.has_ended else ", no end"))
    return lines


def websocket(url: str) -> str:
    """Of the server's URL."""
    return url.rstrip("/").replace("http", "ws", 1) + REALTIME


async def send(socket: Any, kind: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": kind, **fields}))


async def warm_up(pages: Iterable[Client]) -> None:
    """Wait until every stream has had `WARM_CHUNKS` in a row in time: meanwhile programs of larger batches are compiled."""
    deadline, pages = time.monotonic() + WARM_SECONDS, tuple(pages)

    def is_warm(page: Client) -> bool:
        newest = [latency for _, latency in page.latencies[-WARM_CHUNKS:]]
        return len(newest) == WARM_CHUNKS and max(newest) < 1.0

    while time.monotonic() < deadline and not all(map(is_warm, pages)):
        await asyncio.sleep(1.0)


def call(url: str, method: str, path: str, body: Any = None, key: str = "") -> tuple[int, Any]:
    """Status and JSON of a response. body: bytes, or what is sent as JSON."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    try:
        connection.request(method, path, data, {"X-Session-Key": key})
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null")
    finally:
        connection.close()


def film(seed: int, seconds: int) -> list[bytes]:
    """Frames of a generated match as JPEG, FPS a second."""
    from PIL import Image

    from svlm_jax.touchline.film import Film

    images = []
    for _, picture in zip(range(FPS * seconds), Film(seed).frames(FPS), strict=False):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=85)
        images.append(file.getvalue())
    return images


@dataclass
class Started:
    """A stream that this process started. sender: sends its frames until the stream ends; client: what the sender is told."""

    name: str
    key: str
    sender: "asyncio.Task[None] | None" = None
    client: Client | None = None

    async def stop(self, url: str) -> None:
        await asyncio.to_thread(call, url, "DELETE", f"{SESSIONS}/{self.name}", key=self.key)
        if self.sender is not None:
            await self.sender


async def start_streams(url: str, count: int, kinds: tuple[tuple[str, dict[str, Any]], ...] = STREAMS) -> list[Started]:
    """Start streams with different sources and settings.

    Raises:
        InputError: the server refuses one.
    """
    needs_film = any(kind != "match" for kind, _ in kinds[:count])
    images = await asyncio.to_thread(film, 1_000_100, 60) if needs_film else []
    start: dict[str, Callable[..., Any]] = {"match": _start_match, "camera": _start_camera, "rest": _start_rest}
    started = []
    for number in range(count):
        kind, settings = kinds[number % len(kinds)]
        if number:
            await asyncio.sleep(1.0)  # a client may start one stream a second
        started.append(await start[kind](url, settings, 1_000_000 + number if kind == "match" else images))
    return started


async def _start_match(url: str, settings: dict[str, Any], seed: int) -> Started:
    body = {"source": {"type": "match", "seed": seed}, "svlm": settings}
    session = _checked(*await asyncio.to_thread(call, url, "POST", SESSIONS, body))
    return Started(session["id"], session["key"])


async def _start_camera(url: str, settings: dict[str, Any], images: list[bytes]) -> Started:
    """As a client of OpenAI's API that sends binary frames, and reads the replies from the same socket."""
    from websockets.asyncio.client import connect

    socket = await connect(websocket(url), max_size=None)
    await send(socket, "svlm.stream.start", source={"type": "push"}, svlm=settings)
    while (event := json.loads(await asyncio.wait_for(socket.recv(), 60)))["type"] != "svlm.stream.started":
        if event["type"] == "error":
            _checked(400, event)
    client = Client("api", event["stream"])

    async def work() -> None:
        sending = asyncio.create_task(_send_images(socket, images))
        try:
            while not client.has_ended:
                client.take(await socket.recv())
        finally:
            sending.cancel()
            await socket.close()

    return Started(event["stream"], event["key"], asyncio.create_task(work()), client)


async def _send_images(socket: Any, images: list[bytes]) -> None:
    start = time.monotonic()
    for number in range(10**9):
        await socket.send(images[number % len(images)])
        await asyncio.sleep(max(0.0, start + (number + 1) / FPS - time.monotonic()))


async def _start_rest(url: str, settings: dict[str, Any], images: list[bytes]) -> Started:
    """As a program that posts frames with stamps in real time, and reads the replies from the responses."""
    session = _checked(*await asyncio.to_thread(call, url, "POST", SESSIONS, {"svlm": settings}))
    name, key = session["id"], session["key"]
    client = Client("rest", name)

    async def work() -> None:
        start = time.monotonic()
        for number in range(10**9):
            path = f"{SESSIONS}/{name}/frame?timestamp={number / FPS}"
            status, result = await asyncio.to_thread(call, url, "POST", path, images[number % len(images)], key)
            if status != 200:
                client.error = "" if status == 410 else str(result)
                client.has_ended = True
                return
            for reply in result["replies"]:
                client.caption(reply["number"], reply.get("text", ""))
            await asyncio.sleep(max(0.0, start + (number + 1) / FPS - time.monotonic()))

    return Started(name, key, asyncio.create_task(work()), client)


def _checked(status: int, result: Any) -> Any:
    if status >= 400:
        raise InputError("svlm serve", result["error"]["message"], "a stream", "correct the server")
    return result


def resident_bytes(process: int) -> int:
    """Resident memory of a process (Linux; 0 elsewhere)."""
    path = Path(f"/proc/{process}/status")
    if not path.is_file():
        return 0
    return next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if line.startswith("VmRSS"))
