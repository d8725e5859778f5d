"""The live page attacked: a viewer who only watches, and after a quiet quarter of the time everything that clients can do to a
server, before and after it accepts them.

Each attack is repeated whenever it is disconnected. Each kind has a client address of its own on Linux, where all of
127.0.0.0/8 is this machine; half-open connections come from the viewer's address. Results: what the viewer lost, its latency
compared with the quiet time, how long half-open connections lived, memory of the server. Units: seconds, bytes.
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

from benchmarks.serve_clients import Watcher, resident_bytes, start_streams
from svlm_jax.cli.progress import Progress
from svlm_jax.errors import InputError

QUIET = 0.25  # of the time, before the attacks start
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
DISCONNECTED = (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError)

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def frame(kind: int, data: bytes = b"", *, last: bool = True) -> bytes:
    """A WebSocket frame of a client, masked with zeros."""
    size = bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0xFE]) + struct.pack(">H", len(data))
    size = size if len(data) < 65536 else bytes([0xFF]) + struct.pack(">Q", len(data))
    return bytes([kind | (0x80 if last else 0)]) + size + bytes(4) + data


def scan_bomb(scans: int = 20_400, width: int = 1920, height: int = 1080) -> bytes:
    """A progressive JPEG whose every scan changes no block: 13 bytes that cost a pass over the whole image."""

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    tables = segment(0xDB, bytes([0, *[1] * 64]))
    tables += segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0]))
    tables += segment(0xC4, bytes([0x00, 1, *[0] * 15, 0])) + segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0]))
    scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + b"\x7f\xff\x00"
    return b"\xff\xd8" + tables + scan * scans + b"\xff\xd9"


class Attack:
    """All attacks on one server. lifetimes: seconds that half-open connections stayed open; counts: how often each attack
    started."""

    def __init__(self, url: str, stream: str, deadline: float) -> None:
        host = url.removeprefix("ws://").removesuffix("/ws")
        self.stream, self.deadline = stream, deadline
        self.host, _, port = host.rpartition(":")
        self.port = int(port)
        self.lifetimes: list[float] = []
        self.counts: Counter[str] = Counter()
        self.bomb = scan_bomb()[:240_000] + b"\xff\xd9"

    def start(self, attacks: str) -> list[asyncio.Task[None]]:
        """attacks: names separated by commas, or "all"."""
        tasks = []
        for number, (name, count) in enumerate(ATTACKS.items()):
            address = f"127.0.0.{10 + number}" if number and sys.platform == "linux" else ""
            if attacks == "all" or name in attacks.split(","):
                tasks += [asyncio.create_task(self._repeat(name, getattr(self, name), address)) for _ in range(count)]
        return tasks

    async def _repeat(self, name: str, attack: Callable[[str], Awaitable[None]], address: str) -> None:
        while time.monotonic() < self.deadline:
            with suppress(*DISCONNECTED):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + self.deadline - time.monotonic()):
                    self.counts[name] += 1
                    await attack(address)
            await asyncio.sleep(1.0)

    async def _open(self, address: str, path: str = "/ws", head: str = UPGRADE + KEY) -> Connection:
        options: dict[str, Any] = {"local_addr": (address, 0)} if address else {}
        reader, writer = await asyncio.open_connection(self.host, self.port, **options)
        writer.write((HEAD.format(path) + head).encode())
        return reader, writer

    async def _socket(self, address: str) -> Connection:
        reader, writer = await self._open(address)
        if b" 101 " not in await reader.readuntil(b"\r\n\r\n"):
            writer.transport.abort()
            raise ValueError("refused")
        return reader, writer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while await reader.read(65536):
            pass

    async def _send_repeatedly(self, connection: Connection, data: bytes, interval: float, *, reads: bool = True) -> None:
        """Send the same data until the server disconnects."""
        reader, writer = connection
        reading = asyncio.create_task(self._read(reader)) if reads else None
        try:
            while not writer.is_closing() and (reading is None or not reading.done()):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(interval)
        finally:
            if reading is not None:
                reading.cancel()
            writer.transport.abort()

    async def half_open(self, address: str) -> None:
        """Half a request, or half a handshake; every third one also sends a byte a second."""
        kind, start = self.counts["half_open"] % 3, time.monotonic()
        reader, writer = await self._open(address, head=UPGRADE if kind == 1 else "X-A: ")
        try:
            while time.monotonic() < self.deadline:
                with suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self._read(reader)
                        return
                if kind == 2:
                    writer.write(b"a")
                    await writer.drain()
        finally:
            self.lifetimes.append(time.monotonic() - start)
            writer.transport.abort()

    async def joiner(self, address: str) -> None:
        message = frame(TEXT, json.dumps({"type": "join", "stream": self.stream}).encode())
        await self._send_repeatedly(await self._socket(address), message, 1 / 17)

    async def pinger(self, address: str) -> None:
        await self._send_repeatedly(await self._socket(address), frame(PING, b"x"), 0.02)

    async def deaf_pinger(self, address: str) -> None:
        await self._send_repeatedly(await self._socket(address), frame(PING, b"x" * 100) * 100, 0.01, reads=False)

    async def flood(self, address: str) -> None:
        await self._send_repeatedly(await self._socket(address), frame(TEXT, b'{"type": "leave"}') * 1000, 0.05)

    async def fragments(self, address: str) -> None:
        reader, writer = await self._socket(address)
        writer.write(frame(TEXT, b'"', last=False))
        await self._send_repeatedly((reader, writer), frame(0, last=False) * 1000, 0.05)

    async def fetcher(self, address: str) -> None:
        reader, writer = await self._open(address, f"/streams/{self.stream}.vtt", "Connection: close\r\n\r\n")
        await self._read(reader)
        writer.close()

    async def deaf_fetcher(self, address: str) -> None:
        request = HEAD.format(f"/streams/{self.stream}.vtt") + "\r\n"
        await self._send_repeatedly(
            await self._open(address, f"/streams/{self.stream}.vtt", "\r\n"), request.encode() * 20, 0.1, reads=False
        )

    async def silent(self, address: str) -> None:
        """Accepted by the server, and sends nothing, not even a pong."""
        reader, writer = await self._socket(address)
        await self._read(reader)
        writer.close()

    async def camera(self, address: str) -> None:
        """The owner of a camera stream, on eight sockets: images made to be slow, and ordinary ones, much too fast."""
        reader, writer = await self._socket(address)
        writer.write(frame(TEXT, b'{"type": "start", "source": "camera"}'))
        received = b""
        while b'"key"' not in received:
            received = (received + await reader.read(65536))[-200_000:]
            if b'"type": "error"' in received:
                writer.transport.abort()
                return
        started = json.loads(b'{"type": "started"' + received.partition(b'{"type": "started"')[2].partition(b"}")[0] + b"}")
        join = frame(TEXT, json.dumps({"type": "join", "stream": started["stream"], "key": started["key"]}).encode())
        images = frame(BINARY, self.bomb) + frame(BINARY, scan_bomb(20))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send_repeatedly((reader, writer), images, 1 / 17))
            for _ in range(7):
                reader, writer = await self._socket(address)
                writer.write(join)
                group.create_task(self._send_repeatedly((reader, writer), images, 1 / 17))


async def measure_health(url: str, deadline: float, delays: list[float]) -> None:
    """Append how long /health takes to answer, every second."""
    address = url.replace("ws:", "http:").removesuffix("ws") + "health"

    def request() -> float:
        start = time.monotonic()
        with suppress(OSError), urllib.request.urlopen(address, timeout=10) as response:
            response.read()
        return time.monotonic() - start

    while time.monotonic() < deadline:
        delays.append(await asyncio.to_thread(request))
        await asyncio.sleep(1.0)


async def load(url: str, process: int, args: Namespace) -> dict[str, Any]:
    """A viewer, first alone, then attacked."""
    (name, *_), owners = await start_streams(url, 1)
    progress, start = Progress("attack", "s"), time.monotonic()
    deadline, watcher, delays = start + args.seconds, Watcher(), []
    tasks = [
        asyncio.create_task(watcher.watch(url, name, deadline)),
        asyncio.create_task(measure_health(url, deadline, delays)),
    ]
    attack, memory, attack_start = Attack(url, name, deadline), [], start + QUIET * args.seconds
    attackers: list[asyncio.Task[None]] = []
    while (left := deadline - time.monotonic()) > 0:
        if not attackers and time.monotonic() >= attack_start:
            attackers, num_quiet = attack.start(args.attack), len(watcher.latencies)
        memory.append((time.monotonic() - start, resident_bytes(process)))
        progress(round(args.seconds - left), args.seconds)
        await asyncio.sleep(min(1.0, left))
    await asyncio.gather(*tasks, *attackers, return_exceptions=True)
    for owner in owners:
        await owner.close()
    return {"watcher": watcher, "num_quiet": num_quiet, "attack": attack, "memory": memory, "health": delays}


def check(attacks: str) -> None:
    """Raises:
    InputError: an attack that is not known.
    """
    if unknown := set(attacks.split(",")) - {"all", *ATTACKS}:
        raise InputError("--attack", ",".join(sorted(unknown)), f"some of {','.join(ATTACKS)}", "or leave them out: all")


def refusal_ms() -> float:
    """Milliseconds until the bomb is refused (the best of ten, in this process)."""
    from svlm_jax.serve.client_image import read_header
    from svlm_jax.serve.limits import Limits

    bomb, times = scan_bomb()[:240_000] + b"\xff\xd9", []
    for _ in range(10):
        start = time.perf_counter()
        with suppress(InputError):
            read_header(bomb, Limits())
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


def summary(results: dict[str, Any], args: Namespace) -> dict[str, Any]:
    watcher, attack, num_quiet = results["watcher"], results["attack"], results["num_quiet"]
    latencies = 1000 * np.array(watcher.latencies)
    warm_time = args.seconds * (QUIET + 0.2 * (1 - QUIET)) if args.seconds < 300 else 120  # after the first allocations

    def megabytes(second: float) -> float:
        nearby = [size for when, size in results["memory"] if abs(when - second) < 5]
        return float(np.median(nearby)) / 1e6

    def both(percent: int) -> str:
        quiet, attacked = np.percentile(latencies[:num_quiet], percent), np.percentile(latencies[num_quiet:], percent)
        return f"{quiet:.0f}/{attacked:.0f}"

    first, last = megabytes(warm_time), megabytes(args.seconds - 3)
    return {
        "seconds": args.seconds,
        "half-open connections": attack.counts["half_open"],
        "longest-lived half-open (s)": round(max(attack.lifetimes, default=0.0), 1),
        "slowest /health (s)": round(max(results["health"]), 2),
        "bomb refused (ms)": round(refusal_ms(), 2),
        "captions received": len(watcher.numbers),
        "missed a caption": int(not watcher.is_complete),
        "chunks dropped": watcher.dropped_chunks,
        "latency p50 quiet/attacked (ms)": both(50),
        "latency p90 quiet/attacked (ms)": both(90),
        f"memory at {warm_time:.0f} s/end (MB)": f"{first:.0f}/{last:.0f} ({100 * (last / first - 1):+.1f} %)",
        "attacks started": dict(attack.counts),
    }
