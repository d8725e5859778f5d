"""Whether a run goes on with the samples that it began with: sample g of it is a function of seed and g only over one set of
them. Every host must have that set, too."""

from collections.abc import Mapping
from typing import Any

import jax

from svlm_jax.errors import InputError
from svlm_jax.train.config import Say
from svlm_jax.train.hosts import Channel

# What a fingerprint says of a set of samples (`data.fingerprint`), and what another value of it means.
MEANINGS = {
    "samples": "{now} samples, not {before}",
    "records": "other records, or another order",
    "media": "video files of other sizes",
}


def everywhere(here: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint of this host, which is that of all.

    Raises:
        InputError: another host has other data.
    """
    for process, there in enumerate(Channel("data").gather(here)):
        if changes := _changes(there, here):
            got = f"{changes} on process {jax.process_index()}"
            raise InputError("data.paths", got, f"what process {process} has", "copy the data again, or share a disk")
    return here


def check(before: Mapping[str, Any] | None, now: Mapping[str, Any], *, allowed: bool, say: Say) -> None:
    """`before`: of the checkpoint, None in those of before there was one; `allowed`: told and gone on with.

    Raises:
        InputError: other data.
    """
    if before is None or not (changes := _changes(before, now)):
        return
    if not allowed:
        remedy = "put them back, begin another run_dir, or go on with these: --data.changed"
        raise InputError("data.paths", f"data that changed since the checkpoint ({changes})", "what it had", remedy)
    say(f"data changed since the checkpoint: {changes}; the order of samples is a new one")


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    changed = [name for name in MEANINGS if before.get(name) != now.get(name)]
    if "samples" in changed:
        changed = ["samples"]  # what the others say then is said
    return ", ".join(MEANINGS[name].format(before=before.get(name), now=now.get(name)) for name in changed)
