"""Make small sets of the generated game in the published formats of the benchmarks, with their truth and known answers.

    svlm evaluate game --out sets                                   # 8 held-out games of ten minutes
    svlm evaluate game --out long --seeds 1000100:1000102 --seconds 7200

The same command again goes on where it stopped, and gives the same files.
"""

import os
import sys
from pathlib import Path

from svlm_jax.cli.flags import Parser, integer
from svlm_jax.cli.world import Filming, make_films, parse_seeds, plan
from svlm_jax.errors import InputError
from svlm_jax.eval.run_directory import open_run
from svlm_jax.files import local_path, report_write_errors
from svlm_jax.touchline.eval_sets.games import VIDEOS, Game
from svlm_jax.touchline.eval_sets.writing import write_sets

MIN_SECONDS = 120  # of a game: in less there may be nothing to ask about


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the sets; made if missing")
    parser.add_argument("--seeds", default="1000000:1000008", metavar="A[:B]", help="held-out games A .. B - 1 (default: 8)")
    parser.add_argument("--seconds", type=integer(MIN_SECONDS), default=600, metavar="S", help="length of a game (default 600)")
    parser.add_argument("--words-only", action="store_true", help="leave out the films; a later run without it adds them")
    parser.add_argument("--jobs", type=integer(1, 1024), default=os.cpu_count() or 1, help="processes (default: CPUs)")
    args = parser.parse_args()
    local_path(args.out, "--out")
    seeds = parse_seeds(args.seeds, test=True)
    if args.out.is_file():
        raise InputError("--out", f"the file {args.out.name}", "a folder, or a new name", "choose another")
    with report_write_errors(args.out):
        folder = open_run(args.out, {"benchmark": "game", "seeds": [seeds.start, seeds.stop], "seconds": args.seconds})
        (folder / VIDEOS).mkdir(exist_ok=True)
    filming = Filming(folder / VIDEOS, args.seconds, jobs=args.jobs, keep=True, words_only=args.words_only)
    print(plan(filming, seeds), file=sys.stderr, flush=True)
    if any(map(filming.is_wanted, seeds)):
        make_films(filming, seeds)
    counts = write_sets(folder, [Game(seed, args.seconds) for seed in seeds])
    for name, count in counts.items():
        print(f"{folder / name}: {count}")
