"""One page of what steps of curation did, to read before anything is trained: Markdown, plots, and JSON for programs.

    svlm curate report words.jsonl clean.jsonl edited.jsonl train.jsonl --out report/

Name the files in the order in which they were made. Of each, what its step wrote beside it is read (.report.json and
.changes.jsonl), and of transcripts the words; a file of transcripts that no step made is reported by its words. Writes
OUT/report.md, OUT/report.json and the plots. The page has hours and words in and out, words a second, the decisions of the
editor beside the paper's, changes by rule, yields by source, why videos were set aside, and samples of each change.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from svlm_jax.cli.flags import Parser, integer
from svlm_jax.curate.reporting import plots
from svlm_jax.curate.reporting.report import StepReport, broken_links, read_chain
from svlm_jax.curate.reporting.report_page import markdown
from svlm_jax.errors import InputError, shortened
from svlm_jax.files import atomic_write, local_path, report_write_errors
from svlm_jax.json_lines import write_json

WORDS_PER_SECOND = 2.0  # that are enough for a window, where the files do not say


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="F.jsonl", help="what steps wrote, in their order")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for report.md and its plots")
    parser.add_argument("--samples", type=integer(0, 1000), default=3, metavar="N", help="of each change (default 3)")
    parser.add_argument("--no-plots", action="store_true", help="no plots")
    args = parser.parse_args()
    folder = local_path(args.out, "--out")
    if folder.exists() and not folder.is_dir():
        raise InputError("--out", f"{shortened(folder)}, a file", "a folder", "choose another name")
    chain = read_chain(args.files, args.samples)
    links = broken_links(chain)
    words_per_second = rule_of_windows(chain)
    with report_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    drawn = {} if args.no_plots else plots.draw(chain, folder, words_per_second)
    page = folder / "report.md"
    with report_write_errors(page), atomic_write(page) as draft:
        draft.write_text(markdown(chain, links, drawn, words_per_second), encoding="utf-8", errors="replace")
    write_json(folder / "report.json", {"steps": [_as_json(step) for step in chain], "warnings": links})
    for link in links:
        print(f"warning: {link}", file=sys.stderr)
    print(f"{len(chain)} files, {len(drawn)} plots -> {page}")


def rule_of_windows(chain: list[StepReport]) -> float:
    """The rule by which windows were chosen."""
    rates = [step.settings.get("words_per_second") for step in chain if step.name == "windows"]
    return next((float(rate) for rate in rates if isinstance(rate, int | float) and rate > 0), WORDS_PER_SECOND)


def _as_json(step: StepReport) -> dict[str, Any]:
    """For programs: all numbers of the page."""
    numbers = {name: value for name, value in vars(step).items() if name not in ("samples", "totals", "counts", "pace")}
    for name in ("sources", "rules", "reasons"):
        numbers[name] = {key: asdict(value) for key, value in numbers[name].items()}
    pace = {str(words): stretches for words, stretches in sorted(step.pace.items())}
    return {**numbers, "totals": asdict(step.totals), "counts": dict(step.counts), "pace": pace}
