"""What a user's name of a video or image means, and how it is shown.

Owns which file is meant by a name, what is refused before anything is opened, and that no password of an address is ever
printed. Standard library only.
"""

import os
import re
import stat
import unicodedata
from pathlib import Path
from urllib.parse import unquote

from svlm_jax.errors import InputError, shortened

HIDDEN = "***"
ADDRESS = re.compile(r"[a-z][a-z0-9+.\-]+://", re.IGNORECASE)
_LOCAL = re.compile(r"file:(//(localhost)?(?=/))?", re.IGNORECASE)
_SCHEME = re.compile(r"^([a-z][a-z0-9+.\-]+:/*)?(.*)$", re.IGNORECASE | re.DOTALL)
_VALUE = re.compile(r"=[^&;/?#\s]*")
_SPECIAL = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))


def is_address(name: str) -> bool:
    """Whether a name says how to reach something (`rtsp://...`). A file of that name goes first: see `existing_path`, which
    also knows `file:`."""
    return bool(ADDRESS.match(name)) and not _LOCAL.match(name)


def masked(name: str) -> str:
    """An address, or what was meant as one, as it may be printed: without user and password, and without the values of a query
    or of `key=value` in its path, any of which may be a token. Hides too much rather than too little: a password may hold "/"
    or "@".
    """
    scheme, rest = _SCHEME.fullmatch(name).groups()  # pyright: ignore[reportOptionalMemberAccess] (it matches all)
    if not scheme and not re.match(r"[^/\s]+:[^/]*@", rest):
        return shortened(name)
    rest = f"{HIDDEN}@{rest.rpartition('@')[2]}" if "@" in rest else rest
    rest = _VALUE.sub(f"={HIDDEN}", rest)
    before, query, words = rest.partition("?")
    return shortened((scheme or "") + before + (query + words if not words or "=" in words else f"?{HIDDEN}"))


def existing_path(name: str | os.PathLike) -> Path | None:
    """The file or folder that is meant: the one of that very name, whatever else the name could mean; else what `file:` or `~`
    before it says, or the same letters composed in the other way of Unicode (macOS takes them apart). None: there is none.

    Raises:
        InputError: it may not be looked at.
    """
    text = os.fsdecode(name)
    names = [text]
    if prefix := _LOCAL.match(text):
        names += [text[prefix.end() :], unquote(text[prefix.end() :])]
    if text.startswith("~"):
        names.append(os.path.expanduser(text))
    names += [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    for one in dict.fromkeys(filter(None, names)):
        try:
            os.stat(one)
        except PermissionError:
            raise InputError(f"file {shortened(one)}", "permission denied", "a usable path", "check who may read it") from None
        except (OSError, ValueError):  # not there, too long, or with a byte that no name has
            continue
        return Path(one)
    return None


def existing_file(source: str | os.PathLike, what: str) -> Path:
    """The path of a file that can be opened and read from any place.

    Raises:
        InputError: nothing there; a folder; empty; a pipe, socket or device (opening one may wait for ever).
    """
    path, name = existing_path(source), shortened(os.fsdecode(source))
    if path is None:
        # what was meant as an address may hold a password
        raise InputError(f"{what} {masked(name)}", "no such file", "a file", "check the path (download links first)")
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise InputError(f"{what} {name}", "a directory", "a file", "name one file in it")
    for is_kind, kind in _SPECIAL:
        if is_kind(mode):
            remedy = "write what it gives into a file, or name a webcam by its number"
            raise InputError(f"{what} {name}", kind, "a file", remedy)
    if not path.stat().st_size:
        raise InputError(f"{what} {name}", "an empty file", f"a readable {what}", "copy or download it again")
    return path
