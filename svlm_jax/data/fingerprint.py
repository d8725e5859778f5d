"""A set of samples as a few hashes, so that a run that resumes notices when it has changed.

Exact in its length and order. Contents and sizes of videos are compared for `MAX_RECORDS` records, evenly spaced: all of a
small set, a part of a large one. Host side, never jax.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MAX_RECORDS = 4096  # that are read: some seconds on a network disk
_VIDEO = re.compile(rb'"video"\s*:\s*("(?:[^"\\]|\\.)*")')


def sampled_records(count: int, max_records: int | None = None) -> Iterator[int]:
    """Numbers of the records whose contents are compared: evenly spaced, the first and the last among them."""
    numbers = np.linspace(0, count - 1, min(count, max_records or MAX_RECORDS)).astype(np.int64)
    return (int(number) for number in np.unique(numbers))


def fingerprint(count: int, parts: Iterable[bytes], media: Iterable[Path]) -> dict[str, Any]:
    """{"samples": count, "records": a hash of `parts`, "media": a hash of the names and sizes of files} (JSON). The folders of
    the files make no difference, so that data may move."""
    records = hashlib.sha256()
    for part in parts:
        records.update(len(part).to_bytes(8, "little") + part)  # with its length, or parts could be split otherwise
    files = hashlib.sha256()
    for name, size in sorted((path.name, _size(path)) for path in set(media)):
        files.update(f"{name}\0{size}\n".encode())
    return {"samples": count, "records": records.hexdigest()[:16], "media": files.hexdigest()[:16]}


def videos(lines: Iterable[bytes]) -> Iterator[str]:
    """Paths of the videos that records name."""
    for line in lines:
        if match := _VIDEO.search(line):
            try:
                yield json.loads(match[1])
            except ValueError:
                continue


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return -1
