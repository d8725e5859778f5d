"""The live page under load: a server process, many viewers, and beside them one that talks garbage, one that sends too much and
one that never reads. With --attack one viewer, and everything that `attack` knows.

Every viewer must get every caption of its stream, memory must stay flat, and the three must go without anybody noticing. Times
are from the last frame (as the server says) and, between viewers of one stream, how much later the last one got a caption.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import attack
from benchmarks.report import record
from benchmarks.watchers import Watcher, resident, streams
from svlm_jax.cli.common import Progress
from svlm_jax.errors import InputError

STARTED = 300.0  # seconds that a server may take to load and compile


async def garbage(url: str) -> str:
    """What becomes of one that talks garbage."""
    return await _closing(url, ["{", "[]", "x"] * 10)


async def huge(url: str) -> str:
    """What becomes of one that sends 2 MB."""
    return await _closing(url, ["x" * 2_000_000])


async def _closing(url: str, lines: list[str]) -> str:
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed

    try:
        async with connect(url) as socket:
            for line in lines:
                await socket.send(line)
            async with asyncio.timeout(30):
                while True:
                    await socket.recv()
    except ConnectionClosed as closed:
        return f"closed with {closed.rcvd.code}" if closed.rcvd else "dropped"
    except TimeoutError:
        return "still there"


async def slow(url: str, stream: str, until: float) -> str:
    """What becomes of one that joins a stream and never reads: its receive buffer is small, so the server sees it soon."""
    import socket as sockets

    host, port = url.removeprefix("ws://").removesuffix("/ws").rsplit(":", 1)
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 16_384)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
    key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
    request = f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n\r\n"
    loop, began = asyncio.get_running_loop(), time.monotonic()
    await loop.sock_sendall(raw, request.encode())
    await loop.sock_recv(raw, 12)  # "HTTP/1.1 101": from here on it may talk
    data = json.dumps({"type": "join", "stream": stream}).encode()
    await loop.sock_sendall(raw, bytes([0x81, 0x80 | len(data), 0, 0, 0, 0]) + data)  # masked with zeros
    while time.monotonic() < until:  # it cannot notice that it was dropped: that would be reading
        await asyncio.sleep(1.0)
        if await asyncio.to_thread(_slow_ones, url):
            raw.close()
            return f"dropped after {time.monotonic() - began:.0f} s"
    raw.close()
    return "still there at the end"


def _slow_ones(url: str) -> int:
    """How many viewers the server has dropped for being slow."""
    address = url.replace("ws:", "http:").removesuffix("ws") + "metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return next((int(line.split()[-1]) for line in lines if line.startswith('svlm_refused_total{reason="slow"}')), 0)


async def load(url: str, process: int, args: argparse.Namespace) -> dict[str, Any]:
    """Everything at once; what came of it."""
    names, owners = await streams(url, args.rows)
    progress, until = Progress("serve", "s"), time.monotonic() + args.seconds
    watchers = [Watcher() for _ in range(args.clients)]
    tasks = [asyncio.create_task(one.watch(url, names[n % len(names)], until)) for n, one in enumerate(watchers)]
    bad = [asyncio.create_task(one) for one in (garbage(url), huge(url), slow(url, names[0], until))]
    memory = []
    while (left := until - time.monotonic()) > 0:
        memory.append(resident(process))
        progress(round(args.seconds - left), args.seconds)
        await asyncio.sleep(min(1.0, left))
    await asyncio.gather(*tasks)
    fates = await asyncio.gather(*bad)
    for owner in owners:
        await owner.close()
    return {"watchers": watchers, "memory": memory, "fates": fates}


def summary(found: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    watchers: list[Watcher] = found["watchers"]
    late = np.concatenate([1000 * np.array(one.latencies) for one in watchers])
    by_stream: dict[str, list[Watcher]] = defaultdict(list)
    for one in watchers:
        by_stream[one.stream].append(one)
    spread = [
        max(times) - min(times)
        for group in by_stream.values()
        for number in set.intersection(*(set(one.came) for one in group))
        if (times := [one.came[number] for one in group])
    ]
    megabytes = [value / 1e6 for value in found["memory"]]
    half = len(megabytes) // 2
    return {
        "clients": len(watchers),
        "streams": args.rows,
        "seconds": args.seconds,
        "captions each": f"{min(len(one.numbers) for one in watchers)}-{max(len(one.numbers) for one in watchers)}",
        "clients that missed one": sum(not one.whole for one in watchers),
        "chunks dropped": max(one.lost for one in watchers),
        "pictures a second": round(float(np.median([one.pictures for one in watchers])) / args.seconds, 1),
        "latency p50/p90/p99 (ms)": "/".join(f"{value:.0f}" for value in np.percentile(late, (50, 90, 99))),
        "first to last viewer p99 (ms)": round(1000 * float(np.percentile(spread, 99)), 1),
        "MB/s sent": round(sum(one.bytes for one in watchers) / args.seconds / 1e6, 1),
        "server memory start/middle/end (MB)": "/".join(f"{megabytes[n]:.0f}" for n in (min(5, half), half, -1)),
        **dict(zip(("garbage", "2 MB message", "never reads"), found["fates"], strict=True)),
    }


def bench(args: argparse.Namespace) -> None:
    """Writes docs/benchmarks/serve.json (--attack: serve_attack.json); exit code 1 when a viewer missed a caption."""
    if args.clients < args.rows or args.seconds < 10:
        got = f"{args.clients} clients, {args.seconds} s"
        raise InputError("--clients, --seconds", got, "a client for each row, 10 s or more", "raise them")
    if args.attack:
        attack.check(args.attack)
    flags = ["--model", args.model, "--rows", args.rows, "--port", 0, "--viewers-a-stream", args.clients + 8]
    flags += [] if args.attack else ["--sockets-an-address", args.clients + args.rows + 8]
    command = [sys.executable, "-m", "svlm_jax.cli", "serve", *map(str, flags)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next((line.split()[0] for line in process.stderr if line.startswith("http")), "")
        if not address:
            raise InputError("svlm serve", f"exit code {process.wait()}", "a server", "run it by hand to see why")
        said: list[str] = []
        listening = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
        listening.start()
        try:
            run = attack.load if args.attack else load
            found = asyncio.run(run(address.replace("http", "ws") + "ws", process.pid, args))
            with urllib.request.urlopen(address + "health", timeout=10) as answer:
                health = json.load(answer)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
            listening.join(timeout=10)
    row = (attack.summary if args.attack else summary)(found, args)
    row |= {"exit code": code, "healthy": health["ok"], "lines on stderr": len(said)}
    print(json.dumps(row))
    name = Path(args.model).name
    what = (
        f"The live page under load: {name}, matches at 672x448, clients and server on one machine. Latency: from the last "
        "frame of a chunk until its reply; first to last viewer: how much later the last one of a stream got a caption."
    )
    if args.attack:
        what = f"The live page attacked: {name}, a match at 672x448, attackers and server on one machine."
    record(f"{args.name}_attack" if args.attack else args.name, what, [row], args.out)
    if row.get("clients that missed one") or row.get("missed"):
        sys.exit(1)
