"""A checkpoint directory of any family: tiny, random, made without compiling anything."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from svlm_jax.checkpoint import huggingface
from svlm_jax.config import ModelConfig
from svlm_jax.families.family import Family
from svlm_jax.media.processor import PREPROCESSOR, VIDEO_PREPROCESSOR
from svlm_jax.model.parameters import shapes
from tests.support import FIXTURES

TEXT = {"vocab_size": 448, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "mrope_section": (2, 3, 3)}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
VISION = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}


def tiny_config(family: Family) -> ModelConfig:
    """A published model of the family, made small; its tokenizer is that of the fixtures."""
    published = next(iter(family.presets.values()))
    vision = published.vision
    by_depth = {
        "fullatt_block_indexes": (1,) if vision.window_size else (0, 1, 2),
        "deepstack_visual_indexes": (0, 1)[: len(vision.deepstack_visual_indexes)],
        "num_position_embeddings": min(vision.num_position_embeddings, 36),
    }
    return ModelConfig(
        replace(published.text, **TEXT),
        replace(vision, **VISION, **by_depth),
        family.model_type,
        image_token_id=445,
        video_token_id=446,
        vision_start_token_id=442,
        vision_end_token_id=443,
        dtype="float32",
        param_dtype="float32",
        hf_extra=json.dumps({"text_config": {"eos_token_id": 435, "bos_token_id": 433}}),
    )


def tiny_checkpoint(family: Family, directory: Path) -> Path:
    """Write one, with the tokenizer of the fixtures; its pixels are the family's."""
    ignored = shutil.ignore_patterns(PREPROCESSOR, VIDEO_PREPROCESSOR)
    shutil.copytree(FIXTURES / "processor", directory, ignore=ignored)
    config, rng = tiny_config(family), np.random.default_rng(0)
    values = {path: rng.normal(0.0, 0.1, leaf.shape).astype(np.float32) for path, leaf in shapes(config).items()}
    huggingface.write(directory, config, {path: value + path.endswith(".scale") for path, value in values.items()})
    return directory
