"""`svlm serve` attacked: a viewer who only watches, and after a quiet quarter of the time everything that clients can do to a
server, on every route, before and after it accepts them.

Each attack is repeated whenever it is disconnected. Each kind has a client address of its own on Linux, where all of
127.0.0.0/8 is this machine; half-open connections come from the viewer's address. Results: what the viewer lost, its latency
compared with the quiet time, how long half-open connections lived, memory of the server. Units: seconds, bytes.
"""

import asyncio
import sys
import time
import urllib.request
from argparse import Namespace
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks import serve_attack_http, serve_attack_socket
from benchmarks.serve_clients import Client, losses, resident_bytes, start_streams, warm_up
from benchmarks.serve_wire import Target, bomb
from svlm_jax.cli.progress import Progress
from svlm_jax.errors import InputError

QUIET, ALL = 0.25, 0.375  # of the time: before the first attacks start, and before all do
FIRST = ("half_open", "joiner", "pinger")
# How many of each at a time.
SOCKET_ATTACKS = {"half_open": 400, "joiner": 30, "pinger": 8, "deaf_pinger": 4, "flood": 4, "fragments": 4, "silent": 4}
SOCKET_ATTACKS |= {"deaf_page": 4, "deep_json": 4, "asker": 2, "thief": 4, "camera": 1, "stamps": 1}
HTTP_ATTACKS = {"fetcher": 4, "deaf_fetcher": 4, "starter": 2, "poster": 4, "frames": 1, "listener": 8, "deaf_listener": 8}
HTTP_ATTACKS |= {"chatter": 4, "chat_bomb": 2, "parser_bomb": 2}
ATTACKS = {**SOCKET_ATTACKS, **HTTP_ATTACKS}
DISCONNECTED = (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError, IndexError, ExceptionGroup)
MATCH = (("match", {}),)


def _coroutine(name: str) -> Callable[[Target, str], Awaitable[None]]:
    return getattr(serve_attack_socket if name in SOCKET_ATTACKS else serve_attack_http, name)


def start(target: Target, names: Iterable[str]) -> "list[asyncio.Task[None]]":
    """names: of the attacks."""
    tasks = []
    for number, (name, count) in enumerate(ATTACKS.items()):
        address = f"127.0.0.{10 + number}" if number and sys.platform == "linux" else ""
        if name in names:
            tasks += [asyncio.create_task(_repeat(target, name, address)) for _ in range(count)]
    return tasks


async def _repeat(target: Target, name: str, address: str) -> None:
    attack = _coroutine(name)
    while not target.is_over:
        with suppress(*DISCONNECTED):
            async with asyncio.timeout(target.deadline - time.monotonic()):
                target.counts[name] += 1
                await attack(target, address)
        await asyncio.sleep(1.0)


async def measure_health(url: str, deadline: float, delays: list[float]) -> None:
    """Append how long /health takes to answer, every second."""

    def request() -> float:
        start = time.monotonic()
        with suppress(OSError), urllib.request.urlopen(url + "health", timeout=10) as response:
            response.read()
        return time.monotonic() - start

    while time.monotonic() < deadline:
        delays.append(await asyncio.to_thread(request))
        await asyncio.sleep(1.0)


async def load(url: str, process: int, args: Namespace) -> list[dict[str, Any]]:
    """A viewer, first alone, then attacked. Beside its stream others play, until attackers take their places."""
    own, *others = await start_streams(url, args.num_streams, MATCH)
    viewer = Client("page", own.name, own.key)  # once the owner has left, anybody may stop a stream
    watching = asyncio.create_task(viewer.watch(url, ("streams", "video", "chunks")))
    tasks = [asyncio.create_task(Client("api", other.name).watch(url)) for other in others]
    await warm_up([viewer])
    progress, start_time, delays = Progress("attack", "s"), time.monotonic(), []
    deadline = start_time + args.seconds
    target = Target(url, own.name, deadline)
    tasks.append(asyncio.create_task(measure_health(url, deadline, delays)))
    memory: list[tuple[float, int]] = []
    attackers: list[asyncio.Task[None]] = []
    names = set(ATTACKS if args.attack == "all" else args.attack.split(","))
    stages = [(QUIET, names & set(FIRST)), (ALL, names - set(FIRST))] if args.attack == "all" else [(QUIET, names)]
    starts: list[float] = []
    while (left := deadline - time.monotonic()) > 0:
        if len(starts) < len(stages) and left <= (1 - stages[len(starts)][0]) * args.seconds:
            if not starts:
                for other in others:
                    await other.stop(url)
            attackers += start(target, stages[len(starts)][1])
            starts.append(time.monotonic())
        memory.append((time.monotonic() - start_time, resident_bytes(process)))
        progress(round(args.seconds - left), args.seconds)
        await asyncio.sleep(min(1.0, left))
    was_ended = viewer.has_ended
    for attacker in attackers:
        attacker.cancel()
    results = await asyncio.gather(*attackers, *tasks, return_exceptions=True)
    if broken := [result for result in results if isinstance(result, Exception)]:
        raise ExceptionGroup("attacks with a fault of their own", broken)
    await own.stop(url)
    await asyncio.wait_for(watching, 60)
    if was_ended:
        viewer.error = "an attacker has ended the stream"
    return [summary(viewer, target, starts, memory, delays, args)]


def check(attacks: str) -> None:
    """Raises:
    InputError: an attack that is not known.
    """
    if unknown := set(attacks.split(",")) - {"all", *ATTACKS}:
        raise InputError("--attack", ",".join(sorted(unknown)), f"some of {','.join(ATTACKS)}", "or leave them out: all")


def refusal_ms() -> float:
    """Milliseconds until the bomb is refused (the best of ten, in this process)."""
    from svlm_jax.serve.limits import Limits
    from svlm_jax.serve.sources.images import read_header

    data, times = bomb(), []
    for _ in range(10):
        start = time.perf_counter()
        with suppress(InputError):
            read_header(data, Limits())
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


def summary(
    viewer: Client,
    target: Target,
    starts: list[float],
    memory: list[tuple[float, int]],
    health: list[float],
    args: Namespace,
) -> dict[str, Any]:
    all_share = ALL if args.attack == "all" else QUIET
    warm_time = args.seconds * (all_share + 0.2 * (1 - all_share))  # after what the attackers make the server allocate at first

    def megabytes(second: float) -> float:
        nearby = [size for when, size in memory if abs(when - second) < 5]
        return float(np.median(nearby)) / 1e6

    start_time = target.deadline - args.seconds
    times = [start_time, *starts, float("inf")]
    stages = [[1000 * latency for when, latency in viewer.latencies if start <= when < end] for start, end in pairwise(times)]

    def each(percent: int) -> str:
        return "/".join(f"{np.percentile(latencies, percent):.0f}" if latencies else "-" for latencies in stages)

    parts = "quiet/joins and pings/all" if len(starts) > 1 else "quiet/attacked"
    lost = losses([viewer])
    for line in lost:
        print(line, file=sys.stderr)
    statuses: dict[str, dict[int, int]] = defaultdict(dict)
    for (name, status), count in sorted(target.statuses.items()):
        statuses[name][status] = count
    first, last = megabytes(warm_time), megabytes(args.seconds - 3)
    return {
        "seconds": args.seconds,
        "half-open connections": target.counts["half_open"],
        "longest-lived half-open (s)": round(max(target.lifetimes, default=0.0), 1),
        "slowest /health (s)": round(max(health), 2),
        "bomb refused (ms)": round(refusal_ms(), 2),
        "chunks": len(viewer.numbers),
        "missed a caption": len(lost),
        "chunks dropped": sum(chunks for _, chunks in viewer.drops),
        f"latency p50 {parts} (ms)": each(50),
        f"latency p95 {parts} (ms)": each(95),
        f"memory at {warm_time:.0f} s/end (MB)": f"{first:.0f}/{last:.0f} ({100 * (last / first - 1):+.1f} %)",
        "attacks started": dict(target.counts),
        "HTTP answers by status": dict(statuses),
    }
