"""One table of many results, with intervals, and plots against stream time.

svlm evaluate table runs/infinite runs/chunk scores/ovo.json --out table

A RUN is a result file that another command of svlm evaluate wrote, or a folder with some. Writes OUT/table.md, OUT/table.json
and a plot for each metric that is known against stream time; prints the table.
"""

import sys
from pathlib import Path

from svlm_jax.cli.flags import Parser
from svlm_jax.eval import table
from svlm_jax.files import atomic_write, local_path, report_write_errors
from svlm_jax.json_lines import write_json


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="result file, or a folder with some")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for table.md, table.json and plots (default: print only)"
    )
    parser.add_argument("--no-plots", action="store_true", help="no plots")
    args = parser.parse_args()
    results_by_file = table.find(args.runs)
    results = [result for _, result in results_by_file]
    text = table.markdown(results)
    print(text, end="")
    if args.out is None:
        return
    folder = local_path(args.out, "--out")
    folder.mkdir(parents=True, exist_ok=True)
    plots = [] if args.no_plots else table.plot(results, folder)
    pictures = "".join(f"\n![{path.stem.replace('_', ' ')}]({path.name})\n" for path in plots)
    with report_write_errors(folder / "table.md"), atomic_write(folder / "table.md") as draft:
        draft.write_text(text + pictures, encoding="utf-8")
    write_json(folder / "table.json", table.as_json(results_by_file))
    print(f"{len(results)} results, {len(plots)} plots -> {folder}", file=sys.stderr)
