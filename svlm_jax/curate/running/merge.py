"""The files of all shards as those of one run: the same bytes as without shards.

Owns the checks: every shard is there and complete, all are of one input, step and settings, and each line of the input is in
them once, in its place. Removes nothing. Host side, never jax.
"""

import glob
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from svlm_jax.curate.running.step_files import Row, StepFiles, read_report, read_rows, step_files, write_results
from svlm_jax.errors import InputError, shortened
from svlm_jax.json_lines import Appender

SAME = ("step", "settings", "input", "versions")  # keys of a report that all shards share


def merge(out: str | Path) -> tuple[Mapping[str, Any], StepFiles]:
    """Args:
        out: as the shards were given it: "g.jsonl" of g.shard_1_of_8.jsonl and the others.

    Returns:
        The report, and where all is.

    Raises:
        InputError: shards that are missing, not done, changed, or of different runs; a line of the input that is in none or
            twice; a file in the place of `out` that no run wrote.
    """
    shards = _shards(step_files(out))
    reports = [_report(files, number, len(shards)) for number, files in enumerate(shards, 1)]
    for files, report in zip(shards, reports, strict=True):
        for key in SAME:
            if report[key] != reports[0][key]:
                expected = f"that of {shards[0].report.name}"
                raise InputError(shortened(files.report), f"other {key}", expected, "run the shards that differ again")
    files = step_files(out, has_seeks="seeks" in reports[0]["files"])
    head = {**{key: reports[0][key] for key in ("step", "settings", "input")}, "shard": None}
    report = read_report(files)
    if report is not None and report["step"] != head["step"]:
        raise InputError("--out", f"files of svlm curate {report['step']}", "a name of its own", "choose another")
    with Appender(files.partial) as appender:  # two that merge would write over each other
        if next(appender.lines(), None) is not None:
            got = "a file of a run without shards that is not done"
            raise InputError(shortened(files.partial), got, "shards alone", "remove it, or let that run go on")
        try:
            if report is None or any(report[key] != value for key, value in head.items()):
                report = write_results(files, _interleaved(shards, head["input"]), head, reports[0]["versions"])
        finally:
            files.partial.unlink()
    return report, files


def _shards(files: StepFiles) -> Sequence[StepFiles]:
    """Of all shards 1..N beside those of a run without shards."""
    stem = files.out.stem
    numbers_by_count: dict[int, set[int]] = {}
    for path in files.out.parent.glob(f"{glob.escape(stem)}.shard_*_of_*.*"):
        if match := re.fullmatch(r"\.shard_(\d+)_of_(\d+)\.(report\.json|partial\.jsonl)", path.name[len(stem) :]):
            numbers_by_count.setdefault(int(match[2]), set()).add(int(match[1]))
    if len(numbers_by_count) != 1:
        got = f"shards of {' and of '.join(map(str, sorted(numbers_by_count)))}" if numbers_by_count else "no shard beside it"
        raise InputError("--out", f"{shortened(files.out, 80)}, {got}", "all shards of one run", "remove those of other runs")
    ((count, numbers),) = numbers_by_count.items()
    if missing := sorted(set(range(1, count + 1)) - numbers):
        names = ", ".join(f"{number}/{count}" for number in missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise InputError("--out", f"no shard {names}", f"all {count} shards", "run those that are missing")
    return [step_files(files.out, (number, count)) for number in range(1, count + 1)]


def _report(files: StepFiles, number: int, count: int) -> Mapping[str, Any]:
    report = None if files.partial.exists() else read_report(files)
    if report is None:
        raise InputError("--out", f"shard {number}/{count}, which is not done", f"all {count} shards", "run it to its end")
    videos = len(range(number - 1, report["input"]["lines"], count))
    if report["shard"] != [number, count] or report["videos"]["in"] != videos:
        got = f"shard {report['shard']} with {report['videos']['in']} videos"
        raise InputError(shortened(files.report), got, f"shard {number}/{count} with {videos} videos", "run it again")
    return report


def _interleaved(shards: Sequence[StepFiles], source: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of all shards in the order of the input.

    Raises:
        InputError: after the last, where they are not the lines of the input.
    """
    rows = [read_rows(files) for files in shards]
    digests = hashlib.sha256()
    for index in range(source["lines"]):
        row = next(rows[index % len(shards)])
        digests.update(row["input"].encode())
        yield row
    if digests.hexdigest() != source["lines_sha256"]:
        raise InputError("--out", "shards with other lines", f"those of {source['file']}, each once", "run the shards again")
