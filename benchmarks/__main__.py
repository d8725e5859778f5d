"""Run a benchmark, and write its result:

    python -m benchmarks convert --shape 7b --scratch /data/tmp     # checkpoint conversion, both ways: time, memory
    python -m benchmarks aot --shape 7b [--target h100]             # compiled ahead of time: FLOPs, bytes, copies
    python -m benchmarks stream --shape mid --seconds 60            # streaming: latency by stage, cache slots, memory
    python -m benchmarks host                                       # the host's part of a step, 1 and 16 streams
    python -m benchmarks memory                                     # weights and KV cache of a stream, by model: computed
    python -m benchmarks kernels [--target h100]                    # attention kernels: time, bandwidth, error
    python -m benchmarks pixels [--target h100]                     # frames to patches, host and device: equal, time
    python -m benchmarks decode --shape 7b                          # decode steps of a few layers: ms a token, by the kernels
    python -m benchmarks start [--shape 7b]                         # the first caption of a session: compilation, dispatch
    python -m benchmarks train --shape 3b                           # a training step: time, MFU; --topology h100x8: memory
    python -m benchmarks int8 [--model DIR]                         # int8 decoder weights: error of the logits
    python -m benchmarks teacher-forcing windows.jsonl              # how many replies of annotated windows a model predicts
    python -m benchmarks drops                                      # how dropped chunks change a commentary
    python -m benchmarks silence                                    # talk and events against --silence; alerts
    python -m benchmarks findings                                   # the paper's findings on the generated game
    python -m benchmarks curation [--train]                         # damaged transcripts curated, beside the truth
    python -m benchmarks serve --clients 50 --seconds 120           # the server: lost captions, latency of tokens, memory
    python -m benchmarks serve --attack --seconds 960               # the same for one viewer among attackers
    python -m benchmarks device --list                              # what needs a GPU, in parts of at most four minutes
    python -m benchmarks table                                      # docs/benchmarks.md from docs/benchmarks/*.json
    python -m benchmarks timeline                                   # the picture of docs/performance.md

Each prints first what it will do and how long that takes. It writes docs/benchmarks/NAME.json with its command, device and
versions, and docs/benchmarks.md; with --out DIR before the name it writes them there.
"""

import sys
from pathlib import Path

from benchmarks import (
    aot,
    convert,
    curation,
    decode,
    device,
    drops,
    findings,
    host,
    int8,
    kernels,
    memory,
    pixels,
    serve,
    silence,
    start,
    stream,
    teacher_forcing,
    torch_baseline,
    train,
)
from benchmarks.estimates import estimate
from benchmarks.report import DOCS, table
from benchmarks.timeline import draw as draw_timeline
from svlm_jax.cli.flags import Parser
from svlm_jax.cli.model_flags import check_attention
from svlm_jax.cli.run import run
from svlm_jax.errors import InputError
from svlm_jax.files import local_path

BENCHMARKS = {  # command -> module with add_flags and bench, help
    "convert": (convert, "checkpoint conversion: time and memory"),
    "aot": (aot, "prefill and decode compiled ahead of time"),
    "memory": (memory, "weights and KV cache of a stream, by model"),
    "kernels": (kernels, "attention kernels at the shapes of models"),
    "pixels": (pixels, "frames to patches, on the host and on the device"),
    "decode": (decode, "decode steps of a few layers, by the kernels"),
    "stream": (stream, "streaming against stream time: latency, slots, memory"),
    "start": (start, "seconds to the first caption, with and without a compilation cache; microseconds of a call"),
    "host": (host, "the host's part of a step: planning, tables, replies"),
    "train": (train, "a training step: time and MFU, or memory ahead of time"),
    "int8": (int8, "int8 decoder weights: error of the logits"),
    "serve": (serve, "the server under load, with clients of every protocol"),
    "device": (device, "what needs a GPU, in parts of at most four minutes"),
    "torch": (torch_baseline, "one chunk in plain torch (what `stream --torch` runs); prints JSON"),
    "silence": (silence, "when the shipped model speaks, against the threshold of silence; alert mode"),
    "drops": (drops, "how dropped chunks change a commentary"),
    "teacher-forcing": (teacher_forcing, "how many replies of annotated windows a model predicts"),
    "curation": (curation, "words of damaged transcripts, curated, beside the truth; models trained on them"),
    "findings": (findings, "the paper's findings on the generated game"),
}


def parser() -> Parser:
    main_parser = Parser(prog="python -m benchmarks", description=__doc__)
    out_help = "folder of benchmarks/ and benchmarks.md (default: docs of the checkout)"
    main_parser.add_argument("--out", type=Path, default=DOCS, help=out_help)
    commands = main_parser.add_subparsers(dest="command", required=True)
    for name, (module, summary) in BENCHMARKS.items():
        command = commands.add_parser(name, help=summary)
        module.add_flags(command)
        command.set_defaults(run=module.bench)
    commands.add_parser("table", help="write benchmarks.md from the JSON files").set_defaults(run=lambda args: table(args.out))
    timeline = commands.add_parser("timeline", help="draw timeline.svg of docs/performance.md from timeline.json")
    timeline.set_defaults(run=lambda args: draw_timeline(args.out / "timeline.json", args.out / "timeline.svg"))
    return main_parser


def main() -> None:
    args = parser().parse_args()
    for name in {"out", "scratch"} & {name for name, value in vars(args).items() if value is not None}:
        local_path(getattr(args, name), f"--{name}")
    prints_only = args.command == "torch" or getattr(args, "child", False)
    if args.out is None and not prints_only:
        raise InputError("--out", "nothing, outside a checkout", "a folder for the results", "say benchmarks --out DIR ...")
    # Programs compiled for another device are not limited to the kernels of this one.
    if "attention" in args and getattr(args, "target", "") != "h100" and not getattr(args, "topology", None):
        check_attention(args.attention)
    if line := estimate(args):
        print(line, file=sys.stderr, flush=True)
    args.run(args)


if __name__ == "__main__":
    run(main)
