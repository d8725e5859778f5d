"""Whether a run that resumes has the model that it started from: a checkpoint has the trainable parameters only, and those that
are frozen come from there again. The directory may have moved."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from svlm_jax.errors import InputError

BLOCKS, BLOCK_BYTES = 16, 4096  # of each file: training changes all parts of a file


def fingerprint(directory: str | Path) -> str:
    """A hash of the weight files of a model (Hugging Face or Orbax): of their sizes, and of blocks all over them. Their names
    and their folder make no difference."""
    directory = Path(directory)
    files = [*directory.glob("*.safetensors"), *(path for path in directory.glob("params/**/*") if path.is_file())]
    return hashlib.sha256(b"".join(sorted(map(_digest, files)))).hexdigest()[:16]


def _digest(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(BLOCKS):
            file.seek(max(size - BLOCK_BYTES, 0) * number // (BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.digest()


def check_since_checkpoint(meta: Mapping[str, Any], model: str, new: str) -> None:
    """Compare with the meta of a checkpoint; one of a version without a fingerprint has the name of the model.

    Args:
        model: the name or directory of the model now.
        new: its fingerprint.

    Raises:
        InputError: another model.
    """
    old_name = json.loads(meta["config"])["model"]
    if (meta["model"] != new) if "model" in meta else (model != old_name):
        expected = f"{old_name!r} as the run started with it"
        raise InputError("model", f"{model!r}, with other weights", expected, "start another run_dir, or set it back")
