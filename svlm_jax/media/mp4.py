"""The outermost boxes of MP4 and MOV files, read without decoding: why one cannot be opened, and what FFmpeg passes over."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

FIRST = (b"ftyp", b"wide", b"mdat")  # types of the box that such a file begins with


def boxes(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """(type, whether all of it is there) of the boxes, in order; of another file, whatever stands in their place."""
    file_size, offset = file.seek(0, os.SEEK_END), 0
    while offset + 8 <= file_size:  # box after box: 4 bytes of length, 4 of type
        file.seek(offset)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:16], "big") if length == 1 else length  # 1: 64 bits follow
        offset = file_size if length < 8 else offset + length
        yield head[4:8], offset <= file_size


def lacks_index(source: Path | BinaryIO) -> bool:
    """Whether it is an MP4 or MOV whose index was never written, or is cut off: cameras and recorders write it at the end."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return lacks_index(file)
    kinds = list(boxes(source))
    has_index = any(kind == b"moof" or (kind == b"moov" and is_whole) for kind, is_whole in kinds)
    return bool(kinds) and kinds[0][0] in FIRST and not has_index


def has_second_film(path: Path) -> bool:
    """Whether another whole file follows the first in it, as `cat` puts it there: players show the first alone."""
    with path.open("rb") as file:
        types = [kind for kind, _ in boxes(file)]
    return types[:1] == [b"ftyp"] and types.count(b"moov") > 1 and b"moof" not in types
