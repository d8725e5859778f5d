"""The live page under load: a server process, many viewers, and three bad clients: one sends invalid messages, one sends a
message that is too large, one never reads. With --attack one viewer, and all attacks of `serve_attack`.

Every viewer must receive every caption of its stream, memory must stay flat, and the three must be disconnected without anybody
else noticing. Latency is counted from the last frame of a chunk, by the server; the spread of a caption is the time between its
first and its last viewer.
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

from benchmarks import serve_attack
from benchmarks.report import record
from benchmarks.serve_clients import Watcher, resident_bytes, start_streams
from svlm_jax.cli.flags import integer
from svlm_jax.cli.model_flags import DEFAULT_MODEL
from svlm_jax.cli.progress import Progress
from svlm_jax.errors import InputError


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
        async with connect(url) as socket:
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
    """What happens to a client that joins a stream and never reads. Its receive buffer is small, so that the server soon
    notices."""
    import socket as socket_module

    host, port = url.removeprefix("ws://").removesuffix("/ws").rsplit(":", 1)
    raw = socket_module.socket()
    raw.setsockopt(socket_module.SOL_SOCKET, socket_module.SO_RCVBUF, 16_384)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
    key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
    request = f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n\r\n"
    loop, start = asyncio.get_running_loop(), time.monotonic()
    await loop.sock_sendall(raw, request.encode())
    await loop.sock_recv(raw, 12)  # "HTTP/1.1 101": from here on it may send frames
    data = json.dumps({"type": "join", "stream": stream}).encode()
    await loop.sock_sendall(raw, bytes([0x81, 0x80 | len(data), 0, 0, 0, 0]) + data)  # masked with zeros
    while time.monotonic() < deadline:  # the client cannot notice that it was dropped: that would be reading
        await asyncio.sleep(1.0)
        if await asyncio.to_thread(_count_slow_clients, url):
            raw.close()
            return f"dropped after {time.monotonic() - start:.0f} s"
    raw.close()
    return "still there at the end"


def _count_slow_clients(url: str) -> int:
    """Viewers that the server has disconnected because they were slow."""
    address = url.replace("ws:", "http:").removesuffix("ws") + "metrics"
    with urllib.request.urlopen(address, timeout=10) as response:
        lines = response.read().decode().splitlines()
    return next((int(line.split()[-1]) for line in lines if line.startswith('svlm_refused_total{reason="slow_client"}')), 0)


async def load(url: str, process: int, args: argparse.Namespace) -> dict[str, Any]:
    """Watchers and bad clients at the same time."""
    names, owners = await start_streams(url, args.num_streams)
    progress, deadline = Progress("serve", "s"), time.monotonic() + args.seconds
    watchers = [Watcher() for _ in range(args.clients)]
    tasks = [asyncio.create_task(watcher.watch(url, names[n % len(names)], deadline)) for n, watcher in enumerate(watchers)]
    bad_clients = (send_invalid(url), send_too_much(url), never_read(url, names[0], deadline))
    bad_tasks = [asyncio.create_task(client) for client in bad_clients]
    memory = []
    while (left := deadline - time.monotonic()) > 0:
        memory.append(resident_bytes(process))
        progress(round(args.seconds - left), args.seconds)
        await asyncio.sleep(min(1.0, left))
    await asyncio.gather(*tasks)
    outcomes = await asyncio.gather(*bad_tasks)
    for owner in owners:
        await owner.close()
    return {"watchers": watchers, "memory": memory, "outcomes": outcomes}


def summary(results: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    watchers: list[Watcher] = results["watchers"]
    latencies = np.concatenate([1000 * np.array(watcher.latencies) for watcher in watchers])
    by_stream: dict[str, list[Watcher]] = defaultdict(list)
    for watcher in watchers:
        by_stream[watcher.stream].append(watcher)
    spread = [
        max(times) - min(times)
        for group in by_stream.values()
        for number in set.intersection(*(set(watcher.receive_times) for watcher in group))
        if (times := [watcher.receive_times[number] for watcher in group])
    ]
    counts = [len(watcher.numbers) for watcher in watchers]
    megabytes = [value / 1e6 for value in results["memory"]]
    middle = len(megabytes) // 2
    return {
        "clients": len(watchers),
        "streams": args.num_streams,
        "seconds": args.seconds,
        "captions each": f"{min(counts)}-{max(counts)}",
        "clients that missed a caption": sum(not watcher.is_complete for watcher in watchers),
        "chunks dropped": max(watcher.dropped_chunks for watcher in watchers),
        "frames/s": round(float(np.median([watcher.num_frames for watcher in watchers])) / args.seconds, 1),
        "latency p50/p90/p99 (ms)": "/".join(f"{value:.0f}" for value in np.percentile(latencies, (50, 90, 99))),
        "first to last viewer p99 (ms)": round(1000 * float(np.percentile(spread, 99)), 1),
        "MB/s sent": round(sum(watcher.num_bytes for watcher in watchers) / args.seconds / 1e6, 1),
        "server memory start/middle/end (MB)": "/".join(f"{megabytes[n]:.0f}" for n in (min(5, middle), middle, -1)),
        **dict(zip(("invalid messages", "2 MB message", "never reads"), results["outcomes"], strict=True)),
    }


def bench(args: argparse.Namespace) -> None:
    """Writes docs/benchmarks/serve.json (--attack: serve_attack.json); exit code 1 if a viewer missed a caption."""
    if args.clients < args.num_streams or args.seconds < 10:
        got = f"{args.clients} clients, {args.seconds} s"
        raise InputError("--clients, --seconds", got, "a client for each stream, 10 s or more", "raise them")
    if args.attack:
        serve_attack.check(args.attack)
    flags = ["--model", args.model, "--port", 0, "--num-streams", args.num_streams]
    flags += ["--max-viewers-per-stream", args.clients + 8]
    flags += [] if args.attack else ["--max-viewers-per-address", args.clients + args.num_streams + 8]
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
            run = serve_attack.load if args.attack else load
            results = asyncio.run(run(url.replace("http", "ws") + "ws", process.pid, args))
            with urllib.request.urlopen(url + "health", timeout=10) as response:
                health = json.load(response)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
            reader.join(timeout=10)
    row = (serve_attack.summary if args.attack else summary)(results, args)
    row |= {"exit code": code, "healthy": health["ok"], "lines on stderr": len(stderr_lines)}
    print(json.dumps(row))
    name = Path(args.model).name
    description = (
        f"The live page under load: {name}, matches at 672x448, clients and server on one machine. Latency: from the last "
        "frame of a chunk until its reply; first to last viewer: how much later the last one of a stream got a caption."
    )
    if args.attack:
        description = f"The live page attacked: {name}, a match at 672x448, attackers and server on one machine."
    record(f"{args.name}_attack" if args.attack else args.name, description, [row], args.out)
    if row.get("clients that missed a caption") or row.get("missed a caption"):
        sys.exit(1)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=integer(1), default=50, help="viewers, spread over the streams (default 50)")
    parser.add_argument("--num-streams", type=integer(1), default=4, help="streams (default 4)")
    parser.add_argument("--seconds", type=integer(1), default=120, help="duration (default 120)")
    attack_help = f"one viewer among attackers instead: all, or some of {', '.join(serve_attack.ATTACKS)}"
    parser.add_argument("--attack", nargs="?", const="all", metavar="NAMES", help=attack_help)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="default: the shipped model")
    parser.add_argument("--name", default="serve", help="of the entry in docs/benchmarks (default serve)")
