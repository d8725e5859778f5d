"""Whether a run has the data that it started with, on every host: sample g of a run is a function of seed and g only over one
and the same set of samples."""

from collections.abc import Mapping
from typing import Any

import jax

from svlm_jax.cluster.coordination import Channel
from svlm_jax.errors import InputError
from svlm_jax.train.config import Log

# Keys of a fingerprint (`data.fingerprint`), and what another value of one means.
CHANGES = {
    "samples": "{new} samples, not {old}",
    "records": "other records, or another order",
    "media": "video files of other sizes",
}


def check_across_hosts(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint of this host, which is that of all.

    Raises:
        InputError: another host has other data.
    """
    for process, other in enumerate(Channel("data").all_gather(fingerprint)):
        if changes := _changes(other, fingerprint):
            got = f"{changes} on process {jax.process_index()}"
            raise InputError("data.paths", got, f"what process {process} has", "copy the data again, or share a disk")
    return fingerprint


def check_since_checkpoint(meta: Mapping[str, Any], new: Mapping[str, Any], *, allow_changed: bool, log: Log) -> None:
    """Compare the fingerprints "data" and "eval_data" with those in the meta of a checkpoint, which older versions have not.

    Raises:
        InputError: other training data, and no `allow_changed`.
    """
    if meta.get("eval_data") and new["eval_data"] and (changes := _changes(meta["eval_data"], new["eval_data"])):
        log(f"evaluation data changed since the checkpoint: {changes}; do not compare losses with those before")
    if meta.get("data") is None or not (changes := _changes(meta["data"], new["data"])):
        return
    if not allow_changed:
        remedy = "restore them, start another run_dir, or resume with these: --data.allow-changed"
        raise InputError("data.paths", f"data that changed since the checkpoint ({changes})", "what it had", remedy)
    log(f"data changed since the checkpoint: {changes}; the order of samples is a new one")


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = [name for name in CHANGES if old.get(name) != new.get(name)]
    if "samples" in names:
        names = ["samples"]  # with another number of samples the other two differ in any case
    return ", ".join(CHANGES[name].format(old=old.get(name), new=new.get(name)) for name in names)
