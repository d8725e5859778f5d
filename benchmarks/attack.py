"""The live page attacked: a viewer who only watches, and after a quiet quarter of the time all that clients can do to a server
before and after they are let in.

Each attack comes back whenever it is thrown out. Its family has an address of its own where the system has more than one for
itself (Linux), but for half-open connections, which come from the viewer's. Figures: what the viewer lost, its latency against
the quiet time, how long half-open connections lived, memory of the server. Units: seconds, bytes.
"""

import asyncio
import json
import struct
import sys
import time
import urllib.request
from argparse import Namespace
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import numpy as np

from benchmarks.watchers import Watcher, resident, streams
from svlm_jax.cli.common import Progress
from svlm_jax.errors import InputError

QUIET = 0.25  # of the time: no attack yet
ATTACKS = {  # name of a method of `Attack` -> how many at a time
    "half_open": 400,
    "joiner": 30,
    "pinger": 8,
    "deaf_pinger": 4,
    "flood": 4,
    "fragments": 4,
    "fetcher": 4,
    "deaf_fetcher": 4,
    "silent": 4,
    "camera": 1,
}
HEAD = "GET {} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
UPGRADE = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
KEY = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
GONE = (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def frame(kind: int, data: bytes = b"", *, last: bool = True) -> bytes:
    """A WebSocket frame of a client, masked with zeros."""
    size = bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0xFE]) + struct.pack(">H", len(data))
    size = size if len(data) < 65536 else bytes([0xFF]) + struct.pack(">Q", len(data))
    return bytes([kind | (0x80 if last else 0)]) + size + bytes(4) + data


def scan_bomb(scans: int = 20_400, width: int = 1920, height: int = 1080) -> bytes:
    """A progressive JPEG whose every scan says "nothing changes" of all blocks: 13 bytes that cost a pass over the picture."""

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    tables = segment(0xDB, bytes([0, *[1] * 64]))
    tables += segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0]))
    tables += segment(0xC4, bytes([0x00, 1, *[0] * 15, 0])) + segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0]))
    scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + b"\x7f\xff\x00"
    return b"\xff\xd8" + tables + scan * scans + b"\xff\xd9"


class Attack:
    """All of it against one server. `lives`: seconds that half-open connections were left alone."""

    def __init__(self, url: str, stream: str, until: float) -> None:
        host = url.removeprefix("ws://").removesuffix("/ws")
        self.url, self.stream, self.until = url, stream, until
        self.host, _, port = host.rpartition(":")
        self.port = int(port)
        self.lives: list[float] = []
        self.done: Counter[str] = Counter()
        self.bomb = scan_bomb()[:240_000] + b"\xff\xd9"

    def tasks(self, wanted: str) -> list[asyncio.Task[None]]:
        """wanted: names of attacks with commas, or "all"."""
        made = []
        for number, (name, count) in enumerate(ATTACKS.items()):
            address = f"127.0.0.{10 + number}" if number and sys.platform == "linux" else ""
            if wanted == "all" or name in wanted.split(","):
                made += [asyncio.create_task(self._again(name, getattr(self, name), address)) for _ in range(count)]
        return made

    async def _again(self, name: str, attack: Callable[[str], Awaitable[None]], address: str) -> None:
        while time.monotonic() < self.until:
            with suppress(*GONE):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + self.until - time.monotonic()):
                    self.done[name] += 1
                    await attack(address)
            await asyncio.sleep(1.0)

    async def _open(self, address: str, path: str = "/ws", head: str = UPGRADE + KEY) -> Streams:
        beside: dict[str, Any] = {"local_addr": (address, 0)} if address else {}
        reader, writer = await asyncio.open_connection(self.host, self.port, **beside)
        writer.write((HEAD.format(path) + head).encode())
        return reader, writer

    async def _socket(self, address: str) -> Streams:
        reader, writer = await self._open(address)
        if b" 101 " not in await reader.readuntil(b"\r\n\r\n"):
            writer.transport.abort()
            raise ValueError("refused")
        return reader, writer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while await reader.read(65536):
            pass

    async def _sent(self, streams: Streams, data: bytes, each: float, *, deaf: bool = False) -> None:
        """The same again and again, until thrown out."""
        reader, writer = streams
        hearing = None if deaf else asyncio.create_task(self._read(reader))
        try:
            while not writer.is_closing() and (hearing is None or not hearing.done()):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(each)
        finally:
            if hearing is not None:
                hearing.cancel()
            writer.transport.abort()

    async def half_open(self, address: str) -> None:
        """Half a request, or half a handshake; every third a byte a second more."""
        kind, began = self.done["half_open"] % 3, time.monotonic()
        reader, writer = await self._open(address, head=UPGRADE if kind == 1 else "X-A: ")
        try:
            while time.monotonic() < self.until:
                with suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self._read(reader)
                        return
                if kind == 2:
                    writer.write(b"a")
                    await writer.drain()
        finally:
            self.lives.append(time.monotonic() - began)
            writer.transport.abort()

    async def joiner(self, address: str) -> None:
        message = frame(TEXT, json.dumps({"type": "join", "stream": self.stream}).encode())
        await self._sent(await self._socket(address), message, 1 / 17)

    async def pinger(self, address: str) -> None:
        await self._sent(await self._socket(address), frame(PING, b"x"), 0.02)

    async def deaf_pinger(self, address: str) -> None:
        await self._sent(await self._socket(address), frame(PING, b"x" * 100) * 100, 0.01, deaf=True)

    async def flood(self, address: str) -> None:
        await self._sent(await self._socket(address), frame(TEXT, b'{"type": "leave"}') * 1000, 0.05)

    async def fragments(self, address: str) -> None:
        reader, writer = await self._socket(address)
        writer.write(frame(TEXT, b'"', last=False))
        await self._sent((reader, writer), frame(0, last=False) * 1000, 0.05)

    async def fetcher(self, address: str) -> None:
        reader, writer = await self._open(address, f"/streams/{self.stream}.vtt", "Connection: close\r\n\r\n")
        await self._read(reader)
        writer.close()

    async def deaf_fetcher(self, address: str) -> None:
        request = HEAD.format(f"/streams/{self.stream}.vtt") + "\r\n"
        await self._sent(
            await self._open(address, f"/streams/{self.stream}.vtt", "\r\n"), request.encode() * 20, 0.1, deaf=True
        )

    async def silent(self, address: str) -> None:
        """Let in, and never a word, not even a pong."""
        reader, writer = await self._socket(address)
        await self._read(reader)
        writer.close()

    async def camera(self, address: str) -> None:
        """Who owns a camera's stream, on eight sockets: pictures made to be slow, and ordinary ones, much too fast."""
        reader, writer = await self._socket(address)
        writer.write(frame(TEXT, b'{"type": "start", "source": "webcam"}'))
        found = b""
        while b'"key"' not in found:
            found = (found + await reader.read(65536))[-200_000:]
            if b'"type": "error"' in found:
                writer.transport.abort()
                return
        told = json.loads(b'{"type": "started"' + found.partition(b'{"type": "started"')[2].partition(b"}")[0] + b"}")
        join = frame(TEXT, json.dumps({"type": "join", "stream": told["stream"], "key": told["key"]}).encode())
        pictures = frame(BINARY, self.bomb) + frame(BINARY, scan_bomb(20))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sent((reader, writer), pictures, 1 / 17))
            for _ in range(7):
                reader, writer = await self._socket(address)
                writer.write(join)
                group.create_task(self._sent((reader, writer), pictures, 1 / 17))


async def health(url: str, until: float, delays: list[float]) -> None:
    """How long /health takes to answer, every second."""
    address = url.replace("ws:", "http:").removesuffix("ws") + "health"

    def asked() -> float:
        began = time.monotonic()
        with suppress(OSError), urllib.request.urlopen(address, timeout=10) as answer:
            answer.read()
        return time.monotonic() - began

    while time.monotonic() < until:
        delays.append(await asyncio.to_thread(asked))
        await asyncio.sleep(1.0)


async def load(url: str, process: int, args: Namespace) -> dict[str, Any]:
    """A viewer, first alone, then attacked; what came of it."""
    (name, *_), owners = await streams(url, 1)
    progress, began = Progress("attack", "s"), time.monotonic()
    until, watcher, delays = began + args.seconds, Watcher(), []
    tasks = [asyncio.create_task(watcher.watch(url, name, until)), asyncio.create_task(health(url, until, delays))]
    attack, memory, start = Attack(url, name, until), [], began + QUIET * args.seconds
    attackers: list[asyncio.Task[None]] = []
    while (left := until - time.monotonic()) > 0:
        if not attackers and time.monotonic() >= start:
            attackers, quiet = attack.tasks(args.attack), len(watcher.latencies)
        memory.append((time.monotonic() - began, resident(process)))
        progress(round(args.seconds - left), args.seconds)
        await asyncio.sleep(min(1.0, left))
    await asyncio.gather(*tasks, *attackers, return_exceptions=True)
    for owner in owners:
        await owner.close()
    return {"watcher": watcher, "quiet": quiet, "attack": attack, "memory": memory, "health": delays}


def check(wanted: str) -> None:
    """Raises:
    InputError: an attack that is not known.
    """
    if unknown := set(wanted.split(",")) - {"all", *ATTACKS}:
        raise InputError("--attack", ",".join(sorted(unknown)), f"some of {','.join(ATTACKS)}", "or leave them out: all")


def refusal() -> float:
    """Milliseconds until the bomb is refused (the best of ten, in this process)."""
    from svlm_jax.serve.limits import Limits
    from svlm_jax.serve.pictures import header

    bomb, times = scan_bomb()[:240_000] + b"\xff\xd9", []
    for _ in range(10):
        began = time.perf_counter()
        with suppress(InputError):
            header(bomb, Limits())
        times.append(1000 * (time.perf_counter() - began))
    return min(times)


def summary(found: dict[str, Any], args: Namespace) -> dict[str, Any]:
    watcher, attack, quiet = found["watcher"], found["attack"], found["quiet"]
    late = 1000 * np.array(watcher.latencies)
    since = args.seconds * (QUIET + 0.2 * (1 - QUIET)) if args.seconds < 300 else 120  # minute 2, or as far into a short run

    def megabytes(second: float) -> float:
        near = [size for at, size in found["memory"] if abs(at - second) < 5]
        return float(np.median(near)) / 1e6

    first, last = megabytes(since), megabytes(args.seconds - 3)
    return {
        "seconds": args.seconds,
        "half-open connections made": attack.done["half_open"],
        "longest-lived (s)": round(max(attack.lives, default=0.0), 1),
        "/health, slowest answer (s)": round(max(found["health"]), 2),
        "bomb refused (ms)": round(refusal(), 2),
        "captions of the viewer": len(watcher.numbers),
        "missed": int(not watcher.whole),
        "chunks dropped": watcher.lost,
        "latency p50 quiet/attacked (ms)": f"{np.median(late[:quiet]):.0f}/{np.median(late[quiet:]):.0f}",
        "latency p90 quiet/attacked (ms)": f"{np.percentile(late[:quiet], 90):.0f}/{np.percentile(late[quiet:], 90):.0f}",
        f"memory at {since:.0f} s/end (MB)": f"{first:.0f}/{last:.0f} ({100 * (last / first - 1):+.1f} %)",
        "attacks begun": dict(attack.done),
    }
