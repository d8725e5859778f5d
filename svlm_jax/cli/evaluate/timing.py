"""Timing and correctness of a commentary, against a file of truth: event F1, timing error, silence, repetition, states.

    svlm evaluate timing runs/infinite --truth truth.jsonl --out timing.json
    svlm evaluate timing match_1000000.jsonl --truth truth.jsonl --out timing.json      # captions of svlm stream --jsonl

A RUN is a folder of svlm evaluate infstreams generate, a published file of answers, a file of predictions for LiveSports-3K CC,
or captions with the name of their video. Several are parts of one run. What each number means: docs/evaluation.md.
"""

import sys
from pathlib import Path

from svlm_jax.cli.flags import Parser, integer, number
from svlm_jax.eval.result import Result, write_result
from svlm_jax.eval.table import markdown
from svlm_jax.eval.timing import TOLERANCE, count, observe
from svlm_jax.eval.timing_metrics import details, metrics, series
from svlm_jax.eval.timing_runs import read_run_files
from svlm_jax.eval.truth import read_truth
from svlm_jax.files import local_path
from svlm_jax.json_lines import BadLines, digest


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="what a model said: folder or file")
    parser.add_argument("--truth", type=Path, required=True, metavar="TRUTH.jsonl", help="what happened, a video a line")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON", help="result to write")
    parser.add_argument("--label", metavar="NAME", help="of the run in a table (default: its model and mode, or its name)")
    parser.add_argument(
        "--tolerance",
        type=number(0, 3600),
        default=TOLERANCE,
        metavar="S",
        help=f"between an event and a claim that match, at most (default {TOLERANCE:g})",
    )
    parser.add_argument("--bad", type=integer(0), default=0, metavar="N", help="bad lines that are allowed (default 0)")
    args = parser.parse_args()
    local_path(args.out, "--out")
    bad = BadLines(args.bad)
    truths = read_truth(args.truth, bad)
    run = read_run_files(args.runs, truths, bad)
    for fault in run.faults:
        print(f"note: {fault}", file=sys.stderr)
    observed = {}
    for video, commentary in run.videos.items():
        observations = observe(truths[video], commentary.utterances, commentary.covered, args.tolerance)
        if observations.covered:
            observed[video] = observations
    result = Result(
        "timing", args.label or run.label, metrics([count(each) for each in observed.values()]), series([*observed.values()])
    )
    settings = {"tolerance": args.tolerance, "truth_sha256": digest(args.truth), "answers_sha256": run.sha256}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_result(args.out, result, {"settings": settings, "faults": [*run.faults, *bad.errors], **details(observed)})
    print(markdown([result]), end="")
    print(f"{len(observed)} of {len(truths)} videos -> {args.out}", file=sys.stderr)
