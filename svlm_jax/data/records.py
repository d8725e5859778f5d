"""Files of annotated windows, one JSON record a line, by number.

Owns the byte offsets of lines and how such files are written. Does not know what a record says. Host side: numpy, never jax.
Units: offsets in bytes, lines from 1, records from 0.

Source: the format of StreamingVLM (arXiv 2510.09608). NAME.jsonl, or NAME_with_seeks.jsonl, comes with NAME_seeks.jsonl, the
offset of every line: a JSON list, or a number a line. A file may also have that list as its own last line, which is then no
record.
"""

import json
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from svlm_jax.errors import InputError
from svlm_jax.files import atomic_write, local_path, report_write_errors
from svlm_jax.media.paths import existing_file

_OFFSET_LIST = re.compile(rb"\s*\[\s*\d")  # the first bytes of a list of offsets, and of no record
_TAIL_BYTES = 1 << 16  # that are read after the last record
_REMEDY = "remove it: the offsets are then read from the file"


class Record(NamedTuple):
    """A line and its id: "FILE.jsonl:LINE", the file without its folder."""

    id: str
    line: bytes


class _File(NamedTuple):
    """bounds [n + 1] int64: record i lies in the bytes bounds[i] .. bounds[i + 1]. line_numbers [n]; None: no blank lines."""

    path: Path
    bounds: np.ndarray
    line_numbers: np.ndarray | None

    def name(self, index: int) -> str:
        return f"{self.path.name}:{index + 1 if self.line_numbers is None else self.line_numbers[index]}"


class Records:
    """The records of several files, one file after the other. Threads and processes may share it: a process opens a file when
    it first reads from it, and every read names its offset."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        """Raises:
        InputError: no files; one that is missing or empty, or whose seeks do not fit it.
        """
        if not paths:
            raise InputError("annotation files", "none", "at least one", "name a JSONL file")
        self._files = [_read(existing_file(path, "annotations")) for path in paths]
        self._starts = np.cumsum([0, *(len(file.bounds) - 1 for file in self._files)])
        self._open: dict[int, FileIO] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> Record:
        """Raises:
        InputError: there is not exactly one line at the offset.
        """
        file_index, index = self._locate(number)
        file = self._files[file_index]
        start, end = (int(bound) for bound in file.bounds[index : index + 2])
        margin = min(start, 1)  # byte before the record: the newline that ends the previous line
        data = os.pread(self._descriptor(file_index).fileno(), margin + end - start, start - margin)
        line, newline, rest = data[margin:].partition(b"\n")
        starts_line = data[:margin] in (b"", b"\n")
        ends_line = newline or (index + 2 == len(file.bounds) and len(data) == margin + end - start)
        is_single = not (rest if file.line_numbers is None else rest.strip())
        if not (starts_line and ends_line and is_single and line.strip()):
            got = f"no single line at the bytes {start} to {end}"
            remedy = f"remove {seeks_path(file.path)} if it exists, and do not write while others read"
            raise InputError(f"annotations {file.path}", got, f"record {file.name(index)}", remedy)
        return Record(file.name(index), line)

    def lengths(self) -> np.ndarray:
        """Bytes of each record [n] int64, the end of its line included (one, in the last of a file)."""
        lengths = np.concatenate([np.diff(file.bounds) for file in self._files])
        for last in self._starts[1:] - 1:
            with suppress(InputError):
                lengths[last] = len(self[int(last)].line.rstrip()) + 1
        return lengths

    def name(self, number: int) -> str:
        """The id of a record; nothing is read."""
        file_index, index = self._locate(number)
        return self._files[file_index].name(index)

    def _locate(self, number: int) -> tuple[int, int]:
        """(index of the file, index of the record in it)."""
        number = range(len(self))[number]  # IndexError past the end, which iteration needs
        file_index = int(np.searchsorted(self._starts, number, side="right")) - 1
        return file_index, number - int(self._starts[file_index])

    def _descriptor(self, file_index: int) -> FileIO:
        if file_index not in self._open:
            opened = FileIO(self._files[file_index].path)
            if self._open.setdefault(file_index, opened) is not opened:  # another thread was faster
                opened.close()
        return self._open[file_index]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def __del__(self) -> None:
        for file in self.__dict__.get("_open", {}).values():
            file.close()


def seeks_path(path: str | Path) -> Path:
    """The file of the offsets of a JSONL file; named as the original names it.

    Raises:
        InputError: not a .jsonl file.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise InputError(f"annotations {path}", f"the suffix {path.suffix!r}", "a .jsonl file", "rename it")
    return path.with_name(f"{path.stem.replace('_with_seeks', '')}_seeks.jsonl")


def write(path: str | Path, records: Iterable[list]) -> int:
    """Write records and their seeks, complete or not at all; returns the number of records.

    Raises:
        InputError: the file or its seeks exist, cannot be written, or would be empty.
    """
    path, seeks = local_path(path), seeks_path(path)
    for existing in filter(Path.exists, (path, seeks)):
        raise InputError(str(existing), "something that exists already", "a new name", "remove it or choose another")
    offsets: list[int] = []
    # The records get their name last: seeks alone say nothing, but records alone look complete.
    with report_write_errors(path), atomic_write(path) as draft, atomic_write(seeks) as seeks_draft:
        with draft.open("wb") as file:
            for record in records:
                offsets.append(file.tell())
                file.write(json.dumps(record).encode() + b"\n")
        if not offsets:
            raise InputError(str(path), "no records", "at least one", "check the source of the records")
        seeks_draft.write_text(json.dumps(offsets))  # after the records: seeks must not be older than they are
    return len(offsets)


def _read(path: Path) -> _File:
    seeks = seeks_path(path)
    if not seeks.is_file():
        return _scan(path)
    if seeks.stat().st_mtime_ns < path.stat().st_mtime_ns:
        warnings.warn(f"seeks {seeks}: older than {path}, so the offsets are read from it", stacklevel=3)
        return _scan(path)
    offsets = _offsets(seeks)
    return _File(path, np.append(offsets, _last_end(path, seeks, offsets)), None)


def _scan(path: Path) -> _File:
    """By one pass over the file."""
    starts, line_numbers, offset, number, last = [], [], 0, 0, b""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                starts.append(offset)
                line_numbers.append(number)
                last = line
            offset += len(line)
    if _OFFSET_LIST.match(last):  # the file's own index, no record
        offset, number = starts.pop(), number - 1
        line_numbers.pop()
    has_blanks = len(line_numbers) != number
    return _File(path, np.array([*starts, offset], np.int64), np.array(line_numbers, np.int64) if has_blanks else None)


def _offsets(seeks: Path) -> np.ndarray:
    """The offsets in a seeks file [n] int64, checked as far as that is possible without the records."""
    text = seeks.read_bytes()
    try:
        numbers = json.loads(text) if _OFFSET_LIST.match(text) else [json.loads(line) for line in text.split()]
    except ValueError as error:
        raise InputError(f"seeks {seeks}", f"broken JSON ({error})", "a list of numbers, or one a line", _REMEDY) from None
    if not numbers or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise InputError(f"seeks {seeks}", "something else", "whole numbers of bytes, at least one", _REMEDY)
    offsets = np.array(numbers, np.int64)
    if offsets[0] or np.any(np.diff(offsets) <= 0):
        raise InputError(f"seeks {seeks}", "offsets out of order", "0 first, then each larger than the last", _REMEDY)
    return offsets


def _last_end(path: Path, seeks: Path, offsets: np.ndarray) -> int:
    """Offset of the end of the last record, after a check that it is the last: that there are as many offsets as records."""
    size, last = path.stat().st_size, int(offsets[-1])
    if last >= size:
        raise InputError(f"seeks {seeks}", f"an offset of {last} bytes", f"less than {size}, the size of {path}", _REMEDY)
    with path.open("rb") as file:
        file.seek(last)
        end = last + len(file.readline())
        tail = file.read(_TAIL_BYTES)
    if tail.strip() and not _OFFSET_LIST.match(tail):
        got = f"{len(offsets)} offsets, the last of them not of the last line"
        raise InputError(f"seeks {seeks}", got, f"one for each line of {path}", _REMEDY)
    return end
