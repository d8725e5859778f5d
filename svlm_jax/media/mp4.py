"""The outermost boxes of MP4 and MOV files, read without decoding: why one cannot be opened, and what FFmpeg passes over."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

FIRST = (b"ftyp", b"wide", b"mdat")  # types of the box that such a file begins with


class Box(NamedTuple):
    """One of the outermost boxes. start: byte of the file. is_whole: all of it is there."""

    kind: bytes
    is_whole: bool
    start: int


def boxes(file: BinaryIO) -> Iterator[Box]:
    """The boxes, in order; of another file, whatever stands in their place."""
    file_size, offset = file.seek(0, os.SEEK_END), 0
    while offset + 8 <= file_size:  # box after box: 4 bytes of length, 4 of type
        file.seek(offset)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:16], "big") if length == 1 else length  # 1: 64 bits follow
        start, offset = offset, file_size if length < 8 else offset + length
        yield Box(head[4:8], offset <= file_size, start)


def lacks_index(source: Path | BinaryIO) -> bool:
    """Whether it is an MP4 or MOV whose index was never written, or is cut off: cameras and recorders write it at the end."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return lacks_index(file)
    outermost = list(boxes(source))
    has_index = any(box.kind == b"moof" or (box.kind == b"moov" and box.is_whole) for box in outermost)
    return bool(outermost) and outermost[0].kind in FIRST and not has_index


def has_second_film(path: Path) -> bool:
    """Whether another whole file follows the first in it, as `cat` puts it there: players show the first alone."""
    with path.open("rb") as file:
        types = [box.kind for box in boxes(file)]
    return types[:1] == [b"ftyp"] and types.count(b"moov") > 1 and b"moof" not in types


def cut_fragment(source: Path | BinaryIO) -> int | None:
    """The byte at which the last fragment of an MP4 begins, if the file ends within that fragment's index (`moof`); FFmpeg then
    reads none of the fragments before it either. None: it does not, or no fragment is before it."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return cut_fragment(file)
    outermost = list(boxes(source))
    if not outermost or outermost[0].kind not in FIRST or [box.kind for box in outermost].count(b"moof") < 2:
        return None
    return outermost[-1].start if outermost[-1].kind == b"moof" and not outermost[-1].is_whole else None
