"""One line about the work ahead of a benchmark and its duration, printed before it starts.

Durations are those of the runs in docs/benchmarks (2 CPU cores, nothing else running): orders of magnitude elsewhere.
"""

import argparse
import math
from typing import NamedTuple

from benchmarks.device import PARTS
from svlm_jax.cli.progress import span

MACHINE = "2 CPU cores"


class Size(NamedTuple):
    """What is known of the shapes of a size: see `SIZES`."""

    bytes: float
    chunk: float
    compile: float


# By size, of whatever family. bytes: of a checkpoint in bfloat16; chunk, compile: seconds of a streaming step on a CPU, and to
# compile one.
SIZES = {
    "tiny": Size(1e7, 0.03, 10),
    "deep": Size(1e7, 0.5, 30),
    "mid": Size(1e8, 0.75, 30),
    "2b": Size(4.3e9, 40.0, 60),
    "3b": Size(7.5e9, 60.0, 60),
    "4b": Size(8.9e9, 80.0, 60),
    "7b": Size(16.6e9, 130.0, 60),
    "8b": Size(17.5e9, 140.0, 60),
    "32b": Size(67e9, 500.0, 120),
    "72b": Size(147e9, 1200.0, 150),
}


def estimate(args: argparse.Namespace) -> str:
    """The line for parsed flags of `benchmarks`; "" for commands that take seconds or print their own."""
    write_line = _ESTIMATES.get(args.command)
    return write_line(args) if write_line is not None else ""


def _convert(args: argparse.Namespace) -> str:
    size = _size(args.shape).bytes
    disk = f"{3 * size / 1e9:.0f} GB in {args.scratch or 'the temporary directory of the system'}"
    return f"a {args.shape} checkpoint of random weights, converted both ways: {disk}, {_about(size / 30e6)}"


def _aot(args: argparse.Namespace) -> str:
    return f"two programs of {args.shape} compiled for {args.target}, none run: {_about(2 * _size(args.shape).compile)}"


def _stream(args: argparse.Namespace) -> str:
    batch_sizes = args.num_streams.split(",")
    runs = len(args.modes.split(",")) * len(args.fps.split(","))
    streams = sum(int(size) for size in batch_sizes if size.isdigit()) * runs
    seconds = streams * args.seconds * _size(args.shape).chunk * (2 if args.torch else 1)
    seconds += runs * len(batch_sizes) * _size(args.shape).compile
    line = f"{runs * len(batch_sizes)} runs of {args.seconds} s of video through {args.shape}: {_about(seconds)}"
    return f"{line}; minutes on a GPU" if args.shape[-1] == "b" else line


def _kernels(args: argparse.Namespace) -> str:
    if args.target == "h100":
        return f"attention kernels compiled for an H100, none run: {_about(600)}"
    return f"attention kernels at the shapes of 7B: {'a minute' if args.quick else 'minutes'} on a GPU, {_about(1800)}"


def _pixels(args: argparse.Namespace) -> str:
    if args.target == "h100":
        return f"the vision tower of 7B compiled for an H100 twice, none run: {_about(120)}"
    return f"frames to patches on the host and on this device, up to 4K: {_about(10 if args.small else 120)}"


def _train(args: argparse.Namespace) -> str:
    if args.topology:
        seconds = sum(2 * _size(shape).compile for shape in args.shape.split(","))
        return f"a step of {args.shape} compiled for {args.topology}, none run: {_about(seconds)}"
    return f"training steps of {args.shape} on the devices of this machine: minutes on a GPU, hours and much memory on a CPU"


def _serve(args: argparse.Namespace) -> str:
    if args.places:
        return f"a viewer on each of two servers: {_about(args.seconds + 60)}"
    if args.attack:
        return f"a viewer among attackers, {args.num_streams} streams: {_about(args.seconds + 60)}"
    return f"{args.clients} clients of {args.num_streams} streams: {_about(1.5 * args.seconds + 100)}"


def _device(args: argparse.Namespace) -> str:
    if args.list:
        return ""
    names = [name for name in (args.part or ",".join(PARTS)).split(",") if name in PARTS]
    seconds = min(args.budget, sum(PARTS[name].seconds for name in names))
    device_text = (
        "at sizes of a CPU: a few minutes" if args.small else f"about {span(seconds)} on an H200; on a CPU only with --small"
    )
    return f"{len(names)} parts, {device_text}"


def _size(shape: str) -> Size:
    return SIZES.get(shape.rpartition("-")[2], Size(0.0, 1.0, 60))


def _about(seconds: float) -> str:
    return f"about {span(10 * math.ceil(seconds / 10))} on {MACHINE}"


_ESTIMATES = {
    "convert": _convert,
    "aot": _aot,
    "stream": _stream,
    "memory": lambda args: f"shapes of models, nothing run: {_about(30)}",
    "kernels": _kernels,
    "pixels": _pixels,
    "decode": lambda args: f"{args.layers} layers of {args.shape}, 20 tokens: a minute on a GPU, {_about(120)}",
    "start": lambda args: "" if args.child else f"two starts of {args.shape}: {_about(2 * _size(args.shape).compile)}",
    "train": _train,
    "int8": lambda args: f"int8 decoder weights against full ones: {_about(60)}",
    "serve": _serve,
    "device": _device,
    "silence": lambda args: f"{args.games} games of {args.seconds} s, 12 streams: {_about(0.6 * args.games * args.seconds)}",
    "drops": lambda args: f"{args.games} games of {args.seconds} s, 6 times each: {_about(0.4 * args.games * args.seconds)}",
    "torch": lambda args: f"one chunk of {args.shape} in plain torch: {_about(30 + 10 * _size(args.shape).chunk)}",
}
