"""A model's config.json, in and out: the flat form of transformers 4 and the nested one of transformers 5 are read, the nested
one is written. What no code here reads is carried along in `ModelConfig.hf_extra`.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from svlm_jax.config import ModelConfig, TextConfig, VisionConfig
from svlm_jax.errors import InputError

MODEL_TYPE = "qwen2_5_vl"
ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
ITS_OWN = "use the config.json that came with the weights"  # the usual remedy
# Keys of the flat form that stay at the root of the nested one; all others belong to the text model.
_ROOT = ("architectures", "dtype", "torch_dtype", "model_type", "transformers_version", "vision_token_id")
_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
# How rotary settings have been spelled, and what transformers derives: written anew, not carried along.
_ROPE = ("layer_types", "rope_scaling", "rope_parameters", "type", "rope_type")
_LISTS = ("mrope_section", "fullatt_block_indexes")
_Half = TypeVar("_Half", TextConfig, VisionConfig)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON file that holds an object; anything else is one InputError."""
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise InputError(str(path), f"an unreadable file ({error})", what, "check its path and permissions") from None
    except ValueError as error:  # broken JSON, or not UTF-8
        raise InputError(str(path), f"broken JSON ({error})", what, "download the file again") from None
    if not isinstance(value, dict):
        raise InputError(str(path), f"a JSON {type(value).__name__}", what, "download the file again")
    return value


def read(path: str | Path) -> ModelConfig:
    """The config of a `config.json`, or of the one in a directory."""
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise InputError("config.json", f"no file {path}", "a Hugging Face config.json", "point to a checkpoint directory")
    return parse(read_json(path, "a Hugging Face config.json"), source=str(path))


def parse(raw: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """The config of a config.json's content.

    Raises:
        InputError: a field that is missing, wrong, or asks for a variant that is computed differently, by name.
    """
    if not isinstance(raw, Mapping) or raw.get("model_type") != MODEL_TYPE:
        got = repr(raw.get("model_type")) if isinstance(raw, Mapping) else type(raw).__name__
        raise InputError(f"{source} model_type", got, repr(MODEL_TYPE), "use a Qwen2.5-VL checkpoint")
    root = dict(raw)
    vision = _section(root, "vision_config", source)
    if "text_config" in root:
        text = _section(root, "text_config", source)
    else:
        own = {*_ROOT, *_IDS, "tie_word_embeddings"}
        text = {key: root.pop(key) for key in list(root) if key not in own}
    _check_variant(text, vision, source)
    dtype = root.pop("torch_dtype", None) or root.get("dtype") or text.get("dtype") or "bfloat16"
    root.pop("dtype", None)
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"{source} dtype", repr(dtype), "'float32' or 'bfloat16'", "convert the checkpoint to one of them")
    ties = [half.pop("tie_word_embeddings", None) or False for half in (root, text)]
    for tie in ties:
        _check_type(f"{source} tie_word_embeddings", tie, bool)
    ids = {name: root.pop(name) for name in _IDS if name in root}
    for name, value in ids.items():
        _check_type(f"{source} {name}", value, int)
    rope = _rope(text, source)
    text = {key: value for key, value in text.items() if key not in _ROPE}
    text |= {key: rope[key] for key in ("rope_theta", "mrope_section") if key in rope}
    text_config = _take(TextConfig, text, f"{source} text_config")
    vision_config = _take(VisionConfig, vision, f"{source} vision_config")
    extra = json.dumps({**root, "text_config": text, "vision_config": vision}, sort_keys=True)
    return ModelConfig(
        text_config, vision_config, tie_word_embeddings=any(ties), dtype=dtype, param_dtype=dtype, hf_extra=extra, **ids
    )


def dump(config: ModelConfig) -> dict[str, Any]:
    """The content of a config.json in the nested form, keys sorted."""
    extra = json.loads(config.hf_extra)
    dtype = {"dtype": config.param_dtype}
    text = extra.pop("text_config", {}) | _put(config.text) | dtype | {"model_type": "qwen2_5_vl_text"}
    vision = extra.pop("vision_config", {}) | _put(config.vision) | dtype | {"model_type": "qwen2_5_vl_vision"}
    rope = {name: text.pop(name) for name in ("mrope_section", "rope_theta")}
    text["rope_parameters"] = rope | {"rope_type": "default", "type": "mrope"}
    text["layer_types"] = ["full_attention"] * config.text.num_hidden_layers
    for half in (text, vision):
        half.setdefault("hidden_act", "silu")
    root = {"architectures": [ARCHITECTURE], **extra, **{name: getattr(config, name) for name in _IDS}, **dtype}
    root |= {"model_type": MODEL_TYPE, "tie_word_embeddings": config.tie_word_embeddings}
    root |= {"text_config": dict(sorted(text.items())), "vision_config": dict(sorted(vision.items()))}
    return dict(sorted(root.items()))


def _section(root: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    value = root.pop(key, None)
    if not isinstance(value, Mapping):
        got = "nothing" if value is None else type(value).__name__
        raise InputError(f"{source} {key}", got, "an object", ITS_OWN)
    return dict(value)


def _rope(text: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The rotary settings, however they are spelled."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise InputError(f"{source} text rope_scaling", repr(rope), "an object", ITS_OWN)
    return rope


def _check_variant(text: Mapping[str, Any], vision: Mapping[str, Any], source: str) -> None:
    """Refuse what this model would compute differently from what the file asks for."""
    rope = _rope(text, source)
    rope_types = {str(rope[key]) for key in ("type", "rope_type") if key in rope} - {"mrope", "default"}
    asked = {
        "text hidden_act": (text.get("hidden_act", "silu"), "silu"),
        "text use_sliding_window": (bool(text.get("use_sliding_window", False)), False),
        "text rope type": (min(rope_types, default="mrope"), "mrope"),
        "vision hidden_act": (vision.get("hidden_act", "silu"), "silu"),
    }
    for name, (got, expected) in asked.items():
        if got != expected:
            raise InputError(f"{source} {name}", repr(got), repr(expected), "this variant is not supported")


def _take(cls: type[_Half], values: dict[str, Any], source: str) -> _Half:
    """Take the fields of `cls` out of `values` (the rest is carried along); every missing one in one error."""
    if cls is TextConfig and values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = values.get("num_attention_heads")
    known = {f.name: f for f in fields(cls)}
    missing = [name for name, f in known.items() if values.get(name) is None and f.default is MISSING]
    if missing:
        raise InputError(source, f"no {', '.join(missing)}", "every size of the model", ITS_OWN)
    taken: dict[str, Any] = {name: value for name in known if (value := values.pop(name, None)) is not None}
    for name, value in taken.items():
        if name in _LISTS and not isinstance(value, list | tuple):
            raise InputError(f"{source}.{name}", repr(value), "a list of whole numbers", "mend config.json")
        for item in value if name in _LISTS else [value]:
            _check_type(f"{source}.{name}", item, float if known[name].type is float else int)
        taken[name] = tuple(value) if name in _LISTS else value
    return cls(**taken)


def _put(config: TextConfig | VisionConfig) -> dict[str, Any]:
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    return {name: list(value) if name in _LISTS else value for name, value in values.items()}


def _check_type(name: str, value: Any, kind: type) -> None:
    if kind is bool:
        right = isinstance(value, bool)
    else:
        right = isinstance(value, kind | int) and not isinstance(value, bool) and value >= 0
    if not right:
        expected = {bool: "true or false", int: "a whole number >= 0", float: "a number >= 0"}[kind]
        raise InputError(name, repr(value), expected, "mend config.json")
