"""Reading files that come from outside, and writing files and directories that appear complete or not at all.

Owns the limits on what is read, the refusal of other kinds of files and of addresses, and every atomic write. Knows nothing of
what the files mean. Nothing here runs or unpickles anything. Sizes in bytes.
"""

import atexit
import codecs
import glob
import json
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from svlm_jax.errors import InputError, shortened

JSON_BYTES = 1 << 24  # of a settings file or an index; the largest in use have some 100 kB
TEXT_BYTES = 1 << 20  # of a prompt or of patterns
HEAD_BYTES = 512  # enough to recognise another kind of file
PARTIAL = ".partial"  # suffix of what is being written
_AGAIN = "download the file again"
REMOVE_TRIES = 100  # 0.1 s apart
_PLACEHOLDERS = (  # first bytes, what that is, what to do
    (b"version https://git-lfs", "a Git LFS pointer", "download the file itself (git lfs pull)"),
    (b"# xet version", "a Xet pointer", "download the file itself"),
    (b"<!doctype html", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
    (b"<?xml", "an XML page (an error of a server?)", "download the file itself"),
)
_OTHER_KINDS = (
    *_PLACEHOLDERS,
    (b"GGUF", "a GGUF file", "use the safetensors checkpoint that it was made from"),
    (b"\x1f\x8b\x08", "a gzip archive", "unpack it"),
    (b"PK\x03\x04", "a zip archive (as PyTorch pickles are)", "save the model as safetensors"),
    (b"\x80\x02\x8a\nl\xfc", "a PyTorch pickle, which can run code and is never read", "save the model as safetensors"),
)
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
# A scheme and a slash: "gs://bucket", what `Path` makes of it ("gs:/bucket"), "file:///x". A letter alone is a drive, and a
# name with a colon and no slash is a name.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]")


def refuse_other_kinds_of_file(path: Path, expected: str) -> None:
    """Refuse a file whose first bytes show that it is something else: a Git LFS pointer, a web page, a pickle.

    Raises:
        InputError: that, or a file that can not be read or is empty.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"an unreadable file ({error})", expected, "check its path and permissions") from None
    if not head:
        raise InputError(str(path), "an empty file", expected, "download it again")
    if kind := _kind(head, _OTHER_KINDS):
        raise InputError(str(path), kind[0], expected, kind[1])


def placeholder(path: Path) -> tuple[str, str] | None:
    """(What it is, what to do) of a file in the place of one that was not downloaded: a pointer to it, or a web page."""
    with path.open("rb") as file:
        return _kind(file.read(HEAD_BYTES), _PLACEHOLDERS)


def _kind(head: bytes, kinds: Sequence[tuple[bytes, str, str]]) -> tuple[str, str] | None:
    matches = (rest for start, *rest in kinds if head.lstrip()[: len(start)].lower() == start.lower())
    return next(((kind, remedy) for kind, remedy in matches), None)


def read_json(path: Path, expected: str, limit: int = JSON_BYTES, *, is_handwritten: bool = False) -> dict[str, Any]:
    """A JSON file that holds an object.

    Args:
        expected: what the file should hold, for errors.
        limit: bytes; a larger file is not opened.
        is_handwritten: it may begin with a byte order mark, as editors on Windows write it; no file of a checkpoint may.

    Raises:
        InputError: anything else, in one line: no file, a pointer or web page in its place, broken or too deep JSON, a key
            twice.
    """
    if not path.is_file():
        got = "a directory" if path.is_dir() else "no file"
        raise InputError(str(path), got, expected, "check the path")
    refuse_other_kinds_of_file(path, expected)
    if (size := path.stat().st_size) > limit:
        raise InputError(str(path), f"{size} bytes", f"{expected} of at most {limit} bytes", "check what the file is")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"an unreadable file ({error})", expected, "check its path and permissions") from None
    if content.startswith(codecs.BOM_UTF8) and not is_handwritten:
        raise InputError(str(path), "a byte order mark before the JSON", expected, _AGAIN)
    return parse_json(content, str(path), expected)


def read_text(path: str | Path, field: str, expected: str) -> str:
    """A text that somebody wrote, from a file or a pipe: UTF-8, with or without a byte order mark, with any ends of lines.

    Args:
        field: what errors call it, a flag for example.
        expected: what the text should be, for errors.

    Raises:
        InputError: no such file, no UTF-8, or more than `TEXT_BYTES`, of which no more is read: a device may have no end.
    """
    path = local_path(path, field)
    name = shortened(path, 100)
    try:
        with path.open("rb") as file:
            content = file.read(TEXT_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(field, f"{name} ({reason})", expected, "check the path") from None
    if len(content) > TEXT_BYTES:
        raise InputError(field, f"{name}, which has more than {TEXT_BYTES} bytes", expected, "check what the file is")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise InputError(field, f"{name}, which is not UTF-8", expected, "save it as UTF-8") from None


def parse_json(content: bytes, source: str, expected: str, remedy: str = _AGAIN) -> dict[str, Any]:
    """The object that UTF-8 JSON holds; errors as of `read_json`, in the name of `source`."""
    return _of_kind(_parse(content, source, expected, remedy), dict, source, expected, remedy)


def parse_json_list(content: bytes, source: str, expected: str, remedy: str = _AGAIN) -> list[Any]:
    """The list that UTF-8 JSON holds; errors as of `read_json`, in the name of `source`."""
    return _of_kind(_parse(content, source, expected, remedy), list, source, expected, remedy)


def _parse(content: bytes, source: str, expected: str, remedy: str) -> Any:
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique_keys)  # see `read_json`
        if _HALF.search(content):  # half a character can be written in JSON, and nowhere else
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise InputError(source, "JSON that is nested too deeply", expected, remedy) from None
    except ValueError as error:  # broken JSON, not UTF-8, a number of thousands of digits, a key twice
        raise InputError(source, f"broken JSON ({error})", expected, remedy) from None


def _of_kind(value: Any, kind: type, source: str, expected: str, remedy: str) -> Any:
    if not isinstance(value, kind):
        raise InputError(source, f"a JSON {type(value).__name__}", expected, remedy)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without repeated keys: of two values, one reader takes the first and another the last."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key[:80]!r} twice")
        result[key] = value
    return result


@contextmanager
def atomic_write(path: str | os.PathLike, *, sync: bool = False) -> Iterator[Path]:
    """A path to write to that takes the name `path` on success and is removed on failure. A reader sees the old file or the
    new one, and never a part. A link stays a link.

    Args:
        sync: return when the disk has the new file: after a loss of power there is the new file or the old one.

    Raises:
        InputError: a folder or a device of that name.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # a rename would put a file in the place of a device
        raise InputError(shortened(path), "a folder" if target.is_dir() else "no regular file", "a file", "choose another name")
    draft = draft_path(target)
    try:
        yield draft
        if sync:
            _sync(draft)  # before the rename, or the name could survive without the bytes
        os.replace(draft, target)
        if sync:
            with suppress(OSError):  # some network disks cannot, and Windows opens no folder
                _sync(target.parent)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def draft_path(path: Path) -> Path:
    """Where `atomic_write` writes before the file gets its name."""
    return path.with_name(path.name + PARTIAL)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def report_write_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn an OSError of writing `path` (a full disk, no permission) into an InputError that names it."""
    try:
        yield
    except OSError as error:
        got = f"a file that cannot be written ({error.strerror or str(error):.80})"
        raise InputError(shortened(path), got, "a place with room", "choose another") from None


@contextmanager
def atomic_directory(target: str | Path) -> Iterator[Path]:
    """A directory to write into that takes the name `target` on success and is removed on failure.

    Raises:
        InputError: `target` exists already, or the disk is full.
    """
    target = local_path(target).absolute()
    if target.exists():
        raise InputError(str(target), "something that exists already", "a new name", "remove it or choose another")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        draft, lock = _locked_draft(target)
        try:
            yield draft
            draft.chmod(0o777 & ~_umask())  # mkdtemp makes directories that only their owner can read
            os.rename(draft, target)
        finally:
            os.close(lock)
            _remove(draft)
    except OSError as error:
        remedy = "free some or choose another place"
        raise InputError(
            str(target), f"a failed write ({error.strerror or error})", "room on a writable disk", remedy
        ) from error


def _locked_draft(target: Path) -> tuple[Path, int]:
    """A new directory next to `target`, and the descriptor that locks it for as long as this process lives."""
    while True:
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PARTIAL, dir=target.parent))
        # Until it is locked, another process may take it for abandoned. Then it is gone, or locked by that process, which is
        # about to remove it, or gone since: make a new one. Where there are no locks, none is taken for abandoned.
        with suppress(FileNotFoundError):
            lock = os.open(draft, os.O_RDONLY)
            if try_lock(lock) is not False and draft.is_dir():
                return draft, lock
            os.close(lock)


def _remove_abandoned(target: Path) -> None:
    """Remove the drafts of `target` whose process was killed; a process that fails removes its own."""
    for draft in target.parent.glob(f".{glob.escape(target.name)}.*{PARTIAL}"):
        if draft.is_symlink() or not draft.is_dir():
            continue
        try:
            lock = os.open(draft, os.O_RDONLY)
        except OSError:
            continue
        try:
            if try_lock(lock) is True:
                shutil.rmtree(draft, ignore_errors=True)
        finally:
            os.close(lock)


def _remove(draft: Path) -> None:
    """Remove what a failure left. Orbax's threads may still be writing there, and make it anew: try until it stays away, and
    again when the process ends and they have."""
    if draft.exists():
        atexit.register(shutil.rmtree, draft, ignore_errors=True)
    for _ in range(REMOVE_TRIES):
        if not draft.exists():
            return
        shutil.rmtree(draft, ignore_errors=True)
        time.sleep(0.1)
    warnings.warn(f"could not remove {draft}", stacklevel=2)


def try_lock(descriptor: int, *, of_process: bool = False) -> bool | None:
    """Lock an open file or folder until it is closed, or its process is gone, however that ends.

    Args:
        of_process: the lock is that of the process, which may lock the file again, and not of the open file; network disks
            know this kind. Of files that are open for writing.

    Returns:
        False: somebody else has locked it. None: there are no locks here, on this file system or on Windows.
    """
    try:
        import fcntl

        lock = fcntl.lockf if of_process else fcntl.flock
        lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX leaves the choice of the two to the system
        return False
    except (ImportError, OSError):
        return None
    return True


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask


def same_file(path: Path, other: Path) -> bool:
    """Whether two paths name one file, however they are spelled and whether it exists or not."""
    with suppress(OSError, ValueError):
        if os.path.samefile(path, other):
            return True
    return os.path.realpath(path) == os.path.realpath(other)


def local_path(path: str | Path, field: str = "") -> Path:
    """A path to be written to, unchanged. `Path` would make of "gs://bucket/run" a local folder called "gs:", one on each host.

    Args:
        field: what errors call it, a flag for example; else the path itself.

    Raises:
        InputError: an address (a scheme, a colon and a slash).
    """
    text = str(path)
    if _SCHEME.match(text):
        address = shortened(text, 80)
        remedy = f"mount the bucket and name the folder (./{address.split('/', 1)[0]}/... is a folder of that name)"
        raise InputError(field or "path", f"the address {address}", "a folder or file of this machine", remedy)
    return Path(path)
