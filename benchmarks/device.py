"""What needs a GPU, cut into parts of at most four minutes, the most valuable first: one, several, or as many as fit.

    python -m benchmarks device --list
    python -m benchmarks device --part stream                # docs/benchmarks/device_stream.json
    python -m benchmarks device --part stream --shape qwen3-vl-8b    # device_stream_qwen3-vl-8b.json
    python -m benchmarks device --budget 570                 # in order, each that still fits
    python -m benchmarks device --part stream --small        # the same commands at sizes of a CPU: do they run?

Each part runs in its own process and writes its result after each row, so a part that is killed keeps what it has measured. A
part that fails does not stop the next one. All share a compilation cache.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.model_configs import published_config, published_name
from benchmarks.report import DOCS, ROOT
from svlm_jax.cli.flags import number
from svlm_jax.cli.progress import span
from svlm_jax.errors import InputError
from svlm_jax.families import family_of

FAILED = 1  # exit code
LIMIT = 240  # seconds of a part


class Part(NamedTuple):
    """command: arguments of `python -m benchmarks`. small: more of them, after which it takes seconds on a CPU. seconds: on an
    H200 with an empty compilation cache, as far as is known. xla_flags: for the compiler."""

    about: str
    seconds: int
    command: tuple[str, ...]
    small: tuple[str, ...]
    xla_flags: str = ""


_7B = ("stream", "--shape", "7b", "--height", "720", "--width", "1280", "--seconds", "40")
_TINY = ("--shape", "tiny", "--height", "112", "--width", "168", "--seconds", "4")
_STEP = ("--shape", "tiny", "--layers", "1", "--slots", "64")
_TINY_STEP = ("--shape", "tiny", "--tokens", "1024", "--patches", "2304", "--labels", "64")
_DECODE = ("decode", "--shape", "7b")
_HOPPER = "mosaic_gpu,mosaic_gpu_pingpong"
_OTHER_HEADS = "frame qwen3-vl-8b,frame qwen3-vl-2b,prefill qwen3-vl-8b,prefill qwen3-vl-2b,decode 72b"
PARTS: dict[str, Part] = {
    "kernels": Part("attention kernels beside each other, the short list", 90, ("kernels", "--quick"), ("--only", "decode 7b")),
    "stream": Part("7B, 720p: a chunk, its stages, plain torch beside it", 220, (*_7B, "--torch"), _TINY),
    "profile": Part("7B, 720p: kernels by named scope, and how long the device is idle", 150, (*_7B, "--profile"), _TINY),
    "decode": Part("decode steps of four layers of 7B: default, fused, each with its loop in a CUDA graph", 70, _DECODE, _STEP),
    "decode_16": Part("the same of 16 streams", 90, (*_DECODE, "--num-streams", "16"), (*_STEP, "--num-streams", "2")),
    "fused_decode": Part(
        "7B, 720p, with fused kernels of a decode step",
        180,
        (*_7B, "--fused-decode"),
        (*_TINY, "--no-fused-decode"),
    ),
    "decode_graph": Part(
        "7B, 720p, with a whole reply as one CUDA graph",
        180,
        _7B,
        _TINY,
        "--xla_gpu_enable_command_buffer=+WHILE",
    ),
    "pingpong": Part(
        "7B with the attention kernel whose two warpgroups take turns",
        180,
        (*_7B, "--attention", "mosaic_gpu_pingpong"),
        (*_TINY, "--attention", "xla"),
    ),
    "streams_16": Part("16 streams of 720p", 200, (*_7B, "--num-streams", "16"), (*_TINY, "--num-streams", "2")),
    "fps_16": Part("720p at 16 fps", 200, (*_7B, "--fps", "16"), (*_TINY, "--fps", "4")),
    "int8": Part("7B with int8 decoder weights", 180, (*_7B, "--weights", "int8"), _TINY),
    "tilings": Part(
        "prefill and vision attention by tiling",
        220,
        ("kernels", "--tilings", "--only", "prefill 7b in runs,frame 720p,windows 720p", "--implementations", _HOPPER),
        ("--only", "decode 7b", "--implementations", "xla"),
    ),
    "kernels_qwen3": Part(
        "attention kernels of Qwen3-VL: head dims of 64 and 72, groups of 2, 4 and 8",
        150,
        ("kernels", "--only", _OTHER_HEADS, "--implementations", f"{_HOPPER},cudnn_lengths"),
        ("--only", "decode 72b", "--implementations", "xla"),
    ),
    "train": Part("a training step of 3B", 150, ("train", "--shape", "3b"), _TINY_STEP),
    "train_full": Part("the same with full remat", 120, ("train", "--shape", "3b", "--remat", "full"), _TINY_STEP),
    "pixels": Part("frames to patches, host and device side by side", 60, ("pixels",), ("--small",)),
    "host": Part("the host's part of a step, 1 and 16 streams", 60, ("host",), ("--chunks", "2", "--num-streams", "1")),
    "start": Part(
        "seconds to the first caption, with an empty and a filled compilation cache",
        200,
        ("start", "--shape", "7b", "--height", "720", "--width", "1280"),
        _TINY[:6],
    ),
    "resize_host": Part("7B with frames resized on the host", 180, (*_7B, "--resize-on", "host"), _TINY),
    "xla": Part("7B with XLA's attention", 200, (*_7B, "--attention", "xla"), _TINY),
    "long": Part("1,000 chunks of 7B: does anything grow?", 240, (*_7B, "--seconds", "1000", "--plot"), _TINY),
}


def bench(args: argparse.Namespace) -> None:
    if args.list:
        print("\n".join(f"{name:14} {part.seconds:4} s  {part.about}" for name, part in PARTS.items()))
        return
    names = list(PARTS) if args.part is None else args.part.split(",")
    if unknown := sorted(set(names) - set(PARTS)):
        raise InputError("--part", ", ".join(unknown), f"some of: {', '.join(PARTS)}", "separate them by commas")
    if args.shape is not None:
        published_name(args.shape)
        shapeless = [name for name in names if "--shape" not in PARTS[name].command]
        if args.part is not None and shapeless:
            raise InputError("--shape", f"parts {', '.join(shapeless)}", "parts that run a model", "leave them out")
        names = [name for name in names if name not in shapeless]
    env = part_environment(args.compile_cache)
    print(describe_device(env), file=sys.stderr, flush=True)
    started, unmeasured = time.monotonic(), []
    for name in names:
        remaining = args.budget - (time.monotonic() - started)
        reason = "no time" if remaining < PARTS[name].seconds else run_part(name, args, env, min(remaining, LIMIT))
        if reason:
            unmeasured.append(f"{name} ({reason})")
    print(f"measured in {time.monotonic() - started:.0f} s: {len(names) - len(unmeasured)} of {len(names)}", file=sys.stderr)
    if unmeasured:
        print(f"not measured: {', '.join(unmeasured)}", file=sys.stderr)
        sys.exit(FAILED)


def run_part(name: str, args: argparse.Namespace, env: dict[str, str], limit: float) -> str:
    """Why a part was not measured; "" if it was."""
    part = PARTS[name]
    command = part_command(name, args)
    label = name if args.shape is None else f"{name} of {args.shape}"
    about = f"{label}: {part.about}; about {span(part.seconds)} on an H200, at most {limit:.0f} s"
    flags = f"XLA_FLAGS={part.xla_flags} " if part.xla_flags else ""
    print(f"{about}\n  {flags}{shlex.join(['python', *command])}", file=sys.stderr, flush=True)
    if part.xla_flags:
        env = env | {"XLA_FLAGS": f"{env.get('XLA_FLAGS', '')} {part.xla_flags}".strip()}
    try:
        code = subprocess.run([sys.executable, *command], env=env, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return "out of time"
    return f"exit code {code}" if code else ""


def part_command(name: str, args: argparse.Namespace) -> list[str]:
    """Arguments of Python. `args.shape`: the model instead of the part's own, with `args.small` the tiny one of its family."""
    part, entry = PARTS[name], ["device", name]
    flags = [] if args.out == DOCS else ["--out", str(args.out)]
    flags += part.command
    if args.shape is not None:
        flags += ["--shape", args.shape]
        entry.append(args.shape)
    if args.small:
        flags += part.small
        entry.append("small")
        if args.shape is not None:
            flags += ["--shape", f"{family_of(published_config(args.shape)).name.lower()}-tiny"]
    return ["-m", "benchmarks", *flags, "--name", "_".join(entry)]


def part_environment(cache: Path) -> dict[str, str]:
    """Variables of the parts' processes; those that are set already take precedence."""
    return {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # torch needs memory of the same device
        "JAX_COMPILATION_CACHE_DIR": str(cache.resolve()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    } | os.environ


def describe_device(env: dict[str, str]) -> str:
    """Device, versions and commit, from a process of its own: this one keeps off the device."""
    code = "from benchmarks.report import environment_line; print(environment_line())"
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    return (result.stdout or result.stderr).strip().splitlines()[-1]


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="say what the parts are and how long they take")
    parser.add_argument("--part", help=f"some, separated by commas, of {', '.join(PARTS)} (default: all, in this order)")
    parser.add_argument("--shape", help="run the parts with this model instead: qwen3-vl-8b, qwen2-vl-2b ...")
    budget_help = "seconds in all: no part is started that takes longer than what is left (default: no limit)"
    parser.add_argument("--budget", type=number(1), default=float("inf"), metavar="S", help=budget_help)
    parser.add_argument("--small", action="store_true", help="at sizes of a CPU, to see that the commands run")
    cache_help = "compilation cache of the parts (default: .jax_cache of the checkout)"
    parser.add_argument("--compile-cache", type=Path, default=(ROOT or Path()) / ".jax_cache", metavar="DIR", help=cache_help)
