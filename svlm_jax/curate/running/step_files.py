"""The files of a step: what it made, what it set aside, what it changed, and a report, all of one run and in input order.

Of `--out g.jsonl`: g.jsonl (what goes on to the next step), g.set_aside.jsonl, g.changes.jsonl, g.report.json; while it runs,
g.partial.jsonl. A shard writes g.shard_2_of_8.jsonl and the like. `Row` is what all of them say of one video. Owns their names
and layout, and that nobody else's file is written over. Does not know how a row is made. Host side, never jax.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from svlm_jax.data.records import seeks_path
from svlm_jax.errors import InputError, shortened
from svlm_jax.files import atomic_write, local_path, parse_json, read_json, report_write_errors
from svlm_jax.json_lines import digest

STATUS_KEPT, STATUS_SET_ASIDE = "kept", "set aside"
REPORT_BYTES = 1 << 28  # a report with the names of many glossary entries among its settings
Row = dict[str, Any]  # a line of changes.jsonl, but "lines" are the lines themselves; "record" is the input of one set aside


@dataclass(frozen=True)
class StepFiles:
    """
    Attributes:
        out: as the user named it, for a shard with its number in the name.
        has_seeks: out holds windows, with the offsets of its lines beside it, as training reads them.
    """

    out: Path
    has_seeks: bool = False

    def _path(self, ending: str) -> Path:
        return self.out.with_name(f"{self.out.stem}.{ending}")

    @property
    def set_aside(self) -> Path:
        return self._path("set_aside.jsonl")

    @property
    def changes(self) -> Path:
        return self._path("changes.jsonl")

    @property
    def report(self) -> Path:
        return self._path("report.json")

    @property
    def partial(self) -> Path:
        return self._path("partial.jsonl")


def step_files(out: str | Path, shard: tuple[int, int] = (1, 1), *, has_seeks: bool = False) -> StepFiles:
    """Args:
        out: a path that ends in .jsonl.
        shard: (K, N), K from 1.

    Raises:
        InputError: another ending, an address, a folder that is not there.
    """
    path = local_path(out, "--out")
    if path.suffix != ".jsonl" or path.stem in ("", ".jsonl"):
        raise InputError("--out", shortened(path), "a name that ends in .jsonl", "rename it")
    if not path.parent.is_dir():
        raise InputError("--out", shortened(path), "a file in a folder that is there", f"mkdir -p {shortened(path.parent)}")
    number, count = shard
    name = path.name if count == 1 else f"{path.stem}.shard_{number}_of_{count}.jsonl"
    return StepFiles(path.with_name(name), has_seeks)


def write_results(
    files: StepFiles, rows: Iterable[Row], head: Mapping[str, Any], versions: Mapping[str, str]
) -> dict[str, Any]:
    """All files of a run that is complete, from its rows in input order, held one at a time. Until all are written in full none
    has its name, the report gets its name last, and there is none while the others are changed. Returns the report.

    Args:
        head: "step", "settings", "input", "shard".
        versions: of the packages that made them, for people.

    Raises:
        InputError: a full disk, or another reason not to write.
    """
    summary = _Summary()
    with report_write_errors(files.out), ExitStack() as stack:
        # what is entered last gets its name first
        out, changes, set_aside = (_Draft(stack, path) for path in (files.out, files.changes, files.set_aside))
        seeks = _Draft(stack, seeks_path(files.out)) if files.has_seeks else None
        offsets: list[int] = []
        for row in rows:
            for record in row["lines"]:
                offsets.append(out.size)
                # ASCII for windows, as `data.records` writes them; letters for transcripts, as people read them
                out.write(json.dumps(record, ensure_ascii=files.has_seeks) + "\n")
            if row["status"] == STATUS_SET_ASIDE:
                set_aside.write(_line({key: row[key] for key in ("video", "reason", "record")}))
            changes.write(_line(_changes_row(row)))
            summary.add(row)
        if seeks is not None:
            seeks.write(json.dumps(offsets))
        drafts = {"out": out, "set_aside": set_aside, "changes": changes} | ({"seeks": seeks} if seeks else {})
        report = {**head, **summary.to_json(), "versions": dict(versions)}
        report["files"] = {name: draft.close() for name, draft in drafts.items()}
        files.report.unlink(missing_ok=True)
    with report_write_errors(files.report), atomic_write(files.report, sync=True) as draft:
        draft.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


class _Draft:
    """A file that is written before it gets its name, and the SHA-256 of what it holds."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        draft = stack.enter_context(atomic_write(path, sync=True))
        self._file: IO[bytes] = stack.enter_context(draft.open("wb"))
        self._sha256, self.size = hashlib.sha256(), 0

    def write(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        self._file.write(data)
        self._sha256.update(data)
        self.size += len(data)

    def close(self) -> str:
        self._file.close()
        return self._sha256.hexdigest()


class _Summary:
    """What a report adds up over videos."""

    def __init__(self) -> None:
        self.num_kept = self.lines = self.duplicates = 0
        self.videos: set[str] = set()
        self.reasons: Counter[str] = Counter()
        self.seconds, self.words = [0.0, 0.0], [0, 0]
        self.counts: Counter[str] = Counter()
        self.changes: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        if row["status"] == STATUS_KEPT:
            self.num_kept += 1
        else:
            self.reasons[row["reason"]] += 1
        self.duplicates += row["video"] in self.videos
        self.videos.add(row["video"])
        self.lines += len(row["lines"])
        self.seconds = [total + value for total, value in zip(self.seconds, row["seconds"], strict=True)]
        self.words = [total + value for total, value in zip(self.words, row["words"], strict=True)]
        self.counts.update(row["counts"])
        self.changes.update(change[0] for change in row["changes"])

    def to_json(self) -> dict[str, Any]:
        set_aside = self.reasons.total()
        return {
            "videos": {"in": self.num_kept + set_aside, "kept": self.num_kept, "set_aside": set_aside},
            "duplicates": self.duplicates,  # lines of a video that had one before
            "lines": self.lines,
            "set_aside": dict(self.reasons.most_common()),
            "hours": [round(seconds / 3600, 6) for seconds in self.seconds],
            "words": self.words,
            "counts": dict(sorted(self.counts.items())),
            "changes": dict(sorted(self.changes.items())),
        }


def _changes_row(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "record"} | {"lines": len(row["lines"])}


def read_rows(files: StepFiles) -> Iterator[Row]:
    """The rows of a run that is complete, as `write_results` got them, one at a time."""
    with files.changes.open("rb") as changes, files.out.open("rb") as out, files.set_aside.open("rb") as set_aside:
        for number, line in enumerate(changes, 1):
            row = parse_json(line, f"{files.changes.name}:{number}", "a line written here")
            row["lines"] = [json.loads(out.readline()) for _ in range(row["lines"])]
            if row["status"] == STATUS_SET_ASIDE:
                row["record"] = json.loads(set_aside.readline())["record"]
            yield row


def read_report(files: StepFiles) -> dict[str, Any] | None:
    """The report of the run whose results are there, checked to be theirs. None: no run was completed here.

    Raises:
        InputError: a result that was changed since, or a file in its place that no run wrote. It would be written over.
    """
    if not files.report.exists():
        if files.out.exists() and not files.partial.exists():
            expected = "a new name, or what an earlier run wrote"
            raise InputError("--out", f"{shortened(files.out)}, which no run wrote", expected, "remove it or choose another")
        return None
    report = read_json(files.report, "the report of a step", REPORT_BYTES)
    written = report.get("files")
    if not isinstance(written, dict) or "step" not in report or "input" not in report:
        raise InputError(shortened(files.report), "something else", "the report of a step", "choose another --out")
    paths = {"out": files.out, "set_aside": files.set_aside, "changes": files.changes}
    if "seeks" in written:
        paths["seeks"] = seeks_path(files.out)
    for name, path in paths.items():
        if not path.is_file():
            return None  # removed, to be made again
        if digest(path) != written.get(name):
            got = "a file that was changed after it was written"
            raise InputError(shortened(path), got, "the one its report tells of", "remove it, or choose another --out")
    return report


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """JSON without NaN and infinities, which only some programs read: null in their place, which transcripts take for the
    same."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return {key: finite(item) for key, item in value.items()} if isinstance(value, dict) else value
