"""What viewers read instead of the address of a source.

Owns which part of it is shown: never a folder, a user, a password or a key.
"""

import itertools
import re
from pathlib import Path

from svlm_jax.media.paths import masked


def with_titles(names: list[str]) -> list[tuple[str, str]]:
    """(title for viewers, source) of each source. A title has no folder, and of a URL no user, password or key. Titles
    differ: the second "camera/live" is "camera/live (2)", since metrics and viewers tell sources apart by them.

    Raises:
        InputError: a file or folder that does not play.
    """
    from svlm_jax.media.sources import open_source, scheme_of
    from svlm_jax.touchline.source import SCHEMES

    pairs, titles = [], set()
    for name in names:
        title, scheme = Path(name).name, scheme_of(name, SCHEMES)
        if scheme == "url":
            title = url_title(name)
        elif scheme == "webcam":
            title = f"camera {name}"
        else:
            with open_source(name, schemes=SCHEMES) as source:
                next(iter(source), None)
        unique = next(each for number in itertools.count(1) if (each := _numbered(title, number)) not in titles)
        titles.add(unique)
        pairs.append((unique, name))
    return pairs


def _numbered(title: str, number: int) -> str:
    return title if number == 1 else f"{title} ({number})"


def url_title(url: str) -> str:
    """Host and path of a URL: without user, port and query, and without the secrets that some cameras take in the path
    ("/user=admin_password=secret_channel=1")."""
    host_and_path = re.split(r"[?#]", masked(url).partition("://")[2].rpartition("@")[2])[0]
    return re.sub(r"^([^/]*?):\d+(?=/|$)", r"\1", host_and_path)
