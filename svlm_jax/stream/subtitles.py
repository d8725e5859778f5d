"""Live captions, one cue a chunk: WebVTT (.vtt), SubRip (.srt) or JSON lines (.jsonl), by the name of the file.

Owns the formats and what is on the disk at any moment. The file has its final name from the start, because it is read while it
grows (tail -f, a browser); so it holds whole cues only: a cue is one unbuffered write, and what a full disk took of it is cut
off again. Does not know the model or the clock. No jax. Units: seconds of the video, rounded to milliseconds.
"""

import html
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from errno import ENOSPC
from io import FileIO
from pathlib import Path

from svlm_jax.errors import InputError

OPENINGS = {".vtt": b"WEBVTT\n\n", ".srt": b"1\n", ".jsonl": b'{"start": '}  # how each file written here begins
CONTROL = dict.fromkeys([*range(32), *range(127, 160)]) | {ord("\t"): " "}  # for str.translate: dropped, but for the tab


def _stamp(seconds: float | int, point: str) -> str:
    ms = round(1000 * seconds)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


def cue(kind: str, number: int, start: float | int, end: float | int, text: str, extra: dict) -> str:
    """The cue with the blank line or line break that ends it and is nowhere in it; "" for none."""
    if kind == ".jsonl":
        line = {"start": round(start, 3), "end": round(end, 3), "text": text, **extra}
        return json.dumps(line, allow_nan=False, default=lambda array: array.tolist()) + "\n"
    said = "\n".join(filter(None, (line.translate(CONTROL).strip() for line in text.splitlines())))
    if kind == ".srt":
        return said and f"{number}\n{_stamp(start, ',')} --> {_stamp(end, ',')}\n{said.replace('-->', '→')}\n\n"
    return said and f"{_stamp(start, '.')} --> {_stamp(end, '.')}\n{html.escape(said, quote=False)}\n\n"  # no "-->" is left


class Subtitles(AbstractContextManager["Subtitles"]):
    """A file of captions, open for writing; a context manager. Make it before the model is loaded: it refuses early."""

    def __init__(self, path: str | os.PathLike, *, append: bool = False, keep: int | None = None) -> None:
        """Args:
            append: go on after the last whole cue of a file written here, if there is one (SubRip goes on counting); what a
                crash left unfinished behind it is cut off with a warning. Without it a file that exists is refused.
            keep: bytes to go on after (a `size` of before); what follows them will be written again.

        Raises:
            InputError: no such folder, another ending, a file that exists or is of another kind, an unwritable place.
        """
        self.path, self.field, self.appended = Path(path), f"captions {path}", append
        self.kind = self.path.suffix.lower()
        self.ending = b"\n" if self.kind == ".jsonl" else b"\n\n"
        if not self.path.parent.is_dir():
            raise InputError(self.field, f"no folder {self.path.parent}", "an existing folder", "make it first")
        if self.kind not in OPENINGS:
            raise InputError(self.field, f"the ending {self.kind!r}", "one of " + " ".join(OPENINGS), "rename it")
        if os.path.lexists(self.path) and not append:
            raise InputError(self.field, "a file that exists", "a new name", "rename or remove it, or append to it")
        with self._told():
            kept = self._whole_cues(keep) if self.path.is_file() else b""
            self.file = FileIO(path, "a", opener=lambda name, mode: os.open(name, mode | (0 if append else os.O_EXCL), 0o666))
        self.size, self.number, self.cues = len(kept), kept.count(self.ending) + 1, 0
        if self.kind == ".vtt" and not kept:
            try:
                self._put(OPENINGS[".vtt"])
            except InputError:
                self.file.close()
                raise

    def write(self, start: float | int, end: float | int, text: str, **extra: object) -> None:
        """One cue. JSON lines get one always, with `extra` (JSON values and numpy arrays: tokens, ms, slots, ...) in it; the
        others leave `extra` out, and make no cue of an empty or blank text. SubRip cannot escape: its "-->" becomes an arrow.

        Raises:
            InputError: a full disk; the file is then as it was before this cue, and another write may succeed.
            ValueError: times that are no span of a millisecond or more; a number in `extra` that JSON does not have.
        """
        if not (0 <= start < end < float("inf") and round(1000 * start) < round(1000 * end)):
            raise ValueError(f"cue: got {start} to {end} s, expected 0 <= start < end, a millisecond or more")
        if whole := cue(self.kind, self.number, start, end, text, extra):
            self._put(whole.encode("utf-8", "replace"))  # half a surrogate pair becomes "?"
            self.number, self.cues = self.number + 1, self.cues + 1

    def close(self) -> None:
        with self._told():
            self.file.close()

    def __exit__(self, error: type | None, *_: object) -> None:
        self.close()
        if error is not None and not self.cues and not self.appended:
            self.path.unlink(missing_ok=True)  # the name is free for the next try

    def _put(self, data: bytes) -> None:
        with self._told():
            try:
                if self.file.write(data) != len(data):
                    raise OSError(ENOSPC, os.strerror(ENOSPC))
            except OSError:
                with suppress(OSError):  # a pipe cannot be cut
                    self.file.truncate(self.size)
                raise
        self.size += len(data)

    def _whole_cues(self, keep: int | None) -> bytes:
        """What the file holds of whole cues, `keep` bytes at most; the rest is cut off."""
        data, opening = self.path.read_bytes(), OPENINGS[self.kind]
        if data[: len(opening)] != opening[: len(data)]:
            raise InputError(self.field, "a file of another kind", "one written here", "choose another name")
        if keep is not None and len(data) > keep:
            os.truncate(self.path, keep)
            data = data[:keep]
        kept = data[: data.rfind(self.ending) + len(self.ending)] if self.ending in data else b""
        if kept != data:
            os.truncate(self.path, len(kept))
            warnings.warn(f"{self.field}: cut off {len(data) - len(kept)} bytes of an unfinished cue", stacklevel=3)
        return kept

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            got, remedy = f"a failed write ({error.strerror})", "free some, then append: what is written is whole"
            raise InputError(self.field, got, "room on a writable disk", remedy) from error
