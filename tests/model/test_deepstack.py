"""Claims about `Features.by_layer`: what a tower adds to the hidden states after the first layers reaches its own tokens, in
every pass of the decoder; Qwen2.5-VL adds nothing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svlm_jax.checkpoint import huggingface
from svlm_jax.families import config_json
from svlm_jax.inputs import Inputs
from svlm_jax.model.cache import KVCache
from svlm_jax.model.parameters import from_parameters, parameters, stack
from svlm_jax.model.text import AttentionMetadata
from svlm_jax.model.vision import Features
from svlm_jax.model.vlm import QwenVL

LENGTH, VISION_TOKENS = 12, 5


@pytest.fixture(scope="module")
def model(tiny_dir) -> QwenVL:
    config = config_json.read(tiny_dir).compute("float32")
    return from_parameters(config, huggingface.load(tiny_dir, config))


@pytest.fixture(scope="module")
def batch() -> Inputs:
    """Text around five vision tokens, whose features come in another order than the tokens."""
    index = np.arange(LENGTH, dtype=np.int32)[None]
    vision_index = np.full((1, LENGTH), -1, np.int32)
    vision_index[0, 3 : 3 + VISION_TOKENS] = [2, 0, 1, 4, 3]
    positions = np.broadcast_to(index[:, None], (1, 3, LENGTH)).astype(np.float32)
    return Inputs(index + 1, index, positions, vision_index)


@pytest.fixture(scope="module")
def features(model) -> Features:
    """Features of two layers of DeepStack, as large as hidden states."""
    keys = jax.random.split(jax.random.key(0), 3)
    rows, *by_layer = (jax.random.normal(key, (1, VISION_TOKENS, model.config.text.hidden_size)) for key in keys)
    return Features(rows, tuple(by_layer))


@pytest.fixture(scope="module")
def by_hand(model, batch, features) -> np.ndarray:
    """Final hidden states from a loop over the layers in which each vision token is given its feature by a Python loop."""
    text = model.text
    x = np.array(text.embed(jnp.asarray(batch.ids)))
    tokens = np.flatnonzero(batch.vision_index[0] >= 0)
    x[0, tokens] = np.asarray(features.rows)[0, batch.vision_index[0, tokens]]
    index = jnp.asarray(batch.index)
    metadata = AttentionMetadata(text._rotary(jnp.asarray(batch.positions)), index, index)
    for number, layer in enumerate(text.layers):
        x = np.array(layer(jnp.asarray(x), metadata)[0])
        for token in tokens:
            if number < len(features.by_layer):
                x[0, token] += np.asarray(features.by_layer[number])[0, batch.vision_index[0, token]]
    return np.asarray(text.norm(jnp.asarray(x)))


def full_pass(model: QwenVL, batch: Inputs, features: Features) -> jax.Array:
    x, deepstack = model.embed(batch, features)
    return model.text(x, jnp.asarray(batch.index), jnp.asarray(batch.positions), deepstack)


def close(got, want) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_a_full_pass_adds_features_after_the_first_layers(model, batch, features, by_hand):
    close(full_pass(model, batch, features), by_hand)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_scanned_decoder_adds_what_an_unrolled_one_adds(model, batch, features, by_hand, remat):
    config = replace(model.config, scan_layers=True, remat=remat)
    stacked = from_parameters(config, stack(parameters(model)))
    close(jax.jit(lambda features: full_pass(stacked, batch, features))(features), by_hand)


def test_a_prefill_adds_what_a_full_pass_adds(model, batch, features, by_hand):
    cache = KVCache.empty(model.config.text, 1, LENGTH, "float32").with_slots(batch.index, batch.positions)
    slots = jnp.asarray(batch.index)
    close(jax.jit(lambda features: model.extend(batch, slots, cache, features)[0])(features), by_hand)


def test_features_of_qwen2_5_vl_add_nothing_after_a_layer(model, batch, features):
    _, deepstack = model.embed(batch, features._replace(by_layer=()))
    assert deepstack == ()
