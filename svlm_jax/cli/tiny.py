"""Make a model of the generated game from nothing: films, a tokenizer, random weights, six stages of training, an export.

    svlm tiny --out runs/tiny               # `make train-tiny`; go on after a stop with the same command
    svlm tiny --out runs/tiny --stages 8    # go on with the last stage, and other games, twice more

Each step is a command that anybody can run alone; a step whose result is there is skipped. The result is OUT/6 (OUT/8).
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from svlm_jax.cli.flags import Parser, integer
from svlm_jax.errors import InputError
from svlm_jax.files import local_path


class Step(NamedTuple):
    """A command, and what is there when it is done."""

    result: str
    command: str


class Amount(NamedTuple):
    """How much of everything. Seeds of films: short games, practice games, drills (`again`: those that the last stages see),
    long games; seconds of a long one. Seeds of games that are told and not shown, of those that are asked too, of practice
    games and of drills; games that each stage from the sixth on is told anew. More options of training."""

    short: str = "100:220"
    practice: str = "300:360"
    drills: str = "600:690"
    again: str = "600:630"
    long: str = "0:4"
    seconds: int = 7200
    silent_games: str = "10000:10060"
    asked: str = "10000:10120"
    told_practice: str = "20000:20240"
    told_drills: str = "30000:30200"
    anew: int = 352
    training: str = ""


FEW = "10000:10002"
QUICK = Amount("100:103", "300:303", "600:603", "600:601", "0:1", 180, FEW, FEW, FEW, FEW, 2, " --steps 3")

# Stage 1 learns to see and to read, from short windows with a question in every second that the picture or the words just
# before answer; stage 2 to count, with more words before, which are learned too: many scores a step; stage 3 to follow, with
# still more before longer windows; what stands far back in long text is found by who found it in short text first. Stage 4
# learns to stream: two-hour games too, cut as the paper cuts them; windows in which a match begins come twice, for who mistakes
# a team there is wrong until its end. Stage 5 learns to remember: as much text before as a match lasts, and half of its windows
# are told and not shown; a film has a score in 20 s, counting takes many more, and text is cheap. Stage 6 is for what a stream
# does: windows of the 16 s that it retains, frames for the last 8 of them alone; with windows of 24 s, the same shape again, it
# was right in them and wrong in streams. What is told are matches alone, half of them where a score is 40 s or more after the
# one before, which a stream forgets first. Those after it are the sixth again, with matches told anew.
SHORT = "world --out {out}/films --seconds 120 --seeds {short}"
# Digits that are rare in training are not copied, and counting is learned from many goals: both games are long, and drills have
# a goal every two seconds.
PRACTICE = "world --out {out}/films --seconds 240 --rules practice --seeds {practice}"
DRILL = "world --out {out}/films --seconds 240 --rules drill"
LONG = "world --out {out}/films --seconds {seconds} --seeds {long}"
TOLD = "world --out {out}/told --words-only"
SELDOM = 0.05  # questions a second; more of them, and their answers remind of the score
FILMS = "{out}/films/goals4.jsonl {out}/films/drill4.jsonl {out}/films/long.jsonl"
WORDS = "windows {} --words-only --as-streamed --out {{out}}/{}.jsonl --window {} --stride {}"
ALL = " ".join(f"{{out}}/told/{name}.jsonl" for name in ("match", "asked", "practice", "drill"))
HOURS_AGAIN = 0.45  # of a stage from the seventh on
SIXTH = 6  # the stage that can be repeated
FLOAT32 = 3  # stages whose weights stay so; the others are bfloat16, as a stream computes them


def trained(stage: int, *windows: str) -> tuple[Step, Step]:
    """OUT/STAGE from OUT/(STAGE - 1) and windows of these names."""
    paths = " ".join(f"{{out}}/{name}.jsonl" for name in windows)
    train = f"train --config tiny_stage{min(stage, SIXTH)} --model {{out}}/{stage - 1} --run-dir {{out}}/stage{stage}"
    train += f" --seed {max(stage - SIXTH, 0)} --data.paths {paths} --data.root {{out}}/films{{training}}"
    dtype = "" if stage <= FLOAT32 else " --dtype bfloat16"
    return Step(f"{stage}", train), Step(f"{stage}", f"convert {{out}}/stage{stage} {{out}}/{stage}{dtype}")


def again(stage: int, games: int) -> tuple[Step, ...]:
    """A stage from the sixth on: games that were not told before."""
    seed, last, silent_games, far = 5000 + 1000 * stage, f"told/{stage}.jsonl", f"told_{stage}", f"far_{stage}"
    made = f"{TOLD} --seconds 1200 --seeds {seed}:{seed + games} --index {stage}.jsonl --questions {SELDOM}"
    return (
        Step(last, made),
        Step(f"{silent_games}.jsonl", WORDS.format(f"{{out}}/{last}", silent_games, 16, 16) + " --every 6"),
        Step(f"{far}.jsonl", WORDS.format(f"{{out}}/{last}", far, 24, 12) + " --saying [0-9]-[0-9] --apart 40"),
        *trained(stage, "shown", "begin", silent_games, far),
    )


STEPS = (
    Step("films/see.jsonl", f"{SHORT} --index see.jsonl --questions 1 --ask ball --keep"),
    Step("films/count.jsonl", f"{PRACTICE} --index count.jsonl --questions 1 --keep"),
    Step("films/drill.jsonl", f"{DRILL} --seeds {{drills}} --index drill.jsonl --questions 0.5 --keep"),
    Step("films/read.jsonl", f"{PRACTICE} --index read.jsonl --questions 1 --ask score cup --words-only"),
    Step("0", "scratch {out}/films/see.jsonl {out}/films/count.jsonl --out {out}/0"),
    Step("see.jsonl", "windows {out}/films/see.jsonl {out}/films/read.jsonl --out {out}/see.jsonl --window 2 --stride 2"),
    *trained(1, "see"),
    Step(
        "count.jsonl",
        "windows {out}/films/count.jsonl {out}/films/drill.jsonl --out {out}/count.jsonl --window 4 --stride 4",
    ),
    *trained(2, "count"),
    Step("films/short.jsonl", f"{SHORT} --index short.jsonl --questions 0.2 --words-only"),
    Step("films/goals.jsonl", f"{PRACTICE} --index goals.jsonl --questions 0.3 --words-only"),
    Step(
        "follow.jsonl",
        "windows {out}/films/short.jsonl {out}/films/goals.jsonl --out {out}/follow.jsonl --window 8 --stride 4"
        " --saying [0-9]-[0-9]",
    ),
    *trained(3, "follow"),
    Step("films/long.jsonl", f"{LONG} --index long.jsonl --questions {SELDOM} --keep"),
    Step("films/short4.jsonl", f"{SHORT} --index short4.jsonl --questions {SELDOM} --words-only"),
    Step("films/goals4.jsonl", f"{PRACTICE} --index goals4.jsonl --questions {SELDOM} --words-only"),
    Step("films/drill4.jsonl", f"{DRILL} --seeds {{again}} --index drill4.jsonl --questions {SELDOM} --words-only"),
    Step("remember.jsonl", f"windows {{out}}/films/short4.jsonl {FILMS} --out {{out}}/remember.jsonl --as-streamed"),
    Step(
        "begin4.jsonl",
        f"windows {{out}}/films/short4.jsonl {FILMS} --out {{out}}/begin4.jsonl --as-streamed --saying Home:|Welcome",
    ),
    *trained(4, "remember", "begin4"),
    Step("films/short5.jsonl", f"{SHORT} --index short5.jsonl --questions 0.2 --words-only"),
    Step("stream.jsonl", f"windows {{out}}/films/short5.jsonl {FILMS} --out {{out}}/stream.jsonl --as-streamed"),
    Step(
        "begin.jsonl",
        f"windows {{out}}/films/short5.jsonl {FILMS} --out {{out}}/begin.jsonl --as-streamed --saying Home:|Welcome|Foul",
    ),
    Step("told/match.jsonl", f"{TOLD} --seconds 1200 --seeds {{told}} --index match.jsonl"),
    Step("told/asked.jsonl", f"{TOLD} --seconds 1200 --seeds {{asked}} --index asked.jsonl --questions {SELDOM}"),
    Step("told/practice.jsonl", f"{TOLD} --seconds 600 --seeds {{told_practice}} --rules practice --index practice.jsonl"),
    Step("told/drill.jsonl", f"{TOLD} --seconds 600 --seeds {{told_drills}} --rules drill --index drill.jsonl"),
    Step("told24.jsonl", WORDS.format(ALL, "told24", 24, 24) + " --every 6"),
    Step("told52.jsonl", WORDS.format(ALL, "told52", 52, 52) + " --every 3"),
    *trained(5, "stream", "begin", "told24", "told52"),
    Step(
        "shown.jsonl",
        f"windows {{out}}/films/short5.jsonl {FILMS} --out {{out}}/shown.jsonl --as-streamed "
        "--window 16 --stride 8 --visible-seconds 8",
    ),
)


def steps(stages: int, amount: Amount) -> tuple[Step, ...]:
    """All of them, in order."""
    return *STEPS, *(step for stage in range(SIXTH, stages + 1) for step in again(stage, amount.anew))


def _plan(out: Path, todo: tuple[Step, ...], quick: bool) -> str:
    """What is about to be done, in one line."""
    left = [step for step in todo if not (out / step.result).exists()]
    extra = sum(step.command.startswith("train ") for step in todo) - SIXTH
    time = "some minutes" if quick else f"about {2 + extra * HOURS_AGAIN:.1f} hours" if extra > 0 else "about two hours"
    room = "some MB" if quick else "1 to 2 GB"
    done = "" if len(left) == len(todo) else f"; {len(todo) - len(left)} are done"
    return f"{len(todo)} steps in {out}{done}: {time} in all on two CPU cores, {room}; after a stop the same command goes on"


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), metavar="DIR", help="default: runs/tiny")
    parser.add_argument("--quick", action="store_true", help="little of everything, in minutes: the way, not the model")
    parser.add_argument(
        "--stages", type=integer(SIXTH), default=SIXTH, metavar="N", help=f"of training: {SIXTH} (the default) or more"
    )
    args = parser.parse_args()
    local_path(args.out, "--out")
    amount = QUICK if args.quick else Amount()
    todo = steps(args.stages, amount)
    print(_plan(args.out, todo, args.quick), flush=True)
    for number, step in enumerate(todo, 1):
        command = step.command.format(out=args.out, **amount._asdict())
        done = (args.out / step.result).exists()
        print(f"[{number}/{len(todo)}] {'there: ' if done else ''}svlm {command}", flush=True)
        if done:
            continue
        began = time.monotonic()
        code = subprocess.run([sys.executable, "-m", "svlm_jax.cli", *command.split()]).returncode
        if code:
            raise InputError(f"svlm {command.split()[0]}", f"exit code {code}", "0", "see above; start again and it goes on")
        print(f"    {(time.monotonic() - began) / 60:.1f} min", flush=True)
    print(f"done: svlm demo --model {args.out / str(args.stages)}")
