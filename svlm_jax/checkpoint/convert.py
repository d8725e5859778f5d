"""Checkpoint directories from one form to the other, whole or not at all.

Everything is written into a sibling of the target and moved there when it is complete (and verified, if asked), so a failure
leaves nothing under the final name.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from svlm_jax.checkpoint import hf, store
from svlm_jax.config import Dtype, ModelConfig
from svlm_jax.errors import InputError

Form = Literal["hf", "orbax"]


@contextmanager
def whole(target: str | Path) -> Iterator[Path]:
    """A directory to write into that becomes `target` on success and disappears on failure.

    Raises:
        InputError: `target` exists already, or the disk is full.
    """
    target = Path(target).absolute()
    if target.exists():
        raise InputError(str(target), "something that exists already", "a new name", "remove it or choose another")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield draft
        draft.chmod(0o777 & ~_umask())
        os.rename(draft, target)
    except OSError as error:
        raise InputError(
            str(target), f"a failed write ({error})", "room on a writable disk", "free some or choose another place"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: Form,
    beside: Sequence[Path] = (),
    dtype: Dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
    verify: bool = False,
    progress: hf.Progress | None = None,
) -> ModelConfig:
    """Read a checkpoint directory of either form and write it as `to`.

    Args:
        beside: tokenizer and processor files to put next to the weights.
        dtype: of the parameters written; the source's by default.
        verify: read the result again and compare every tensor bit by bit before it gets its name.

    Returns:
        The config written.

    Raises:
        InputError: a source that does not fit its config, a target that exists, a full disk, a result that differs.
    """
    config = ModelConfig.from_file(source)
    stacked = to == "orbax" or store.is_store(source)  # an export reads layers out of the stacks it is given
    config = replace(config.compute(dtype or config.param_dtype), scan_layers=stacked)
    with whole(target) as draft:
        for path in beside:
            shutil.copy(path, draft)
        values = _load(source, config, progress)
        if to == "orbax":
            store.save(draft, config, values)
        else:
            hf.write(draft, config, values, max_shard_bytes=max_shard_bytes, progress=progress)
        if verify:
            _verify(draft, config, values)
    return config


def _load(directory: str | Path, config: ModelConfig, progress: hf.Progress | None = None) -> hf.Parameters:
    if store.is_store(directory):
        return store.load(directory, config)
    return hf.load(directory, config, progress=progress)


def _verify(directory: Path, config: ModelConfig, values: hf.Parameters) -> None:
    """Compare a directory with the parameters it was written from, reading one parameter at a time."""
    if store.is_store(directory):
        pairs = ((path, value, store.load(directory, config, only=path)[path]) for path, value in values.items())
    else:
        files, table = hf.Files(directory), hf.rows(config)
        hf.check(files, table, config)
        pairs = ((row.name, hf.fetch(values, row.path), row.read(files.read(row.name))) for row in table)
    differing = [name for name, wrote, read in pairs if not np.array_equal(_bits(wrote), _bits(read))]
    if differing:
        raise InputError(
            "--verify", f"{len(differing)} tensors that read back differently ({differing[0]})", "equal bits", "check the disk"
        )


def _bits(array) -> np.ndarray:
    array = np.ascontiguousarray(array)
    return array.view(np.uint8)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
