"""The settings that a model directory comes with: streaming_config.json (ours), generation_config.json (transformers').

Owns reading and checking both files. Does not know what they apply to.
"""

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
from svlm_jax.presets import preset_of

# Settings that change replies in transformers' generate and are not supported here, with the values that change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "penalty_alpha": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "stop_strings": ([],),
    "watermarking_config": ({},),
    "exponential_decay_length_penalty": (),
    "top_h": (1,),
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
_MAX_NUMBER = 1 << 31  # also of token ids
_MAX_COUNT = 1 << 17  # chunks or tokens in streaming_config.json
# Of streaming_config.json, where null is a value: all tokens, no rule, as long as the other chunks.
_OPTIONAL = ("sink", "text_window", "silence_threshold", "silence", "first_chunk_seconds")
_DEFAULTS: dict[str, StreamConfig | Sampling] = {"stream": StreamConfig(), "sampling": COMMENTARY}


def read_streaming_config(directory: Path, preset: str | None = None) -> tuple[StreamConfig, Sampling]:
    """How a model streams by default: its streaming_config.json, and the paper's settings for what that leaves out, or those of
    the preset that the file names.

    Args:
        preset: goes over the file.

    Raises:
        InputError: a file with other keys or values; no such preset.
    """
    path = directory / STREAMING
    settings = read_json(path, "streaming settings") if path.exists() or path.is_symlink() else {}
    if unknown := settings.keys() - {*_DEFAULTS, "frame", "preset"}:
        raise InputError(str(path), f"the key {min(unknown)}", "preset, stream, sampling and frame", "remove it")
    stream, sampling = (_read_section(path, settings, name, defaults) for name, defaults in _DEFAULTS.items())
    if "preset" in settings:
        file_preset = preset_of(settings["preset"], f"{path} preset")
        stream, sampling = {**file_preset.stream, **stream}, {**file_preset.sampling, **sampling}
    if preset is not None:
        chosen = preset_of(preset)
        stream, sampling = {**stream, **chosen.stream}, {**sampling, **chosen.sampling}
    try:
        return replace(StreamConfig(), **stream), replace(COMMENTARY, **sampling)
    except InputError as error:
        raise error.within(path) from None


def _read_section(path: Path, settings: dict[str, Any], name: str, defaults: StreamConfig | Sampling) -> dict[str, Any]:
    """One section of streaming_config.json, every value of the type of its field."""
    section = settings.get(name, {})
    if not isinstance(section, dict):
        raise InputError(f"{path} {name}", f"a JSON {type(section).__name__}", "a JSON object", "mend the file")
    values: dict[str, Any] = {}
    known = {field.name: getattr(defaults, field.name) for field in fields(defaults)}
    for key, value in section.items():
        full_key = f"{name}.{key}"
        if key not in known:
            raise InputError(f"{path} {full_key}", "a key that is not known", f"one of {', '.join(known)}", "remove it")
        if isinstance(known[key], tuple):
            values[key] = _require_ids(path, full_key, value)
        elif isinstance(known[key], str) or (value is None and key in _OPTIONAL):
            values[key] = value  # StreamConfig checks its choices itself
        elif isinstance(known[key], bool):
            values[key] = _require_bool(path, full_key, value)
        elif isinstance(known[key], int):
            values[key] = _require_int(path, full_key, value, _MAX_COUNT)
        else:
            values[key] = _require_number(path, full_key, value)
    return values


def read_generation_config(directory: Path, config: ModelConfig) -> tuple[Sampling, tuple[int, ...]]:
    """How `generate` samples by default, and the ids that end a reply.

    From the model's generation_config.json, as transformers reads it; without one, greedy and the ids of config.json.

    Raises:
        InputError: a value of another type, or out of range, by key.
    """
    path = directory / huggingface.GENERATION
    if not (path.exists() or path.is_symlink()):
        return Sampling(), config.eos_token_ids
    settings = {key: value for key, value in read_json(path, "a generation config").items() if value is not None}
    do_sample = settings.get("do_sample", False)
    _require_bool(path, "do_sample", do_sample)
    if ignored := [key for key, neutral in _UNSUPPORTED.items() if key in settings and settings[key] not in neutral]:
        warnings.warn(f"{path}: {', '.join(ignored)} is not supported; replies differ from transformers'", stacklevel=3)
    names = ("temperature", "top_p", "repetition_penalty")
    numbers = {name: _require_number(path, name, settings.get(name, 1.0)) for name in names}
    if not do_sample:
        numbers["temperature"] = 0.0
    top_k = _require_int(path, "top_k", settings.get("top_k", 50), _MAX_NUMBER)  # transformers' default is 50
    suppressed = _require_ids(path, "suppress_tokens", settings.get("suppress_tokens", []))
    try:
        sampling = Sampling(top_k=top_k, suppressed=suppressed, **numbers)
    except InputError as error:
        raise error.within(path) from None
    eos = _require_ids(path, "eos_token_id", settings.get("eos_token_id", []))
    _refuse_ids_of_another_model(path, "suppress_tokens", suppressed, config)
    if eos and min(eos) >= config.text.vocab_size:  # no reply would end
        _refuse_ids_of_another_model(path, "eos_token_id", eos, config)
    return sampling, eos or config.eos_token_ids


def _refuse_ids_of_another_model(path: Path, name: str, ids: tuple[int, ...], config: ModelConfig) -> None:
    if max(ids, default=0) >= config.text.vocab_size:
        expected = f"ids below vocab_size {config.text.vocab_size}"
        raise InputError(f"{path} {name}", max(ids), expected, "use the model's own file")


def _require_bool(path: Path, name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{path} {name}", repr(value), "true or false", "mend the file")
    return value


def _require_number(path: Path, name: str, value: Any) -> float | int:
    # `not ... <=` is also true of NaN.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _MAX_NUMBER:
        raise InputError(f"{path} {name}", repr(value), "a number", "mend the file")
    return value


def _require_int(path: Path, name: str, value: Any, max_value: int) -> int:
    if type(value) is not int or abs(value) > max_value:  # a bool is an int, too
        raise InputError(f"{path} {name}", repr(value), f"a whole number of at most {max_value}", "mend the file")
    return value


def _require_ids(path: Path, name: str, value: Any) -> tuple[int, ...]:
    ids = tuple(value) if isinstance(value, list) else (value,)
    if not all(type(token) is int and 0 <= token < _MAX_NUMBER for token in ids):
        raise InputError(f"{path} {name}", repr(value), "a token id or a list of them", "mend the file")
    return ids
