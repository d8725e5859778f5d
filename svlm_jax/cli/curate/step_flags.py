"""Flags that the steps of `svlm curate` share, and what a user sees of a run.

    parser = Parser(description=__doc__)
    step_flags(parser)
    args = parser.parse_args()
    run(args, CleanStep(...))

Exit codes: 0: all videos are done, and those set aside are told; 1: some could not be done now, or all were set aside; 2: bad
input, as of every command.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from svlm_jax import __version__
from svlm_jax.cli.flags import Parser, integer
from svlm_jax.cli.progress import Progress
from svlm_jax.curate.outcome import Step
from svlm_jax.curate.running.input_lines import InputLines
from svlm_jax.curate.running.run import Run, run_step
from svlm_jax.curate.running.step_files import StepFiles, step_files
from svlm_jax.errors import InputError, shortened
from svlm_jax.files import same_file
from svlm_jax.json_lines import BadLines

INCOMPLETE = 1  # exit code
MAX_PRINTED = 5  # reasons, and videos that are not done, that are printed


def step_flags(parser: Parser, *, has_input: bool = True, waits: bool = False) -> None:
    """What `run` reads.

    Args:
        has_input: --in; `transcribe` finds its videos itself.
        waits: the step waits for servers: --jobs are threads, and there is --cache.
    """
    group = parser.add_argument_group("files and work")
    if has_input:
        group.add_argument("--in", dest="input", type=Path, required=True, metavar="F.jsonl", help="videos with their words")
    out = "what to make; beside it .set_aside.jsonl, .changes.jsonl and .report.json"
    group.add_argument("--out", type=Path, required=True, metavar="G.jsonl", help=out)
    shard = "this process takes every N-th video, from the K-th on; svlm curate merge puts the shards together"
    group.add_argument("--shard", metavar="K/N", default="1/1", help=shard)
    jobs = "videos at a time" + ("" if waits else ", a process each") + " (default: %(default)s)"
    group.add_argument("--jobs", type=integer(1, 256), default=4 if waits else 1, metavar="N", help=jobs)
    bad = "lines that are no transcript and may be set aside (default: 0)"
    group.add_argument("--max-bad", type=integer(0), default=0, metavar="N", help=bad)
    if waits:
        group.add_argument("--cache", type=Path, metavar="DIR", help="where answers are kept (default: G.cache, beside --out)")


def read_shard(text: str) -> tuple[int, int]:
    """ "K/N" as (K, N), K from 1 to N.

    Raises:
        InputError: anything else.
    """
    first, _, last = text.partition("/")
    if not (first.isascii() and last.isascii() and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise InputError("--shard", repr(text), "K/N, K from 1 to N", "write 1/8, 2/8 ... 8/8, one a process")
    return int(first), int(last)


def cache_folder(args: argparse.Namespace) -> Path:
    """Of --cache, else beside --out; shards share it."""
    out = step_files(args.out).out  # refuses what is no name of a file
    return args.cache or out.with_name(f"{out.stem}.cache")


def open_input(args: argparse.Namespace) -> InputLines:
    """The lines of --in, when the names of what is made are looked at: to read them may take minutes."""
    step_files(args.out, read_shard(args.shard))
    if same_file(args.input, args.out):
        raise InputError("--out", f"{shortened(args.out)}, the file of --in", "a file of its own", "choose another name")
    return InputLines.of_file(args.input)


def run(
    args: argparse.Namespace, step: Step, lines: InputLines | None = None, *, has_seeks: bool = False, **options: Any
) -> Run:
    """Run a step with the flags of `step_flags`; exits with 1 where videos are left, or none is kept.

    Args:
        lines: the input; None: of --in.
        has_seeks: the step makes windows.
        options: `waits` and `parse` of `curate.running.run.run_step`.
    """
    shard = read_shard(args.shard)
    files = step_files(args.out, shard, has_seeks=has_seeks)
    lines = lines or open_input(args)
    progress = Progress(step.name, "videos")
    bad = BadLines(args.max_bad)
    options |= {"shard": shard, "jobs": args.jobs, "bad": bad, "progress": progress, "versions": {"svlm_jax": __version__}}
    done = run_step(step, lines, files, **options)
    if done.report is None:
        _tell_left(done, step)
        sys.exit(INCOMPLETE)
    if done.before == done.total:
        print(f"{step.name}: nothing to do, all {done.total} videos were done before", file=sys.stderr)
    print(summary(done.report, files))
    # a shard that keeps none is no failure of the job that it is part of
    if shard[1] == 1 and not done.report["videos"]["kept"]:
        sys.exit(INCOMPLETE)
    return done


def summary(report: Any, files: StepFiles) -> str:
    """What a run came to, for people."""
    videos, hours, words = report["videos"], report["hours"], report["words"]
    windows = f", {report['lines']} windows" if files.has_seeks else ""
    videos_kept = f"{videos['kept']} of {videos['in']} videos{windows}"
    text = [f"{videos_kept}, {_of(hours, '.2f')} h, {_of(words, 'd')} words -> {files.out}"]
    if duplicates := report["duplicates"]:
        text.append(f"{duplicates} of the lines are of a video that had one before: it counts more than once in training")
    if videos["set_aside"]:
        text.append(f"{videos['set_aside']} set aside -> {files.set_aside}")
        reasons = list(report["set_aside"].items())
        text += [f"  {count} x {reason}" for reason, count in reasons[:MAX_PRINTED]]
        if rest := sum(count for _, count in reasons[MAX_PRINTED:]):
            text.append(f"  {rest} x another reason")
    return "\n".join(text)


def _of(numbers: Any, form: str) -> str:
    """ "what is left of what came in", or what is there where nothing came in, as before the first step."""
    before, after = numbers
    return f"{after:{form}} of {before:{form}}" if before else f"{after:{form}}"


def _tell_left(done: Run, step: Step) -> None:
    for name, reason in done.not_done[:MAX_PRINTED]:
        print(f"not done: {name}: {reason}", file=sys.stderr)
    if len(done.not_done) > MAX_PRINTED:
        print(f"not done: {len(done.not_done) - MAX_PRINTED} more", file=sys.stderr)
    rest = "the same command again asks for them alone, and then writes --out"
    print(f"error: {step.name}: {done.left} of {done.total} videos are not done; {rest}", file=sys.stderr)
