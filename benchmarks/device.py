"""Everything that needs a GPU, in one run of at most ten minutes: the parts below in order, each in its own process.

Each part writes its JSON when it ends. A part that fails or runs out of time does not stop the next one. Parts that were not
measured are listed at the end, to be run with --only.
"""

import argparse
import os
import subprocess
import sys
import time

from svlm_jax.cli.flags import number
from svlm_jax.errors import InputError

FAILED = 1  # exit code
_7B = ("stream", "--shape", "7b", "--height", "720", "--width", "1280")
PARTS: dict[str, tuple[str, ...]] = {  # name of the entry in docs/benchmarks -> its command
    "stream_7b": (*_7B, "--seconds", "40", "--torch"),
    "kernels": ("kernels",),
    "stream_7b_int8": (*_7B, "--seconds", "40", "--weights", "int8"),
    "stream_7b_xla": (*_7B, "--seconds", "40", "--attention", "xla"),
    "train_3b": ("train", "--shape", "3b"),
    "stream_7b_16_streams": (*_7B, "--seconds", "40", "--num-streams", "16"),
    "stream_7b_16_fps": (*_7B, "--seconds", "40", "--fps", "16"),
    "stream_7b_48_fps": ("stream", "--shape", "7b", "--height", "280", "--width", "476", "--seconds", "40", "--fps", "48"),
    "kernels_tilings": ("kernels", "--tilings", "--implementations", "mosaic_gpu"),
    "stream_7b_1000": (*_7B, "--seconds", "1000", "--plot"),
}


def bench(args: argparse.Namespace) -> None:
    names = list(PARTS) if args.only is None else args.only.split(",")
    if unknown := sorted(set(names) - set(PARTS)):
        raise InputError("--only", ", ".join(unknown), f"some of: {', '.join(PARTS)}", "separate them by commas")
    started, unmeasured = time.monotonic(), []
    # Without preallocation, because torch needs memory of the same device. The parts share one compilation cache.
    cache = str(args.out.resolve().parent / ".jax_cache")
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_COMPILATION_CACHE_DIR": cache} | os.environ
    for name in names:
        remaining = args.budget - (time.monotonic() - started)
        if remaining < args.min_seconds:
            unmeasured.append(f"{name} (no time)")
            continue
        command = [sys.executable, "-m", "benchmarks", "--out", str(args.out), *PARTS[name], "--name", name]
        print(f"{name}: {' '.join(command[1:])}, at most {remaining:.0f} s", file=sys.stderr, flush=True)
        try:
            code = subprocess.run(command, env=env, timeout=remaining).returncode
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            unmeasured.append(f"{name} ({'out of time' if code is None else f'exit code {code}'})")
    print(f"measured in {time.monotonic() - started:.0f} s: {len(names) - len(unmeasured)} of {len(names)}", file=sys.stderr)
    if unmeasured:
        print(f"not measured: {', '.join(unmeasured)}", file=sys.stderr)
        sys.exit(FAILED)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", help=f"some, separated by commas, of {', '.join(PARTS)} (default: all, in this order)")
    parser.add_argument("--budget", type=number(1), default=570, metavar="S", help="seconds in all (default 570)")
    start_help = "start no part with fewer seconds left (default 30)"
    parser.add_argument("--min-seconds", type=number(1), default=30, metavar="S", help=start_help)
