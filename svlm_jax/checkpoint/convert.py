"""Loading either form of a checkpoint directory, Hugging Face or Orbax, and converting one into the other.

Owns the choice of the form and the comparison bit by bit. A conversion appears complete (and verified, if that was chosen) or
not at all.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from jax.sharding import Mesh

from svlm_jax.checkpoint import huggingface, orbax
from svlm_jax.config import Dtype, ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.files import atomic_directory
from svlm_jax.model.parameters import stacked_path

Form = Literal["hf", "orbax"]


def check(directory: str | Path, config: ModelConfig) -> list[str]:
    """Compare a directory of either form with its config before any tensor is read.

    Returns:
        The types in which its tensors are stored.

    Raises:
        InputError: as of `orbax.check`, or of `huggingface.TensorFiles` and `huggingface.check`.
    """
    if orbax.is_store(directory):
        return orbax.check(directory, config)
    files = huggingface.open_files(directory, config)
    huggingface.check(files, huggingface.rows(config), config)
    return sorted({files.dtype(name) for name in files.files})


def load(
    directory: str | Path, config: ModelConfig, mesh: Mesh | None = None, progress: huggingface.Progress | None = None
) -> huggingface.Parameters:
    """Parameters of a directory of either form (`huggingface.load`, `orbax.load`)."""
    if orbax.is_store(directory):
        return orbax.load(directory, config, mesh)
    return huggingface.load(directory, config, mesh, progress)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: Form,
    processor_files: Sequence[Path] = (),
    dtype: Dtype | None = None,
    max_shard_bytes: int = 4 * 10**9,
    verify: bool = False,
    progress: huggingface.Progress | None = None,
) -> ModelConfig:
    """Read a checkpoint directory of either form and write it as `to`.

    Args:
        processor_files: tokenizer and processor files, which are copied.
        dtype: of the parameters written; by default the type in the source's config.json, which its tensors must then have.
        verify: read source and result again and compare every tensor bit by bit before the result gets its name.

    Returns:
        The config written.

    Raises:
        InputError: a source that does not fit its config, a target that exists, a full disk, a result that differs.
    """
    config = config_json.read(source, dtype)
    stored = check(source, config)
    if dtype is None and stored != [config.param_dtype]:
        expected = f"{config.param_dtype} alone, as its config.json says"
        raise InputError(str(source), f"tensors of {', '.join(stored)}", expected, "choose with --dtype")
    stacked = to == "orbax" or orbax.is_store(source)  # an export to Hugging Face reads layers out of stacks
    config = replace(config.compute(dtype or config.param_dtype), scan_layers=stacked)
    with atomic_directory(target) as draft:
        for path in processor_files:
            shutil.copy(path, draft)
        values = load(source, config, progress=progress)
        if to == "orbax":
            orbax.save(draft, config, values)
        else:
            huggingface.write(draft, config, values, max_shard_bytes=max_shard_bytes, progress=progress)
        del values
        if verify:
            _verify(source, draft, config)
    return config


def _verify(source: str | Path, result: Path, config: ModelConfig) -> None:
    """Compare two directories of either form, one parameter at a time."""
    differing = [
        path
        for (path, before), (_, after) in zip(_tensors(source, config), _tensors(result, config), strict=True)
        if not np.array_equal(_bits(before.astype(config.param_dtype, copy=False)), _bits(after))
    ]
    if differing:
        got = f"{len(differing)} tensors that read back differently ({differing[0]})"
        raise InputError("--verify", got, "equal bits", "check the disk")


def _tensors(directory: str | Path, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter, layer by layer, in the order of the table; each stack is read once."""
    table = huggingface.rows(config)
    if not orbax.is_store(directory):
        files = huggingface.open_files(directory, config)
        huggingface.check(files, table, config)
        yield from ((row.path, row.read(files.read(row.name))) for row in table)
        return
    stack: tuple[str, np.ndarray] | None = None  # path and value of the stack that was read last
    for row in table:
        path, layer = stacked_path(row.path) or (row.path, None)
        if stack is None or stack[0] != path:
            stack = None  # frees the last stack before the next is read
            stack = (path, np.asarray(orbax.load(directory, replace(config, scan_layers=True), only=path)[path]))
        yield row.path, stack[1] if layer is None else stack[1][layer]


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)
