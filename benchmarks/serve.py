"""`svlm serve` under load: a server process with streams of different sources and settings, first alone, then beside a chat
completion, then with many clients of every kind and three bad ones: one sends invalid messages, one sends a message that is too
large, one never reads. With --attack one viewer, and all attacks of `serve_attack`.

Every client must be told every caption of its stream, memory must stay flat, and the three must be disconnected without anybody
else noticing. Latency is counted from the last frame of a chunk to its reply, by the server. What a token takes from its choice
to a client is measured by `serve_probe`, a process of its own.
"""

import argparse
import asyncio
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks import serve_attack, serve_places
from benchmarks.report import record
from benchmarks.serve_clients import Client, Kind, film, losses, resident_bytes, start_streams, warm_up, websocket
from benchmarks.serve_wire import JOIN, TEXT, Target, frame
from svlm_jax.cli.flags import integer
from svlm_jax.cli.model_flags import DEFAULT_MODEL
from svlm_jax.cli.progress import Progress
from svlm_jax.errors import InputError

CHAT_TOKENS = 64
KINDS: tuple[Kind, ...] = ("page", "api", "page", "sse")  # of clients, in turns


@dataclass
class Phase:
    """A part of the run. chats: (seconds to the first words, to the end, tokens) of completions; memory: bytes, once a second;
    clients: those that came for this part."""

    name: str
    start: float
    end: float = 0.0
    memory: list[int] = field(default_factory=list)
    chats: list[tuple[float, float, int]] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    outcomes: tuple[str, ...] = ()


class Run:
    """One server under load. anchors: a page for each stream, there from its start to its end. owners: clients that send
    frames."""

    def __init__(self, url: str, process: int, args: argparse.Namespace) -> None:
        self.url, self.process, self.args = url, process, args
        self.phases: list[Phase] = []
        self.anchors: list[Client] = []
        self.owners: list[Client] = []
        self.delays: list[tuple[float, float, bool]] = []  # of tokens, as `serve_probe` prints them

    async def measure(self) -> None:
        started = await start_streams(self.url, self.args.num_streams)
        names = [stream.name for stream in started]
        self.anchors = [Client("page", name) for name in names]
        self.owners = [stream.client for stream in started if stream.client is not None]
        watching = [asyncio.create_task(anchor.watch(self.url, ("chunks",))) for anchor in self.anchors]
        command = (sys.executable, "-m", "benchmarks.serve_probe", self.url, *names)
        probe = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert probe.stdout is not None
        probed = asyncio.create_task(probe.stdout.read())  # at once: a pipe that nobody reads fills up
        await warm_up(self.anchors)
        await self._phases(names)
        for stream in started:
            await stream.stop(self.url)
        await asyncio.wait_for(asyncio.gather(*watching, *self.clients), 60)
        self.delays = json.loads(await asyncio.wait_for(probed, 60))

    async def _phases(self, names: list[str]) -> None:
        seconds = self.args.seconds
        async with self._phase("streams alone"):
            await asyncio.sleep(seconds / 4)
        image = film(7, 1)[0]
        async with self._phase("first chat (compiles)") as phase:
            phase.chats.append(await asyncio.to_thread(chat, self.url, image))
        async with self._phase("chats") as phase:
            while time.monotonic() < phase.start + seconds / 4:
                phase.chats.append(await asyncio.to_thread(chat, self.url, image))
        async with self._phase("clients") as phase:
            phase.clients = [Client(KINDS[number % 4], names[number // 4 % len(names)]) for number in range(self.args.clients)]
            self.clients = [asyncio.create_task(_attend(client, self.url)) for client in phase.clients]
            deadline = phase.start + seconds
            bad = asyncio.gather(send_invalid(self.url), send_too_much(self.url), never_read(self.url, names[0], deadline))
            await asyncio.sleep(seconds)
            phase.outcomes = tuple(await bad)

    @asynccontextmanager
    async def _phase(self, name: str) -> AsyncIterator[Phase]:
        phase = Phase(name, time.monotonic())
        self.phases.append(phase)
        progress = Progress(name, "s")

        async def sample() -> None:
            while True:
                phase.memory.append(resident_bytes(self.process))
                progress(round(time.monotonic() - phase.start), self.args.seconds)
                await asyncio.sleep(1.0)

        sampling = asyncio.create_task(sample())
        try:
            yield phase
        finally:
            sampling.cancel()
            phase.end = time.monotonic()

    def rows(self) -> list[dict[str, Any]]:
        """A row for each part of the run."""
        lost = losses([*self.anchors, *self.owners, *(client for phase in self.phases for client in phase.clients)])
        for line in lost:
            print(line, file=sys.stderr)
        rows = [self._row(phase) for phase in self.phases]
        rows[-1] |= self._of_clients(self.phases[-1])
        rows[-1]["clients that missed a caption"] = len(lost)
        return rows

    def _row(self, phase: Phase) -> dict[str, Any]:
        def during(pairs: Iterable[Any]) -> list[Any]:
            return [pair for pair in pairs if phase.start <= pair[0] < phase.end]

        latencies = during(pair for anchor in self.anchors for pair in anchor.latencies)
        drops = during(pair for anchor in self.anchors for pair in anchor.drops)
        delays = during(self.delays)
        row = {
            "part": phase.name,
            "seconds": round(phase.end - phase.start),
            "clients": len(phase.clients) + len(self.anchors),
            "chunks": len(latencies),
            "chunks dropped": sum(chunks for _, chunks in drops),
            "latency p50/p95/p99 (ms)": percentiles([latency for _, latency in latencies]),
            "first token to client p50/p95/p99 (ms)": percentiles([delay for _, delay, first in delays if first], digits=1),
            "later tokens (ms)": percentiles([delay for _, delay, first in delays if not first], digits=1),
            "server memory start/middle/end (MB)": "/".join(
                f"{phase.memory[n] / 1e6:.0f}" for n in (min(5, len(phase.memory) // 2), len(phase.memory) // 2, -1)
            ),
        }
        if phase.chats:
            first, total, tokens = zip(*phase.chats, strict=True)
            row |= {"chats": len(phase.chats), "chat: first words, all (s)": f"{np.median(first):.1f}, {np.median(total):.1f}"}
            row["chat tokens"] = round(float(np.median(tokens)))
        return row

    def _of_clients(self, phase: Phase) -> dict[str, Any]:
        by_stream: dict[str, list[Client]] = defaultdict(list)
        for client in phase.clients:
            if client.kind == "page":
                by_stream[client.stream].append(client)
        spread = [
            max(times) - min(times)
            for group in by_stream.values()
            for number in set.intersection(*(set(client.times) for client in group))
            if (times := [client.times[number] for client in group])
        ]
        frames = [client.num_frames for client in phase.clients if client.kind == "page" and client.num_frames]
        num_bytes = sum(client.num_bytes for client in phase.clients)
        return {
            "first to last page p99 (ms)": round(1000 * float(np.percentile(spread or [0], 99)), 1),
            "frames/s": round(float(np.median(frames or [0])) / (phase.end - phase.start), 1),
            "MB/s sent": round(num_bytes / (phase.end - phase.start) / 1e6, 1),
            **dict(zip(("invalid messages", "2 MB message", "never reads"), phase.outcomes, strict=True)),
        }


def percentiles(seconds: Iterable[float], digits: int = 0) -> str:
    """p50/p95/p99 in ms."""
    values = 1000 * np.array([*seconds])
    return "/".join(f"{value:.{digits}f}" for value in np.percentile(values, (50, 95, 99))) if len(values) else "-"


async def _attend(client: Client, url: str) -> None:
    if client.kind == "sse":
        await client.listen(url)
    else:
        await client.watch(url, ("streams", "video", "chunks") if client.kind == "page" else ())


def chat(url: str, image: bytes) -> tuple[float, float, int]:
    """One streamed chat completion about an image: seconds to its first words and to its end, and its tokens.

    Raises:
        InputError: the server refuses it.
    """
    import base64

    picture = {"url": "data:image/jpeg;base64," + base64.b64encode(image).decode()}
    content = [{"type": "image_url", "image_url": picture}, {"type": "text", "text": "Commentate on this match"}]
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
    try:
        connection.request("GET", "/v1/models")
        model = json.load(connection.getresponse())["data"][0]["id"]
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": CHAT_TOKENS, "stream": True}
        body |= {"stream_options": {"include_usage": True}, "temperature": 1.0}
        start, first, tokens = time.monotonic(), 0.0, 0
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        response = connection.getresponse()
        for line in response:
            if response.status != 200:
                raise InputError("chat", line.decode()[:200], "a completion", "correct the server")
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if not first and any(choice["delta"].get("content") for choice in event["choices"]):
                    first = time.monotonic() - start
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        return first, time.monotonic() - start, tokens
    finally:
        connection.close()


async def send_invalid(url: str) -> str:
    """What happens to a client that sends invalid messages."""
    return await _send_all(url, ["{", "[]", "x"] * 10)


async def send_too_much(url: str) -> str:
    """What happens to a client that sends 2 MB."""
    return await _send_all(url, ["x" * 2_000_000])


async def _send_all(url: str, lines: list[str]) -> str:
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed

    try:
        async with connect(websocket(url)) as socket:
            for line in lines:
                await socket.send(line)
            async with asyncio.timeout(30):
                while True:
                    await socket.recv()
    except ConnectionClosed as error:
        return f"closed with {error.rcvd.code}" if error.rcvd else "dropped"
    except TimeoutError:
        return "still there"


async def never_read(url: str, stream: str, deadline: float) -> str:
    """What happens to a client that watches a stream as a page and never reads. Its receive buffer is small, so that the server
    soon notices."""
    target = Target(url, stream)
    start = time.monotonic()
    _, writer = await target.socket(receive_buffer=16_384)
    subscribe = {"type": "realtime", "svlm": {"subscribe": ["streams", "video", "chunks"]}}
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(frame(TEXT, json.dumps({"type": "session.update", "session": subscribe}).encode()))
    writer.write(frame(TEXT, json.dumps({"type": JOIN, "stream": stream}).encode()))
    try:
        while time.monotonic() < deadline:  # the client cannot notice that it was dropped: that would be reading
            await asyncio.sleep(1.0)
            if await asyncio.to_thread(_count_slow_clients, url):
                return f"dropped after {time.monotonic() - start:.0f} s"
        return "still there at the end"
    finally:
        writer.transport.abort()


def _count_slow_clients(url: str) -> int:
    """Viewers that the server has disconnected because they were slow."""
    with urllib.request.urlopen(url + "metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return next((int(line.split()[-1]) for line in lines if line.startswith('svlm_refused_total{reason="slow_client"}')), 0)


async def load(url: str, process: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    run = Run(url, process, args)
    await run.measure()
    return run.rows()


def bench(args: argparse.Namespace) -> None:
    """Writes docs/benchmarks/serve.json (--attack: serve_attack.json, --places: serve_places.json); exit code 1 if a client
    missed a caption."""
    if args.clients < 4 or args.seconds < 20:
        got = f"{args.clients} clients, {args.seconds} s"
        raise InputError("--clients, --seconds", got, "4 clients, 20 s or more", "raise them")
    if args.places:
        rows = serve_places.compare(args)
        print(json.dumps(rows, indent=1))
        record(f"{args.name}_places", description(args), rows, args.out)
        return
    if args.attack:
        serve_attack.check(args.attack)
    flags = ["--model", args.model, "--port", 0, "--num-streams", args.num_streams]
    if not args.attack:
        flags += ["--max-viewers-per-stream", args.clients + 16, "--max-viewers-per-address", args.clients + 32]
    command = [sys.executable, "-m", "svlm_jax.cli", "serve", *map(str, flags)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next((line.split()[0] for line in process.stderr if line.startswith("http")), "")
        if not url:
            raise InputError("svlm serve", f"exit code {process.wait()}", "a server", "run it by hand to see why")
        stderr_lines: list[str] = []
        reader = threading.Thread(target=lambda: stderr_lines.extend(process.stderr or ()), daemon=True)
        reader.start()
        try:
            rows = asyncio.run((serve_attack.load if args.attack else load)(url, process.pid, args))
            with urllib.request.urlopen(url + "health", timeout=10) as response:
                health = json.load(response)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
            reader.join(timeout=10)
    rows[-1] |= {"exit code": code, "healthy": health["ok"], "lines on stderr": len(stderr_lines)}
    sys.stderr.writelines(stderr_lines[:20])
    print(json.dumps(rows, indent=1))
    name = f"{args.name}_attack" if args.attack else args.name
    record(name, description(args), rows, args.out)
    if rows[-1].get("clients that missed a caption") or rows[-1].get("missed a caption"):
        sys.exit(1)


def description(args: argparse.Namespace) -> str:
    """Of the entry in docs/benchmarks.md."""
    streams = f"{Path(args.model).name}, {args.num_streams} streams at 672x448"
    machine = "Server, clients and attackers share the cores of one machine."
    if args.places:
        return (
            f"A step for one viewer of `svlm serve`, {Path(args.model).name}: with one place, and with the default number. Two "
            "servers side by side, the same chunks of one match, compared chunk by chunk."
        )
    if args.attack:
        return (
            f"`svlm serve` attacked on every route: {streams}, a viewer of one of them. {machine} Before the attacks the other "
            "streams play matches. First 400 half-open connections, 30 who join again and again and 8 who send pings; then, "
            "from 3/8 of the time on, all attackers, who take the places of the other streams."
        )
    return (
        f"`svlm serve` under load: {streams}, with settings of their own: matches, a camera over a socket, frames over HTTP. "
        f"{machine} Half of the clients are pages with video, a quarter OpenAI's realtime clients, a quarter follow "
        "server-sent events. Latency: from the last frame of a chunk to its reply. First token to client: from its choice to "
        "its arrival in a process of its own."
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=integer(1), default=50, help="spread over the streams (default 50)")
    parser.add_argument("--num-streams", type=integer(1), default=4, help="streams (default 4)")
    seconds = "with all clients; without them a quarter of it each alone and beside chats (default 120)"
    parser.add_argument("--seconds", type=integer(1), default=120, help=seconds)
    attack_help = f"one viewer among attackers instead: all, or some of {', '.join(serve_attack.ATTACKS)}"
    parser.add_argument("--attack", nargs="?", const="all", metavar="NAMES", help=attack_help)
    parser.add_argument("--places", action="store_true", help="what free places cost one viewer instead")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="default: the shipped model")
    parser.add_argument("--name", default="serve", help="of the entry in docs/benchmarks (default serve)")
