"""What the families of Qwen-VL share: rotary settings and checks of config.json, weights of the decoder and of the attention of
the tower, sizes of axes, the chat's marks, token ids.

Owns what is the same in all of them; what differs comes as an argument, or stands in the family's own file.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from svlm_jax.config import VISION_ROPE_THETA, ModelConfig, TextConfig
from svlm_jax.errors import InputError
from svlm_jax.families.family import Section
from svlm_jax.families.fields import LIMITS, OWN_CONFIG, check_type, check_variant, field_values, short_repr, take_fields

if TYPE_CHECKING:
    from flax import nnx

    from svlm_jax.model.vision import VisionTower

TOKEN_IDS: dict[str, Any] = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
# Of a ChatFormat.
MARKS: dict[str, Any] = {
    "turn_start": "<|im_start|>",
    "turn_end": "<|im_end|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}


def time_text(start: float, end: float) -> str:
    """The time of a chunk as StreamingVLM trains with it."""
    return f"Time={start:.1f}-{end:.1f}s"


def vision_tower(config: ModelConfig, rngs: "nnx.Rngs | None") -> "VisionTower":
    """The one tower of all these families; it branches on the fields of `config.vision`."""
    from svlm_jax.model.vision import VisionTower  # imports jax, which data workers must not load

    return VisionTower(config, rngs)


# --- config.json ---

# Spellings of the rotary settings, and a list that transformers derives: written anew.
_ROPE_KEYS = ("layer_types", "rope_scaling", "rope_parameters", "type", "rope_type")

# `rope_parameters` of the vision section, as transformers 5.24 writes them.
VISION_ROPE: Mapping[str, Any] = {"rope_theta": VISION_ROPE_THETA, "rope_type": "axial"}


def parse_text(text: Section, defaults: Mapping[str, Any], fixed: Mapping[str, Any], source: str) -> TextConfig:
    """The decoder's config, taken out of the text section.

    Args:
        defaults: what transformers assumes for keys that the file leaves out.
        fixed: fields that no file says: what is the same in all models of the family.

    Raises:
        InputError: a wrong value, or a variant that would be computed differently here.
    """
    rope, of_transformers_4 = _rope_settings(text, source), text.get("rope_scaling")
    _check_text_variant(text, rope, bool(fixed["mrope_interleaved"]), source)
    for key in _ROPE_KEYS:
        text.pop(key, None)
    text |= {key: rope[key] for key in ("rope_theta", "mrope_section") if key in rope}
    if text.get("num_key_value_heads") is None:
        text["num_key_value_heads"] = text.get("num_attention_heads")
    config = take_fields(TextConfig, text, defaults, f"{source} text_config", fixed)
    if isinstance(of_transformers_4, Mapping):
        text["rope_scaling"] = dict(of_transformers_4)  # carried along for `dump_text`
    return config


def dump_text(config: ModelConfig, fixed: Collection[str]) -> Section:
    """The inverse of `parse_text`, as transformers 5 writes it, without what differs between the families. What came in the
    spelling of transformers 4 has that too: it reads no other."""
    text = field_values(config.text, fixed) | {"hidden_act": "silu"}
    rope = {name: text.pop(name) for name in ("mrope_section", "rope_theta")}
    text["rope_parameters"] = rope | {"rope_type": "default"}
    if scaling := json.loads(config.hf_extra).get("text_config", {}).get("rope_scaling"):
        text |= {"rope_scaling": scaling | {"mrope_section": rope["mrope_section"]}, "rope_theta": rope["rope_theta"]}
        text["tie_word_embeddings"] = config.tie_word_embeddings
    return text


def check_vision_variant(vision: Section, hidden_act: str, source: str) -> None:
    """Refuse what the vision tower would compute differently from what the file asks for."""
    rope = vision.get("rope_parameters") or {}
    theta = rope.get("rope_theta", VISION_ROPE_THETA) if isinstance(rope, Mapping) else rope
    settings = {
        "vision hidden_act": (vision.get("hidden_act", hidden_act), hidden_act),
        "vision rope_theta": (theta, VISION_ROPE_THETA),
        "vision in_channels": (vision.get("in_channels", 3), 3),
    }
    check_variant(settings, source)


def all_blocks(vision: Section, default_depth: int, source: str) -> tuple[int, ...]:
    """`fullatt_block_indexes` of a tower without windows: the numbers of all its blocks."""
    depth = default_depth if vision.get("depth") is None else vision["depth"]
    check_type(f"{source} vision_config.depth", depth, int, 1, LIMITS["depth"])
    return tuple(range(depth))


def _rope_settings(text: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The rotary settings in any of their spellings."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise InputError(f"{source} text rope_scaling", short_repr(rope), "an object", OWN_CONFIG)
    return rope


def _check_text_variant(text: Section, rope: Mapping[str, Any], interleaved: bool, source: str) -> None:
    """Refuse what the decoder would compute differently from what the file asks for."""
    rope_types = {str(rope[key]) for key in ("type", "rope_type") if key in rope} - {"mrope", "default"}
    layers = text.get("layer_types") or []
    layer_types = {str(kind) for kind in layers} if isinstance(layers, list) else {str(layers)}
    settings = {
        "text hidden_act": (text.get("hidden_act", "silu"), "silu"),
        "text use_sliding_window": (_slides(text), False),
        "text rope type": (min(rope_types, default="mrope"), "mrope"),
        "text mrope_interleaved": (rope.get("mrope_interleaved", interleaved), interleaved),
        "text layer_types": (min(layer_types - {"full_attention"}, default="full_attention"), "full_attention"),
    }
    check_variant(settings, source)


def _slides(text: Section) -> bool:
    """Whether a layer attends to a window of the text. Where the file lists no `layer_types`, transformers gives one to those
    from `max_window_layers` on."""
    if not text.get("use_sliding_window") or text.get("layer_types") or text.get("sliding_window", 0) is None:
        return False
    first, count = text.get("max_window_layers"), text.get("num_hidden_layers")
    return not (isinstance(first, int) and isinstance(count, int) and first >= count)


# --- weights ---

Rows = tuple[tuple[str, str, str], ...]  # of a WeightTable

# Names without the prefix of their half. Axes: d width, n heads, h head dim, f MLP width, v vocabulary or learned positions,
# c q/k/v, e0..e3 a patch as (channel, frame, row, column).
TEXT_ROWS: Rows = (
    ("embed_tokens.weight", "text.embedding", "v d -> v d"),
    ("layers.{i}.input_layernorm.weight", "text.layers.{i}.norm1.scale", "d -> d"),
    ("layers.{i}.post_attention_layernorm.weight", "text.layers.{i}.norm2.scale", "d -> d"),
    ("layers.{i}.self_attn.q_proj.weight", "text.layers.{i}.attention.q.kernel", "(n h) d -> d n h"),
    ("layers.{i}.self_attn.k_proj.weight", "text.layers.{i}.attention.k.kernel", "(n h) d -> d n h"),
    ("layers.{i}.self_attn.v_proj.weight", "text.layers.{i}.attention.v.kernel", "(n h) d -> d n h"),
    ("layers.{i}.self_attn.o_proj.weight", "text.layers.{i}.attention.out.kernel", "d (n h) -> n h d"),
    ("layers.{i}.mlp.gate_proj.weight", "text.layers.{i}.mlp.gate.kernel", "f d -> d f"),
    ("layers.{i}.mlp.up_proj.weight", "text.layers.{i}.mlp.up.kernel", "f d -> d f"),
    ("layers.{i}.mlp.down_proj.weight", "text.layers.{i}.mlp.down.kernel", "d f -> f d"),
    ("norm.weight", "text.norm.scale", "d -> d"),
)
QKV_BIAS_ROWS: Rows = (  # of a decoder with `qkv_bias`
    ("layers.{i}.self_attn.q_proj.bias", "text.layers.{i}.attention.q.bias", "(n h) -> n h"),
    ("layers.{i}.self_attn.k_proj.bias", "text.layers.{i}.attention.k.bias", "(n h) -> n h"),
    ("layers.{i}.self_attn.v_proj.bias", "text.layers.{i}.attention.v.bias", "(n h) -> n h"),
)
HEAD_ROWS: Rows = (("lm_head.weight", "text.head.kernel", "v d -> d v"),)  # has no prefix
VISION_ROWS: Rows = (
    ("patch_embed.proj.weight", "vision.patch_embed.kernel", "d e0 e1 e2 e3 -> (e0 e1 e2 e3) d"),
    ("blocks.{i}.norm1.weight", "vision.blocks.{i}.norm1.scale", "d -> d"),
    ("blocks.{i}.norm2.weight", "vision.blocks.{i}.norm2.scale", "d -> d"),
    ("blocks.{i}.attn.qkv.weight", "vision.blocks.{i}.attention.qkv.kernel", "(c n h) d -> d c n h"),
    ("blocks.{i}.attn.qkv.bias", "vision.blocks.{i}.attention.qkv.bias", "(c n h) -> c n h"),
    ("blocks.{i}.attn.proj.weight", "vision.blocks.{i}.attention.out.kernel", "d (n h) -> n h d"),
    ("blocks.{i}.attn.proj.bias", "vision.blocks.{i}.attention.out.bias", "d -> d"),
)
LAYER_NORM_ROWS: Rows = (  # of a tower with LayerNorm, beside its scales
    ("blocks.{i}.norm1.bias", "vision.blocks.{i}.norm1.bias", "d -> d"),
    ("blocks.{i}.norm2.bias", "vision.blocks.{i}.norm2.bias", "d -> d"),
)


def linear_rows(name: str, path: str) -> Rows:
    """Weight and bias of a linear layer."""
    return (f"{name}.weight", f"{path}.kernel", "f d -> d f"), (f"{name}.bias", f"{path}.bias", "f -> f")


def prefixed(prefix: str, rows: Rows) -> Rows:
    """Rows whose names in the file begin with `prefix`."""
    return tuple((prefix + name, path, pattern) for name, path, pattern in rows)


def axis_sizes(config: ModelConfig, path: str) -> Mapping[str, int]:
    """Sizes of the axes of one parameter."""
    text, vision = config.text, config.vision
    if path.startswith("text."):
        heads = text.num_key_value_heads if re.search(r"attention\.[kv]\.", path) else text.num_attention_heads
        sizes = {"d": text.hidden_size, "f": text.intermediate_size, "v": text.vocab_size}
        return sizes | {"n": heads, "h": text.head_dim}
    # The MLP of a merger works on the patches of a merge unit side by side.
    merged_size = vision.hidden_size * vision.merge_unit
    if match := re.match(r"vision\.(?:merger|deepstack\.[^.]+)\.(up|down)\.", path):
        return {"f": merged_size if match[1] == "up" else vision.out_hidden_size, "d": merged_size}
    if path.startswith("vision.deepstack."):
        return {"d": merged_size}  # its norm too
    if match := re.search(r"mlp\.(gate|up|down)\.", path):
        sizes = vision.hidden_size, vision.intermediate_size
        return dict(zip("df", reversed(sizes) if match[1] == "down" else sizes, strict=True))
    patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    sizes = {"d": vision.hidden_size, "n": vision.num_heads, "h": vision.head_dim, "v": vision.num_position_embeddings}
    return sizes | {"c": 3, **{f"e{axis}": size for axis, size in enumerate(patch)}}
