"""What a user's name of a video or image means, and how it is printed.

Owns which file a name means, and what is refused before anything is opened.
Standard library only.
"""

import os
import re
import stat
import unicodedata
from pathlib import Path
from urllib.parse import unquote

from svlm_jax.addresses import hide_secrets
from svlm_jax.errors import InputError, shortened

ADDRESS = re.compile(r"[a-z][a-z0-9+.\-]+://", re.IGNORECASE)
_LOCAL = re.compile(r"file:(//(localhost)?(?=/))?", re.IGNORECASE)
_SPECIAL = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))


def is_address(name: str) -> bool:
    """Whether a name is an address (`rtsp://...`). A file of that name goes first: see `existing_path`, which also knows
    `file:`."""
    return bool(ADDRESS.match(name)) and not _LOCAL.match(name)


def masked(name: str) -> str:
    """An address, or a name that looks like one, as it may be printed: `addresses.hide_secrets`, on one short line."""
    return shortened(hide_secrets(name))


def existing_path(name: str | os.PathLike) -> Path | None:
    """The file or folder of a name: the one of that very name, whatever else the name could mean; else the one that `file:` or
    `~` stands for, or that of the same letters in the other normal form of Unicode (macOS decomposes them). None: there is
    none.

    Raises:
        InputError: no permission to look at it.
    """
    text = os.fsdecode(name)
    names = [text]  # in the order in which they are tried
    if prefix := _LOCAL.match(text):
        names += [text[prefix.end() :], unquote(text[prefix.end() :])]
    if text.startswith("~"):
        names.append(os.path.expanduser(text))
    names += [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    for candidate in dict.fromkeys(filter(None, names)):
        try:
            os.stat(candidate)
        except PermissionError:
            field = f"file {shortened(candidate)}"
            raise InputError(field, "permission denied", "a usable path", "check who may read it") from None
        except (OSError, ValueError):  # missing, too long, or with a byte that no name has
            continue
        return Path(candidate)
    return None


def existing_file(source: str | os.PathLike, kind: str) -> Path:
    """The path of a file that can be opened and read at any offset. kind: what errors call it, "video" or "image".

    Raises:
        InputError: missing; a folder; empty; a pipe, socket or device (opening one may wait for ever).
    """
    path, name = existing_path(source), shortened(os.fsdecode(source))
    if path is None:
        # a mistyped address may hold a password
        raise InputError(f"{kind} {masked(name)}", "no such file", "a file", "check the path (download links first)")
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise InputError(f"{kind} {name}", "a directory", "a file", "name one file in it")
    for is_special, description in _SPECIAL:
        if is_special(mode):
            remedy = "write its bytes into a file, or name a webcam by its number"
            raise InputError(f"{kind} {name}", description, "a file", remedy)
    if not path.stat().st_size:
        raise InputError(f"{kind} {name}", "an empty file", f"a readable {kind}", "copy or download it again")
    return path
