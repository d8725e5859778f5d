"""Live captions, one cue a chunk: WebVTT (.vtt), SubRip (.srt) or JSON lines (.jsonl), by the name of the file.

Owns the formats and what is on the disk at any moment. The file has its final name from the start, because it is read while it
grows (tail -f, a browser); so it holds complete cues only: a cue is one unbuffered write, and what a full disk took of it is
cut off again. Does not know the model or the clock. No jax. Units: seconds of the video, rounded to milliseconds.
"""

import hashlib
import html
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from errno import ENOSPC
from io import FileIO
from pathlib import Path
from typing import Any

from svlm_jax.errors import InputError, shortened
from svlm_jax.files import try_lock

OPENINGS = {".vtt": b"WEBVTT\n\n", ".srt": b"1\n", ".jsonl": b'{"start": '}  # how each file written here begins
_STAMPS = rb"\d+:\d\d:\d\d%b\d{3} --> \d+:\d\d:\d\d%b\d{3}\n.+"
CUES = {  # a cue of each, without what ends it
    ".vtt": re.compile(_STAMPS % (rb"\.", rb"\."), re.DOTALL),
    ".srt": re.compile(rb"\d+\n" + _STAMPS % (b",", b","), re.DOTALL),
    ".jsonl": re.compile(rb'\{"start": .+\}'),
}
CONTROL = dict.fromkeys([*range(32), *range(127, 160)]) | {ord("\t"): " "}  # for str.translate: dropped, but for the tab
BLANK = dict.fromkeys([*CONTROL, 0x2028, 0x2029], " ")
QUESTION_PREFIX = "Q: "  # before the question in the cue of the reply to it


def _stamp(seconds: float | int, point: str) -> str:
    ms = round(1000 * seconds)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


def one_line(text: str) -> str:
    """Text, or a part of it, without line breaks and control characters, which become blanks. All else, joiners, marks and
    other kinds of blanks, stays as it is: what makes one character of several must not be taken apart."""
    return text.translate(BLANK).encode("utf-8", "replace").decode()


def cue(kind: str, number: int, start: float | int, end: float | int, text: str, extra: dict) -> str:
    """The cue with the blank line or line break that ends it and is nowhere in it; "" for none. A `question` in `extra` stands
    in a line of its own before the words."""
    if kind == ".jsonl":
        line = {"start": round(start, 3), "end": round(end, 3), "text": text, **extra}
        return json.dumps(line, allow_nan=False, default=lambda array: array.tolist()) + "\n"
    question = one_line(str(extra.get("question") or "")).strip()
    lines = [QUESTION_PREFIX + question if question else "", *text.splitlines()]
    body = "\n".join(filter(None, (line.translate(CONTROL).strip() for line in lines)))
    if kind == ".srt":
        return body and f"{number}\n{_stamp(start, ',')} --> {_stamp(end, ',')}\n{body.replace('-->', '→')}\n\n"
    return body and f"{_stamp(start, '.')} --> {_stamp(end, '.')}\n{html.escape(body, quote=False)}\n\n"  # no "-->" is left


class Subtitles(AbstractContextManager["Subtitles"]):
    """A file of captions, open for writing; a context manager. Make it before the model is loaded: it refuses early."""

    def __init__(
        self, path: str | os.PathLike, *, append: bool = False, keep: int | None = None, digest: str | None = None
    ) -> None:
        """Nothing of a file that exists is cut off before its first cue is written, or it is closed: a run that fails before
        that leaves it as it was.

        Args:
            append: go on after the last complete cue of a file written here, if there is one (SubRip goes on counting); what a
                crash left unfinished behind it is cut off with a warning. Without it a file that exists is refused.
            keep: bytes to go on after (a `mark` of before); what follows them will be written again.
            digest: what those bytes had then.

        Raises:
            InputError: no such folder, another ending, an unwritable place; a file that exists, or is of another kind, or has
                changed.
        """
        self.path, self.field = Path(path), f"captions {shortened(path)}"
        self.kind = self.path.suffix.lower()
        self.ending = b"\n" if self.kind == ".jsonl" else b"\n\n"
        if not self.path.parent.is_dir():
            raise InputError(self.field, f"no folder {shortened(self.path.parent)}", "an existing folder", "make it first")
        if self.kind not in OPENINGS:
            raise InputError(self.field, f"the ending {self.kind!r}", "one of " + " ".join(OPENINGS), "rename it")
        exists = os.path.lexists(self.path)
        if exists and not append and not self._is_bare():
            raise InputError(self.field, "a file that exists", "a new name", "rename or remove it, or append to it")
        self.new = not exists
        with self._write_errors():
            data = self._read_existing(keep, digest) if self.path.is_file() else b""
            exclusive = 0 if exists or append else os.O_EXCL
            self.file = FileIO(path, "a", opener=lambda name, mode: os.open(name, mode | exclusive, 0o666))
        if try_lock(self.file.fileno()) is False:
            self.file.close()
            raise InputError(self.field, "a file that another stream writes", "a file of its own", "choose another name")
        saved = data if keep is None else data[:keep]  # what follows will be written again
        cues = saved[: saved.rfind(self.ending) + len(self.ending)] if self.ending in saved else b""
        self.must_truncate, self.unfinished_bytes = len(cues) < len(data), len(saved) - len(cues)
        self.rewritten = data[len(cues) :].count(self.ending)  # cues that were written after the mark
        self.size, self.number, self.cues = len(cues), cues.count(self.ending) + 1, 0
        self.hash = hashlib.sha256(cues)
        if not data:
            try:
                self._prepare_file()
            except InputError:
                self.file.close()
                raise

    @property
    def mark(self) -> dict[str, Any]:
        """The present end of the file: `keep` and `digest` with which it is opened again to go on from this cue."""
        return {"size": self.size, "sha256": self.hash.hexdigest()}

    def sync(self) -> None:
        """Wait until the disk has what is written; nothing happens for a pipe, or a disk that cannot."""
        with suppress(OSError, ValueError):  # ValueError: closed, which a thread that saves may come too late to know
            os.fsync(self.file.fileno())

    def write(self, start: float | int, end: float | int, text: str, **extra: object) -> None:
        """One cue. JSON lines get one always, with `extra` (JSON values and numpy arrays: tokens, ms, slots, ...) in it; the
        others leave out all of it but a `question`, and make no cue of an empty or blank text without one. SubRip cannot
        escape: its "-->" becomes an arrow.

        Raises:
            InputError: a full disk; the file is then as it was before this cue, and another write may succeed.
            ValueError: times that are no span of a millisecond or more; a number in `extra` that JSON does not have.
        """
        if not (0 <= start < end < float("inf") and round(1000 * start) < round(1000 * end)):
            raise ValueError(f"cue: got {start} to {end} s, expected 0 <= start < end, a millisecond or more")
        if lines := cue(self.kind, self.number, start, end, text, extra):
            self._prepare_file()
            self._append(lines.encode("utf-8", "replace"))  # half a surrogate pair becomes "?"
            self.number, self.cues = self.number + 1, self.cues + 1

    def close(self) -> None:
        with self._write_errors():
            try:
                if not self.file.closed:
                    self._prepare_file()
            finally:
                self.file.close()

    def __exit__(self, error: type | None, *_: object) -> None:
        if error is None or self.cues:
            self.close()
            return
        with self._write_errors():
            self.file.close()
        if self.new:
            self.path.unlink(missing_ok=True)  # the name is free for the next try

    def _prepare_file(self) -> None:
        """Cut off what follows the last complete cue, and write the opening of an empty file."""
        if self.must_truncate:
            with self._write_errors():
                os.truncate(self.path, self.size)
            self.must_truncate = False
            if self.unfinished_bytes:
                warnings.warn(f"{self.field}: cut off {self.unfinished_bytes} bytes of an unfinished cue", stacklevel=3)
        if self.kind == ".vtt" and not self.size:
            self._append(OPENINGS[".vtt"])

    def _append(self, data: bytes) -> None:
        with self._write_errors():
            try:
                if self.file.write(data) != len(data):
                    raise OSError(ENOSPC, os.strerror(ENOSPC))
            except OSError:
                with suppress(OSError):  # a pipe cannot be cut
                    self.file.truncate(self.size)
                raise
        self.size += len(data)
        self.hash.update(data)

    def _read_existing(self, keep: int | None, digest: str | None) -> bytes:
        """The bytes of the file.

        Raises:
            InputError: a file of another kind, or one that has changed.
        """
        data, opening = self.path.read_bytes(), OPENINGS[self.kind]
        if data[: len(opening)] != opening[: len(data)]:
            raise InputError(self.field, "a file of another kind", "one written here", "choose another name")
        is_other = digest is not None and (len(data) < (keep or 0) or hashlib.sha256(data[:keep]).hexdigest() != digest)
        if is_other or (digest is not None and not self._are_cues(data[keep:])):
            got = "a file that has been changed or cut since the stream was saved"
            raise InputError(self.field, got, "the captions as they were", "bring them back, or give a new name")
        return data

    def _is_bare(self) -> bool:
        """Whether an existing file holds nothing that could be lost: a run that was ended before its first cue leaves this."""
        with self._write_errors():
            return self.path.is_file() and self.path.stat().st_size < 9 and self.path.read_bytes() in (b"", b"WEBVTT\n\n")

    def _are_cues(self, data: bytes) -> bool:
        """Whether this is what a killed run leaves, and no user: cues, and the beginning of one (after a loss of power,
        zeros)."""
        *cues, unfinished = data.rstrip(b"\0").split(self.ending)
        opening = OPENINGS[self.kind]
        if self.kind == ".jsonl":
            begins = opening.startswith(unfinished[: len(opening)])
        else:
            begins = not unfinished.split(b"\n")[0].strip(b"0123456789:.,-> ")
        return begins and all(map(CUES[self.kind].fullmatch, cues))

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            got, remedy = f"a failed write ({error.strerror})", "free some, then append: what is written is complete"
            raise InputError(self.field, got, "room on a writable disk", remedy) from error
