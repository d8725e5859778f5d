"""Hugging Face checkpoints, read and written by the weight table of the model's family.

Owns how tensors are regrouped, checked, placed and cut into shards. Reading goes tensor by tensor from the safetensors shards
into the target shardings: the host holds a few tensors at a time, never the model. Knows no family: the table says which tensor
is which parameter. Sizes in bytes where a name says so, else in elements.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from svlm_jax import sharding
from svlm_jax.checkpoint.directory import INDEX, SINGLE
from svlm_jax.checkpoint.mismatch import refuse_other_names, refuse_other_weights
from svlm_jax.checkpoint.tensor_files import TensorFiles
from svlm_jax.config import ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.families import config_json, family_of
from svlm_jax.families.fields import OWN_CONFIG
from svlm_jax.model.parameters import Parameters, layer_of, stacked_path, write_to_stack

Progress = Callable[[int, int], None]
TILE = 128  # elements on a side; a tile of bfloat16 is 32 kB and stays in cache
GENERATION = "generation_config.json"
HEAD, EMBEDDING = "text.head.kernel", "text.embedding"  # parameters that are one where embeddings are tied
# Buffers of old exports, which follow from the config.
_IGNORED = re.compile(r".*rotary(_pos)?_emb\.inv_freq")


class Row(NamedTuple):
    """One tensor: its name and shape in the file, path and shape of the parameter, the einops pattern from the first shape to
    the second, and the sizes of the pattern's axes."""

    name: str
    file_shape: tuple[int, ...]
    path: str
    shape: tuple[int, ...]
    pattern: str
    sizes: dict[str, int]

    def read(self, tensor: np.ndarray) -> np.ndarray:
        """The parameter, contiguous: `einops.rearrange(tensor, pattern, **sizes)`, with which the tests compare."""
        matrix = tensor.reshape(self.file_shape[0], -1)
        return (_transpose(matrix) if self._transposes else matrix).reshape(self.shape)

    def write(self, parameter: np.ndarray) -> np.ndarray:
        """The tensor of the file: the inverse of `read`."""
        matrix = parameter.reshape(-1, self.file_shape[0]) if self._transposes else parameter
        return (_transpose(matrix) if self._transposes else matrix).reshape(self.file_shape)

    @property
    def _transposes(self) -> bool:
        """Whether the order of axes changes; it is then one transposition, the file's first axis against the rest."""
        source_axes, target_axes = (re.findall(r"\w+", side) for side in self.pattern.split(" -> "))
        return source_axes != target_axes


def _transpose(matrix: np.ndarray) -> np.ndarray:
    """matrix.T, contiguous, in tiles and as integers: 7x faster than numpy on a 45 MB matrix, more with bfloat16, which numpy
    copies item by item."""
    bits = np.ascontiguousarray(matrix).view(f"u{matrix.dtype.itemsize}")
    columns, rows = bits.shape
    out = np.empty((rows, columns), bits.dtype)
    for row in range(0, rows, TILE):
        for column in range(0, columns, TILE):
            out[row : row + TILE, column : column + TILE] = bits[column : column + TILE, row : row + TILE].T
    return out.view(matrix.dtype)


def rows(config: ModelConfig) -> list[Row]:
    """The weight table of the family spelled out for a model: every tensor of its checkpoint, in the table's order."""
    table = family_of(config).weights
    result = []
    for name, path, pattern in table.rows:
        if path == HEAD and config.tie_word_embeddings:
            continue
        axis_sizes, axes = table.axis_sizes(config, path), re.findall(r"\w+", pattern.split(" -> ")[0])
        sizes = {axis: axis_sizes[axis] for axis in axes}
        file_shape, shape = (_shape(side, sizes) for side in pattern.split(" -> "))
        for i in range(_count(config, path)):
            result.append(Row(name.replace("{i}", str(i)), file_shape, path.replace("{i}", str(i)), shape, pattern, sizes))
    return result


def _count(config: ModelConfig, path: str) -> int:
    """How many parameters a row of a table stands for."""
    if "{i}" not in path:
        return 1
    if path.startswith("vision.deepstack."):
        return len(config.vision.deepstack_visual_indexes)
    return config.text.num_hidden_layers if path.startswith("text.") else config.vision.depth


def _shape(side: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    groups = re.findall(r"\(([^)]*)\)|(\w+)", side)
    return tuple(int(np.prod([sizes[axis] for axis in (group or single).split()])) for group, single in groups)


def check(files: TensorFiles, table: list[Row], config: ModelConfig) -> None:
    """Compare names, types and shapes of the files with the model, before any tensor is read.

    Raises:
        InputError: what they are instead (`checkpoint.mismatch`); or all other differences in one.
    """
    expected = {row.name: row.file_shape for row in table}
    names = {name for name in files.files if not _IGNORED.fullmatch(name)}
    refuse_other_weights(files, names)
    if config.tie_word_embeddings:
        names.discard(_file_name(config, HEAD))  # a copy of the embedding may be there (`_check_head`)
    missing = [name for name in expected if name not in names]
    unmatched = sorted(names - set(expected))
    refuse_other_names(str(files.directory), {row.name: row.path for row in table}, missing, unmatched)
    shapes = [
        f"{name} {list(files.shape(name))}, model: {list(shape)}"
        for name, shape in expected.items()
        if name in names and files.shape(name) != shape
    ]
    kinds = (("missing", missing), ("unmatched", unmatched), ("of another shape", shapes))
    if parts := [f"{len(wrong)} {kind} ({wrong[0]}{', ...' if wrong[1:] else ''})" for kind, wrong in kinds if wrong]:
        count, remedy = len(missing) + len(unmatched) + len(shapes), OWN_CONFIG
        if missing == [_file_name(config, HEAD)]:
            remedy = "set tie_word_embeddings to true in config.json if its head is its embedding"
        got = f"{count} wrong tensor{'s' if count > 1 else ''}: {', '.join(parts)}"
        raise InputError(str(files.directory), got, "the tensors of config.json", remedy)


def _file_name(config: ModelConfig, path: str) -> str:
    """The name in the file of a parameter that stands in the family's table, also where this model has none."""
    return next(name for name, parameter, _ in family_of(config).weights.rows if parameter == path)


def open_files(directory: str | Path, config: ModelConfig) -> TensorFiles:
    """The safetensors files of a directory, with the names of the family's table."""
    return TensorFiles(directory, family_of(config).weights.aliases)


def _check_head(files: TensorFiles, config: ModelConfig) -> None:
    """Refuse a checkpoint with tied embeddings and another matrix as its head."""
    head, embedding = (_file_name(config, path) for path in (HEAD, EMBEDDING))
    if not config.tie_word_embeddings or head not in files.files:
        return
    if not np.array_equal(files.read(head), files.read(embedding)):
        raise InputError(
            f"{files.directory} {head}",
            "a matrix that differs from the embeddings",
            "equal ones (tie_word_embeddings is true)",
            "set tie_word_embeddings to false in config.json, in its text_config too",
        )


def load(directory: str | Path, config: ModelConfig, mesh: Mesh | None = None, progress: Progress | None = None) -> Parameters:
    """Parameters of a checkpoint in the config's `param_dtype`, stacked if it says `scan_layers`.

    Args:
        mesh: devices to place them on (`sharding.PARAMETERS`); the default device without one.
        progress: called with (tensors done, tensors in all).

    Raises:
        InputError: files that are missing or broken, or tensors that are not the model's (all of them in one line).
    """
    files, table = open_files(directory, config), rows(config)
    check(files, table, config)
    _check_head(files, config)
    targets: Mapping[str, Any] = {}
    if mesh is not None:
        sharding.check(config, mesh)
        targets = sharding.shardings({row.path: row.shape for row in table}, mesh)
    result: Parameters = {}
    for done, row in enumerate(table, start=1):
        array = _device_array(row.read(files.read(row.name)).astype(config.param_dtype, copy=False), targets.get(row.path))
        if config.scan_layers:
            write_to_stack(result, row.path, array, config.text.num_hidden_layers)
        else:
            result[row.path] = array
        jax.block_until_ready(result)  # transfers are asynchronous: without this the host copies pile up
        if progress:
            progress(done, len(table))
    return result


def _device_array(array: np.ndarray, target: NamedSharding | None) -> jax.Array:
    if target is None:
        return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, target, lambda index: array[index])


def write(
    directory: str | Path,
    config: ModelConfig,
    values: Mapping[str, jax.Array | np.ndarray],
    *,
    max_shard_bytes: int = 4 * 10**9,
    progress: Progress | None = None,
) -> None:
    """Write config.json, generation_config.json and safetensors shards into an existing directory; the host holds one shard.

    Args:
        values: parameters, stacked or not, written in `config.param_dtype`; sharded ones are gathered one at a time. Of many
            processes the first one writes.
    """
    directory, table = Path(directory), rows(config)
    itemsize = jnp.dtype(config.param_dtype).itemsize
    shards = _split(table, itemsize, max_shard_bytes)
    names = [SINGLE] if len(shards) == 1 else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    done = 0
    for name, shard in zip(names, shards, strict=True):
        tensors: dict[str, np.ndarray] = {}
        for row in shard:
            tensors[row.name] = row.write(fetch(values, row.path).astype(config.param_dtype, copy=False))
            done += 1
            if progress:
                progress(done, len(table))
        if jax.process_index() == 0:
            _save(tensors, directory / name)
    if jax.process_index() == 0:
        if len(shards) > 1:
            total = sum(int(np.prod(row.shape)) for row in table) * itemsize
            files = {row.name: name for name, shard in zip(names, shards, strict=True) for row in shard}
            _write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))})
        text = config_json.dump(config)["text_config"]
        _write_json(directory / "config.json", config_json.dump(config))
        if not (directory / GENERATION).exists():
            _write_json(
                directory / GENERATION,
                {key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if text.get(key) is not None},
            )


def _split(table: list[Row], itemsize: int, limit: int) -> list[list[Row]]:
    """Rows in the order of layers, as in published checkpoints, cut into shards of at most `limit` bytes or of one tensor."""
    shards: list[list[Row]] = [[]]
    size = 0
    for row in sorted(
        table, key=lambda row: [(int(part), "") if part.isdigit() else (-1, part) for part in row.name.split(".")]
    ):
        row_bytes = int(np.prod(row.shape)) * itemsize
        if shards[-1] and size + row_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(row)
        size += row_bytes
    return shards


def fetch(values: Mapping[str, jax.Array | np.ndarray], path: str) -> np.ndarray:
    """One parameter gathered on this host; one layer of a stack where the decoder is stacked."""
    stacked = stacked_path(path)
    if stacked is not None and path not in values:
        stack, layer = values[stacked[0]], stacked[1]
        value = stack[layer] if isinstance(stack, np.ndarray) else layer_of(stack, layer)
    else:
        value = values[path]
    if isinstance(value, np.ndarray):  # in host memory, and it never goes to a device
        return value
    if not value.is_fully_addressable:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(value, tiled=True)
    return np.asarray(value)


def _save(tensors: dict[str, np.ndarray], path: Path) -> None:
    import safetensors
    from safetensors.numpy import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt"})  # transformers refuses files without it
        path.chmod(0o644)  # safetensors makes files that only their owner can read
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(
            str(path), f"a failed write ({error})", "room on the disk", "free some or choose another place"
        ) from None


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
