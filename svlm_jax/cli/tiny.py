"""Make a model of the generated game from nothing: films, a tokenizer, random weights, six stages of training, an export.

    svlm tiny --out runs/tiny               # `make train-tiny`; go on after a stop with the same command
    svlm tiny --out runs/tiny --stages 8    # repeat the last stage twice, with other games
    svlm tiny --out runs/tiny3 --quick --family qwen3-vl

Each step is a command that anybody can run alone; a step whose result is there is skipped. The result is OUT/6 (OUT/8). The
steps and the settings of training: svlm_jax/touchline/recipe.py.
"""

import subprocess
import sys
import time
from pathlib import Path

from svlm_jax.cli.flags import Parser, integer
from svlm_jax.errors import InputError
from svlm_jax.families import family_named
from svlm_jax.files import local_path
from svlm_jax.touchline.recipe import LAST_STAGE, QUICK, Amount, plan, steps


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), metavar="DIR", help="default: runs/tiny")
    parser.add_argument("--quick", action="store_true", help="little of everything, in minutes: the way, not the model")
    parser.add_argument(
        "--stages",
        type=integer(LAST_STAGE),
        default=LAST_STAGE,
        metavar="N",
        help=f"of training (default {LAST_STAGE})",
    )
    parser.add_argument("--family", default="qwen2.5-vl", metavar="NAME", help="of the model (default qwen2.5-vl)")
    args = parser.parse_args()
    family_named(args.family)
    local_path(args.out, "--out")
    amount = QUICK if args.quick else Amount()
    todo = steps(args.stages, amount)
    print(plan(args.out, todo, args.quick), flush=True)
    for number, step in enumerate(todo, 1):
        command = step.command.format(out=args.out, family=args.family, **amount._asdict())
        done = (args.out / step.result).exists()
        print(f"[{number}/{len(todo)}] {'there: ' if done else ''}svlm {command}", flush=True)
        if done:
            continue
        started = time.monotonic()
        code = subprocess.run([sys.executable, "-m", "svlm_jax.cli", *command.split()]).returncode
        if code:
            raise InputError(f"svlm {command.split()[0]}", f"exit code {code}", "0", "see above; start again and it goes on")
        print(f"    {(time.monotonic() - started) / 60:.1f} min", flush=True)
    print(f"done: svlm demo --model {args.out / str(args.stages)}")
