"""What a benchmark is about to do and how long that takes, said before it begins.

Times are those of the runs in docs/benchmarks (2 CPU cores, nothing beside them), so orders of magnitude elsewhere.
"""

import argparse
import math

from svlm_jax.cli.progress import span

HERE = "2 CPU cores"
BYTES = {"tiny": 1e7, "mid": 1e8, "3b": 7.5e9, "7b": 16.6e9, "32b": 67e9, "72b": 147e9}  # of a checkpoint in bfloat16
CHUNK = {"tiny": 0.03, "mid": 0.75, "3b": 60.0, "7b": 130.0, "32b": 500.0, "72b": 1200.0}  # seconds a chunk on a CPU
COMPILING = {"tiny": 10, "mid": 30, "3b": 60, "7b": 60, "32b": 120, "72b": 150}  # seconds to compile a stream or a step


def plan(args: argparse.Namespace) -> str:
    """One line for the flags of `benchmarks`, or "" for what takes seconds or says so itself."""
    made = _PLANS.get(args.command)
    return made(args) if made is not None else ""


def _convert(args: argparse.Namespace) -> str:
    size = BYTES.get(args.shape, 0.0)
    where = args.scratch or "the system's temporary directory"
    room = f"{3 * size / 1e9:.0f} GB in {where}"
    return f"a {args.shape} checkpoint of random weights, there and back: {room}, {_about(size / 30e6)}"


def _aot(args: argparse.Namespace) -> str:
    return f"two programs of {args.shape} compiled for {args.target}, none run: {_about(2 * COMPILING.get(args.shape, 60))}"


def _stream(args: argparse.Namespace) -> str:
    runs = len(args.modes.split(",")) * len(args.fps.split(","))
    streams = sum(int(one) for one in args.rows.split(",") if one.isdigit()) * runs
    seconds = streams * args.seconds * CHUNK.get(args.shape, 1.0) * (2 if args.torch else 1)
    seconds += runs * len(args.rows.split(",")) * COMPILING.get(args.shape, 60)
    what = f"{runs * len(args.rows.split(','))} runs of {args.seconds} s of video through {args.shape}"
    return f"{what}: {_about(seconds)}; minutes on a GPU" if args.shape[-1] == "b" else f"{what}: {_about(seconds)}"


def _kernels(args: argparse.Namespace) -> str:
    if args.target == "h100":
        return f"attention kernels compiled for an H100, none run: {_about(240)}"
    return f"attention kernels at the shapes of 7B, made for a GPU: minutes there, {_about(1800)}"


def _train(args: argparse.Namespace) -> str:
    shapes = args.shape.split(",")
    if args.topology:
        seconds = sum(2 * COMPILING.get(shape, 60) for shape in shapes)
        return f"a step of {args.shape} compiled for {args.topology}, none run: {_about(seconds)}"
    return f"training steps of {args.shape} on the devices of this machine: minutes on a GPU, hours and much memory on a CPU"


def _serve(args: argparse.Namespace) -> str:
    return f"{args.clients} viewers of {args.num_streams} streams: {_about(args.seconds + 60)}"


def _device(args: argparse.Namespace) -> str:
    return f"all that waits for a GPU, at most {span(args.budget)}; on a CPU most of it runs out of time"


def _about(seconds: float) -> str:
    return f"about {span(10 * math.ceil(seconds / 10))} on {HERE}"


_PLANS = {
    "convert": _convert,
    "aot": _aot,
    "stream": _stream,
    "kernels": _kernels,
    "train": _train,
    "int8": lambda args: f"decoder weights in 8 bits against full ones: {_about(60)}",
    "serve": _serve,
    "device": _device,
    "drops": lambda args: f"{args.games} games of {args.seconds} s, 6 times each: {_about(0.4 * args.games * args.seconds)}",
    "torch": lambda args: f"one chunk of {args.shape} in plain torch: {_about(30 + 10 * CHUNK.get(args.shape, 1.0))}",
}
