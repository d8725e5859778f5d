"""Seconds from a model to its first caption, with an empty and then a filled compilation cache: each in its own process."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.model_configs import model_config
from benchmarks.report import record
from benchmarks.stream import write_film
from benchmarks.stream_run import StreamRun
from svlm_jax.cli.flags import integer
from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError

FPS = 2


def bench(args: argparse.Namespace) -> None:
    if args.in_this_process:
        print(json.dumps(measure(args.shape, (args.width, args.height))))
        return
    rows = []
    description = (
        f"A session of the {args.shape} shape (random weights) on {args.height}x{args.width} video, from the model to its "
        "first caption, each in its own process: programs are compiled, or read from the cache that the first one filled."
    )
    with tempfile.TemporaryDirectory() as cache:
        for state in ("empty", "filled"):
            rows.append({"compilation cache": state} | _in_subprocess(args, cache))
            print(json.dumps(rows[-1]), flush=True)
            record(args.name, description, rows, args.out)


def measure(shape: str, size: tuple[int, int]) -> dict[str, Any]:
    """A row. size: width and height of the frames."""
    from flax import nnx

    from svlm_jax.model.vlm import QwenVL

    model = QwenVL(model_config(shape, None), nnx.Rngs(0))
    with tempfile.TemporaryDirectory() as directory:
        video = write_film(Path(directory), size, FPS, seconds=2)
        seconds, compiled, cached = StreamRun(model, StreamConfig(fps=FPS), video, num_streams=1).first_chunk
    return {"first caption (s)": round(seconds, 2), "programs compiled": compiled, "programs from the cache": cached}


def _in_subprocess(args: argparse.Namespace, cache: str) -> dict[str, Any]:
    sizes = ("--shape", args.shape, "--height", str(args.height), "--width", str(args.width))
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "benchmarks", "first-chunk", *sizes, "--in-this-process"]
    result = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise InputError(
            "first-chunk", f"exit code {result.returncode}", "a run with --in-this-process", "see its message above"
        )
    return json.loads(result.stdout.splitlines()[-1])


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="mid", help="tiny, mid, 3b, 7b, 32b or 72b (default mid)")
    parser.add_argument("--height", type=integer(1), default=252, help="of frames (default 252)")
    parser.add_argument("--width", type=integer(1), default=448, help="of frames (default 448)")
    parser.add_argument("--name", default="first_chunk", help="of the entry in docs/benchmarks (default first_chunk)")
    parser.add_argument("--in-this-process", action="store_true", help="once, with the cache that jax has; prints JSON")
