"""Configs of the measured models, which have random weights: published sizes, and small ones that stream on a laptop."""

from dataclasses import replace
from typing import Any

from svlm_jax.config import ModelConfig, TextConfig, VisionConfig
from svlm_jax.families import preset

SMALL = {  # text and vision config, with the vocabulary of the tests' tokenizer
    "tiny": (TextConfig(448, 64, 128, 2, 4, 2, 1e-6, (2, 3, 3)), VisionConfig(2, 32, 48, 2, 64, (1,), 2)),
    # The layers of 7b, tiny ones: what its host does, without its arithmetic.
    "deep": (TextConfig(448, 64, 128, 28, 4, 2, 1e-6, (2, 3, 3)), VisionConfig(32, 32, 48, 2, 64, (7, 15, 23, 31), 2)),
    "mid": (TextConfig(448, 512, 1408, 12, 8, 2, 1e-6, (8, 12, 12)), VisionConfig(8, 256, 704, 8, 512, (1, 3, 5, 7), 2)),
}


def published_config(name: str) -> ModelConfig:
    """A published config by its size: 3b, 7b, 32b or 72b."""
    return preset(f"qwen2.5-vl-{name}")


def model_config(name: str, dtype: str | None, **changes: Any) -> ModelConfig:
    """A config by name: tiny (0.2 M parameters), mid (42 M), or a published one; fused.

    Args:
        dtype: default: float32 on a CPU, otherwise bfloat16.
        changes: fields of the config.
    """
    import jax

    if name in SMALL:
        text, vision = SMALL[name]
        config = ModelConfig(text, vision, "qwen2_5_vl", 440, 441, 438, 439)
    else:
        config = published_config(name)
    default = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return replace(config.compute(dtype or default), fused=True, **changes)  # pyright: ignore[reportArgumentType]
