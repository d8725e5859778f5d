"""A file of tensors and JSON under one checksum: written completely or not at all, read completely or refused.

Owns the bytes. The file is a safetensors file; its metadata begin with the sha256 of all its bytes, those 64 digits counted as
zeros, so no bit of header, JSON or tensors can change unnoticed. Written here and not by the library, whose write holds the
interpreter for as long as the disk takes. No jax.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from hashlib import sha256
from io import BufferedWriter
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from svlm_jax.errors import InputError, shortened
from svlm_jax.files import atomic_write, draft_path, report_write_errors, try_lock

VERSION = 4
BEFORE = {"2": "streams had settings of their own", "3": "streams had windows of their own"}  # what a version lacks
OPENING = b'{"__metadata__":{"sha256":"'
DIGITS = 64
SEAL = slice(8 + len(OPENING), 8 + len(OPENING) + DIGITS)  # bytes of the checksum; the first 8 are the length of the header
BLOCK_BYTES = HEAD_BYTES = 1 << 24  # hashed and written at a time; read to tell what a file is
# What reading may raise for a file that was made to be hostile, or by a release with a fault.
MALFORMED_ERRORS = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, OverflowError, MemoryError)
_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "bool": "BOOL",
}
_TYPES = {short: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name, short in _NAMES.items()}


class Stopped(Exception):
    """Writing was called off."""


def check(path: str | os.PathLike) -> None:
    """Find out, before there is anything to lose, whether `write` can write to `path`.

    Raises:
        InputError: no folder, one that is read-only or full, something else than a state under that name.
    """
    target = Path(path)
    with report_write_errors(path):
        target = Path(os.path.realpath(target))
        if not target.parent.is_dir():
            raise InputError(shortened(path), f"no folder {shortened(target.parent)}", "an existing folder", "make it first")
        if os.path.lexists(target):
            if not stat.S_ISREG(target.stat().st_mode):
                is_folder = target.is_dir()
                got, remedy = ("a folder", "name one in it") if is_folder else ("no regular file", "choose another name")
                raise InputError(shortened(path), got, "a file", remedy)
            with target.open("rb+") as file:
                _lock(file.fileno(), path)
                head = file.read(HEAD_BYTES)
            if head.strip(b"\0") and b'"svlm_state"' not in head:  # a loss of power may leave zeros: nothing to lose there
                raise InputError(
                    shortened(path), "a file of another kind", "a saved state or a new name", "choose another name"
                )
        partial = draft_path(target)
        with partial.open("ab") as draft:
            _lock(draft.fileno(), path)
            try:
                draft.write(bytes(SEAL.stop))
                draft.flush()
            finally:
                partial.unlink()


class StateFile(AbstractContextManager["StateFile"]):
    """A file while one stream saves to it, again and again: another process that would is refused. What says so is a lock of
    the system on the newest file of that name, gone with the process however it ends."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path, self.target, self._locked = path, Path(os.path.realpath(path)), -1
        self._lock_target()

    def write(
        self,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, np.ndarray],
        should_continue: Callable[[], bool] = lambda: True,
    ) -> None:
        """Write the file and wait until the disk has it: after a loss of power there is the new one or the one of before.

        Args:
            metadata: JSON.
            should_continue: called between blocks; writing stops, and leaves the file of before, when it is False.

        Raises:
            InputError: the file cannot be written, or another process writes it.
            Stopped: as `should_continue` said.
        """
        self._lock_target()
        with report_write_errors(self.path):
            new = os.open(draft_path(self.target), os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(new, self.path)  # before anything of a draft that is not ours is touched
                with atomic_write(self.path, sync=True) as draft, draft.open("wb") as file:
                    _write_blocks(file, metadata, tensors, should_continue)
            except BaseException:
                os.close(new)
                raise
        self.close()
        self._locked = new  # with the file that has the name now

    def _lock_target(self) -> None:
        """Lock the file that has the name, unless it is ours."""
        with report_write_errors(self.path), suppress(FileNotFoundError):
            if self._locked >= 0 and os.path.samestat(os.fstat(self._locked), os.stat(self.target)):
                return
            descriptor = os.open(self.target, os.O_RDWR)
            try:
                _lock(descriptor, self.path)
            except InputError:
                os.close(descriptor)
                raise
            self.close()
            self._locked = descriptor

    def close(self) -> None:
        """Other streams may save there."""
        if self._locked >= 0:
            os.close(self._locked)
        self._locked = -1

    def __exit__(self, *_: object) -> None:
        self.close()


def write(path: str | os.PathLike, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """`StateFile.write`, once."""
    with StateFile(path) as file:
        file.write(metadata, tensors)


def _lock(descriptor: int, path: str | os.PathLike) -> None:
    if try_lock(descriptor) is False:
        got, remedy = "a file that another stream saves to", "choose another name, or end that stream"
        raise InputError(shortened(path), got, "a file of its own", remedy)


def _write_blocks(
    file: BufferedWriter, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray], should_continue: Callable[[], bool]
) -> None:
    digest = sha256()
    for block in _blocks(metadata, tensors):
        if not should_continue():
            raise Stopped
        digest.update(block)
        file.write(block)
    # The digits were zeros while their own checksum was computed.
    file.seek(SEAL.start)
    file.write(digest.hexdigest().encode())


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON and the tensors of a file written here.

    Raises:
        InputError: no such file, another kind of file, one of another version, one of which a bit differs.
    """
    field = shortened(path)
    try:
        raw = _read_state(Path(path), field)
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(field, f"an unreadable file ({reason})", "a saved state", "check the path") from None
    if _digest(raw) != raw[SEAL]:
        got = "an unreadable file (its checksum is another: damaged or cut short)"
        raise InputError(field, got, "a saved state", "take an older copy of it, or begin anew")
    try:
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        metadata = header.pop("__metadata__")
        if metadata["svlm_state"] != str(VERSION):
            _refuse_version(metadata["svlm_state"], field)
        data = memoryview(raw)[8 + length :]
        return json.loads(metadata["state"]), {name: _tensor(data, entry) for name, entry in header.items()}
    except InputError:
        raise
    except MALFORMED_ERRORS as error:
        raise malformed(field, error) from None


def _read_state(path: Path, field: str) -> bytes:
    """All of a file that begins as a state."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
        raise InputError(field, "an unreadable file (no regular file)", "a saved state", "check the path")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if head[8 : SEAL.start] != OPENING:  # a film of 50 GB is refused after its first block
            _refuse(head, field)
        file.seek(0)
        return file.read()


def malformed(field: str, error: Exception) -> InputError:
    """The error for a file whose checksum is right and whose content is not."""
    got = f"a content that no release writes ({type(error).__name__}: {error!s:.60})"
    return InputError(field, got, "a saved state", "begin anew, and report it")


def _blocks(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Iterator[memoryview]:
    """The bytes of the file, its checksum as zeros."""
    file_metadata = {"sha256": "0" * DIGITS, "svlm_state": str(VERSION), "state": json.dumps(metadata)}
    header: dict[str, Any] = {"__metadata__": file_metadata}
    arrays, offset = [], 0
    for name, tensor in tensors.items():
        arrays.append(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))
        end = offset + arrays[-1].nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for array in arrays:
        for start in range(0, len(array), BLOCK_BYTES):
            yield memoryview(array[start : start + BLOCK_BYTES])


def _tensor(data: memoryview, entry: dict[str, Any]) -> np.ndarray:
    dtype, shape, (start, end) = _TYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    if not (0 <= start <= end <= len(data) and math.prod(shape) * dtype.itemsize == end - start):
        raise ValueError(f"a tensor {shape} in {end - start} bytes")
    return np.frombuffer(data[start:end], dtype).reshape(shape)


def _digest(raw: bytes) -> bytes:
    """Checksum of all bytes, its own digits counted as zeros."""
    digest, view = sha256(raw[: SEAL.start] + b"0" * DIGITS), memoryview(raw)
    digest.update(view[SEAL.stop :])
    return digest.hexdigest().encode()


def _refuse(raw: bytes, field: str) -> NoReturn:
    """Say what a file that does not begin as a state is."""
    if not raw.strip(b"\0"):
        got = "an empty file" if not raw else "a file of zeros, as a loss of power leaves it"
        raise InputError(field, got, "a saved state", "take an older copy of it, or begin anew")
    if raw.startswith(b"version https://git-lfs"):
        raise InputError(field, "a Git LFS pointer", "the file it stands for", "run git lfs pull")
    version = None
    with suppress(*MALFORMED_ERRORS):  # states of version 1 were plain safetensors
        version = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["svlm_state"]
    if version is not None:
        _refuse_version(version, field)
    expected = f"a state of version {VERSION}"
    raise InputError(field, "another kind of file, or a state whose beginning is damaged", expected, "check the path")


def _refuse_version(version: object, field: str) -> NoReturn:
    newer = str(version).isdigit() and int(str(version)[:9]) > VERSION
    missing = BEFORE.get(str(version), "states had checksums")
    saved_by = "a newer svlm-jax" if newer else f"svlm-jax 0.1.0 as it was before {missing}"
    remedy = f"it was saved by {saved_by}: resume with that, or begin anew"
    raise InputError(field, f"version {version!s:.20}", f"a state of version {VERSION}", remedy)
