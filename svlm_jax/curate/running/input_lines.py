"""The input of a step: lines of a file that are found once, known by their SHA-256, and read one at a time.

Thousands of videos of thousands of words are larger than the memory of a process: what is held is where each line lies. Owns
the order of items, which shard an item belongs to, and that a line is still what it was. Host side, never jax.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from svlm_jax.errors import InputError, shortened
from svlm_jax.files import local_path, refuse_other_kinds_of_file


class Line(NamedTuple):
    """index: among the items, from 0. name: for errors, "words.jsonl:12". offset, size: in bytes, without the end of the line.
    digest: SHA-256 of its bytes, in hex."""

    index: int
    name: str
    offset: int
    size: int
    digest: str


class InputLines:
    """
    Attributes:
        name: of the file.
        sha256: of the whole file.
        lines: all of them; blank ones are none.
    """

    def __init__(self, name: str, data: Iterable[bytes], read_at: Callable[[int, int], bytes]) -> None:
        """Args:
        data: lines with their ends, one after the other.
        read_at: (offset, size) -> bytes of these.
        """
        self.name, self._read_at = name, read_at
        file_sha256, digests, offset = hashlib.sha256(), hashlib.sha256(), 0
        self.lines: list[Line] = []
        for number, raw in enumerate(data, 1):
            file_sha256.update(raw)
            text = raw.strip()
            if text:
                start, line_digest = offset + raw.index(text), hashlib.sha256(text).hexdigest()
                self.lines.append(Line(len(self.lines), f"{name}:{number}", start, len(text), line_digest))
                digests.update(line_digest.encode())
            offset += len(raw)
        self.sha256, self.digests_sha256 = file_sha256.hexdigest(), digests.hexdigest()

    @classmethod
    def of_file(cls, path: str | Path, expected: str = "videos with their words, one a line") -> "InputLines":
        """Raises:
        InputError: no such file, nothing in it, or another kind of file.
        """
        path = local_path(path, "--in")
        if not path.is_file():
            got = "no file" if path.exists() else "no such file"
            raise InputError("--in", f"{shortened(path)}, {got}", expected, "check the path")
        refuse_other_kinds_of_file(path, expected)
        descriptor = os.open(path, os.O_RDONLY)
        with path.open("rb") as file:
            lines = cls(path.name, file, lambda offset, size: os.pread(descriptor, size, offset))
        if not lines.lines:
            raise InputError("--in", f"{shortened(path)}, with no line", expected, "check the file")
        return lines

    @classmethod
    def of_records(cls, name: str, records: Iterable[Mapping[str, Any]]) -> "InputLines":
        """Lines that no file has: what a command found. The same records give the same digests."""
        data = [
            json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n" for record in records
        ]
        content = b"".join(data)
        return cls(name, data, lambda offset, size: content[offset : offset + size])

    def read(self, line: Line) -> bytes:
        """Thread-safe.

        Raises:
            InputError: it is another one now.
        """
        data = self._read_at(line.offset, line.size)
        if hashlib.sha256(data).hexdigest() != line.digest:
            raise InputError(line.name, "a line that was changed while it was read", "an input that stays", "run it again")
        return data

    def of_shard(self, shard: tuple[int, int]) -> list[Line]:
        """Those of shard (K, N): every N-th from the K-th on."""
        number, count = shard
        return self.lines[number - 1 :: count]

    def to_json(self) -> dict[str, Any]:
        """What a report says of the input."""
        identity = {"file": self.name, "sha256": self.sha256, "lines": len(self.lines)}
        return {**identity, "lines_sha256": self.digests_sha256}
