"""What a set of samples is, in a few letters: so that a change between a stop and a start is seen.

Its length and order exactly; its contents and the sizes of its videos as far as `LOOKED_AT` records, evenly spaced, show them:
all of a small set, a change here and there not in a large one. Host side, never jax.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

LOOKED_AT = 4096  # records: some seconds on a disk far away
_VIDEO = re.compile(rb'"video"\s*:\s*("(?:[^"\\]|\\.)*")')


def looked_at(count: int, most: int | None = None) -> Iterator[int]:
    """Numbers of the records whose contents count: evenly spaced, the first and the last among them."""
    chosen = np.linspace(0, count - 1, min(count, most or LOOKED_AT)).astype(np.int64)
    return (int(number) for number in np.unique(chosen))


def fingerprint(count: int, parts: Iterable[bytes], media: Iterable[Path]) -> dict[str, Any]:
    """{"samples": how many, "records": a hash of `parts`, "media": of the names and sizes of files} (JSON). Where the files are
    makes no difference, so that data may move."""
    records = hashlib.sha256()
    for part in parts:
        records.update(len(part).to_bytes(8, "little") + part)
    files = hashlib.sha256()
    for name, size in sorted((path.name, _size(path)) for path in set(media)):
        files.update(f"{name}\0{size}\n".encode())
    return {"samples": count, "records": records.hexdigest()[:16], "media": files.hexdigest()[:16]}


def videos(lines: Iterable[bytes]) -> Iterator[str]:
    """Paths of the videos that records name."""
    for line in lines:
        if found := _VIDEO.search(line):
            try:
                yield json.loads(found[1])
            except ValueError:
                continue


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return -1
