"""Qwen2.5-VL (arXiv 2502.13923): config.json, weights, chat format and published sizes.

Owns all that this family decides. The flat config.json of transformers 4 and the nested one of transformers 5 are read, the
nested one is written. Sizes in elements, pixels as noted.
"""

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from svlm_jax.config import CLIP_MEAN, CLIP_STD, VISION_ROPE_THETA, ModelConfig, TextConfig, VisionConfig
from svlm_jax.errors import InputError
from svlm_jax.families.family import ChatFormat, Family, Section, WeightTable
from svlm_jax.families.fields import OWN_CONFIG, check_variant, field_values, short_repr, take_fields

if TYPE_CHECKING:
    from flax import nnx

    from svlm_jax.model.vision import VisionTower

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
# Spellings of the rotary settings, and a list that transformers derives: written anew, not carried along.
_ROPE_KEYS = ("layer_types", "rope_scaling", "rope_parameters", "type", "rope_type")


def parse_sections(text: Section, vision: Section, source: str) -> tuple[TextConfig, VisionConfig]:
    """Both configs, taken out of the two sections of a config.json."""
    rope = _rope_settings(text, source)
    _check_variant(text, vision, rope, source)
    for key in _ROPE_KEYS:
        text.pop(key, None)
    text |= {key: rope[key] for key in ("rope_theta", "mrope_section") if key in rope}
    if text.get("num_key_value_heads") is None:
        text["num_key_value_heads"] = text.get("num_attention_heads")
    text_config = take_fields(TextConfig, text, _TEXT_DEFAULTS, f"{source} text_config", _TEXT_FIXED)
    return text_config, take_fields(VisionConfig, vision, _VISION_DEFAULTS, f"{source} vision_config", _VISION_FIXED)


def dump_sections(config: ModelConfig) -> tuple[Section, Section]:
    """The text and the vision section, as transformers 5 writes them."""
    text, vision = field_values(config.text, _TEXT_FIXED), field_values(config.vision, _VISION_FIXED)
    rope = {name: text.pop(name) for name in ("mrope_section", "rope_theta")}
    text |= {"model_type": "qwen2_5_vl_text", "hidden_act": "silu"}
    text["rope_parameters"] = rope | {"rope_type": "default", "type": "mrope"}
    text["layer_types"] = ["full_attention"] * config.text.num_hidden_layers
    return text, vision | {"model_type": "qwen2_5_vl_vision", "hidden_act": "silu"}


def _rope_settings(text: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The rotary settings in any of their spellings."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise InputError(f"{source} text rope_scaling", short_repr(rope), "an object", OWN_CONFIG)
    return rope


def _check_variant(text: Section, vision: Section, rope: Mapping[str, Any], source: str) -> None:
    """Refuse what this model would compute differently from what the file asks for."""
    rope_types = {str(rope[key]) for key in ("type", "rope_type") if key in rope} - {"mrope", "default"}
    vision_rope = vision.get("rope_parameters") or {}
    theta = vision_rope.get("rope_theta", VISION_ROPE_THETA) if isinstance(vision_rope, Mapping) else vision_rope
    layers = text.get("layer_types") or []
    layer_types = {str(kind) for kind in layers} if isinstance(layers, list) else {str(layers)}
    settings = {
        "text hidden_act": (text.get("hidden_act", "silu"), "silu"),
        "text use_sliding_window": (bool(text.get("use_sliding_window", False)), False),
        "text rope type": (min(rope_types, default="mrope"), "mrope"),
        "text layer_types": (min(layer_types - {"full_attention"}, default="full_attention"), "full_attention"),
        "vision hidden_act": (vision.get("hidden_act", "silu"), "silu"),
        "vision rope_theta": (theta, VISION_ROPE_THETA),
        "vision in_channels": (vision.get("in_channels", 3), 3),
    }
    check_variant(settings, source)


# --- weights ---

# Axes: d width, n heads, h head dim, f MLP width, v vocabulary, c q/k/v, e0..e3 a patch as (channel, frame, row, column).
_ROWS = (
    ("model.embed_tokens.weight", "text.embedding", "v d -> v d"),
    ("model.layers.{i}.input_layernorm.weight", "text.layers.{i}.norm1.scale", "d -> d"),
    ("model.layers.{i}.post_attention_layernorm.weight", "text.layers.{i}.norm2.scale", "d -> d"),
    ("model.layers.{i}.self_attn.q_proj.weight", "text.layers.{i}.attention.q.kernel", "(n h) d -> d n h"),
    ("model.layers.{i}.self_attn.q_proj.bias", "text.layers.{i}.attention.q.bias", "(n h) -> n h"),
    ("model.layers.{i}.self_attn.k_proj.weight", "text.layers.{i}.attention.k.kernel", "(n h) d -> d n h"),
    ("model.layers.{i}.self_attn.k_proj.bias", "text.layers.{i}.attention.k.bias", "(n h) -> n h"),
    ("model.layers.{i}.self_attn.v_proj.weight", "text.layers.{i}.attention.v.kernel", "(n h) d -> d n h"),
    ("model.layers.{i}.self_attn.v_proj.bias", "text.layers.{i}.attention.v.bias", "(n h) -> n h"),
    ("model.layers.{i}.self_attn.o_proj.weight", "text.layers.{i}.attention.out.kernel", "d (n h) -> n h d"),
    ("model.layers.{i}.mlp.gate_proj.weight", "text.layers.{i}.mlp.gate.kernel", "f d -> d f"),
    ("model.layers.{i}.mlp.up_proj.weight", "text.layers.{i}.mlp.up.kernel", "f d -> d f"),
    ("model.layers.{i}.mlp.down_proj.weight", "text.layers.{i}.mlp.down.kernel", "d f -> f d"),
    ("model.norm.weight", "text.norm.scale", "d -> d"),
    ("lm_head.weight", "text.head.kernel", "v d -> d v"),
    ("visual.patch_embed.proj.weight", "vision.patch_embed.kernel", "d e0 e1 e2 e3 -> (e0 e1 e2 e3) d"),
    ("visual.blocks.{i}.norm1.weight", "vision.blocks.{i}.norm1.scale", "d -> d"),
    ("visual.blocks.{i}.norm2.weight", "vision.blocks.{i}.norm2.scale", "d -> d"),
    ("visual.blocks.{i}.attn.qkv.weight", "vision.blocks.{i}.attention.qkv.kernel", "(c n h) d -> d c n h"),
    ("visual.blocks.{i}.attn.qkv.bias", "vision.blocks.{i}.attention.qkv.bias", "(c n h) -> c n h"),
    ("visual.blocks.{i}.attn.proj.weight", "vision.blocks.{i}.attention.out.kernel", "d (n h) -> n h d"),
    ("visual.blocks.{i}.attn.proj.bias", "vision.blocks.{i}.attention.out.bias", "d -> d"),
    ("visual.blocks.{i}.mlp.gate_proj.weight", "vision.blocks.{i}.mlp.gate.kernel", "f d -> d f"),
    ("visual.blocks.{i}.mlp.gate_proj.bias", "vision.blocks.{i}.mlp.gate.bias", "f -> f"),
    ("visual.blocks.{i}.mlp.up_proj.weight", "vision.blocks.{i}.mlp.up.kernel", "f d -> d f"),
    ("visual.blocks.{i}.mlp.up_proj.bias", "vision.blocks.{i}.mlp.up.bias", "f -> f"),
    ("visual.blocks.{i}.mlp.down_proj.weight", "vision.blocks.{i}.mlp.down.kernel", "d f -> f d"),
    ("visual.blocks.{i}.mlp.down_proj.bias", "vision.blocks.{i}.mlp.down.bias", "d -> d"),
    ("visual.merger.ln_q.weight", "vision.merger.norm.scale", "d -> d"),
    ("visual.merger.mlp.0.weight", "vision.merger.up.kernel", "f d -> d f"),
    ("visual.merger.mlp.0.bias", "vision.merger.up.bias", "f -> f"),
    ("visual.merger.mlp.2.weight", "vision.merger.down.kernel", "d f -> f d"),
    ("visual.merger.mlp.2.bias", "vision.merger.down.bias", "d -> d"),
)


def _axis_sizes(config: ModelConfig, path: str) -> Mapping[str, int]:
    """Sizes of the axes of one parameter."""
    text, vision = config.text, config.vision
    if path.startswith("text."):
        heads = text.num_key_value_heads if re.search(r"attention\.[kv]\.", path) else text.num_attention_heads
        sizes = {"d": text.hidden_size, "f": text.intermediate_size, "v": text.vocab_size}
        return sizes | {"n": heads, "h": text.head_dim}
    # The merger's MLP works on the patches of a merge unit side by side.
    merged_size = vision.hidden_size * vision.merge_unit
    if path.startswith("vision.merger.up"):
        return {"f": merged_size, "d": merged_size}
    if path.startswith("vision.merger.down"):
        return {"f": merged_size, "d": vision.out_hidden_size}
    patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    sizes = {"d": vision.hidden_size, "f": vision.intermediate_size, "n": vision.num_heads, "h": vision.head_dim}
    return sizes | {"c": 3, **{f"e{axis}": size for axis, size in enumerate(patch)}}


# --- vision tower ---


def vision_tower(config: ModelConfig, rngs: "nnx.Rngs | None") -> "VisionTower":
    """Windowed attention, with full attention in each frame in `fullatt_block_indexes`."""
    from svlm_jax.model.vision import VisionTower  # imports jax, which data workers must not load

    return VisionTower(config, rngs)


# --- chat ---


def _time_text(start: float, end: float) -> str:
    """What StreamingVLM trains with."""
    return f"Time={start:.1f}-{end:.1f}s"


_CHAT = ChatFormat(
    system_prompt="You are a helpful assistant.",
    turn_start="<|im_start|>",
    turn_end="<|im_end|>",
    vision_start="<|vision_start|>",
    vision_end="<|vision_end|>",
    time_text=_time_text,
)

# --- published models ---

_TOKEN_IDS: dict[str, Any] = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}


def _preset(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, vocab: int, vision_mlp: int, tied: bool):
    text = TextConfig(vocab, hidden, mlp, layers, heads, kv_heads, rms_norm_eps=1e-6, mrope_section=(16, 24, 24))
    vision = VisionConfig(32, 1280, vision_mlp, 16, hidden, fullatt_block_indexes=(7, 15, 23, 31), tokens_per_second=2)
    extra = json.dumps({"text_config": {"bos_token_id": 151643, "eos_token_id": 151645}})
    return ModelConfig(text, vision, "qwen2_5_vl", **_TOKEN_IDS, tie_word_embeddings=tied, hf_extra=extra)


QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    name="Qwen2.5-VL",
    architecture="Qwen2_5_VLForConditionalGeneration",
    token_ids=_TOKEN_IDS,
    parse_sections=parse_sections,
    dump_sections=dump_sections,
    weights=WeightTable(_ROWS, _axis_sizes, aliases=(("model.language_model.", "model."), ("model.visual.", "visual."))),
    vision_tower=vision_tower,
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
