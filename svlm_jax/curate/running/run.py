"""A step over all videos of its input: in any order, by threads or processes, killed at any moment, with the same files at the
end.

    step -> rows, each on the disk in g.partial.jsonl before it counts as done -> when all are there, the files of the step

A row is known by what it depends on: the step, its settings and its line of the input. So a run goes on where another was
killed, and takes over what an earlier one made of lines that are the same. Owns that; not what is in the files
(`curate.running.step_files`) nor who works (`curate.running.working`). Host side, never jax.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from svlm_jax.curate.outcome import NotDone, Step
from svlm_jax.curate.running.input_lines import InputLines, Line
from svlm_jax.curate.running.step_files import Row, StepFiles, finite, read_report, read_rows, write_results
from svlm_jax.curate.running.working import BAD_LINE, Failure, Parse, Result, check_lines, work_through
from svlm_jax.curate.transcript import parse as parse_transcript
from svlm_jax.errors import InputError, shortened
from svlm_jax.json_lines import Appender, BadLines
from svlm_jax.remote.response_cache import canonical

IN_A_ROW = 20  # videos that could not be done, one after the other: the rest would not be either


@dataclass(frozen=True)
class Run:
    """What became of a run.

    Attributes:
        report: of the files of the step; None: they are not written, for some videos are not done.
        total: videos of this shard.
        before: those that were done before.
        left: those that are not done.
        not_done: (name of the line, why) of those that were tried.
    """

    report: Mapping[str, Any] | None
    total: int
    before: int = 0
    left: int = 0
    not_done: tuple[tuple[str, str], ...] = ()


def run_step(
    step: Step,
    lines: InputLines,
    files: StepFiles,
    *,
    shard: tuple[int, int] = (1, 1),
    jobs: int = 1,
    waits: bool = False,
    parse: Parse = parse_transcript,
    bad: BadLines | None = None,
    progress: Callable[[int, int], None] | None = None,
    versions: Mapping[str, str] | None = None,
) -> Run:
    """Args:
        shard: (K, N): every N-th item, from the K-th on; `files` are those of the shard.
        jobs: videos at a time.
        waits: the step waits for servers, so its jobs are threads; else processes.
        parse: gives what the step is called with, of a decoded line and its name for errors. A function of a module.
        bad: lines that cannot be parsed and may be set aside.
        progress: called with (videos done, all of them).
        versions: of packages, for the report; what an outcome depends on is in the settings of the step.

    Raises:
        InputError: a bad line too many, a refused key, a full disk, another run that writes the same files, or files in their
            place that no run wrote. What is done stays done.
    """
    own = lines.of_shard(shard)
    head = {"step": step.name, "settings": json.loads(json.dumps(dict(step.settings))), "input": lines.to_json()}
    head["shard"] = list(shard) if shard[1] > 1 else None
    report = _earlier_report(files, step)
    if _is_of(report, head) and not files.partial.exists():
        return Run(report, len(own), len(own))
    with Appender(files.partial) as appender:
        try:
            report = _earlier_report(files, step)  # again: another run may have ended since
            if _is_of(report, head):
                run = Run(report, len(own), len(own))
            else:
                rows = _Rows(head, appender)
                if report is not None and report["settings"] == head["settings"]:
                    rows.take_over(read_rows(files), {line.digest for line in own})
                pending, bad = rows.pending(own), bad or BadLines()
                if waits:
                    check_lines(parse, lines, pending, bad.allowed)
                run = _work(rows, work_through(step, parse, lines, pending, jobs, waits), own, bad, progress)
                run = run if run.left else replace(run, report=write_results(files, rows.of(own), head, versions or {}))
        finally:
            if not files.partial.stat().st_size:
                files.partial.unlink()
        if run.report is not None:
            files.partial.unlink(missing_ok=True)
    return run


def _earlier_report(files: StepFiles, step: Step) -> Mapping[str, Any] | None:
    """Raises:
    InputError: that of another step, or as `read_report`.
    """
    report = read_report(files)
    if report is not None and report["step"] != step.name:
        got = f"the report of svlm curate {report['step']}"
        raise InputError(shortened(files.report), got, f"one of svlm curate {step.name}", "choose another --out")
    return report


def _is_of(report: Mapping[str, Any] | None, head: Mapping[str, Any]) -> bool:
    return report is not None and all(report[name] == value for name, value in head.items())


class _Rows:
    """The rows that are done, in the partial file; where each lies is held, by its key."""

    def __init__(self, head: Mapping[str, Any], appender: Appender) -> None:
        self._identity = {"step": head["step"], "settings": head["settings"]}
        self._appender = appender
        self._offsets: dict[str, int] = {}
        for offset, text in appender.lines():
            try:
                row = json.loads(text)
                if not row["counts"].get(BAD_LINE):  # how many of these are allowed is a question of each run
                    self._offsets[row["key"]] = offset
            except (ValueError, LookupError, TypeError, AttributeError):
                continue  # the disk has damaged it: it is made again

    def _key(self, digest: str) -> str:
        return hashlib.sha256(canonical({**self._identity, "input": digest})).hexdigest()

    def add(self, row: Row) -> None:
        entry = {"key": self._key(row["input"]), **row}
        try:
            offset = self._appender.add(entry)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            offset = self._appender.add(finite(entry))  # NaN, which a line of others may hold
        self._offsets[entry["key"]] = offset

    def take_over(self, rows: Iterable[Row], digests: Container[str]) -> None:
        """Rows of an earlier run with the same settings, of lines that are still there."""
        for row in rows:
            if row["input"] in digests and not self.has(row["input"]) and not row["counts"].get(BAD_LINE):
                self.add(row)

    def has(self, digest: str) -> bool:
        return self._key(digest) in self._offsets

    def pending(self, lines: Iterable[Line]) -> list[Line]:
        """Those without a row; of equal ones the first."""
        unique = {line.digest: line for line in reversed(list(lines)) if not self.has(line.digest)}
        return sorted(unique.values())

    def of(self, lines: Iterable[Line]) -> Iterator[Row]:
        """In the order of the lines."""
        with self._appender.path.open("rb") as file:
            for line in lines:
                file.seek(self._offsets[self._key(line.digest)])
                row = json.loads(file.readline())
                del row["key"]
                yield row


def _work(
    rows: _Rows,
    results: Generator[Result | Failure],
    own: Sequence[Line],
    bad: BadLines,
    progress: Callable[[int, int], None] | None,
) -> Run:
    """Keep results as they come, until all are there or it is of no use to go on."""
    before = done = sum(rows.has(line.digest) for line in own)
    copies = Counter(line.digest for line in own)
    not_done: list[tuple[str, str]] = []
    in_a_row = 0
    with closing(results):
        for result in results:
            line = result.line
            if isinstance(result, Failure):
                if not isinstance(result.error, NotDone):
                    raise result.error
                not_done.append((line.name, str(result.error)))
                in_a_row += 1
                if in_a_row == IN_A_ROW:
                    break
                continue
            if result.bad is not None:
                bad.add(result.bad, "set aside")
            rows.add(result.row)
            in_a_row, done = 0, done + copies[line.digest]
            if progress is not None:
                progress(done, len(own))
    return Run(None, len(own), before, len(own) - done, tuple(not_done))
