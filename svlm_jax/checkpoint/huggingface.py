"""Hugging Face checkpoints: one table, read in both directions.

Each row says which tensor of the file is which parameter, and how its axes regroup (an einops pattern, reversed on the way
out). Reading goes tensor by tensor from the safetensors shards into the target shardings; the host holds a few tensors at a
time, never the model. Both key layouts are read (`model.layers` / `visual.` and `model.language_model.layers` /
`model.visual.`), the first is written, as transformers 5 does.
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
from svlm_jax.checkpoint.tensor_files import Files
from svlm_jax.config import ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.families import config_json, family_of
from svlm_jax.families.fields import OWN_CONFIG
from svlm_jax.model.parameters import Parameters, layer_of, stacked_path, write_to_stack

Progress = Callable[[int, int], None]
TILE = 128  # elements on a side; a tile of bfloat16 is 32 kB and stays in cache
GENERATION = "generation_config.json"
HEAD, EMBEDDING = "text.head.kernel", "text.embedding"  # parameters that are one where embeddings are tied
# Buffers that old exports carry although they follow from the config.
_IGNORED = re.compile(r".*rotary(_pos)?_emb\.inv_freq")
FLOATS = ("float32", "bfloat16", "float16", "float64")  # types that are cast to one of the first two when that is asked for
# Names that give away another kind of checkpoint: PEFT; AWQ, GPTQ, bitsandbytes, compressed-tensors, fp8, HQQ, torchao, MLX;
# FSDP.
_ADAPTED = re.compile(r"(^|\.)(base_model\.model|base_layer|lora_\w+|modules_to_save|original_module)(\.|$)")
_PACKED = re.compile(
    r"\.(qweight|qzeros|g_idx|scales?|biases|zeros?(_point)?|absmax|quant_(map|state)\S*|nested_\w+|SCB|W_q|meta|(weight|input|"
    r"output|activation|act)_(scale|zero_point|packed|shape|g_idx|global_scale|bits|format)\w*|weight:_\w+)(\.|$)"
)
_FLATTENED = re.compile(r"(^|\.)(_flat_param|flat_param|_fsdp_wrapped_module)(\.|_|$)")


class Row(NamedTuple):
    """One tensor: its name and shape in the file, its path and shape here, the pattern between them and the pattern's sizes."""

    name: str
    file_shape: tuple[int, ...]
    path: str
    shape: tuple[int, ...]
    pattern: str
    sizes: dict[str, int]

    def read(self, tensor: np.ndarray) -> np.ndarray:
        """File axes -> ours, contiguous: `einops.rearrange(tensor, pattern, **sizes)` (which the tests compare with)."""
        matrix = tensor.reshape(self.file_shape[0], -1)
        return (_transpose(matrix) if self._turns else matrix).reshape(self.shape)

    def write(self, parameter: np.ndarray) -> np.ndarray:
        """Our axes -> the file's."""
        matrix = parameter.reshape(-1, self.file_shape[0]) if self._turns else parameter
        return (_transpose(matrix) if self._turns else matrix).reshape(self.file_shape)

    @property
    def _turns(self) -> bool:
        """Whether axes change their order; where they do it is one transposition, the file's first axis against the rest."""
        left, right = (re.findall(r"\w+", side) for side in self.pattern.split(" -> "))
        return left != right


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
        count = 1
        if "{i}" in path:
            count = config.text.num_hidden_layers if path.startswith("text.") else config.vision.depth
        for i in range(count):
            result.append(Row(name.replace("{i}", str(i)), file_shape, path.replace("{i}", str(i)), shape, pattern, sizes))
    return result


def _shape(side: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    groups = re.findall(r"\(([^)]*)\)|(\w+)", side)
    return tuple(int(np.prod([sizes[axis] for axis in (group or single).split()])) for group, single in groups)


def check(files: Files, table: list[Row], config: ModelConfig) -> None:
    """Compare names, types and shapes of the files with the model, before any tensor is read.

    Raises:
        InputError: quantised weights, adapters that are not merged, what a sharded run leaves; or all other differences in one.
    """
    wanted = {row.name: row.file_shape for row in table}
    found = {name for name in files.files if not _IGNORED.fullmatch(name)}
    _refuse_kind(files, found)
    if config.tie_word_embeddings:
        found.discard(_file_name(config, HEAD))  # which may be there all the same (`_check_head`)
    missing = [name for name in wanted if name not in found]
    unmatched = sorted(found - set(wanted))
    shapes = [
        f"{name} {list(files.shape(name))}, model: {list(shape)}"
        for name, shape in wanted.items()
        if name in found and files.shape(name) != shape
    ]
    kinds = (("missing", missing), ("unmatched", unmatched), ("of another shape", shapes))
    if wrong := [f"{len(names)} {kind} ({names[0]}{', ...' if names[1:] else ''})" for kind, names in kinds if names]:
        count, remedy = len(missing) + len(unmatched) + len(shapes), OWN_CONFIG
        if missing == [_file_name(config, HEAD)]:
            remedy = "set tie_word_embeddings to true in config.json if its head is its embedding"
        got = f"{count} wrong tensors: {', '.join(wrong)}"
        raise InputError(str(files.directory), got, "the tensors of config.json", remedy)


def _file_name(config: ModelConfig, path: str) -> str:
    """The name in the file of a parameter that stands in the family's table, also where this model has none."""
    return next(name for name, parameter, _ in family_of(config).weights.rows if parameter == path)


def open_files(directory: str | Path, config: ModelConfig) -> Files:
    """The safetensors files of a directory, with the names of the family's table."""
    return Files(directory, family_of(config).weights.aliases)


def _check_head(files: Files, config: ModelConfig) -> None:
    """Refuse a head of its own where the config says that the embeddings are the head."""
    head, embedding = (_file_name(config, path) for path in (HEAD, EMBEDDING))
    if not config.tie_word_embeddings or head not in files.files:
        return
    if not np.array_equal(files.read(head), files.read(embedding)):
        raise InputError(
            f"{files.directory} {head}",
            "a matrix that differs from the embeddings",
            "equal ones (tie_word_embeddings is true)",
            "set tie_word_embeddings to false in config.json",
        )


def _refuse_kind(files: Files, names: set[str]) -> None:
    """Refuse weights of another kind, by their names, types and shapes."""
    where, source = str(files.directory), "use the checkpoint that it was made from"
    for name in sorted(names):
        dtype, shape = files.dtype(name), files.shape(name)
        if _ADAPTED.search(name):
            got, remedy = f"LoRA adapters that are not merged ({name})", "merge them first (merge_and_unload)"
            raise InputError(where, got, "a whole model", remedy)
        if _PACKED.search(name) or dtype not in FLOATS:
            raise InputError(where, f"quantised weights ({name}, {dtype})", f"tensors of {' or '.join(FLOATS[:2])}", source)
        if _FLATTENED.search(name) or 0 in shape:
            got = f"what a sharded run leaves of its weights (ZeRO-3 or FSDP: {name} {list(shape)})"
            raise InputError(where, got, "whole tensors", "gather them when saving, or join the pieces (zero_to_fp32.py)")


def load(directory: str | Path, config: ModelConfig, mesh: Mesh | None = None, progress: Progress | None = None) -> Parameters:
    """Parameters of a checkpoint in `param_dtype`, in the form (`scan_layers`) and on the mesh asked for.

    Args:
        mesh: where to put them (`sharding.PARAMETERS`); the default device without one.
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
        array = _put(row.read(files.read(row.name)).astype(config.param_dtype, copy=False), targets.get(row.path))
        if config.scan_layers:
            write_to_stack(result, row.path, array, config.text.num_hidden_layers)
        else:
            result[row.path] = array
        jax.block_until_ready(result)  # or the host copies of what is still under way pile up
        if progress:
            progress(done, len(table))
    return result


def _put(array: np.ndarray, target: NamedSharding | None) -> jax.Array:
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
        values: parameters in either form, written in `config.param_dtype`; sharded ones are gathered one at a time, and with
            many processes the first one writes.
    """
    directory, table = Path(directory), rows(config)
    itemsize = jnp.dtype(config.param_dtype).itemsize
    shards = _plan(table, itemsize, max_shard_bytes)
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
            _json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))})
        text = config_json.dump(config)["text_config"]
        _json(directory / "config.json", config_json.dump(config))
        if not (directory / GENERATION).exists():
            _json(
                directory / GENERATION,
                {key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if text.get(key) is not None},
            )


def _plan(table: list[Row], itemsize: int, limit: int) -> list[list[Row]]:
    """Rows by layer, as published checkpoints have them, cut into shards of at most `limit` bytes (or one tensor)."""
    shards: list[list[Row]] = [[]]
    size = 0
    for row in sorted(
        table, key=lambda row: [(int(part), "") if part.isdigit() else (-1, part) for part in row.name.split(".")]
    ):
        bytes_ = int(np.prod(row.shape)) * itemsize
        if shards[-1] and size + bytes_ > limit:
            shards.append([])
            size = 0
        shards[-1].append(row)
        size += bytes_
    return shards


def fetch(values: Mapping[str, jax.Array | np.ndarray], path: str) -> np.ndarray:
    """One parameter, whole, on this host; from the stack when there is one."""
    stacked = stacked_path(path)
    if stacked is not None and path not in values:
        whole = values[stacked[0]]
        value = whole[stacked[1]] if isinstance(whole, np.ndarray) else layer_of(whole, stacked[1])
    else:
        value = values[path]
    if isinstance(value, np.ndarray):  # no device has it, and none gets it
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


def _json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
