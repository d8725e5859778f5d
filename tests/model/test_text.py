"""Claims about the decoder of Qwen3-VL: what the KV cache holds, and that a cached pass computes what a full pass computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svlm_jax.families import QWEN3_VL
from svlm_jax.model.cache import KVCache
from svlm_jax.model.parameters import from_parameters, shapes
from svlm_jax.model.text import Decoder
from tests.support.families import tiny_config

LENGTH = 10


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    config, rng = tiny_config(QWEN3_VL), np.random.default_rng(0)
    assert config.text.qk_norm and not config.text.qkv_bias and config.text.mrope_interleaved
    values = {path: rng.normal(path.endswith(".scale"), 0.2, leaf.shape) for path, leaf in shapes(config).items()}
    return from_parameters(config, {path: value.astype(np.float32) for path, value in values.items()}).text


def test_the_cache_holds_keys_after_their_norm_and_before_their_rotation(decoder):
    """They are rotated to new positions every chunk: without the norm they were other keys, and rotated they turned twice."""
    text = decoder.config
    x = jax.random.normal(jax.random.key(0), (1, LENGTH, text.hidden_size))
    index = jnp.arange(LENGTH)[None]
    positions = jnp.stack([index, 2 * index, 3 * index], axis=1).astype(jnp.float32)
    graph, state = nnx.split(decoder)

    @jax.jit
    def run(state, x):
        decoder = nnx.merge(graph, state)
        cache = KVCache.empty(text, 1, LENGTH, "float32").with_slots(index, positions)
        return decoder.extend(x, index, positions, index, cache), decoder(x, index, positions)

    (hidden, cache), whole = run(state, x)
    np.testing.assert_allclose(hidden, whole, rtol=0, atol=2e-5 * np.abs(whole).max())

    layer, row = decoder.layers[0], np.asarray(x, np.float64)[0]
    normed = row / np.sqrt((row**2).mean(-1, keepdims=True) + text.rms_norm_eps) * np.asarray(layer.norm1.scale[...])
    heads = np.einsum("td,dkh->tkh", normed, np.asarray(layer.attention.k.kernel[...]))
    scale = np.asarray(layer.attention.k_norm.scale[...])
    keys = heads / np.sqrt((heads**2).mean(-1, keepdims=True) + text.rms_norm_eps) * scale
    np.testing.assert_allclose(jnp.asarray(cache.keys[0])[0].swapaxes(0, 1), keys, rtol=0, atol=2e-5 * np.abs(keys).max())
