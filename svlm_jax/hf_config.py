"""A model's config.json, in and out: the flat form of transformers 4 and the nested one of transformers 5 are read, the nested
one is written. What no code here reads is carried along in `ModelConfig.hf_extra`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from svlm_jax.checkpoint.directory import refuse_other_kinds
from svlm_jax.config import VISION_ROPE_THETA, Dtype, ModelConfig, TextConfig, VisionConfig
from svlm_jax.errors import InputError
from svlm_jax.files import read_json

MODEL_TYPE = "qwen2_5_vl"
ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
ITS_OWN = "use the config.json that came with the weights"  # the usual remedy
# Other models whose checkpoints are taken for one, by model_type.
_OTHERS = {
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl_text": "the text half of Qwen2.5-VL alone",
    "qwen2_5_omni": "Qwen2.5-Omni",
    "qwen2": "Qwen2 or Qwen2.5, text alone",
    "qwen3": "Qwen3, text alone",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL, mixture of experts",
}
# How the versions of Hugging Face's and other tools' config.json say that weights are quantised.
_QUANTISED = ("quantization_config", "compression_config", "quantization")
_CASTABLE = ("float16", "float64")  # stored so; computed in another type when that is asked for
# What transformers takes for keys that a file leaves out: 4.49 writes only what differs (`Qwen2_5_VLVisionConfig`). The sizes
# of the text model every version writes.
_VISION_DEFAULTS = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": (7, 15, 23, 31),
    "tokens_per_second": 4,
}
_TEXT_DEFAULTS = {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 32768}
# The largest that a file may ask for: far above any model, low enough that a table of its tensors takes no memory.
_LARGEST = {"num_hidden_layers": 1000, "depth": 1000, "window_size": 1 << 16}
_LARGEST |= dict.fromkeys(("patch_size", "spatial_merge_size", "temporal_patch_size", "tokens_per_second"), 1000)
_LARGEST_INT, _LARGEST_FLOAT = 1 << 31, 1e12
# Keys of the flat form that stay at the root of the nested one; all others belong to the text model.
_ROOT = ("architectures", "dtype", "torch_dtype", "model_type", "transformers_version", "vision_token_id")
_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
# How rotary settings have been spelled, and what transformers derives: written anew, not carried along.
_ROPE = ("layer_types", "rope_scaling", "rope_parameters", "type", "rope_type")
_LISTS = ("mrope_section", "fullatt_block_indexes")
_Half = TypeVar("_Half", TextConfig, VisionConfig)
_Config = TypeVar("_Config")


def read(path: str | Path, dtype: Dtype | None = None) -> ModelConfig:
    """The config of a `config.json`, or of the one in a directory.

    Args:
        dtype: as of `parse`.

    Raises:
        InputError: as of `parse`; or a directory that holds another kind of checkpoint (`hf_directory`).
    """
    path = Path(path)
    if path.is_dir():
        refuse_other_kinds(path)
        path = path / "config.json"
    if not path.is_file() and not path.is_dir():
        raise InputError("config.json", f"no file {path}", "a Hugging Face config.json", "point to a checkpoint directory")
    return parse(read_json(path, "a Hugging Face config.json"), source=str(path), dtype=dtype)


def check_kind(raw: object, source: str = "config.json") -> None:
    """Refuse the config of another kind of model, or of quantised weights.

    Raises:
        InputError: that.
    """
    if isinstance(raw, Mapping) and "run_dir" in raw and "model_type" not in raw:
        export = "export it: svlm convert RUN_DIR OUT"
        raise InputError(source, "the settings of a training run", "a model's config.json", export)
    if not isinstance(raw, Mapping) or raw.get("model_type") != MODEL_TYPE:
        kind = raw.get("model_type") if isinstance(raw, Mapping) else None
        got = _short(kind) if isinstance(raw, Mapping) else type(raw).__name__
        got += f" ({_OTHERS[kind]})" if isinstance(kind, str) and kind in _OTHERS else ""
        raise InputError(f"{source} model_type", got, repr(MODEL_TYPE), "use a Qwen2.5-VL checkpoint")
    halves = [raw, *(half for name in ("text_config", "vision_config") if isinstance(half := raw.get(name), Mapping))]
    for key, settings in ((key, half.get(key)) for half in halves for key in _QUANTISED):
        if not settings:
            continue
        named = settings.get("quant_method") or settings.get("quant_type") if isinstance(settings, Mapping) else settings
        method = named or ("MLX" if key == "quantization" else "unknown method")
        got = f"quantised weights ({str(method)[:40]})"
        raise InputError(f"{source} {key}", got, "float32 or bfloat16 ones", "use the checkpoint that it was quantised from")


def parse(raw: Mapping[str, Any], source: str = "config.json", dtype: Dtype | None = None) -> ModelConfig:
    """The config of a config.json's content.

    Args:
        dtype: of computation and parameters, instead of the one that the file names. Without it a file that names float16 is
            refused: nothing here computes in it.

    Raises:
        InputError: a field that is missing, wrong, or asks for a variant that is computed differently, by name.
    """
    check_kind(raw, source)
    root = dict(raw)
    vision = _section(root, "vision_config", source)
    own = {*_ROOT, *_IDS, "tie_word_embeddings"}
    if "text_config" in root:
        text = _section(root, "text_config", source)
        root = {key: value for key, value in root.items() if key in own or key not in text}  # 4.52 repeats the text model
    else:
        text = {key: root.pop(key) for key in list(root) if key not in own}
    _check_variant(text, vision, source)
    stored = [half.pop(key, None) for half in (root, text, vision) for key in ("torch_dtype", "dtype")]
    dtype = _dtype(next((word for word in stored[:4] if word is not None), "bfloat16"), dtype, source)
    ties = [tie for half in (root, text) if (tie := half.pop("tie_word_embeddings", None)) is not None]
    for tie in ties:
        _check_type(f"{source} tie_word_embeddings", tie, bool)
    ids = {name: value for name in _IDS if (value := root.pop(name, None)) is not None}
    for name, value in ids.items():
        _check_type(f"{source} {name}", value, int)
    rope = _rope(text, source)
    text = {key: value for key, value in text.items() if key not in _ROPE}
    text |= {key: rope[key] for key in ("rope_theta", "mrope_section") if key in rope}
    text_config = _take(TextConfig, text, _TEXT_DEFAULTS, f"{source} text_config")
    vision_config = _take(VisionConfig, vision, _VISION_DEFAULTS, f"{source} vision_config")
    _check_eos(text.get("eos_token_id"), source)
    extra = json.dumps({**root, "text_config": text, "vision_config": vision}, sort_keys=True)
    values = {"tie_word_embeddings": any(ties), "dtype": dtype, "param_dtype": dtype, "hf_extra": extra, **ids}
    return _built(ModelConfig, source, text_config, vision_config, **values)


def _dtype(named: object, asked: Dtype | None, source: str) -> Dtype:
    """The type to compute in: the one asked for, else the one that the file names."""
    known = get_args(Dtype)
    if not isinstance(named, str) or named not in (*known, *_CASTABLE):
        expected = f"one of {', '.join((*known, *_CASTABLE))}"
        raise InputError(f"{source} dtype", _short(named), expected, ITS_OWN)
    if asked is None and named not in known:
        expected = f"{' or '.join(map(repr, known))}, or one that is chosen"
        raise InputError(f"{source} dtype", repr(named), expected, "choose with --dtype (dtype=) bfloat16 or float32")
    return asked or named  # pyright: ignore[reportReturnType]


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
        raise InputError(f"{source} text rope_scaling", _short(rope), "an object", ITS_OWN)
    return rope


def _check_variant(text: Mapping[str, Any], vision: Mapping[str, Any], source: str) -> None:
    """Refuse what this model would compute differently from what the file asks for."""
    rope = _rope(text, source)
    rope_types = {str(rope[key]) for key in ("type", "rope_type") if key in rope} - {"mrope", "default"}
    vision_rope = vision.get("rope_parameters") or {}
    base = vision_rope.get("rope_theta", VISION_ROPE_THETA) if isinstance(vision_rope, Mapping) else vision_rope
    layers = text.get("layer_types") or []
    kinds = {str(kind) for kind in layers} if isinstance(layers, list) else {str(layers)}
    asked = {
        "text hidden_act": (text.get("hidden_act", "silu"), "silu"),
        "text use_sliding_window": (bool(text.get("use_sliding_window", False)), False),
        "text rope type": (min(rope_types, default="mrope"), "mrope"),
        "text layer_types": (min(kinds - {"full_attention"}, default="full_attention"), "full_attention"),
        "vision hidden_act": (vision.get("hidden_act", "silu"), "silu"),
        "vision rope_theta": (base, VISION_ROPE_THETA),
        "vision in_channels": (vision.get("in_channels", 3), 3),
    }
    for name, (got, expected) in asked.items():
        if got != expected:
            raise InputError(f"{source} {name}", _short(got), repr(expected), "this variant is not supported")


def _take(cls: type[_Half], values: dict[str, Any], defaults: Mapping[str, Any], source: str) -> _Half:
    """Take the fields of `cls` out of `values` (the rest is carried along), the defaults of transformers for what the file
    leaves out; every missing one in one error."""
    if cls is TextConfig and values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = values.get("num_attention_heads")
    known = {f.name: f for f in fields(cls)}
    given = {**defaults, **{name: value for name, value in values.items() if name in known and value is not None}}
    if missing := [name for name, f in known.items() if name not in given and f.default is MISSING]:
        raise InputError(source, f"no {', '.join(missing)}", "every size of the model", ITS_OWN)
    for name, value in given.items():
        values.pop(name, None)
        if name in _LISTS and not (isinstance(value, list | tuple) and len(value) <= _LARGEST["depth"]):
            raise InputError(f"{source}.{name}", _short(value), "a list of whole numbers", "mend config.json")
        least = 0 if name in _LISTS or known[name].type is float else 1
        for item in value if name in _LISTS else [value]:
            _check_type(f"{source}.{name}", item, float if known[name].type is float else int, least, _LARGEST.get(name))
        given[name] = tuple(value) if name in _LISTS else value
    return _built(cls, source.rpartition(" ")[0], **given)


def _built(cls: Callable[..., _Config], source: str, *args: Any, **values: Any) -> _Config:
    """A config whose checks name the file."""
    try:
        return cls(*args, **values)
    except InputError as error:
        raise error.within(source) from None


def _put(config: TextConfig | VisionConfig) -> dict[str, Any]:
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    return {name: list(value) if name in _LISTS else value for name, value in values.items()}


def _check_type(name: str, value: Any, kind: type, least: int = 0, most: float | int | None = None) -> None:
    if kind is bool:
        right, expected = isinstance(value, bool), "true or false"
    else:
        most = most or (_LARGEST_FLOAT if kind is float else _LARGEST_INT)
        right = isinstance(value, kind | int) and not isinstance(value, bool) and least <= value <= most
        expected = f"a {'number' if kind is float else 'whole number'} from {least} to {most}"
    if not right:
        raise InputError(name, _short(value), expected, "mend config.json")


def _check_eos(value: Any, source: str) -> None:
    for one in value if isinstance(value, list) else [] if value is None else [value]:
        _check_type(f"{source} text eos_token_id", one, int)


def _short(value: object) -> str:
    """repr, of anything: JSON may hold numbers of more digits than Python prints."""
    try:
        return repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that is too long to print"
