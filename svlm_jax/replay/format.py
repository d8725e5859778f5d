"""Recordings of the original code: a JSON file and the npz beside it. What streams and training samples share of the format.

Owns how a file is read (all of it, or one clear line) and the frames that a recording stands for. numpy only.
"""

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from svlm_jax.errors import InputError

# Agreement with the recordings: in float32 two right implementations differ by the order of their sums.
LOGITS, LOGITS_MEDIAN = 2e-3, 2e-4  # largest and median difference
PIXELS = 1e-6  # largest difference, in standard deviations: ours rounds once more
AGAIN = "copy or record it again"

_SEED, _STRIDE = 1000, 7919  # frame k is noise of the seed 1000 + 7919 * seed + k
_JSON = {float: "number", str: "text", list: "list", dict: "object", bool: "true or false"}


def noise(seed: int, numbers: Iterable[int], height: int, width: int) -> np.ndarray:
    """Frames by number, uint8 [F, H, W, 3]."""
    made = (np.random.default_rng(_SEED + seed * _STRIDE + int(number)) for number in numbers)
    return np.stack([rng.integers(0, 256, (3, height, width)).astype(np.uint8).transpose(1, 2, 0) for rng in made])


def arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of the npz that lies beside a JSON file.

    Raises:
        InputError: it is not there, or not whole.
    """
    path = Path(path).with_suffix(".npz")
    if not path.is_file():
        raise InputError(str(path), "no such file", "the arrays of the recording", "copy it beside the JSON file")
    try:
        with path.open("rb") as file, np.load(file) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(str(path), f"an unreadable file ({error})", "a whole npz", AGAIN) from None


def get(holder: dict, key: str, kind: type, source: str | Path) -> Any:
    """A value of a JSON object, of the asked kind (a whole number is a number too)."""
    value = holder.get(key)
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    if not isinstance(value, kind):
        got = "nothing" if key not in holder else f"{value!r:.40}"
        raise InputError(f"{source} {key}", got, f"a JSON {_JSON[kind]}", AGAIN)
    return value


def whole(holder: dict, key: str, least: int, source: str | Path, null: Any = ...) -> Any:
    """A whole number of at least `least`; `null`, where it is given, stands for a JSON null."""
    if null is not ... and key in holder and holder[key] is None:
        return null
    value = get(holder, key, float, source)
    if not value.is_integer() or value < least:
        raise InputError(f"{source} {key}", value, f"a whole number, {least} or more", AGAIN)
    return int(value)


def difference(ours: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """Elementwise, absolute; NaN where the shapes differ."""
    return np.abs(ours - recorded) if ours.shape == recorded.shape else np.full(1, np.nan)
