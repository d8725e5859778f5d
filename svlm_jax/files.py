"""Where a user may say that something is written: folders of this machine, or what is mounted there."""

import re
from pathlib import Path

from svlm_jax.errors import InputError

# A scheme and a slash: "gs://bucket", what `Path` makes of it ("gs:/bucket"), "file:///x". A letter alone is a drive, and a
# name with a colon and no slash is a name.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]")
_SHOWN = 80  # letters of what was given


def local_path(path: str | Path, field: str = "") -> Path:
    """A path to be written to, as it is. Python would make "gs://bucket/run" a folder called "gs:" here, on each host its own.

    Args:
        field: what errors call it, a flag for example; else the path itself.

    Raises:
        InputError: an address (a scheme, a colon and a slash).
    """
    text = str(path)
    if _SCHEME.match(text):
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        remedy = f"mount the bucket and name the folder (./{shown.split('/', 1)[0]}/... is a folder of that name)"
        raise InputError(field or "path", f"the address {shown}", "a folder or file of this machine", remedy)
    return Path(path)
