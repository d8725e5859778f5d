"""What free places of a batch cost: one viewer of one match, on a server with one place and on one with the default number, in
turns. Units: seconds, milliseconds."""

import asyncio
import signal
import subprocess
import sys
from argparse import Namespace
from typing import Any

import numpy as np

from benchmarks.serve_clients import Client, start_streams, warm_up
from svlm_jax.cli.progress import Progress
from svlm_jax.errors import InputError

ROUNDS = 2
MATCH = (("match", {}),)


async def watch(url: str, seconds: float) -> list[float]:
    """Milliseconds of each step of one stream, once its programs are compiled."""
    [stream] = await start_streams(url, 1, MATCH)
    viewer = Client("page", stream.name, stream.key)
    watching = asyncio.create_task(viewer.watch(url, ("streams", "video", "chunks")))
    await warm_up([viewer])
    first = len(viewer.steps)
    await asyncio.sleep(seconds)
    await stream.stop(url)
    await asyncio.wait_for(watching, 60)
    return viewer.steps[first:]


def measure(places: int | None, model: str, seconds: float) -> list[float]:
    """Steps on a server of its own. places: None: as many as `svlm serve` has by default."""
    flags = [] if places is None else ["--num-streams", str(places)]
    command = [sys.executable, "-m", "svlm_jax.cli", "serve", "--model", model, "--port", "0", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next((line.split()[0] for line in process.stderr if line.startswith("http")), "")
        if not url:
            raise InputError("svlm serve", f"exit code {process.wait()}", "a server", "run it by hand to see why")
        try:
            return asyncio.run(watch(url, seconds))
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)


def compare(args: Namespace) -> list[dict[str, Any]]:
    """A row for each number of places; the last has the ratio of their medians."""
    steps: dict[str, list[float]] = {"1": [], "default": []}
    progress = Progress("servers", "")
    for done in range(2 * ROUNDS):
        progress(done, 2 * ROUNDS)
        name = ("1", "default")[done % 2]
        steps[name] += measure(1 if name == "1" else None, args.model, args.seconds / (2 * ROUNDS))
    rows: list[dict[str, Any]] = [
        {"places": name, "steps": len(times), "step p50 (ms)": round(float(np.median(times)), 1)}
        for name, times in steps.items()
    ]
    rows[-1]["median, of that of one place"] = round(float(np.median(steps["default"]) / np.median(steps["1"])), 2)
    return rows
