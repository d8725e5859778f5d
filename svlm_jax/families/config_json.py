"""A model's config.json, in and out: what is common to the families; their own files read and write its two sections.

Owns the file, the choice of the family by `model_type`, precision, token ids, and refusing other kinds of model. What no code
here reads is carried along in `ModelConfig.hf_extra`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from svlm_jax.checkpoint.directory import refuse_other_kinds
from svlm_jax.config import Dtype, ModelConfig
from svlm_jax.errors import InputError
from svlm_jax.families import FAMILIES, family_names, family_of
from svlm_jax.families.family import Family
from svlm_jax.families.fields import OWN_CONFIG, build, check_type, short_repr
from svlm_jax.files import read_json

_RECURRENT = "its recurrent layers cannot forget a frame"
# Models that are easily mistaken for a supported one, by model_type: what it is, and what to use instead.
_OTHER_MODELS = {
    "qwen2_vl_text": ("the text half of Qwen2-VL alone", "use the whole model's"),
    "qwen2_5_vl_text": ("the text half of Qwen2.5-VL alone", "use the whole model's"),
    "qwen3_vl_text": ("the text half of Qwen3-VL alone", "use the whole model's"),
    "qwen3_vl_moe": ("Qwen3-VL, mixture of experts", "use a dense Qwen3-VL (2B, 4B, 8B or 32B)"),
    "qwen3_vl_moe_text": ("the text half of Qwen3-VL, mixture of experts", "use a dense Qwen3-VL (2B, 4B, 8B or 32B)"),
    "qwen3_5": (f"Qwen3.5: {_RECURRENT}", "use a Qwen3-VL"),
    "qwen3_5_text": (f"the text half of Qwen3.5: {_RECURRENT}", "use a Qwen3-VL"),
    "qwen3_5_moe": (f"Qwen3.5, mixture of experts: {_RECURRENT}", "use a Qwen3-VL"),
    "qwen3_5_moe_text": (f"the text half of Qwen3.5, mixture of experts: {_RECURRENT}", "use a Qwen3-VL"),
    "qwen3_next": (f"Qwen3-Next, text alone: {_RECURRENT}", "use a Qwen3-VL"),
    "qwen2_5_omni": ("Qwen2.5-Omni, which hears and speaks too", "use a Qwen2.5-VL"),
    "qwen2_5_omni_thinker": ("the thinker of Qwen2.5-Omni, which hears too", "use a Qwen2.5-VL"),
    "qwen3_omni_moe": ("Qwen3-Omni, mixture of experts, which hears and speaks too", "use a dense Qwen3-VL"),
    "qwen3_omni_moe_thinker": ("the thinker of Qwen3-Omni, mixture of experts", "use a dense Qwen3-VL"),
    "qwen2": ("Qwen2 or Qwen2.5, text alone", "use a Qwen2-VL or Qwen2.5-VL"),
    "qwen2_moe": ("Qwen2, text alone, mixture of experts", "use a Qwen2-VL or Qwen2.5-VL"),
    "qwen3": ("Qwen3, text alone", "use a Qwen3-VL"),
    "qwen3_moe": ("Qwen3, text alone, mixture of experts", "use a Qwen3-VL"),
}
# Keys under which the versions of Hugging Face's and other tools' config.json say that weights are quantised.
_QUANTISATION_KEYS = ("quantization_config", "compression_config", "quantization")
_CASTABLE = ("float16", "float64")  # types of stored weights that are computed in another one, if the user chooses one
# Keys of the flat form that stay at the root of the nested one; all others belong to the text model.
_ROOT_KEYS = ("architectures", "dtype", "torch_dtype", "model_type", "transformers_version", "vision_token_id")
_TOKEN_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def read(path: str | Path, dtype: Dtype | None = None) -> ModelConfig:
    """The config of a `config.json`, or of the one in a directory.

    Args:
        dtype: as of `parse`.

    Raises:
        InputError: as of `parse`; or a directory that holds another kind of checkpoint (`checkpoint.directory`).
    """
    path = Path(path)
    if path.is_dir():
        refuse_other_kinds(path)
        path = path / "config.json"
    if not path.is_file() and not path.is_dir():
        raise InputError("config.json", f"no file {path}", "a Hugging Face config.json", "point to a checkpoint directory")
    return parse(read_json(path, "a Hugging Face config.json"), source=str(path), dtype=dtype)


def check_model_type(raw: object, source: str = "config.json") -> Family:
    """The family that a config.json names.

    Raises:
        InputError: another kind of model, quantised weights, or the settings of a training run.
    """
    if isinstance(raw, Mapping) and "run_dir" in raw and "model_type" not in raw:
        export = "export it: svlm convert RUN_DIR OUT"
        raise InputError(source, "the settings of a training run", "a model's config.json", export)
    model_type = raw.get("model_type") if isinstance(raw, Mapping) else None
    if not isinstance(raw, Mapping) or not isinstance(model_type, str) or model_type not in FAMILIES:
        got, remedy = short_repr(model_type) if isinstance(raw, Mapping) else type(raw).__name__, f"use a {family_names()}"
        if isinstance(model_type, str) and model_type in _OTHER_MODELS:
            name, remedy = _OTHER_MODELS[model_type]
            got += f" ({name})"
        raise InputError(f"{source} model_type", got, " or ".join(map(repr, FAMILIES)), f"{remedy} checkpoint")
    sections = [raw, *(section for name in ("text_config", "vision_config") if isinstance(section := raw.get(name), Mapping))]
    for key, settings in ((key, section.get(key)) for section in sections for key in _QUANTISATION_KEYS):
        if not settings:
            continue
        method = settings.get("quant_method") or settings.get("quant_type") if isinstance(settings, Mapping) else settings
        method = method or ("MLX" if key == "quantization" else "unknown method")
        got = f"quantised weights ({str(method)[:40]})"
        raise InputError(f"{source} {key}", got, "float32 or bfloat16 ones", "use the checkpoint that it was quantised from")
    return FAMILIES[model_type]


def parse(raw: Mapping[str, Any], source: str = "config.json", dtype: Dtype | None = None) -> ModelConfig:
    """The config of a config.json's content.

    Args:
        dtype: of computation and parameters, instead of the one that the file names. Without it a file that names float16 is
            refused: nothing here computes in it.

    Raises:
        InputError: a field that is missing, wrong, or asks for a variant that is computed differently, by name.
    """
    family = check_model_type(raw, source)
    root, text, vision = _split_sections(raw, source)
    stored = [section.pop(key, None) for section in (root, text, vision) for key in ("torch_dtype", "dtype")]
    # The vision section's type, the last two, has no say.
    dtype = _choose_dtype(next((name for name in stored[:4] if name is not None), "bfloat16"), dtype, source)
    ties = [tie for section in (root, text) if (tie := section.pop("tie_word_embeddings", None)) is not None]
    for tie in ties:
        check_type(f"{source} tie_word_embeddings", tie, bool)
    token_ids = {name: value for name in _TOKEN_IDS if (value := root.pop(name, None)) is not None}
    for name, value in token_ids.items():
        check_type(f"{source} {name}", value, int)
    text_config, vision_config = family.parse_sections(text, vision, source)
    _check_eos(text.get("eos_token_id"), source)
    values = {
        "model_type": family.model_type,
        **family.token_ids,
        **token_ids,
        "tie_word_embeddings": any(ties),
        "dtype": dtype,
        "param_dtype": dtype,
        "hf_extra": json.dumps({**root, "text_config": text, "vision_config": vision}, sort_keys=True),
    }
    return build(ModelConfig, source, text_config, vision_config, **values)


def dump(config: ModelConfig) -> dict[str, Any]:
    """The content of a config.json in the nested form, keys sorted."""
    family, extra = family_of(config), json.loads(config.hf_extra)
    dtype = {"dtype": config.param_dtype}
    text, vision = family.dump_sections(config)
    text = extra.pop("text_config", {}) | text | dtype
    vision = extra.pop("vision_config", {}) | vision | dtype
    root = {"architectures": [family.architecture], **extra, **{name: getattr(config, name) for name in _TOKEN_IDS}, **dtype}
    root |= {"model_type": config.model_type, "tie_word_embeddings": config.tie_word_embeddings}
    root |= {"text_config": dict(sorted(text.items())), "vision_config": dict(sorted(vision.items()))}
    return dict(sorted(root.items()))


def _split_sections(raw: Mapping[str, Any], source: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Root, text and vision section of either form, as copies."""
    root = dict(raw)
    vision = _section(root, "vision_config", source)
    root_keys = {*_ROOT_KEYS, *_TOKEN_IDS, "tie_word_embeddings"}
    if "text_config" in root:
        text = _section(root, "text_config", source)
        # transformers 4.52 repeats the text model at the root, and reads the inner one.
        root = {key: value for key, value in root.items() if key in root_keys or key not in text}
    else:
        text = {key: root.pop(key) for key in list(root) if key not in root_keys}
    return root, text, vision


def _section(root: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    value = root.pop(key, None)
    if not isinstance(value, Mapping):
        got = "nothing" if value is None else type(value).__name__
        raise InputError(f"{source} {key}", got, "an object", OWN_CONFIG)
    return dict(value)


def _choose_dtype(stored: object, chosen: Dtype | None, source: str) -> Dtype:
    """The type to compute in: the chosen one, else the one that the file names."""
    known = get_args(Dtype)
    if not isinstance(stored, str) or stored not in (*known, *_CASTABLE):
        expected = f"one of {', '.join((*known, *_CASTABLE))}"
        raise InputError(f"{source} dtype", short_repr(stored), expected, OWN_CONFIG)
    if chosen is None and stored not in known:
        expected = f"{' or '.join(map(repr, known))}, or one that is chosen"
        raise InputError(f"{source} dtype", repr(stored), expected, "choose with --dtype (dtype=) bfloat16 or float32")
    return chosen or stored  # pyright: ignore[reportReturnType]


def _check_eos(value: Any, source: str) -> None:
    for token_id in value if isinstance(value, list) else [] if value is None else [value]:
        check_type(f"{source} text eos_token_id", token_id, int)
