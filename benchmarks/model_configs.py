"""Configs of the measured models, which have random weights: published sizes, and small ones that stream on a laptop.

A name is that of a preset ("qwen3-vl-8b"), or of a family and a small size ("qwen3-vl-mid"). Without a family ("7b", "mid") it
is of Qwen2.5-VL.
"""

from dataclasses import replace
from typing import Any

from svlm_jax.config import ModelConfig, VisionConfig
from svlm_jax.errors import InputError
from svlm_jax.families import family_named, presets

DEFAULT_FAMILY = "qwen2.5-vl"
SHAPES = "tiny, mid, 3b, 7b, 32b, 72b (qwen2.5-vl), or with a family: qwen3-vl-8b, qwen2-vl-mid"  # for help
VOCAB_SIZE, TOKEN_IDS = 448, (440, 441, 438, 439)  # of the tests' tokenizer: image, video, vision start, vision end
Sizes = dict[str, Any]
SMALL: dict[str, tuple[Sizes, Sizes, tuple[int, ...]]] = {  # text, vision, its blocks with full attention if not all have it
    "tiny": (
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16},
        {"hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 2},
        (1,),
    ),
    # The layers of 7b, tiny ones: what its host does, without its arithmetic.
    "deep": (
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 28, "num_attention_heads": 4, "head_dim": 16},
        {"hidden_size": 32, "intermediate_size": 48, "depth": 32, "num_heads": 2},
        (7, 15, 23, 31),
    ),
    "mid": (
        {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12, "num_attention_heads": 8, "head_dim": 64},
        {"hidden_size": 256, "intermediate_size": 704, "depth": 8, "num_heads": 8},
        (1, 3, 5, 7),
    ),
}


def published_name(name: str) -> str:
    """The preset of a name, with its family.

    Raises:
        InputError: there is none.
    """
    for full in (name, f"{DEFAULT_FAMILY}-{name}"):
        if full in presets():
            return full
    raise InputError("--shape", name, f"one of {', '.join(presets())}", "without a family it is one of Qwen2.5-VL")


def published_config(name: str) -> ModelConfig:
    """A published config: 3b, 7b, 32b or 72b of Qwen2.5-VL, or with its family, as qwen3-vl-8b."""
    return presets()[published_name(name)]


def model_config(name: str, dtype: str | None, **changes: Any) -> ModelConfig:
    """A config by name: tiny (0.2 M parameters), mid (42 M), or a published one; fused.

    Args:
        dtype: default: float32 on a CPU, otherwise bfloat16.
        changes: fields of the config.
    """
    import jax

    family, _, size = name.rpartition("-")
    family = family or DEFAULT_FAMILY
    config = small_config(family, size) if size in SMALL else published_config(name)
    default = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return replace(config.compute(dtype or default), fused=True, **changes)  # pyright: ignore[reportArgumentType]


def small_config(family: str, size: str) -> ModelConfig:
    """What distinguishes a family, at a size of `SMALL`, with the vocabulary of the tests' tokenizer."""
    base, (text, vision, full_attention) = next(iter(family_named(family).presets.values())), SMALL[size]
    frequencies, (_, rows, _) = text["head_dim"] // 2, base.text.mrope_section
    side = rows * frequencies // sum(base.text.mrope_section)  # of rows, and of columns
    section = {"mrope_section": (frequencies - 2 * side, side, side)}
    text = replace(base.text, **text, **section, vocab_size=VOCAB_SIZE, num_key_value_heads=2)
    vision = vision | tower_blocks(base.vision, vision["depth"], full_attention)
    if base.vision.hidden_act != "silu":  # config.json of Qwen2-VL has a whole ratio: 4
        vision |= {"intermediate_size": 4 * vision["hidden_size"]}
    vision = replace(base.vision, **vision, out_hidden_size=text.hidden_size)
    return ModelConfig(text, vision, base.model_type, *TOKEN_IDS)


def with_layers(config: ModelConfig, decoder: int, tower: int) -> ModelConfig:
    """The model with so many layers and blocks, of which it keeps every kind."""
    text = replace(config.text, num_hidden_layers=decoder)
    return replace(config, text=text, vision=replace(config.vision, **tower_blocks(config.vision, tower, (tower - 1,))))


def tower_blocks(vision: VisionConfig, depth: int, full_attention: tuple[int, ...]) -> dict[str, Any]:
    """Fields of a tower with `depth` blocks: the last ones feed DeepStack, where the tower has windows some see frames."""
    return {
        "depth": depth,
        "fullatt_block_indexes": full_attention if vision.window_size else tuple(range(depth)),
        "deepstack_visual_indexes": tuple(range(depth))[-len(vision.deepstack_visual_indexes) or depth :],
    }
