"""The Orbax form of a model: a directory with `params/` (decoder stacked), `config.json`, and tokenizer and processor files, so
that an export to Hugging Face needs nothing else.

Owns the memory that Orbax takes and the translation of its errors into one line. Sizes in bytes.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from svlm_jax import sharding
from svlm_jax.checkpoint.abandoned_reads import silence_abandoned_reads
from svlm_jax.config import ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.model.parameters import Parameters, shapes, unstack

PARAMS = "params"
UNCHUNKED_BYTES = 1 << 32  # up to this size an array is written without a copy; a larger one in chunks, which are copies
IN_FLIGHT_BYTES = 1 << 28  # on saving: what Orbax may use besides the largest array; on loading: arrays above it are large


def is_store(directory: str | Path) -> bool:
    """Whether a directory is in the Orbax form."""
    return (Path(directory) / PARAMS).is_dir()


def save(directory: str | Path, config: ModelConfig, values: Mapping[str, jax.Array | np.ndarray]) -> None:
    """Write stacked parameters and the config into an existing directory.

    Raises:
        InputError: a full or unwritable disk.
    """
    from orbax.checkpoint import v1 as ocp

    directory = Path(directory).absolute()
    context = ocp.Context()
    context.array.saving.ocdbt_target_data_file_size = UNCHUNKED_BYTES
    context.array.saving.use_compression = False  # weights do not compress enough to pay for the time
    largest = max(value.nbytes for value in values.values())
    context.memory.write_concurrent_bytes = context.memory.transfer_concurrent_bytes = largest + IN_FLIGHT_BYTES
    try:
        with context:
            ocp.save(str(directory / PARAMS), _nest(values))
    except Exception as error:  # Orbax and tensorstore wrap a full disk in errors of their own
        got = f"a failed write ({cause(error)})"
        raise InputError(str(directory), got, "room on a writable disk", "free some or choose another place") from error
    if jax.process_index() == 0:
        (directory / "config.json").write_text(json.dumps(config_json.dump(config), indent=2) + "\n")


def load(directory: str | Path, config: ModelConfig, mesh: Mesh | None = None, only: str | None = None) -> Parameters:
    """Parameters in the config's `param_dtype`, stacked if it says `scan_layers`.

    Args:
        mesh: devices to place them on; the default device without one.
        only: path of the one parameter to read, in the stacked form; by default all.

    Raises:
        InputError: a damaged checkpoint, or the checkpoint of another model.
    """
    from orbax.checkpoint import v1 as ocp

    silence_abandoned_reads()
    directory = Path(directory).absolute()
    stored = shapes(replace(config, scan_layers=True))
    if mesh is None:
        targets: Mapping[str, Any] = dict.fromkeys(stored, SingleDeviceSharding(jax.devices()[0]))
    else:
        sharding.check(config, mesh)
        targets = sharding.shardings({path: leaf.shape for path, leaf in stored.items()}, mesh)
    structs = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=targets[path])
        for path, leaf in stored.items()
        if only in (None, path)
    }
    _check(directory, stored)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    values: Parameters = {}
    try:
        for group in _groups(structs):
            with context:
                values |= _flatten(ocp.load(str(directory / PARAMS), _nest({path: structs[path] for path in group})))
    except Exception as error:  # Orbax wraps every cause in an error of its own, in words of tensorstore
        got = f"parameters that do not load ({cause(error)})"
        raise InputError(str(directory), got, "those of its config.json", "copy it again, or use another") from error
    if config.scan_layers:
        return values
    result: Parameters = {}
    for path in list(values):
        result |= unstack({path: values.pop(path)})  # one stack at a time is in memory twice
    return result


def check(directory: str | Path, config: ModelConfig) -> list[str]:
    """Compare the stored parameters with the config before any is read.

    Returns:
        The types in which they are stored.

    Raises:
        InputError: a damaged checkpoint, or the checkpoint of another model.
    """
    return _check(Path(directory).absolute(), shapes(replace(config, scan_layers=True)))


def _check(directory: Path, structs: Mapping[str, jax.ShapeDtypeStruct]) -> list[str]:
    """`check` with the shapes of all stacked parameters."""
    from orbax.checkpoint import v1 as ocp

    silence_abandoned_reads()
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.CRITICAL)  # Orbax logs pages of tensorstore's messages; the error here is one line
    try:
        tree: Any = ocp.metadata(str(directory / PARAMS)).metadata
    except Exception as error:
        raise _incomplete(directory) from error
    finally:
        absl.setLevel(level)
    if not isinstance(tree, Mapping):
        raise _incomplete(directory)
    stored, remedy = _flatten(tree), "use the config.json that came with it"
    stored_shapes = {path: tuple(getattr(leaf, "shape", ())) for path, leaf in stored.items()}
    for path, leaf in structs.items():
        if stored_shapes.get(path) != leaf.shape:
            got = f"{path} {list(stored_shapes[path])}" if path in stored else f"no {path}"
            raise InputError(str(directory), got, f"{list(leaf.shape)}, as its config.json says", remedy)
    if unmatched := sorted(stored.keys() - structs.keys()):  # a deeper model, or one with a head of its own
        raise InputError(str(directory), f"{unmatched[0]} too", "the parameters that its config.json says", remedy)
    return sorted({str(leaf.dtype) for leaf in stored.values()})


def _incomplete(directory: Path) -> InputError:
    got = "a copy that is incomplete or damaged"
    return InputError(str(directory / PARAMS), got, "every file that Orbax wrote", "copy the directory again")


def _groups(structs: Mapping[str, jax.ShapeDtypeStruct]) -> list[list[str]]:
    """Paths to read together: each large array alone, largest first, because tensorstore needs two copies of what it reads;
    then all others."""
    size = {path: leaf.size * leaf.dtype.itemsize for path, leaf in structs.items()}
    large = sorted((path for path in size if size[path] > IN_FLIGHT_BYTES), key=lambda path: -size[path])
    small = [path for path in size if size[path] <= IN_FLIGHT_BYTES]
    return [[path] for path in large] + ([small] if small else [])


DAMAGED = "a file is damaged or cut short"
# Messages of Orbax, tensorstore and the system, which are pages long, and what they mean.
_MEANINGS = (
    (r"no space left|disk quota|file too large|ENOSPC|EDQUOT|EFBIG", "no room on the disk"),
    (r"permission denied|read-only file system|EACCES|EROFS", "no right to write there"),
    (r"NOT_FOUND|no such file|does not exist|not found|is not a directory", "a file is missing: an incomplete copy?"),
    (r"DATA_LOSS|OUT_OF_RANGE|checksum|crc32|corrupt|zstd|error (decoding|reading)|invalid json|truncat", DAMAGED),
)
# Errors of their JSON readers on a damaged file.
_JSON_ERRORS = (json.JSONDecodeError, UnicodeDecodeError, KeyError, IndexError, AttributeError, TypeError)
_MAX_MESSAGE = 120  # characters of a message that no pattern knows


def cause(error: BaseException) -> str:
    """Why Orbax failed, in a few words."""
    messages: list[str] = []
    link: BaseException | None = error
    while link is not None:
        messages.append(f"{type(link).__name__}: {link}")
        link = link.__cause__ or link.__context__
    for pattern, meaning in _MEANINGS:
        if any(re.search(pattern, text, re.IGNORECASE) for text in messages):
            return meaning
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    if isinstance(first, _JSON_ERRORS):
        return DAMAGED
    return " ".join(str(first).split())[:_MAX_MESSAGE] or type(first).__name__


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
