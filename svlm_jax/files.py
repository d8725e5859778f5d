"""Files that come from outside, and places that are written to: JSON that may be anything, what stands where a file should be,
addresses where a path is meant.

Owns the limits on what is read. Knows nothing of what the files mean. Nothing here runs or unpickles anything.
"""

import json
import re
from pathlib import Path
from typing import Any

from svlm_jax.errors import InputError, shortened

JSON_BYTES = 1 << 24  # of a settings file or an index; the largest in use have some 100 kB
HEAD = 512  # bytes that tell what stands in place of a file
_STAND_INS = (  # how it begins, what it is, what to do
    (b"version https://git-lfs", "a Git LFS pointer", "download the file itself (git lfs pull)"),
    (b"# xet version", "a Xet pointer", "download the file itself"),
    (b"<!doctype html", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
    (b"GGUF", "a GGUF file", "use the safetensors checkpoint that it was made from"),
    (b"PK\x03\x04", "a zip archive (as PyTorch pickles are)", "save the model as safetensors"),
    (b"\x80\x02\x8a\nl\xfc", "a PyTorch pickle, which can run code and is never read", "save the model as safetensors"),
)
# A scheme and a slash: "gs://bucket", what `Path` makes of it ("gs:/bucket"), "file:///x". A letter alone is a drive, and a
# name with a colon and no slash is a name.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]")


def refuse_stand_in(path: Path, expected: str) -> None:
    """Refuse a file whose first bytes show that it is something else: a Git LFS pointer, a web page, a pickle.

    Raises:
        InputError: that, or a file that can not be read or is empty.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"an unreadable file ({error})", expected, "check its path and permissions") from None
    if not head:
        raise InputError(str(path), "an empty file", expected, "download it again")
    for start, what, remedy in _STAND_INS:
        if head.lstrip()[: len(start)].lower() == start.lower():
            raise InputError(str(path), what, expected, remedy)


def read_json(path: Path, what: str, limit: int = JSON_BYTES) -> dict[str, Any]:
    """A JSON file that holds an object.

    Args:
        what: the file should hold.
        limit: bytes; a larger file is not opened.

    Raises:
        InputError: anything else, in one line: no file, a pointer or web page in its place, broken or too deep JSON, a key
            twice.
    """
    if not path.is_file():
        got = "a directory" if path.is_dir() else "no file"
        raise InputError(str(path), got, what, "check the path")
    refuse_stand_in(path, what)
    if (size := path.stat().st_size) > limit:
        raise InputError(str(path), f"{size} bytes", f"{what} of at most {limit} bytes", "check what the file is")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"an unreadable file ({error})", what, "check its path and permissions") from None
    return parse_json(content, str(path), what)


def parse_json(content: bytes, source: str, what: str) -> dict[str, Any]:
    """The object that UTF-8 JSON holds; errors as of `read_json`, in the name of `source`."""
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_once)
    except RecursionError:
        raise InputError(source, "JSON that is nested too deeply", what, "download the file again") from None
    except ValueError as error:  # broken JSON, not UTF-8, a number of thousands of digits, a key twice
        raise InputError(source, f"broken JSON ({error})", what, "download the file again") from None
    if not isinstance(value, dict):
        raise InputError(source, f"a JSON {type(value).__name__}", what, "download the file again")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand in it once: of two, readers take one or the other."""
    held = dict(pairs)
    if len(held) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:80]!r} twice")
    return held


def local_path(path: str | Path, field: str = "") -> Path:
    """A path to be written to, as it is. Python would make "gs://bucket/run" a folder called "gs:" here, on each host its own.

    Args:
        field: what errors call it, a flag for example; else the path itself.

    Raises:
        InputError: an address (a scheme, a colon and a slash).
    """
    text = str(path)
    if _SCHEME.match(text):
        shown = shortened(text, 80)
        remedy = f"mount the bucket and name the folder (./{shown.split('/', 1)[0]}/... is a folder of that name)"
        raise InputError(field or "path", f"the address {shown}", "a folder or file of this machine", remedy)
    return Path(path)
