"""Write the task files with which lmms-eval asks the questions of OVO-Bench about local videos.

    svlm evaluate lmms --items ovo_bench_new.json --videos videos --out tasks
    python -m lmms_eval --model svlm_jax --model_args pretrained=DIR --include_path tasks --tasks local_ovo --output_path out

Prompts and scores are lmms-eval's own. `svlm evaluate ovo` asks and scores the same items without it.
"""

from pathlib import Path

from svlm_jax.cli.flags import Parser, integer
from svlm_jax.errors import InputError
from svlm_jax.eval.lmms_tasks import write_tasks
from svlm_jax.json_lines import BadLines

MAX_NAME = 100  # letters: files are called so


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--items", type=Path, required=True, metavar="FILE", help="ovo_bench_new.json, or items in its form")
    parser.add_argument("--videos", type=Path, required=True, metavar="DIR", help="folder of the videos, whole ones")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the task files; made if missing")
    parser.add_argument("--name", default="local_ovo", help="of the group of tasks (default local_ovo)")
    parser.add_argument("--bad", type=integer(0), default=0, metavar="N", help="malformed items that may be left out")
    args = parser.parse_args()
    if not args.name.isidentifier() or len(args.name) > MAX_NAME:
        raise InputError("--name", f"{args.name!r:.60}", f"letters, digits and _, at most {MAX_NAME}", "choose another")
    counts = write_tasks(args.items, args.videos, args.out, args.name, BadLines(args.bad))
    for task, count in counts.items():
        print(f"{args.out / task}.yaml: {count} items")
