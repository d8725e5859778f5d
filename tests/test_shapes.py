"""Claims about the published sizes: a prompt and a decode step have the documented shapes. Nothing is allocated."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from svlm_jax.families import preset
from svlm_jax.inputs import Inputs, blank_vision
from svlm_jax.model.cache import KVCache
from svlm_jax.model.parameters import abstract

PROMPT, PATCHES, CAPACITY = 1024, 3072, 1152


def abstract_of(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.fixture(scope="module", params=["qwen2.5-vl-7b", "qwen2.5-vl-72b"])
def case(request):
    config = preset(request.param)
    cache = jax.eval_shape(lambda: KVCache.empty(config.text, 1, CAPACITY, config.dtype))
    return config, *abstract(config), cache


def check_cache(cache, config):
    text = config.text
    assert (len(cache.keys), len(cache.values)) == (text.num_hidden_layers,) * 2
    for held in (*cache.keys, *cache.values):
        assert held.shape == (1, text.num_key_value_heads, CAPACITY, 128) and held.dtype == jnp.bfloat16
    assert cache.index.shape == (1, CAPACITY) and cache.index.dtype == jnp.int32
    assert cache.positions.shape == (1, 3, CAPACITY) and cache.positions.dtype == jnp.float32


def run(graph, state, inputs, cache, slots):
    """Final hidden states, the logits of the last token, the cache."""
    model = nnx.merge(graph, state)
    hidden, cache = model.extend(inputs, slots, cache)
    return hidden, model.text.logits(hidden[:, -1]), cache


def abstract_vision(config, batch):
    vision = replace(blank_vision(batch, config.vision, PATCHES), frame_span=2048)
    return jax.tree.map(lambda table: abstract_of(table.dtype, *table.shape), vision)


def test_a_prompt_and_a_decode_step_have_the_documented_shapes(case):
    config, graph, state, cache = case
    vision = abstract_vision(config, 1)
    for length, seen in ((PROMPT, vision), (1, None)):
        inputs = Inputs(
            ids=abstract_of(jnp.int32, 1, length),
            index=abstract_of(jnp.int32, 1, length),
            positions=abstract_of(jnp.float32, 1, 3, length),
            vision_index=abstract_of(jnp.int32, 1, length),
            vision=seen,
        )
        slots = abstract_of(jnp.int32, 1, length)
        hidden, logits, cache = jax.eval_shape(lambda *arguments: run(graph, *arguments), state, inputs, cache, slots)
        assert hidden.shape == (1, length, config.text.hidden_size) and hidden.dtype == jnp.bfloat16
        assert logits.shape == (1, config.text.vocab_size) and logits.dtype == jnp.float32
        check_cache(cache, config)


def test_the_vision_tower_gives_one_row_for_four_patches(case):
    config, graph, state, _ = case
    vision = abstract_vision(config, 2)
    rows = jax.eval_shape(lambda state, vision: nnx.merge(graph, state).vision(vision).rows, state, vision)
    assert rows.shape == (2, PATCHES // 4, config.text.hidden_size) and rows.dtype == jnp.bfloat16
