"""Qwen2.5-VL (arXiv 2502.13923): config.json, weights, chat format and published sizes.

Owns all that this family decides. The flat config.json of transformers 4 and the nested one of transformers 5 are read, the
nested one is written. Sizes in elements, pixels as noted.
"""

import json

from svlm_jax.config import CLIP_MEAN, CLIP_STD, ModelConfig, TextConfig, VisionConfig
from svlm_jax.families import qwen
from svlm_jax.families.family import ChatFormat, Family, Section, WeightTable
from svlm_jax.families.fields import field_values, take_fields

# --- config.json ---

# What transformers assumes for keys that a file leaves out: 4.49 writes only what differs (`Qwen2_5_VLVisionConfig`). Every
# version writes the sizes of the text model.
_VISION_DEFAULTS = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": (7, 15, 23, 31),
    "tokens_per_second": 4,  # not the 2 of the published models
}
_TEXT_DEFAULTS = {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 32768}
# Fields that no file says: what is the same in all models of the family; image_mean and image_std stand in
# preprocessor_config.json.
_VISION_FIXED = {
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "norm": "rms_norm",
    "hidden_act": "silu",
    "patch_bias": False,
    "num_position_embeddings": 0,
    "deepstack_visual_indexes": (),
}
_TEXT_FIXED = {"mrope_interleaved": False, "head_dim": 0, "qkv_bias": True, "qk_norm": False}


def parse_sections(text: Section, vision: Section, source: str) -> tuple[TextConfig, VisionConfig]:
    """Both configs, taken out of the two sections of a config.json."""
    text_config = qwen.parse_text(text, _TEXT_DEFAULTS, _TEXT_FIXED, source)
    qwen.check_vision_variant(vision, "silu", source)
    return text_config, take_fields(VisionConfig, vision, _VISION_DEFAULTS, f"{source} vision_config", _VISION_FIXED)


def dump_sections(config: ModelConfig) -> tuple[Section, Section]:
    """The text and the vision section, as transformers 5 writes them."""
    text, vision = qwen.dump_text(config, _TEXT_FIXED), field_values(config.vision, _VISION_FIXED)
    text |= {"model_type": "qwen2_5_vl_text", "layer_types": ["full_attention"] * config.text.num_hidden_layers}
    text["rope_parameters"] |= {"type": "mrope"}
    return text, vision | {"model_type": "qwen2_5_vl_vision", "hidden_act": "silu"}


# --- weights ---

_TOWER_ROWS = (
    *qwen.VISION_ROWS,
    *qwen.linear_rows("blocks.{i}.mlp.gate_proj", "vision.blocks.{i}.mlp.gate"),
    *qwen.linear_rows("blocks.{i}.mlp.up_proj", "vision.blocks.{i}.mlp.up"),
    *qwen.linear_rows("blocks.{i}.mlp.down_proj", "vision.blocks.{i}.mlp.down"),
    ("merger.ln_q.weight", "vision.merger.norm.scale", "d -> d"),
    *qwen.linear_rows("merger.mlp.0", "vision.merger.up"),
    *qwen.linear_rows("merger.mlp.2", "vision.merger.down"),
)
_ROWS = (
    *qwen.prefixed("model.", qwen.TEXT_ROWS + qwen.QKV_BIAS_ROWS),
    *qwen.HEAD_ROWS,
    *qwen.prefixed("visual.", _TOWER_ROWS),
)

# --- chat ---

_CHAT = ChatFormat("You are a helpful assistant.", **qwen.MARKS, time_text=qwen.time_text)

# --- published models ---


def _preset(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocab: int, vision_mlp: int, tied: bool):
    text = TextConfig(vocab, hidden, mlp, layers, heads, kv_heads, rms_norm_eps=1e-6, mrope_section=(16, 24, 24))
    vision = VisionConfig(32, 1280, vision_mlp, 16, hidden, fullatt_block_indexes=(7, 15, 23, 31), tokens_per_second=2)
    extra = json.dumps({"text_config": {"bos_token_id": 151643, "eos_token_id": 151645}})
    return ModelConfig(text, vision, "qwen2_5_vl", **qwen.TOKEN_IDS, tie_word_embeddings=tied, hf_extra=extra)


QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    name="Qwen2.5-VL",
    architecture="Qwen2_5_VLForConditionalGeneration",
    token_ids=qwen.TOKEN_IDS,
    parse_sections=parse_sections,
    dump_sections=dump_sections,
    weights=WeightTable(_ROWS, qwen.axis_sizes, aliases=(("model.language_model.", "model."), ("model.visual.", "visual."))),
    vision_tower=qwen.vision_tower,
    chat=_CHAT,
    image_pixels=(56 * 56, 28 * 28 * 1280),
    processor_classes={
        "processor": "Qwen2_5_VLProcessor",
        "image_processor": "Qwen2VLImageProcessor",
        "video_processor": "Qwen2VLVideoProcessor",
    },
    presets={
        "qwen2.5-vl-3b": _preset(2048, 11008, 36, 16, 2, 151936, 3420, tied=True),
        "qwen2.5-vl-7b": _preset(3584, 18944, 28, 28, 4, 152064, 3420, tied=False),
        "qwen2.5-vl-32b": _preset(5120, 27648, 64, 40, 8, 152064, 3456, tied=False),
        "qwen2.5-vl-72b": _preset(8192, 29568, 80, 64, 8, 152064, 3456, tied=False),
    },
)
