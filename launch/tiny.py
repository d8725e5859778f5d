"""Make a model of the generated game from nothing: films, a tokenizer, random weights, three stages of training, an export.

    python -m launch.tiny --out runs/tiny            # `make train-tiny`; go on after a stop with the same command

Each step is a command that anybody can run alone; a step whose result is there is skipped. The result is OUT/touchline.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from launch.cli import run
from svlm_jax.errors import InputError


class Step(NamedTuple):
    """A command, and what is there when it is done."""

    result: str
    command: str


ROOT = " --data.root {out}/films"

# Stage 1 learns to see, from short windows with a question in every second that the picture answers; stage 2 to count, from
# games with many goals; stage 3 to remember, from two-hour games too, cut as the paper cuts them.
FILMS = "world --out {out}/films --seconds 120"
STEPS = (
    Step("films/visible.jsonl", f"{FILMS} --seeds 100:220 --index visible.jsonl --questions 1 --visible"),
    Step("films/count.jsonl", f"{FILMS} --seeds 300:420 --index count.jsonl --questions 1 --practice"),
    Step("0", "scratch {out}/films/visible.jsonl {out}/films/count.jsonl --out {out}/0"),
    Step("see.jsonl", "windows {out}/films/visible.jsonl --out {out}/see.jsonl --window 2 --stride 2"),
    Step("1", "train --config tiny_stage1 --model {out}/0 --run-dir {out}/stage1 --data.paths {out}/see.jsonl" + ROOT),
    Step("1", "convert {out}/stage1 {out}/1"),
    Step("count.jsonl", "windows {out}/films/count.jsonl --out {out}/count.jsonl --window 4 --stride 4"),
    Step("2", "train --config tiny_stage2 --model {out}/1 --run-dir {out}/stage2 --data.paths {out}/count.jsonl" + ROOT),
    Step("2", "convert {out}/stage2 {out}/2"),
    Step("films/short.jsonl", f"{FILMS} --seeds 100:220 --index short.jsonl --questions 0.2 --words-only"),
    Step("films/goals.jsonl", f"{FILMS} --seeds 300:420 --index goals.jsonl --questions 0.2 --words-only --practice"),
    Step("films/long.jsonl", "world --out {out}/films --seconds 7200 --seeds 0:4 --index long.jsonl --questions 0.2"),
    Step(
        "remember.jsonl",
        "windows {out}/films/short.jsonl {out}/films/goals.jsonl {out}/films/long.jsonl --out {out}/remember.jsonl",
    ),
    Step(
        "touchline",
        "train --config tiny_stage3 --model {out}/2 --run-dir {out}/stage3 --data.paths {out}/remember.jsonl" + ROOT,
    ),
    Step("touchline", "convert {out}/stage3 {out}/touchline --dtype bfloat16"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), metavar="DIR", help="default: runs/tiny")
    args = parser.parse_args()
    for number, step in enumerate(STEPS, 1):
        command = step.command.format(out=args.out)
        done = (args.out / step.result).exists()
        print(f"[{number}/{len(STEPS)}] {'there: ' if done else ''}python -m launch.{command}", flush=True)
        if done:
            continue
        began = time.monotonic()
        code = subprocess.run([sys.executable, "-m", *f"launch.{command}".split()]).returncode
        if code:
            raise InputError(f"launch.{command.split()[0]}", f"exit code {code}", "0", "see above; start again and it goes on")
        print(f"    {(time.monotonic() - began) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    run(main)
