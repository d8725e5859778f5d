"""What a model directory says about how it is used: streaming_config.json (ours), generation_config.json (transformers')."""

import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from svlm_jax.checkpoint import huggingface
from svlm_jax.config import ModelConfig, StreamConfig
from svlm_jax.decode.sampling import COMMENTARY, Sampling
from svlm_jax.errors import InputError
from svlm_jax.files import read_json
from svlm_jax.media.processor import STREAMING

# What changes replies in transformers' generate and is not done here, with the values that change nothing.
_NOT_DONE: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "min_p": (0,),
    "typical_p": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "bad_words_ids": ([],),
    "sequence_bias": ({},),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
}
_LARGEST = 1 << 31  # number or id
_LARGEST_COUNT = 1 << 17  # chunks or tokens in streaming_config.json
_USUAL: dict[str, StreamConfig | Sampling] = {"stream": StreamConfig(), "sampling": COMMENTARY}


def streaming(directory: Path) -> tuple[StreamConfig, Sampling]:
    """How a model streams unless told otherwise: its streaming_config.json, the paper's settings for what that leaves out.

    Raises:
        InputError: a file with other keys or values.
    """
    path = directory / STREAMING
    given = read_json(path, "streaming settings") if path.exists() or path.is_symlink() else {}
    if unknown := given.keys() - {*_USUAL, "frame"}:
        raise InputError(str(path), f"the key {min(unknown)}", "stream, sampling and frame", "remove it")
    stream, sampling = (_section(path, given, name, usual) for name, usual in _USUAL.items())
    try:
        return replace(StreamConfig(), **stream), replace(COMMENTARY, **sampling)
    except InputError as error:
        raise error.within(path) from None


def _section(path: Path, given: dict[str, Any], name: str, usual: StreamConfig | Sampling) -> dict[str, Any]:
    """One section of streaming_config.json, every value of the type of its field."""
    section = given.get(name, {})
    if not isinstance(section, dict):
        raise InputError(f"{path} {name}", f"a JSON {type(section).__name__}", "a JSON object", "mend the file")
    values: dict[str, Any] = {}
    known = {f.name: getattr(usual, f.name) for f in fields(usual)}
    for key, value in section.items():
        where = f"{name}.{key}"
        if key not in known:
            raise InputError(f"{path} {where}", "a key that is not known", f"one of {', '.join(known)}", "remove it")
        if isinstance(known[key], tuple):
            values[key] = _ids(path, where, value)
        elif isinstance(known[key], str) or (value is None and key in ("sink", "text_window")):
            values[key] = value
        elif isinstance(known[key], int):
            values[key] = _whole(path, where, value, _LARGEST_COUNT)
        else:
            values[key] = _number(path, where, value)
    return values


def generation(directory: Path, config: ModelConfig) -> tuple[Sampling, tuple[int, ...]]:
    """How `generate` chooses words unless told otherwise, and the ids that end a reply: the model's generation_config.json, as
    transformers reads it; without one, greedy and the ids of config.json.

    Raises:
        InputError: a value of another type, or out of range, by key.
    """
    path = directory / huggingface.GENERATION
    if not (path.exists() or path.is_symlink()):
        return Sampling(), config.eos_token_ids
    given = {key: value for key, value in read_json(path, "a generation config").items() if value is not None}
    drawn = given.get("do_sample", False)
    if not isinstance(drawn, bool):
        raise InputError(f"{path} do_sample", repr(drawn), "true or false", "mend the file")
    if ignored := [key for key, idle in _NOT_DONE.items() if key in given and given[key] not in idle]:
        warnings.warn(f"{path}: {', '.join(ignored)} is not done here; replies differ from transformers'", stacklevel=3)
    numbers = {name: _number(path, name, given.get(name, 1.0)) for name in ("temperature", "top_p", "repetition_penalty")}
    if not drawn:
        numbers["temperature"] = 0.0
    top_k = _whole(path, "top_k", given.get("top_k", 50), _LARGEST)
    suppressed = _ids(path, "suppress_tokens", given.get("suppress_tokens", []))
    try:
        sampling = Sampling(top_k=top_k, suppressed=suppressed, **numbers)
    except InputError as error:
        raise error.within(path) from None
    ids = _ids(path, "eos_token_id", given["eos_token_id"]) if "eos_token_id" in given else config.eos_token_ids
    return sampling, ids


def _number(path: Path, name: str, value: Any) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:  # nor NaN
        raise InputError(f"{path} {name}", repr(value), "a number", "mend the file")
    return value


def _whole(path: Path, name: str, value: Any, most: int) -> int:
    if type(value) is not int or abs(value) > most:
        raise InputError(f"{path} {name}", repr(value), f"a whole number of at most {most}", "mend the file")
    return value


def _ids(path: Path, name: str, value: Any) -> tuple[int, ...]:
    ids = tuple(value) if isinstance(value, list) else (value,)
    if not all(type(one) is int and 0 <= one < _LARGEST for one in ids):
        raise InputError(f"{path} {name}", repr(value), "a token id or a list of them", "mend the file")
    return ids
