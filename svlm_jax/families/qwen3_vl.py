"""Qwen3-VL, dense (arXiv 2511.21631): config.json, weights, chat format and published sizes.

Owns all that this family decides. The config.json of transformers 4.57 and of 5 are read, the latter's is written. The mixture
of experts (`qwen3_vl_moe`) is another family. Sizes in elements, pixels as noted.
"""

import json
from typing import Any

from svlm_jax.config import ModelConfig, TextConfig, VisionConfig
from svlm_jax.errors import InputError
from svlm_jax.families import qwen
from svlm_jax.families.family import ChatFormat, Family, Section, WeightTable
from svlm_jax.families.fields import OWN_CONFIG, check_variant, field_values, short_repr, take_fields

# --- config.json ---

# What every version of transformers assumes for keys that a file leaves out (`Qwen3VLVisionConfig`, `Qwen3VLTextConfig`): the
# tower of the published 8B, with another output width.
_VISION_DEFAULTS: dict[str, Any] = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "patch_size": 16,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": (8, 16, 24),
}
_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128000,
    "mrope_section": (24, 20, 20),
    "rope_theta": None,  # without one 4.57 takes 5e6, which the published models have, and 5 takes 5e5: the file must say it
}
# Fields that no file says.
_VISION_FIXED: dict[str, Any] = {
    "tokens_per_second": None,  # time is text
    "window_size": 0,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "norm": "layer_norm",
    "hidden_act": "gelu_pytorch_tanh",
    "patch_bias": True,
}
_TEXT_FIXED: dict[str, Any] = {"mrope_interleaved": True, "qkv_bias": False, "qk_norm": True}


def parse_sections(text: Section, vision: Section, source: str) -> tuple[TextConfig, VisionConfig]:
    """Both configs, taken out of the two sections of a config.json."""
    check_variant({"text attention_bias": (bool(text.get("attention_bias", False)), False)}, source)
    text_config = qwen.parse_text(text, _TEXT_DEFAULTS, _TEXT_FIXED, source)
    qwen.check_vision_variant(vision, "gelu_pytorch_tanh", source)
    fixed = _VISION_FIXED | {"fullatt_block_indexes": qwen.all_blocks(vision, _VISION_DEFAULTS["depth"], source)}
    vision_config = take_fields(VisionConfig, vision, _VISION_DEFAULTS, f"{source} vision_config", fixed)
    blocks = vision_config.deepstack_visual_indexes
    if list(blocks) != sorted(set(blocks)):  # the order of the mergers would not be that of the blocks
        field, expected = f"{source} vision_config.deepstack_visual_indexes", "rising numbers of blocks"
        raise InputError(field, short_repr(list(blocks)), expected, OWN_CONFIG)
    return text_config, vision_config


def dump_sections(config: ModelConfig) -> tuple[Section, Section]:
    """The text and the vision section, as transformers 5 writes them."""
    text = qwen.dump_text(config, _TEXT_FIXED) | {"model_type": "qwen3_vl_text", "attention_bias": False}
    text["rope_parameters"] |= {"mrope_interleaved": True}
    if config.tie_word_embeddings:
        text["tie_word_embeddings"] = True  # as in the published files: vLLM looks there, and would miss a head
    vision = field_values(config.vision, {*_VISION_FIXED, "fullatt_block_indexes"})
    vision |= {"model_type": "qwen3_vl_vision", "hidden_act": "gelu_pytorch_tanh", "rope_parameters": dict(qwen.VISION_ROPE)}
    return text, vision


# --- weights ---

_QK_NORM_ROWS = (
    ("layers.{i}.self_attn.q_norm.weight", "text.layers.{i}.attention.q_norm.scale", "h -> h"),
    ("layers.{i}.self_attn.k_norm.weight", "text.layers.{i}.attention.k_norm.scale", "h -> h"),
)


def _merger_rows(name: str, path: str) -> qwen.Rows:
    norm = (f"{name}.norm.weight", f"{path}.norm.scale", "d -> d"), (f"{name}.norm.bias", f"{path}.norm.bias", "d -> d")
    return *norm, *qwen.linear_rows(f"{name}.linear_fc1", f"{path}.up"), *qwen.linear_rows(f"{name}.linear_fc2", f"{path}.down")


_TOWER_ROWS = (
    *qwen.VISION_ROWS,
    *qwen.LAYER_NORM_ROWS,
    ("patch_embed.proj.bias", "vision.patch_embed.bias", "d -> d"),
    ("pos_embed.weight", "vision.position_embedding", "v d -> v d"),
    *qwen.linear_rows("blocks.{i}.mlp.linear_fc1", "vision.blocks.{i}.mlp.up"),
    *qwen.linear_rows("blocks.{i}.mlp.linear_fc2", "vision.blocks.{i}.mlp.down"),
    *_merger_rows("merger", "vision.merger"),
    *_merger_rows("deepstack_merger_list.{i}", "vision.deepstack.{i}"),
)
_ROWS = (
    *qwen.prefixed("model.language_model.", qwen.TEXT_ROWS + _QK_NORM_ROWS),
    *qwen.HEAD_ROWS,
    *qwen.prefixed("model.visual.", _TOWER_ROWS),
)

# --- chat ---


def frame_text(second: float) -> str:
    """The time of a temporal patch, which stands before it."""
    return f"<{second:.1f} seconds>"


# Its chat template writes no system turn of its own.
_CHAT = ChatFormat("", **qwen.MARKS, time_text=qwen.time_text, frame_text=frame_text)

# --- published models ---

_SMALL_TOWER: dict[str, Any] = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": (5, 11, 17),
}


def _preset(hidden: int, mlp: int, layers: int, heads: int, tower: dict[str, Any], tied: bool) -> ModelConfig:
    sizes = _VISION_DEFAULTS | tower | {"out_hidden_size": hidden}
    vision = VisionConfig(**sizes, **_VISION_FIXED, fullatt_block_indexes=tuple(range(sizes["depth"])))
    rope: dict[str, Any] = {"mrope_section": (24, 20, 20), "rope_theta": 5e6, "max_position_embeddings": 262144}
    text = TextConfig(151936, hidden, mlp, layers, heads, 8, rms_norm_eps=1e-6, head_dim=128, **rope, **_TEXT_FIXED)
    extra = json.dumps({"text_config": {"bos_token_id": 151643, "eos_token_id": 151645}})
    return ModelConfig(text, vision, "qwen3_vl", **qwen.TOKEN_IDS, tie_word_embeddings=tied, hf_extra=extra)


QWEN3_VL = Family(
    model_type="qwen3_vl",
    name="Qwen3-VL",
    architecture="Qwen3VLForConditionalGeneration",
    token_ids=qwen.TOKEN_IDS,
    parse_sections=parse_sections,
    dump_sections=dump_sections,
    weights=WeightTable(_ROWS, qwen.axis_sizes),
    vision_tower=qwen.vision_tower,
    chat=_CHAT,
    image_pixels=(256 * 256, 4096 * 4096),
    video_tokens=12_288,
    video_size="video",
    processor_classes={
        "processor": "Qwen3VLProcessor",
        "image_processor": "Qwen2VLImageProcessor",
        "video_processor": "Qwen3VLVideoProcessor",
    },
    presets={
        "qwen3-vl-2b": _preset(2048, 6144, 28, 16, _SMALL_TOWER, tied=True),
        "qwen3-vl-4b": _preset(2560, 9728, 36, 32, _SMALL_TOWER, tied=True),
        "qwen3-vl-8b": _preset(4096, 12288, 36, 32, {}, tied=False),
        "qwen3-vl-32b": _preset(5120, 25600, 64, 64, {}, tied=False),
    },
)
