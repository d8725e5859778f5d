"""All that only a GPU can tell, in one run of at most ten minutes: the parts below in order, each a process of its own.

A part that fails or runs out of time is told and the next one begins; each writes its JSON when it ends. What there was no time
for is named at the end, to be run with --only.
"""

import argparse
import os
import subprocess
import sys
import time

from svlm_jax.errors import InputError

FAILED = 1  # exit code
_7B = ("stream", "--shape", "7b", "--height", "720", "--width", "1280")
PARTS: dict[str, tuple[str, ...]] = {  # name of the entry in docs/benchmarks -> its command
    "stream_7b": (*_7B, "--seconds", "40", "--torch"),
    "kernels": ("kernels",),
    "stream_7b_int8": (*_7B, "--seconds", "40", "--weights", "int8"),
    "stream_7b_xla": (*_7B, "--seconds", "40", "--attention", "xla"),
    "train_3b": ("train", "--shape", "3b"),
    "stream_7b_16_streams": (*_7B, "--seconds", "40", "--rows", "16"),
    "stream_7b_16_fps": (*_7B, "--seconds", "40", "--fps", "16"),
    "stream_7b_48_fps": ("stream", "--shape", "7b", "--height", "280", "--width", "476", "--seconds", "40", "--fps", "48"),
    "kernels_tilings": ("kernels", "--tilings", "--implementations", "mosaic_gpu"),
    "stream_7b_1000": (*_7B, "--seconds", "1000", "--plot"),
}


def bench(args: argparse.Namespace) -> None:
    names = list(PARTS) if args.only is None else args.only.split(",")
    if unknown := sorted(set(names) - set(PARTS)):
        raise InputError("--only", ", ".join(unknown), f"some of: {', '.join(PARTS)}", "separate them by commas")
    started, left_out = time.monotonic(), []
    # No pool that takes most of the memory at once: torch is measured beside us. Programs are compiled once for all parts.
    cache = str(args.out.resolve().parent / ".jax_cache")
    env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_COMPILATION_CACHE_DIR": cache} | os.environ
    for name in names:
        left = args.budget - (time.monotonic() - started)
        if left < args.least:
            left_out.append(f"{name} (no time)")
            continue
        command = [sys.executable, "-m", "benchmarks", "--out", str(args.out), *PARTS[name], "--name", name]
        print(f"{name}: {' '.join(command[1:])}, at most {left:.0f} s", file=sys.stderr, flush=True)
        try:
            code = subprocess.run(command, env=env, timeout=left).returncode
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            left_out.append(f"{name} ({'out of time' if code is None else f'exit code {code}'})")
    print(f"measured in {time.monotonic() - started:.0f} s: {len(names) - len(left_out)} of {len(names)}", file=sys.stderr)
    if left_out:
        print(f"not measured: {', '.join(left_out)}", file=sys.stderr)
        sys.exit(FAILED)
