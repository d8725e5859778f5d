"""JSON lines: files of others read with the line that is wrong named, files of ours written so that a killed run goes on.

Owns what is on the disk at any moment: a file that grows (`Appender`) holds complete lines only, a file that is written at once
(`write`) appears complete or not at all. Does not know what a line says. Host side, never jax. Lines count from 1.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path, PurePath
from typing import IO, Any, TypeVar

from svlm_jax.errors import InputError, shortened
from svlm_jax.files import (
    atomic_write,
    local_path,
    parse_json,
    parse_json_list,
    refuse_other_kinds_of_file,
    report_write_errors,
    try_lock,
)

MAX_SECONDS = 1e6  # of a video: eleven days
_BLOCK = 1 << 20  # bytes

Parsed = TypeVar("Parsed")


class BadLines:
    """How many lines of a file may be bad, and which were: each is reported, and one more than allowed is an error."""

    def __init__(self, allowed: int = 0) -> None:
        self.allowed = allowed
        self.errors: list[str] = []

    def add(self, error: InputError, outcome: str = "left out") -> None:
        """Args:
            outcome: what becomes of it where it is allowed.

        Raises:
            InputError: the same, where no more are allowed.
        """
        if len(self.errors) >= self.allowed:
            raise error
        self.errors.append(str(error))
        warnings.warn(f"{outcome}: {error}", stacklevel=3)


def read(path: str | Path, expected: str, parse: Callable[[dict[str, Any], str], Parsed], bad: BadLines) -> list[Parsed]:
    """What `parse` makes of each object of a file, in order: one a line, blank lines passed over, or a JSON list of objects.

    Args:
        expected: what the file should hold, for errors.
        parse: called with (the object, "FILE:LINE" or "FILE[INDEX]" for errors); may raise InputError.
        bad: lines or objects that may be left out.

    Raises:
        InputError: no such file, another kind of file, nothing in it that is good, or more bad lines than allowed.
    """
    path = local_path(path)
    if not path.is_file():
        raise InputError(shortened(path), "no such file", expected, "check the path")
    refuse_other_kinds_of_file(path, expected)
    parsed = []
    for source, item in _items(path, expected):
        try:
            record = parse_json(item, source, expected) if isinstance(item, bytes) else item
            if not isinstance(record, dict):
                raise InputError(source, f"a JSON {type(record).__name__}", expected, "mend it, or leave it out")
            parsed.append(parse(record, source))
        except InputError as error:
            bad.add(error)
    if not parsed:
        raise InputError(shortened(path), "no line", expected, "check the file")
    return parsed


def _items(path: Path, expected: str) -> Iterator[tuple[str, Any]]:
    """(its name for errors, a line as bytes or a member of a JSON list) of all that a file holds."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
        file.seek(0)
        if first.lstrip().startswith(b"["):
            members = parse_json_list(file.read(), path.name, expected)
            yield from ((f"{path.name}[{index}]", member) for index, member in enumerate(members))
            return
        yield from ((f"{path.name}:{number}", line) for number, line in enumerate(file, 1) if line.strip())


def write(path: str | Path, records: Iterable[dict[str, Any]]) -> int:
    """Write records, one a line, complete or not at all; returns their number."""
    count = 0
    with report_write_errors(path), atomic_write(path) as draft, draft.open("w", encoding="utf-8", errors="replace") as file:
        for record in records:
            file.write(_line(record))
            count += 1
    return count


def write_json(path: str | Path, value: dict[str, Any] | list[Any]) -> None:
    """Write an object, or a list, for people and programs to read, complete or not at all."""
    with report_write_errors(path), atomic_write(path) as draft:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        draft.write_text(text, encoding="utf-8", errors="replace")  # a path or a label may hold bytes that are no UTF-8


class Appender(AbstractContextManager["Appender"]):
    """A file of lines that grows while a run goes on, and with which a killed run goes on. Thread by thread: one may write."""

    def __init__(self, path: str | Path) -> None:
        """What a crash left of an unfinished line is cut off.

        Raises:
            InputError: a file that another run has open, or that cannot be written.
        """
        self.path = local_path(path)
        with report_write_errors(self.path):
            self.file = open(self.path, "ab+")  # noqa: SIM115 (closed by __exit__)
            _claim(self.file, self.path)
            self._complete = _end_of_lines(self.file)
            self.file.truncate(self._complete)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(offset in bytes, line) of those that were there when the file was opened, read one at a time."""
        offset = 0
        with self.path.open("rb") as file:
            while offset < self._complete:
                line = file.readline()
                yield offset, line
                offset += len(line)

    def existing(self) -> Iterator[dict[str, Any]]:
        """The lines that were there when the file was opened, decoded."""
        for number, (_, line) in enumerate(self.lines(), 1):
            if line.strip():
                yield parse_json(line, f"{self.path.name}:{number}", "a line written here")

    def add(self, record: dict[str, Any]) -> int:
        """Write one line; it is on the disk when this returns. Returns its offset in bytes."""
        with report_write_errors(self.path):
            offset = self.file.seek(0, os.SEEK_END)
            self.file.write(_line(record).encode("utf-8", "replace"))
            self.file.flush()
            os.fsync(self.file.fileno())
        return offset

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # of a line that could not be written, which `add` has said
            self.file.close()


def _claim(file: IO[bytes], path: Path) -> None:
    """Two runs that write the same file would do the same work twice, and one would lose its lines. The claim ends with the
    process, killed or not."""
    if try_lock(file.fileno()) is False:
        file.close()
        raise InputError(shortened(path), "a file that another run is writing", "one run at a time", "wait for it")


def _end_of_lines(file: IO[bytes]) -> int:
    """Offset behind the last end of a line; found from the end on, in a file that may be larger than the memory."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(end - _BLOCK, 0)
        file.seek(start)
        if newline := file.read(end - start).rfind(b"\n") + 1:
            return start + newline
        end = start
    return 0


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def digest(path: str | Path) -> str:
    """SHA-256 of a file, in hex: which data a number is of."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_KINDS: dict[type, str] = {str: "a text", list: "a list", int: "a whole number", float: "a number", dict: "an object"}


def require(record: dict[str, Any], key: str, kind: type, source: str, default: Any = None) -> Any:
    """record[key], checked to be of a kind (float takes whole numbers too); `default`, unless None, where the key is missing.

    Raises:
        InputError: no such key, or a value of another kind.
    """
    if key not in record and default is not None:
        return default
    if key not in record:
        raise InputError(f"{source} {key}", "nothing", _KINDS[kind], "mend the line, or leave it out")
    value = record[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9  # NaN is not below it
    if not (is_number and (kind is float or isinstance(value, int)) if kind in (int, float) else isinstance(value, kind)):
        raise InputError(f"{source} {key}", f"{value!r:.40}", _KINDS[kind], "mend the line, or leave it out")
    return value


def require_time(record: dict[str, Any], key: str, source: str) -> float:
    """record[key], a number of seconds of a video, as `require`: no later than `MAX_SECONDS`, because seconds are counted one
    by one."""
    seconds = require(record, key, float, source)
    if seconds > MAX_SECONDS:
        raise InputError(
            f"{source} {key}", f"{seconds:g}", f"seconds, {MAX_SECONDS:g} at most", "mend the line, or leave it out"
        )
    return float(seconds)


def require_video(record: dict[str, Any], key: str, source: str) -> str:
    """record[key], the path of a video below the folder of videos, as `require`: items come from others, and must not name
    files outside it.

    Raises:
        InputError: also for no name, an absolute path, or one with "..".
    """
    video = require(record, key, str, source)
    if not is_below(video):
        expected = "a path below the folder of videos"
        raise InputError(f"{source} {key}", f"{shortened(video, 60)!r}", expected, "mend the line, or leave it out")
    return video


def is_below(path: str) -> bool:
    """Whether a path that somebody else wrote names something below a folder, and not what lies beside it."""
    parts = PurePath(path).parts
    return bool(parts) and not PurePath(path).anchor and ".." not in parts and "\0" not in path
