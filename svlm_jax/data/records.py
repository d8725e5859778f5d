"""Files of annotated windows, one JSON record a line, by number.

Owns the byte offsets of lines and how such files are written. Does not know what a record says. Host side: numpy, never jax.
Units: offsets in bytes, lines from 1, records from 0.

Source: the format of StreamingVLM (arXiv 2510.09608). Beside NAME.jsonl, or NAME_with_seeks.jsonl, lies NAME_seeks.jsonl with
the offset of every line: a JSON list, or a number a line. A file may hold that list as its own last line too, which is then no
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
from svlm_jax.files import local_path
from svlm_jax.media.paths import existing_file

_INDEX = re.compile(rb"\s*\[\s*\d")  # how a list of offsets begins, and a record does not
_GLANCE = 1 << 16  # bytes looked at behind the last record
_REMEDY = "remove it: the offsets are found without"


class Record(NamedTuple):
    """A line and where it stands: "FILE.jsonl:LINE", the file without its folder."""

    id: str
    line: bytes


class _File(NamedTuple):
    """Record n lies in the bytes bounds[n] .. bounds[n + 1] [count + 1] int64, in line numbers[n]; None: no blank lines."""

    path: Path
    bounds: np.ndarray
    numbers: np.ndarray | None

    def name(self, place: int) -> str:
        return f"{self.path.name}:{place + 1 if self.numbers is None else self.numbers[place]}"


class Records:
    """The records of several files, one file after the other. Threads and processes may share it: a process opens a file when
    it first reads from it, and every read names its place."""

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
        at, place = self._place(number)
        file = self._files[at]
        start, end = (int(bound) for bound in file.bounds[place : place + 2])
        before = min(start, 1)  # the newline that ends the line before
        read = os.pread(self._file(at).fileno(), before + end - start, start - before)
        line, newline, rest = read[before:].partition(b"\n")
        begun = read[:before] in (b"", b"\n")
        ended = newline or (place + 2 == len(file.bounds) and len(read) == before + end - start)
        alone = not (rest if file.numbers is None else rest.strip())
        if not (begun and ended and alone and line.strip()):
            got = f"no single line at the bytes {start} to {end}"
            remedy = f"remove {seeks_path(file.path)} if it is there, and do not write while others read"
            raise InputError(f"annotations {file.path}", got, f"record {file.name(place)}", remedy)
        return Record(file.name(place), line)

    def lengths(self) -> np.ndarray:
        """Bytes of each record [n] int64, the end of its line included (one, in the last of a file)."""
        lengths = np.concatenate([np.diff(file.bounds) for file in self._files])
        for last in self._starts[1:] - 1:
            with suppress(InputError):
                lengths[last] = len(self[int(last)].line.rstrip()) + 1
        return lengths

    def name(self, number: int) -> str:
        """The id of a record; nothing is read."""
        at, place = self._place(number)
        return self._files[at].name(place)

    def _place(self, number: int) -> tuple[int, int]:
        number = range(len(self))[number]  # IndexError past the end, which iteration needs
        at = int(np.searchsorted(self._starts, number, side="right")) - 1
        return at, number - int(self._starts[at])

    def _file(self, at: int) -> FileIO:
        if at not in self._open:
            opened = FileIO(self._files[at].path)
            if self._open.setdefault(at, opened) is not opened:  # another thread was faster
                opened.close()
        return self._open[at]

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
    """Write records and their seeks, whole or not at all; returns how many.

    Raises:
        InputError: the file or its seeks exist, cannot be written, or would be empty.
    """
    path, seeks = local_path(path), seeks_path(path)
    for one in filter(Path.exists, (path, seeks)):
        raise InputError(str(one), "something that exists already", "a new name", "remove it or choose another")
    draft, seeks_draft = (one.with_name(f"{one.name}.partial") for one in (path, seeks))
    offsets: list[int] = []
    try:
        with draft.open("wb") as file:
            for record in records:
                offsets.append(file.tell())
                file.write(json.dumps(record).encode() + b"\n")
        if not offsets:
            raise InputError(str(path), "no records", "at least one", "check what they are made from")
        seeks_draft.write_text(json.dumps(offsets))  # after the records: it must not be older than they are
        os.replace(seeks_draft, seeks)
        os.replace(draft, path)  # last: seeks alone say nothing, records alone look whole
    except OSError as error:
        raise InputError(str(path), f"a file that cannot be written ({error})", "a place with room", "choose another") from None
    finally:
        draft.unlink(missing_ok=True)
        seeks_draft.unlink(missing_ok=True)
    return len(offsets)


def _read(path: Path) -> _File:
    seeks = seeks_path(path)
    if not seeks.is_file():
        return _scanned(path)
    if seeks.stat().st_mtime_ns < path.stat().st_mtime_ns:
        warnings.warn(f"seeks {seeks}: older than {path}, so found anew", stacklevel=3)
        return _scanned(path)
    offsets = _offsets(seeks)
    return _File(path, np.append(offsets, _last_end(path, seeks, offsets)), None)


def _scanned(path: Path) -> _File:
    """By one pass over the file."""
    starts, numbers, at, number, last = [], [], 0, 0, b""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                starts.append(at)
                numbers.append(number)
                last = line
            at += len(line)
    if _INDEX.match(last):
        at, number = starts.pop(), number - 1
        numbers.pop()
    return _File(path, np.array([*starts, at], np.int64), None if len(numbers) == number else np.array(numbers, np.int64))


def _offsets(seeks: Path) -> np.ndarray:
    """What a seeks file says [count] int64, as far as it can be right without the records."""
    text = seeks.read_bytes()
    try:
        listed = json.loads(text) if _INDEX.match(text) else [json.loads(line) for line in text.split()]
    except ValueError as error:
        raise InputError(f"seeks {seeks}", f"broken JSON ({error})", "a list of numbers, or one a line", _REMEDY) from None
    if not listed or not all(type(offset) is int and 0 <= offset < 2**63 for offset in listed):
        raise InputError(f"seeks {seeks}", "something else", "whole numbers of bytes, at least one", _REMEDY)
    offsets = np.array(listed, np.int64)
    if offsets[0] or np.any(np.diff(offsets) <= 0):
        raise InputError(f"seeks {seeks}", "offsets out of order", "0 first, then each larger than the last", _REMEDY)
    return offsets


def _last_end(path: Path, seeks: Path, offsets: np.ndarray) -> int:
    """Where the last record ends; that it is the last says that there are as many offsets as records."""
    size, last = path.stat().st_size, int(offsets[-1])
    if last >= size:
        raise InputError(f"seeks {seeks}", f"an offset of {last} bytes", f"less than {size}, the size of {path}", _REMEDY)
    with path.open("rb") as file:
        file.seek(last)
        end = last + len(file.readline())
        behind = file.read(_GLANCE)
    if behind.strip() and not _INDEX.match(behind):
        got = f"{len(offsets)} offsets, the last of them not of the last line"
        raise InputError(f"seeks {seeks}", got, f"one for each line of {path}", _REMEDY)
    return end
