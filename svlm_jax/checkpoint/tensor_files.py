"""The safetensors files of a checkpoint directory: names, types and shapes of their tensors, before any is read.

Owns the index and the headers. Headers are read here rather than by the library, which takes the last of two tensors of one
name and reports a bad header in its parser's words; the library reads the tensors. Nothing outside the directory is opened
(symbolic links are followed: the hub's cache is made of them), and a header with false sizes takes no memory.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from svlm_jax.checkpoint.directory import INDEX, SINGLE, no_weights, refuse_other_kinds, shard_names
from svlm_jax.errors import InputError
from svlm_jax.files import parse_json, read_json, refuse_other_kinds_of_file

HEADER_BYTES = 1 << 24  # of one file; the header of a 72B model in a single file has 0.2 MB
_LENGTH_BYTES = 8  # the header's length, little-endian, in the first bytes of a file
_COMPLETE = "complete safetensors"
# Bytes of an element; the extent of a tensor of any other type is not checked.
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_ITEM_BYTES |= {"U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


class Tensor(NamedTuple):
    """A tensor of a file: its name there, the file, its type ("float32" ..., or as the file spells it) and shape."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]


class TensorFiles:
    """The safetensors files of a checkpoint directory; tensors by the names of the family's weight table.

    Args:
        aliases: of that table (`families.family.WeightTable`).

    Raises:
        InputError: no weights, or another kind of checkpoint; an index with names of other files; a file that is not complete
            safetensors; a tensor with two names or in two files.
    """

    def __init__(self, directory: str | Path, aliases: Sequence[tuple[str, str]] = ()) -> None:
        self.directory = Path(directory)
        self._open: dict[str, Any] = {}
        self.files: dict[str, Tensor] = {}
        headers = {file: read_header(self.directory / file) for file in self._file_names()}
        for tensor in self._all_tensors(headers):
            key = table_name(tensor.name, aliases)
            if key in self.files:
                other = self.files[key]
                got = f"{key} twice ({other.name} in {other.file}, {tensor.name} in {tensor.file})"
                raise InputError(str(self.directory), got, "each tensor once, in one key layout", "remove one of the two")
            self.files[key] = tensor

    def _file_names(self) -> list[str]:
        """The files with weights; each of them exists."""
        self._weights: dict[str, str] | None = None
        single, index = self.directory / SINGLE, self.directory / INDEX
        if index.exists() or index.is_symlink():
            self._weights = _weight_map(index)
            names = sorted(set(self._weights.values()))
            if single.is_file() and not any((self.directory / name).exists() for name in names):
                self._weights = None  # the index of an earlier save into the same directory, whose shards are gone
                return [SINGLE]
            if single.is_file() and names != [SINGLE]:
                got = f"{SINGLE} and {INDEX}, which names other files"
                raise InputError(str(self.directory), got, "one of the two", "remove the one that is out of date")
            if missing := [name for name in names if not (self.directory / name).is_file()]:
                got = f"no {', '.join(missing[:3])}{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}"
                raise InputError(str(self.directory), got, "every shard that the index names", "download them")
            return names
        if single.is_file():
            return [SINGLE]
        if shards := shard_names(self.directory):
            return shards
        refuse_other_kinds(self.directory)
        raise no_weights(self.directory)

    def _all_tensors(self, headers: dict[str, dict[str, Tensor]]) -> list[Tensor]:
        """Every tensor of the index or, without one, of the headers."""
        if self._weights is None:
            return [tensor for header in headers.values() for tensor in header.values()]
        for name, file in self._weights.items():
            if name not in headers[file]:
                got = f"no tensor {name[:120]}, which the index names"
                raise InputError(str(self.directory / file), got, "the tensors of the index", "download both again")
        return [headers[file][name] for name, file in self._weights.items()]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.files[name].shape

    def dtype(self, name: str) -> str:
        """The stored type: "float32", "bfloat16", "float16", "float64", or any other as the file spells it."""
        return self.files[name].dtype

    def read(self, name: str) -> np.ndarray:
        import safetensors

        tensor = self.files[name]
        field = f"{self.directory / tensor.file} {tensor.name}"
        try:
            if tensor.file not in self._open:
                self._open[tensor.file] = safetensors.safe_open(self.directory / tensor.file, framework="numpy")
            return self._open[tensor.file].get_tensor(tensor.name)
        except AttributeError:  # what safetensors raises for a type that numpy lacks
            raise InputError(field, tensor.dtype, "float32 or bfloat16", "use the unquantised checkpoint") from None
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(field, error, "a complete tensor", "download the file again") from error


def table_name(name: str, aliases: Sequence[tuple[str, str]]) -> str:
    """The name of a tensor in the weight table, whichever layout the file has."""
    for prefix, replacement in aliases:
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, each the plain name of a file beside the index."""
    expected = "tensor names and files"
    weights = read_json(index, expected).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise InputError(str(index), "no weight_map", expected, "download it again")
    for name, file in weights.items():
        is_plain_name = isinstance(file, str) and len(file) < 256 and re.fullmatch(r"[^/\\\0]+\.safetensors", file)
        if not is_plain_name:
            got = f"{file!r:.80} for {name:.60}"
            raise InputError(f"{index} weight_map", got, "names of .safetensors files in this directory", "download it again")
    return weights


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, from its header, which is checked against the size of the file.

    Raises:
        InputError: no safetensors, a file cut short, a header with false sizes, a tensor twice.
    """
    refuse_other_kinds_of_file(path, _COMPLETE)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > min(HEADER_BYTES, size - _LENGTH_BYTES):
            file.seek(0)
            raise InputError(str(path), _other_content(file.read(_LENGTH_BYTES), length, size), _COMPLETE, "download it again")
        header = parse_json(file.read(length), str(path), f"the header of {_COMPLETE}")
    header.pop("__metadata__", None)
    tensors, extents = {}, []
    for name, entry in header.items():
        dtype, shape, start, end = _header_entry(name, entry, path)
        tensors[name] = Tensor(name, path.name, _DTYPES.get(dtype, dtype), shape)
        extents.append((start, end, name))
    data_bytes = 0  # tensors follow each other without holes
    for start, end, name in sorted(extents):
        if start != data_bytes:
            got = f"tensors that overlap or leave holes (at {name[:120]})"
            raise InputError(str(path), got, _COMPLETE, "download it again")
        data_bytes = end
    if data_bytes != size - _LENGTH_BYTES - length:
        got = f"{size} bytes for tensors of {_LENGTH_BYTES + length + data_bytes}"
        raise InputError(str(path), got, f"{_COMPLETE}, not cut short", "download it again")
    return tensors


def _other_content(start: bytes, length: int, size: int) -> str:
    """What a file is that begins with no length of a header, by its first bytes."""
    if size < _LENGTH_BYTES:
        return f"{size} bytes"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start):
        return f"text that begins {start.decode('ascii')!r}"
    if start[0] == 0x80 and start[1] <= 5:
        return "a pickle, which can run code and is never read"
    return f"a header of {length} bytes in a file of {size}"


def _header_entry(name: str, entry: Any, path: Path) -> tuple[str, tuple[int, ...], int, int]:
    """(type, shape, first byte, byte after the last) of one tensor of a header."""
    if isinstance(entry, dict) and isinstance(entry.get("dtype"), str):
        shape, extent = _int_tuple(entry.get("shape"), 8), _int_tuple(entry.get("data_offsets"), 2)
        if shape is not None and extent is not None and len(extent) == 2:
            size = _ITEM_BYTES.get(entry["dtype"])
            if size is None or math.prod(shape) * size == extent[1] - extent[0]:
                return entry["dtype"], shape, extent[0], extent[1]
    got = f"a wrong header entry of {name[:120]}"
    raise InputError(str(path), got, "type, shape and offsets of every tensor", "download it again")


def _int_tuple(value: Any, max_length: int) -> tuple[int, ...] | None:
    """A list of at most `max_length` whole numbers as a tuple; None for anything else."""
    if not isinstance(value, list) or len(value) > max_length:
        return None
    return tuple(value) if all(type(number) is int and 0 <= number < 1 << 60 for number in value) else None
