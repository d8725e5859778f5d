"""Claims about what a profile shows: the compiled model carries the names of its parts, not only those of XLA's fusions."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svlm_jax.config import ModelConfig
from svlm_jax.families import config_json
from svlm_jax.inputs import Inputs, pack_vision
from svlm_jax.model.cache import KVCache
from svlm_jax.model.parameters import from_parameters, shapes

LENGTH = 24


@pytest.fixture(scope="module")
def config(shallow_dir) -> ModelConfig:
    return config_json.read(shallow_dir).compute("float32")


def inputs(config, *, vision: bool = True) -> Inputs:
    """Text, and one image of six merged tokens after the second token."""
    index = np.arange(LENGTH, dtype=np.int32)[None]
    vision_index = np.where((index >= 2) & (index < 8), index - 2, -1)
    patches = np.random.default_rng(0).normal(size=(24, 1176)).astype(np.float32)
    packed, _ = pack_vision([[(patches, (1, 4, 6))]], config.vision, 64)
    positions = np.broadcast_to(index[:, None], (1, 3, LENGTH)).astype(np.float32)
    return Inputs(index + 1, index, positions, vision_index, packed if vision else None)


def named(function, *arguments) -> str:
    """Names of all operations of a compiled function: the metadata that a profile shows, one a line."""
    hlo = jax.jit(function).lower(*arguments).compile().as_text()
    return "\n".join(re.findall(r'op_name="([^"]+)"', hlo or "")).replace("/jit(_call_layer)", "")


def test_a_profile_names_the_parts_of_a_forward_pass(config):
    batch = inputs(config)
    names = named(lambda values: from_parameters(config, values)(batch), shapes(config))
    layers = [f"layer_{number}" for number in range(config.text.num_hidden_layers)]
    blocks = [f"vision/block_{number}" for number in range(config.vision.depth)]
    inside = [f"{block}/{part}/" for block in (*layers, *blocks) for part in ("attention", "mlp")]
    for scope in ("vision/patch_embed/", "vision/merger/", "embed/", "lm_head/", *inside):
        assert f"/{scope}" in names, scope


def test_a_profile_names_the_layers_of_a_decode_step(config):
    batch = inputs(config, vision=False)
    cache = KVCache.empty(config.text, 1, LENGTH, "float32").with_slots(batch.index, batch.positions)

    def step(values, cache):
        model = from_parameters(config, values)
        return model.extend(batch, jnp.asarray(batch.index), model.text.with_rotated_keys(cache))

    names = named(step, shapes(config), cache)
    for number in range(config.text.num_hidden_layers):
        assert f"/layer_{number}/attention/" in names and f"/layer_{number}/mlp/" in names
    assert "/rotate_keys/" in names


def test_a_profile_of_training_names_the_parts_of_the_scanned_layer(config):
    config = replace(config, scan_layers=True, remat="full")
    batch = inputs(config, vision=False)
    names = named(jax.grad(lambda values: from_parameters(config, values)(batch).sum()), shapes(config))
    for scope in ("attention", "mlp"):
        assert re.search(rf"layer\b.*/{scope}/", names)
