"""What free places of a batch cost: one viewer of one match on a server with one place, and another of the same match on a
server with the default number, side by side. Units: seconds, milliseconds."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve_clients import Client, Started, start_streams
from svlm_jax.cli.progress import Progress
from svlm_jax.errors import InputError

MATCH = (("match", {}),)
CALM_SECONDS, CALM_SHARE = 5, 0.3  # a server compiles no more when it takes less of one core than that, for so long
MAX_COMPILE_SECONDS = 300


@contextmanager
def server(places: int | None, model: str) -> Iterator[tuple[str, int]]:
    """The address of a server, and its process. places: None: as many as `svlm serve` has by default."""
    flags = [] if places is None else ["--num-streams", str(places)]
    command = [sys.executable, "-m", "svlm_jax.cli", "serve", "--model", model, "--port", "0", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next((line.split()[0] for line in process.stderr if line.startswith("http")), "")
        if not url:
            raise InputError("svlm serve", f"exit code {process.wait()}", "a server", "run it by hand to see why")
        try:
            yield url, process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


async def watch(url: str) -> tuple[Started, Client, "asyncio.Task[None]"]:
    """A stream of the match, and a page that watches it."""
    [stream] = await start_streams(url, 1, MATCH)
    viewer = Client("page", stream.name, stream.key)
    return stream, viewer, asyncio.create_task(viewer.watch(url, ("streams", "video", "chunks")))


async def until_calm(process: int) -> None:
    """Wait until a server has compiled its programs for larger batches, which it does while it serves.

    Raises:
        InputError: it takes too long.
    """
    for _ in range(MAX_COMPILE_SECONDS // CALM_SECONDS):
        before = cpu_seconds(process)
        await asyncio.sleep(CALM_SECONDS)
        if cpu_seconds(process) - before < CALM_SHARE * CALM_SECONDS:
            return
    raise InputError("svlm serve", f"work after {MAX_COMPILE_SECONDS} s", "a server at rest", "see what it does")


def cpu_seconds(process: int) -> float:
    """Of all threads of a process so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def steps_of(servers: dict[str, tuple[str, int]], seconds: float) -> dict[str, dict[int, float]]:
    """Milliseconds of the step of each chunk, by its number, on each server, once no programs are compiled."""
    watching = {}
    for name, (url, _) in servers.items():
        watching[name] = await watch(url)
        await asyncio.sleep(0.5)  # so that their steps fall between each other
    await asyncio.gather(*(until_calm(process) for _, process in servers.values()))
    first = {name: len(viewer.numbers) for name, (_, viewer, _) in watching.items()}
    progress, start = Progress("watched", "s"), time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds:
        progress(int(elapsed), int(seconds))
        await asyncio.sleep(1.0)
    for name, (stream, _, task) in watching.items():
        await stream.stop(servers[name][0])
        await asyncio.wait_for(task, 60)
    numbers = {name: viewer.numbers[first[name] :] for name, (_, viewer, _) in watching.items()}
    return {name: {n: viewer.steps[n] for n in numbers[name] if n in viewer.steps} for name, (_, viewer, _) in watching.items()}


def compare(args: Namespace) -> list[dict[str, Any]]:
    """A row for each server; the last has the ratio of the two, chunk by chunk."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(server(places, args.model)) for name, places in (("1", 1), ("default", None))}
        steps = asyncio.run(steps_of(servers, args.seconds))
    both = sorted(steps["1"].keys() & steps["default"].keys())
    if not both:
        raise InputError("chunks", "none that both servers watched", "the same ones", "see whether they drop chunks")
    rows: list[dict[str, Any]] = [
        {"places": name, "chunks of both": len(both), "step p50 (ms)": round(float(np.median([times[n] for n in both])), 1)}
        for name, times in steps.items()
    ]
    ratios = [steps["default"][n] / steps["1"][n] for n in both]
    rows[-1]["of the step with one place, p50 over chunks"] = round(float(np.median(ratios)), 2)
    return rows
