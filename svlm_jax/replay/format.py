"""Recordings of the original code: a JSON file and an npz of the same name. The part of the format that recorded streams and
training samples share.

Owns how a file is read (all of it, or one line that names what is wrong) and the frames that a recording stands for. numpy
only.
"""

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from svlm_jax.errors import InputError

# Agreement with the recordings: two correct float32 implementations differ by the order of their sums.
LOGITS_MAX, LOGITS_MEDIAN = 2e-3, 2e-4  # largest and median difference
PIXELS_MAX = 1e-6  # largest difference, in standard deviations: this library rounds once more than the original
REMEDY = "copy or record it again"

_SEED, _STRIDE = 1000, 7919  # frame k is noise of the seed 1000 + 7919 * seed + k
_JSON_NAMES = {float: "number", str: "text", list: "list", dict: "object", bool: "true or false"}


def noise_frames(seed: int, frame_numbers: Iterable[int], height: int, width: int) -> np.ndarray:
    """Frames by number, uint8 [F, H, W, 3]."""
    generators = (np.random.default_rng(_SEED + seed * _STRIDE + int(number)) for number in frame_numbers)
    # Drawn with the channels first: the recordings fix the sequence of the draws.
    return np.stack([rng.integers(0, 256, (3, height, width)).astype(np.uint8).transpose(1, 2, 0) for rng in generators])


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of the npz next to a JSON file.

    Raises:
        InputError: it is missing or incomplete.
    """
    path = Path(path).with_suffix(".npz")
    if not path.is_file():
        raise InputError(str(path), "no such file", "the arrays of the recording", "copy it next to the JSON file")
    try:
        with path.open("rb") as file, np.load(file) as npz:
            return {name: npz[name] for name in npz.files}
    # All that numpy and zipfile raise for one or another damaged byte.
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(str(path), f"an unreadable file ({error})", "a complete npz", REMEDY) from None


def require(values: dict, key: str, kind: type, source: str | Path) -> Any:
    """A value of a JSON object, of that type (an integer is a float too)."""
    value = values.get(key)
    # Integers beyond 2^53 have no exact float.
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    if not isinstance(value, kind):
        got = "nothing" if key not in values else f"{value!r:.40}"
        raise InputError(f"{source} {key}", got, f"a JSON {_JSON_NAMES[kind]}", REMEDY)
    return value


def require_int(values: dict, key: str, minimum: int, source: str | Path, null: Any = ...) -> Any:
    """An integer of at least `minimum`; `null`, if it is given, stands for a JSON null."""
    if null is not ... and key in values and values[key] is None:
        return null
    value = require(values, key, float, source)
    if not value.is_integer() or value < minimum:
        raise InputError(f"{source} {key}", value, f"a whole number, {minimum} or more", REMEDY)
    return int(value)


def abs_difference(computed: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """Elementwise; NaN where the shapes differ."""
    return np.abs(computed - recorded) if computed.shape == recorded.shape else np.full(1, np.nan)
