"""What a model is: frozen dataclasses, read from and written to a Hugging Face `config.json`.

Owns the field names (the Hugging Face ones), their checks and the presets of the published sizes. Knows nothing of arrays.
Units: sizes in elements, `window_size` and `patch_size` in pixels, `tokens_per_second` in temporal positions a second.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from svlm_jax.errors import InputError

Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "full", "save_attention", "save_projections"]

MODEL_TYPE = "qwen2_5_vl"
ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
MERGER_EPS = 1e-6  # RMSNorm epsilon of the whole vision tower; not in any config.json
VISION_ROPE_THETA = 10_000.0
# Keys of the old flat config.json that stay at the root of the nested form; all others belong to the text model.
_ROOT_KEYS = ("architectures", "dtype", "torch_dtype", "model_type", "transformers_version", "vision_token_id")
# Derived by transformers from other keys; wrong once a model is resized, so they are not carried over.
_DERIVED_TEXT_KEYS = ("layer_types", "rope_theta", "rope_scaling", "rope_parameters", "type", "rope_type")


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower: `depth` blocks of width `hidden_size`, windows of `window_size` pixels, full (per frame) attention
    in `fullatt_block_indexes`, a 2x2 merger to `out_hidden_size`."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    fullatt_block_indexes: tuple[int, ...]
    tokens_per_second: int
    in_channels: int = 3
    patch_size: int = 14
    spatial_merge_size: int = 2
    temporal_patch_size: int = 2
    window_size: int = 112

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch (1176: 3 channels x 2 frames x 14 x 14)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches that become one language-model token (4)."""
        return self.spatial_merge_size**2

    @property
    def window_patches(self) -> int:
        """Most patches in one attention window (64)."""
        return (self.window_size // self.patch_size) ** 2

    def __post_init__(self) -> None:
        _check_divides("vision_config.hidden_size", self.hidden_size, "num_heads", self.num_heads)
        _check_divides(
            "vision_config.window_size",
            self.window_size,
            "patch_size * spatial_merge_size",
            self.patch_size * self.spatial_merge_size,
        )
        if self.head_dim % 4:
            raise InputError(
                "vision_config.num_heads",
                f"head_dim {self.head_dim}",
                "a head_dim divisible by 4 (two axes, two halves)",
                "change hidden_size or num_heads",
            )
        for index in self.fullatt_block_indexes:
            if not 0 <= index < self.depth:
                raise InputError(
                    "vision_config.fullatt_block_indexes",
                    index,
                    f"indexes below depth {self.depth}",
                    "mend config.json",
                )


@dataclass(frozen=True)
class TextConfig:
    """The decoder: grouped-query attention, SwiGLU, RMSNorm, chunked M-RoPE (`mrope_section` in frequencies: t, h, w)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    mrope_section: tuple[int, int, int]
    rope_theta: float = 1_000_000.0
    max_position_embeddings: int = 128_000

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def __post_init__(self) -> None:
        _check_divides("text_config.hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads)
        _check_divides(
            "text_config.num_attention_heads", self.num_attention_heads, "num_key_value_heads", self.num_key_value_heads
        )
        if len(self.mrope_section) != 3 or sum(self.mrope_section) * 2 != self.head_dim:
            raise InputError(
                "text_config.mrope_section",
                list(self.mrope_section),
                f"three numbers that add up to head_dim/2 = {self.head_dim // 2}",
                "mend config.json",
            )


@dataclass(frozen=True)
class ModelConfig:
    """A Qwen2.5-VL model: its two halves, the ids that mark vision, and how it is computed.

    `dtype` is the compute type (softmax, norms and rotary are float32 in any case), `param_dtype` how parameters are held.
    `scan_layers` holds the decoder stacked on a leading layer axis and scans it: for training; `remat` then says what a layer
    keeps for the backward pass. `hf_extra` is JSON of the keys of config.json that no code here reads, so that they survive.
    """

    text: TextConfig
    vision: VisionConfig
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    tie_word_embeddings: bool = False
    dtype: Dtype = "bfloat16"
    param_dtype: Dtype = "bfloat16"
    scan_layers: bool = False
    remat: Remat = "none"
    hf_extra: str = field(default="{}", repr=False)

    def __post_init__(self) -> None:
        for name, known in (("dtype", get_args(Dtype)), ("param_dtype", get_args(Dtype)), ("remat", get_args(Remat))):
            if getattr(self, name) not in known:
                raise InputError(name, repr(getattr(self, name)), f"one of {', '.join(known)}", "choose one of them")
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise InputError(
                "vision_config.out_hidden_size",
                self.vision.out_hidden_size,
                f"text hidden_size {self.text.hidden_size}",
                "mend config.json",
            )

    def compute(self, dtype: Dtype, param_dtype: Dtype | None = None) -> Self:
        """The same model in another precision; `param_dtype` follows `dtype` unless given."""
        return replace(self, dtype=dtype, param_dtype=param_dtype or dtype)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """End-of-sequence ids that config.json names (generation_config.json, when there, has the last word)."""
        eos = json.loads(self.hf_extra).get("text_config", {}).get("eos_token_id")
        return () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a `config.json`, or the one in a directory."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise InputError("config.json", f"no file {path}", "a Hugging Face config.json", "point to a checkpoint directory")
        try:
            raw = json.loads(path.read_text())
        except ValueError as error:  # broken JSON or not UTF-8
            raise InputError(
                str(path), f"broken JSON ({error})", "a Hugging Face config.json", "download the file again"
            ) from None
        return cls.from_hf(raw, source=str(path))

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], source: str = "config.json") -> Self:
        """Read the dictionary of a config.json, in the old flat form (transformers 4) or the nested one (transformers 5)."""
        if not isinstance(raw, Mapping) or raw.get("model_type") != MODEL_TYPE:
            got = repr(raw.get("model_type")) if isinstance(raw, Mapping) else type(raw).__name__
            raise InputError(f"{source} model_type", got, repr(MODEL_TYPE), "use a Qwen2.5-VL checkpoint")
        root = dict(raw)
        vision = _section(root, "vision_config", source)
        if "text_config" in root:
            text = _section(root, "text_config", source)
        else:
            own = {f.name for f in fields(cls)} | set(_ROOT_KEYS)
            text = {key: root.pop(key) for key in list(root) if key not in own}
        ties = [tie for tie in (root.get("tie_word_embeddings"), text.pop("tie_word_embeddings", None)) if tie is not None]
        for tie in ties:
            _check_type(f"{source} tie_word_embeddings", tie, bool)
        root["tie_word_embeddings"] = any(ties)
        dtype = root.pop("torch_dtype", None) or root.pop("dtype", None) or text.get("dtype") or "bfloat16"
        root.pop("dtype", None)
        if dtype not in ("float32", "bfloat16"):
            raise InputError(f"{source} dtype", repr(dtype), "'float32' or 'bfloat16'", "convert the checkpoint to one of them")
        _check_supported(text, vision, source)
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        text.setdefault("rope_theta", rope.get("rope_theta", TextConfig.rope_theta))
        text["mrope_section"] = rope.get("mrope_section", text.get("mrope_section"))
        for derived in _DERIVED_TEXT_KEYS:
            if derived != "rope_theta":
                text.pop(derived, None)
        text_config = _read(TextConfig, text, f"{source} text_config")
        vision_config = _read(VisionConfig, vision, f"{source} vision_config")
        known = {
            f.name: root.pop(f.name) for f in fields(cls) if f.name in root and f.name.endswith(("token_id", "embeddings"))
        }
        for name, value in known.items():
            _check_type(f"{source} {name}", value, bool if name == "tie_word_embeddings" else int)
        extra = {**root, "text_config": text, "vision_config": vision}
        return cls(
            text_config,
            vision_config,
            dtype=dtype,
            param_dtype=dtype,
            hf_extra=json.dumps(extra, sort_keys=True),
            **known,
        )

    def to_hf(self) -> dict[str, Any]:
        """The dictionary of a config.json in the nested form that transformers 5 writes; keys sorted."""
        extra = json.loads(self.hf_extra)
        text = {
            **extra.pop("text_config", {}),
            **_write(self.text),
            "model_type": "qwen2_5_vl_text",
            "dtype": self.param_dtype,
        }
        section, theta = text.pop("mrope_section"), text.pop("rope_theta")
        text["rope_parameters"] = {
            "mrope_section": section,
            "rope_theta": theta,
            "rope_type": "default",
            "type": "mrope",
        }
        text["layer_types"] = ["full_attention"] * self.text.num_hidden_layers
        text.setdefault("hidden_act", "silu")
        vision = {
            **extra.pop("vision_config", {}),
            **_write(self.vision),
            "model_type": "qwen2_5_vl_vision",
            "dtype": self.param_dtype,
        }
        vision.setdefault("hidden_act", "silu")
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith(("token_id", "embeddings"))}
        root = {"architectures": [ARCHITECTURE], **extra, **own, "model_type": MODEL_TYPE, "dtype": self.param_dtype}
        return dict(
            sorted(
                {
                    **root,
                    "text_config": dict(sorted(text.items())),
                    "vision_config": dict(sorted(vision.items())),
                }.items()
            )
        )


def preset(name: str) -> ModelConfig:
    """The shape of a published model: "3b", "7b", "32b" or "72b" (their config.json on the Hugging Face hub)."""
    if name not in _PRESETS:
        raise InputError("preset", repr(name), f"one of {', '.join(_PRESETS)}", "or read a config.json")
    hidden, mlp, layers, heads, kv_heads, vocab, vision_mlp, tied = _PRESETS[name]
    text = TextConfig(vocab, hidden, mlp, layers, heads, kv_heads, rms_norm_eps=1e-6, mrope_section=(16, 24, 24))
    vision = VisionConfig(32, 1280, vision_mlp, 16, hidden, fullatt_block_indexes=(7, 15, 23, 31), tokens_per_second=2)
    extra = {"text_config": {"bos_token_id": 151643, "eos_token_id": 151645}}
    return ModelConfig(text, vision, tie_word_embeddings=tied, hf_extra=json.dumps(extra))


_PRESETS = {  # hidden_size, intermediate_size, layers, heads, kv heads, vocabulary, vision intermediate_size, tied
    "3b": (2048, 11008, 36, 16, 2, 151936, 3420, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, 3420, False),
    "32b": (5120, 27648, 64, 40, 8, 152064, 3456, False),
    "72b": (8192, 29568, 80, 64, 8, 152064, 3456, False),
}


def _section(root: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    value = root.pop(key, None)
    if not isinstance(value, Mapping):
        raise InputError(
            f"{source} {key}",
            type(value).__name__ if value is not None else "nothing",
            "an object",
            "use the config.json that came with the weights",
        )
    return dict(value)


def _check_supported(text: Mapping[str, Any], vision: Mapping[str, Any], source: str) -> None:
    """Refuse what this model would compute differently from what the file asks for."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        remedy = "use the config.json that came with the weights"
        raise InputError(f"{source} text rope_scaling", repr(rope), "an object", remedy)
    rope_types = {rope[key] for key in ("type", "rope_type") if key in rope} - {"mrope", "default"}
    asked = {
        "text hidden_act": (text.get("hidden_act", "silu"), "silu"),
        "text use_sliding_window": (bool(text.get("use_sliding_window", False)), False),
        "text rope type": (min(rope_types) if rope_types else "mrope", "mrope"),
        "vision hidden_act": (vision.get("hidden_act", "silu"), "silu"),
    }
    for name, (got, expected) in asked.items():
        if got != expected:
            raise InputError(f"{source} {name}", repr(got), repr(expected), "this variant of the architecture is not supported")


_Half = TypeVar("_Half", TextConfig, VisionConfig)


def _read(cls: type[_Half], values: dict[str, Any], source: str) -> _Half:
    """Take the fields of `cls` out of `values` (what is left is carried along), naming every missing one in one error."""
    if cls is TextConfig:
        values["num_key_value_heads"] = values.get("num_key_value_heads") or values.get("num_attention_heads")
    names = {f.name: f for f in fields(cls)}
    missing = [name for name, f in names.items() if values.get(name) is None and f.default is MISSING]
    if missing:
        raise InputError(
            source,
            f"no {', '.join(missing)}",
            "every size of the model",
            "use the config.json that came with the weights",
        )
    taken = {name: values.pop(name) for name in names if values.get(name) is not None}
    for name, value in taken.items():
        many = name in ("mrope_section", "fullatt_block_indexes")
        if many and not isinstance(value, list | tuple):
            raise InputError(f"{source}.{name}", repr(value), "a list of whole numbers", "mend config.json")
        for item in value if many else [value]:
            _check_type(f"{source}.{name}", item, float if names[name].type is float else int)
        taken[name] = tuple(value) if many else value
    return cls(**taken)


def _write(config: TextConfig | VisionConfig) -> dict[str, Any]:
    return {f.name: list(value) if isinstance(value := getattr(config, f.name), tuple) else value for f in fields(config)}


def _check_type(name: str, value: Any, kind: type) -> None:
    if kind is bool:
        right = isinstance(value, bool)
    else:
        right = isinstance(value, kind | int) and not isinstance(value, bool) and value >= 0
    if not right:
        expected = {bool: "true or false", int: "a whole number >= 0", float: "a number >= 0"}[kind]
        raise InputError(name, repr(value), expected, "mend config.json")


def _check_divides(name: str, value: int, by_name: str, by: int) -> None:
    if by <= 0 or value <= 0 or value % by:
        raise InputError(name, value, f"a multiple of {by_name} = {by}", "mend config.json")
