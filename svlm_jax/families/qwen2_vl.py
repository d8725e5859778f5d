"""Qwen2-VL (arXiv 2409.12191) and LiveCC (arXiv 2504.16030), which is one: config.json, weights, chat format, published sizes.

Owns all that this family decides. In its config.json `vision_config.hidden_size` is the width that the tower gives the decoder,
and `embed_dim` the tower's own. The flat config.json of transformers 4 and the nested one of transformers 5 are read, the
nested one is written.
"""

import json
from typing import Any

from svlm_jax.config import CLIP_MEAN, CLIP_STD, ModelConfig, TextConfig, VisionConfig
from svlm_jax.errors import InputError
from svlm_jax.families import qwen
from svlm_jax.families.family import ChatFormat, Family, Section, WeightTable
from svlm_jax.families.fields import build, check_type, field_values, take_fields

# --- config.json ---

# What transformers assumes for keys that a file leaves out. Those before 4.52 write only what differs (`Qwen2VLVisionConfig`):
# LiveCC's vision section has its hidden_size alone.
_DEPTH = 32
_VISION_DEFAULTS = {"depth": _DEPTH, "num_heads": 16}
_WIDTHS = {"embed_dim": 1280, "mlp_ratio": 4, "hidden_size": 3584}  # have other names in a VisionConfig
_TEXT_DEFAULTS = {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 32768}  # 1e-6 in the published files
# Fields that no file says.
_VISION_FIXED: dict[str, Any] = {
    "tokens_per_second": None,
    "window_size": 0,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "norm": "layer_norm",
    "hidden_act": "quick_gelu",
    "patch_bias": False,
    "num_position_embeddings": 0,
    "deepstack_visual_indexes": (),
}
_TEXT_FIXED = {"mrope_interleaved": False, "head_dim": 0, "qkv_bias": True, "qk_norm": False}


def parse_sections(text: Section, vision: Section, source: str) -> tuple[TextConfig, VisionConfig]:
    """Both configs, taken out of the two sections of a config.json."""
    text_config, section = qwen.parse_text(text, _TEXT_DEFAULTS, _TEXT_FIXED, source), f"{source} vision_config"
    qwen.check_vision_variant(vision, "quick_gelu", source)
    widths = {name: default if vision.get(name) is None else vision[name] for name, default in _WIDTHS.items()}
    for name, value in widths.items():
        check_type(f"{section}.{name}", value, int, 1)
        vision.pop(name, None)
    if widths["hidden_size"] != text_config.hidden_size:
        expected = f"text hidden_size {text_config.hidden_size}"
        raise InputError(f"{section}.hidden_size", widths["hidden_size"], expected, "mend config.json")
    vision |= _our_widths(**widths)
    fixed = _VISION_FIXED | {"fullatt_block_indexes": qwen.all_blocks(vision, _DEPTH, source)}
    return text_config, take_fields(VisionConfig, vision, _VISION_DEFAULTS, section, fixed)


def dump_sections(config: ModelConfig) -> tuple[Section, Section]:
    """The text and the vision section, as transformers 5 writes them."""
    text = qwen.dump_text(config, _TEXT_FIXED)
    text |= {"model_type": "qwen2_vl_text", "layer_types": ["full_attention"] * config.text.num_hidden_layers}
    text["rope_parameters"] |= {"type": "mrope"}
    vision = field_values(config.vision, {*_VISION_FIXED, "fullatt_block_indexes"})
    width, hidden = vision.pop("hidden_size"), vision.pop("intermediate_size")
    if hidden % width:
        raise InputError("vision intermediate_size", hidden, f"a multiple of hidden_size = {width}", "choose another one")
    vision |= {"embed_dim": width, "mlp_ratio": hidden // width, "hidden_size": vision.pop("out_hidden_size")}
    vision |= {"model_type": "qwen2_vl_vision", "hidden_act": "quick_gelu", "rope_parameters": dict(qwen.VISION_ROPE)}
    return text, vision


def _our_widths(embed_dim: int, mlp_ratio: int, hidden_size: int) -> Section:
    return {"hidden_size": embed_dim, "intermediate_size": embed_dim * mlp_ratio, "out_hidden_size": hidden_size}


# --- weights ---

_TOWER_ROWS = (
    *qwen.VISION_ROWS,
    *qwen.LAYER_NORM_ROWS,
    *qwen.linear_rows("blocks.{i}.mlp.fc1", "vision.blocks.{i}.mlp.up"),
    *qwen.linear_rows("blocks.{i}.mlp.fc2", "vision.blocks.{i}.mlp.down"),
    ("merger.ln_q.weight", "vision.merger.norm.scale", "d -> d"),
    ("merger.ln_q.bias", "vision.merger.norm.bias", "d -> d"),
    *qwen.linear_rows("merger.mlp.0", "vision.merger.up"),
    *qwen.linear_rows("merger.mlp.2", "vision.merger.down"),
)
_ROWS = (
    *qwen.prefixed("model.", qwen.TEXT_ROWS + qwen.QKV_BIAS_ROWS),
    *qwen.HEAD_ROWS,
    *qwen.prefixed("visual.", _TOWER_ROWS),
)

# --- published models ---


def _preset(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocab: int, *, tied: bool = False) -> ModelConfig:
    text = TextConfig(vocab, hidden, mlp, layers, heads, kv_heads, 1e-6, (16, 24, 24), max_position_embeddings=32768)
    fixed = _VISION_FIXED | {"fullatt_block_indexes": tuple(range(_DEPTH))}
    widths = _our_widths(**_WIDTHS | {"hidden_size": hidden})
    vision = build(VisionConfig, "preset", **_VISION_DEFAULTS, **widths, **fixed)
    extra = json.dumps({"text_config": {"bos_token_id": 151643, "eos_token_id": 151645}})
    return ModelConfig(text, vision, "qwen2_vl", **qwen.TOKEN_IDS, tie_word_embeddings=tied, hf_extra=extra)


_7B = _preset(3584, 18944, 28, 28, 4, 152064)

QWEN2_VL = Family(
    model_type="qwen2_vl",
    name="Qwen2-VL",
    architecture="Qwen2VLForConditionalGeneration",
    token_ids=qwen.TOKEN_IDS,
    parse_sections=parse_sections,
    dump_sections=dump_sections,
    weights=WeightTable(_ROWS, qwen.axis_sizes, aliases=(("model.language_model.", "model."), ("model.visual.", "visual."))),
    vision_tower=qwen.vision_tower,
    chat=ChatFormat("You are a helpful assistant.", **qwen.MARKS, time_text=qwen.time_text),
    image_pixels=(56 * 56, 28 * 28 * 1280),
    processor_classes={
        "processor": "Qwen2VLProcessor",
        "image_processor": "Qwen2VLImageProcessor",
        "video_processor": "Qwen2VLVideoProcessor",
    },
    presets={
        "qwen2-vl-2b": _preset(1536, 8960, 28, 12, 2, 151936, tied=True),
        "qwen2-vl-7b": _7B,
        "qwen2-vl-72b": _preset(8192, 29568, 80, 64, 8, 152064),
        "livecc-7b": _7B,
    },
)
