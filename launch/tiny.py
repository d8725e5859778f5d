"""Make a model of the generated game from nothing: films, a tokenizer, random weights, five stages of training, an export.

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


class Amount(NamedTuple):
    """How much of everything. Seeds of games that are only told, of which `asked` are asked too, and of practice games and
    drills; seeds of films: short games, practice games, drills, long games; seconds of a long one; more options of training."""

    told: str = "10000:10060"
    asked: str = "10000:10120"
    told_practice: str = "20000:20240"
    told_drills: str = "30000:30200"
    short: str = "100:220"
    practice: str = "300:360"
    drills: str = "600:630"
    long: str = "0:4"
    seconds: int = 7200
    training: str = ""


FEW = "10000:10002"
QUICK = Amount(FEW, FEW, FEW, FEW, "100:103", "300:303", "600:601", "0:1", 180, " --steps 3")

# As vision-language models are made: language first, from games that are told and not shown (stages 1 and 2), for counting up
# a score takes hundreds of thousands of goals, and text is cheap; then pictures: stage 3 learns to see, from short windows with
# a question in every second; stage 4 to tell what it sees, from longer ones; stage 5 to stream, from two-hour games too, cut as
# the paper cuts them; windows in which a match begins come twice, for who mistakes a team there is wrong until its end. What
# happens seldom (fouls are one event in thirty) is shown more often in both. Some of what was said before a window is learned
# in all of them, or more of counting is forgotten.
TOLD = "world --out {out}/told --words-only"
SHORT = "world --out {out}/films --seconds 120 --seeds {short}"
# Digits that are rare in training are not copied: practice games and drills (a goal every two seconds) go far.
PRACTICE = "world --out {out}/films --seconds 240 --rules practice --seeds {practice}"
DRILL = "world --out {out}/films --seconds 240 --rules drill --seeds {drills}"
LONG = "world --out {out}/films --seconds {seconds} --seeds {long}"
SELDOM = 0.05  # questions a second; more of them, and their answers remind of the score
TALK = " ".join(f"{{out}}/told/{name}.jsonl" for name in ("match", "asked", "practice", "drill"))
ALL = " ".join(f"{{out}}/films/{name}.jsonl" for name in ("short5", "practice5", "drill5", "long"))
TRAIN = "train --config tiny_stage{n} --model {{out}}/{model} --run-dir {{out}}/stage{n} --data.paths {{out}}/{windows}.jsonl"
TRAIN += " --data.root {{out}}/films{{training}}"
STEPS = (
    Step("told/match.jsonl", f"{TOLD} --seconds 1200 --seeds {{told}} --index match.jsonl"),
    Step("told/asked.jsonl", f"{TOLD} --seconds 1200 --seeds {{asked}} --index asked.jsonl --questions {SELDOM}"),
    Step("told/practice.jsonl", f"{TOLD} --seconds 600 --seeds {{told_practice}} --rules practice --index practice.jsonl"),
    Step("told/drill.jsonl", f"{TOLD} --seconds 600 --seeds {{told_drills}} --rules drill --index drill.jsonl"),
    Step("talk.jsonl", f"windows {TALK} --out {{out}}/talk.jsonl --words-only --as-streamed --window 8 --stride 8"),
    Step("count.jsonl", f"windows {TALK} --out {{out}}/count.jsonl --words-only --as-streamed --stride 24"),
    Step("0", "scratch {out}/told/asked.jsonl --out {out}/0"),
    Step("1", TRAIN.format(n=1, model=0, windows="talk")),
    Step("1", "convert {out}/stage1 {out}/1"),
    Step("2", TRAIN.format(n=2, model=1, windows="count")),
    Step("2", "convert {out}/stage2 {out}/2"),
    Step("films/see.jsonl", f"{SHORT} --index see.jsonl --questions 1 --ask ball --keep"),
    Step("films/read.jsonl", f"{PRACTICE} --index read.jsonl --questions 1 --ask score cup --keep"),
    Step("see.jsonl", "windows {out}/films/see.jsonl {out}/films/read.jsonl --out {out}/see.jsonl --window 2 --stride 2"),
    Step("3", TRAIN.format(n=3, model=2, windows="see")),
    Step("3", "convert {out}/stage3 {out}/3"),
    Step("films/count.jsonl", f"{PRACTICE} --index count.jsonl --questions 1 --words-only"),
    Step("films/drill.jsonl", f"{DRILL} --index drill.jsonl --questions 0.5 --keep"),
    Step(
        "tell.jsonl",
        "windows {out}/films/see.jsonl {out}/films/count.jsonl {out}/films/drill.jsonl --out {out}/tell.jsonl"
        " --window 4 --stride 4",
    ),
    Step("films/long.jsonl", f"{LONG} --index long.jsonl --questions {SELDOM} --keep"),
    Step(
        "seldom.jsonl",
        "windows {out}/films/see.jsonl {out}/films/count.jsonl {out}/films/long.jsonl --out {out}/seldom.jsonl"
        " --window 4 --stride 1 --saying Foul|Corner|Wide",
    ),
    Step("4", TRAIN.format(n=4, model=3, windows="tell.jsonl {out}/seldom")),
    Step("4", "convert {out}/stage4 {out}/4"),
    Step("films/short5.jsonl", f"{SHORT} --index short5.jsonl --questions 0.2 --words-only"),
    Step("films/practice5.jsonl", f"{PRACTICE} --index practice5.jsonl --questions {SELDOM} --words-only"),
    Step("films/drill5.jsonl", f"{DRILL} --index drill5.jsonl --questions {SELDOM} --words-only"),
    Step("stream.jsonl", f"windows {ALL} --out {{out}}/stream.jsonl --as-streamed"),
    Step("begin.jsonl", f"windows {ALL} --out {{out}}/begin.jsonl --as-streamed --saying Home:|Welcome|Foul"),
    Step("touchline", TRAIN.format(n=5, model=4, windows="stream.jsonl {out}/begin")),
    Step("touchline", "convert {out}/stage5 {out}/touchline --dtype bfloat16"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), metavar="DIR", help="default: runs/tiny")
    parser.add_argument("--quick", action="store_true", help="little of everything, in minutes: the way, not the model")
    args = parser.parse_args()
    amount = QUICK if args.quick else Amount()
    for number, step in enumerate(STEPS, 1):
        command = step.command.format(out=args.out, **amount._asdict())
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
