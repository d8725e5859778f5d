"""The models that are measured: published shapes, and sizes that a laptop streams; random weights."""

from dataclasses import replace
from typing import Any

from svlm_jax.config import ModelConfig, TextConfig, VisionConfig
from svlm_jax.families import preset

SMALL = {  # sizes that a laptop streams, with the vocabulary of the tests' tokenizer: text, vision
    "tiny": (TextConfig(448, 64, 128, 2, 4, 2, 1e-6, (2, 3, 3)), VisionConfig(2, 32, 48, 2, 64, (1,), 2)),
    "mid": (TextConfig(448, 512, 1408, 12, 8, 2, 1e-6, (8, 12, 12)), VisionConfig(8, 256, 704, 8, 512, (1, 3, 5, 7), 2)),
}


def published(name: str) -> ModelConfig:
    """A published model by its size: 3b, 7b, 32b or 72b."""
    return preset(f"qwen2.5-vl-{name}")


def shape(name: str, dtype: str | None, **changes: Any) -> ModelConfig:
    """A config by name: tiny (0.2 M parameters), mid (42 M), or a published one; float32 on a CPU unless asked; fused."""
    import jax

    if name in SMALL:
        text, vision = SMALL[name]
        config = ModelConfig(text, vision, "qwen2_5_vl", 440, 441, 438, 439)
    else:
        config = published(name)
    usual = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return replace(config.compute(dtype or usual), fused=True, **changes)  # pyright: ignore[reportArgumentType]
