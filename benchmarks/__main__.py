"""Measure, and keep the numbers:

    python -m benchmarks convert --shape 7b --scratch /data/tmp     # a checkpoint of random weights, both ways: time, memory
    python -m benchmarks aot --shape 7b [--target h100]             # compiled ahead of time: flops, bytes, copies
    python -m benchmarks stream --shape mid --seconds 60            # the engine: latency by stage, slots and memory
    python -m benchmarks kernels [--target h100]                    # attention at real shapes: time, bandwidth, error
    python -m benchmarks train --shape 3b                           # a training step: time, MFU; --topology h100x8: memory
    python -m benchmarks int8 [--model DIR]                         # decoder weights in 8 bits: error of the logits
    python -m benchmarks replies windows.jsonl                      # what a model says of annotated windows, right or not
    python -m benchmarks drops                                      # what dropped chunks do to a commentary
    python -m benchmarks findings                                   # the paper's findings on the generated game
    python -m benchmarks serve --clients 50 --seconds 120           # the live page: captions lost, latency, memory
    python -m benchmarks serve --attack --num-streams 2 --seconds 600      # the same for one viewer among attackers
    python -m benchmarks device                                     # all that waits for a GPU, in at most ten minutes
    python -m benchmarks table                                      # docs/benchmarks.md from docs/benchmarks/*.json

Each says first what it is about to do and how long that takes. It writes docs/benchmarks/NAME.json with its command, device and
versions, and the table anew; --out DIR before the name: elsewhere.
"""

import sys
from pathlib import Path
from typing import get_args

from benchmarks import aot, convert, device, drops, findings, int8, kernels, replies, serve, stream, torch_rival, train
from benchmarks.plans import plan
from benchmarks.report import DOCS, table
from svlm_jax.cli.flags import Parser, integer, number
from svlm_jax.cli.model_flags import DEFAULT_MODEL, check_attention
from svlm_jax.cli.run import run
from svlm_jax.config import Attention, Remat, Weights
from svlm_jax.errors import InputError
from svlm_jax.files import local_path


def parser() -> Parser:
    made = Parser(prog="python -m benchmarks", description=__doc__)
    made.add_argument(
        "--out", type=Path, default=DOCS, help="where benchmarks/ and benchmarks.md go (default: docs of the checkout)"
    )
    commands = made.add_subparsers(dest="command", required=True)
    conversion = commands.add_parser("convert", help="checkpoint conversion: time and memory")
    conversion.add_argument("--shape", default="7b", help="3b, 7b, 32b or 72b")
    conversion.add_argument("--scratch", type=Path, help="directory with room for three checkpoints (default: the system's)")
    conversion.set_defaults(run=convert.bench)
    compiling = commands.add_parser("aot", help="compile prefill and decode ahead of time")
    compiling.add_argument("--shape", default="7b")
    compiling.add_argument("--target", choices=("cpu", "h100"), default="cpu", help="h100 needs no GPU (default cpu)")
    compiling.add_argument("--weights", choices=get_args(Weights), default="full")
    compiling.add_argument("--attention", choices=get_args(Attention), default="auto", help="default: what suits the target")
    compiling.add_argument("--tokens", type=integer(1), default=1024, help="prompt bucket")
    compiling.add_argument("--patches", type=integer(1), default=4096, help="vision bucket")
    compiling.add_argument("--slots", type=integer(1), default=16384, help="cache capacity")
    compiling.set_defaults(run=aot.bench)
    attention = commands.add_parser("kernels", help="attention kernels at real shapes")
    attention.add_argument("--implementations", default="xla,cudnn,mosaic_gpu", help="default: xla,cudnn,mosaic_gpu")
    attention.add_argument("--name", default="kernels", help="of the entry in docs/benchmarks (default kernels)")
    attention.add_argument("--only", help="names of shapes, with commas (default: all)")
    attention.add_argument("--tilings", action="store_true", help="also try other ways to cut the work (mosaic_gpu)")
    attention.add_argument("--target", choices=("here", "h100"), default="here", help="h100: compile only, needs no GPU")
    attention.set_defaults(run=kernels.bench)
    streaming = commands.add_parser("stream", help="the streaming engine against stream time")
    streaming.add_argument("--shape", default="mid", help="tiny, mid, 3b, 7b, 32b or 72b (default mid: 42 M parameters)")
    streaming.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, else bfloat16")
    streaming.add_argument("--weights", choices=get_args(Weights), default="full")
    streaming.add_argument("--attention", choices=get_args(Attention), default="auto")
    streaming.add_argument("--torch", action="store_true", help="plain torch beside it, on the same device: ratios")
    streaming.add_argument("--modes", default="streaming", help="some of full,window,recompute,streaming")
    streaming.add_argument("--fps", default="2", help="frames a second; several with commas")
    streaming.add_argument("--rows", default="1", help="streams at a time; several with commas")
    streaming.add_argument("--seconds", type=integer(1), default=60, help="of video (default 60)")
    streaming.add_argument("--height", type=integer(1), default=252)
    streaming.add_argument("--width", type=integer(1), default=448)
    streaming.add_argument("--name", default="stream", help="of the entry in docs/benchmarks (default stream)")
    streaming.add_argument("--plot", action="store_true", help="draw latency and slots against stream time")
    streaming.set_defaults(run=stream.bench)
    training = commands.add_parser("train", help="a training step: time and MFU, or memory ahead of time")
    training.add_argument("--shape", default="3b", help="tiny, mid, 3b, 7b or 72b; with --topology several with commas")
    training.add_argument("--topology", help="h100x8, v5p-64 ...: memory of devices that are not there")
    training.add_argument("--tokens", type=integer(1), default=20480, help="of a sequence")
    training.add_argument("--patches", type=integer(1), default=69120, help="of a sequence (default: 24 s of 720p)")
    training.add_argument("--labels", type=integer(1), default=1024, help="learned tokens of a sequence")
    training.add_argument("--rows", type=integer(1), default=1, help="sequences of a step, over all devices")
    training.add_argument("--tensor", type=integer(1), default=1, help="devices that share a head's work (with --topology)")
    training.add_argument("--remat", choices=get_args(Remat), default="full")
    training.add_argument("--attention", choices=get_args(Attention), default="auto")
    training.add_argument("--name", help="of the entry in docs/benchmarks")
    training.set_defaults(run=train.bench)
    eighth = commands.add_parser("int8", help="decoder weights in 8 bits: error of the logits")
    eighth.add_argument("--shape", default="mid", help="of random weights")
    eighth.add_argument("--model", help="a checkpoint directory or hub id instead")
    eighth.add_argument("--dtype", choices=("float32", "bfloat16"))
    eighth.set_defaults(run=int8.bench)
    page = commands.add_parser("serve", help="the live page under load")
    page.add_argument("--clients", type=integer(1), default=50, help="viewers, spread over the streams (default 50)")
    page.add_argument("--num-streams", type=integer(1), default=4, help="streams (default 4)")
    page.add_argument("--seconds", type=integer(1), default=120, help="default 120")
    attack_help = f"one viewer among attackers instead: all, or some of {','.join(serve.attack.ATTACKS)}"
    page.add_argument("--attack", nargs="?", const="all", metavar="NAMES", help=attack_help)
    page.add_argument("--model", default=DEFAULT_MODEL, help="default: the shipped one")
    page.add_argument("--name", default="serve", help="of the entry in docs/benchmarks (default serve)")
    page.set_defaults(run=serve.bench)
    everything = commands.add_parser("device", help="all that waits for a GPU, in at most ten minutes")
    everything.add_argument("--only", help=f"some of {','.join(device.PARTS)} (default: all, in this order)")
    everything.add_argument("--budget", type=number(1), default=570, metavar="S", help="seconds in all (default 570)")
    everything.add_argument("--least", type=number(1), default=30, metavar="S", help="start no part with less left (30)")
    everything.set_defaults(run=device.bench)
    rival = commands.add_parser("torch", help="one chunk in plain torch (what `stream --torch` runs); prints JSON")
    rival.add_argument("--shape", default="mid")
    rival.add_argument("--dtype", choices=("float32", "bfloat16"))
    rival.add_argument("--grid", default="1,50,72", help="of the frames, in patches: T,H,W")
    rival.add_argument("--tokens", type=integer(1), default=784, help="new ones of a chunk")
    rival.add_argument("--slots", type=integer(1), default=14336)
    rival.add_argument("--reply", type=integer(1), default=20, help="tokens")
    rival.set_defaults(run=torch_rival.bench)
    drops.flags(commands.add_parser("drops", help="what dropped chunks do to a commentary"))
    replies.flags(commands.add_parser("replies", help="what a model says of annotated windows, right or not"))
    findings.flags(commands.add_parser("findings", help="the paper's findings on the generated game"))
    commands.add_parser("table", help="write benchmarks.md anew").set_defaults(run=lambda args: table(args.out))
    return made


def main() -> None:
    args = parser().parse_args()
    for name in {"out", "scratch"} & {name for name, value in vars(args).items() if value is not None}:
        local_path(getattr(args, name), f"--{name}")
    if args.out is None and args.command != "torch":  # which prints alone
        raise InputError("--out", "nothing, outside a checkout", "a folder for the results", "say benchmarks --out DIR ...")
    if "attention" in args and getattr(args, "target", "") != "h100" and not getattr(args, "topology", None):
        check_attention(args.attention)
    if line := plan(args):
        print(line, file=sys.stderr, flush=True)
    args.run(args)


if __name__ == "__main__":
    run(main)
