"""Claims: fused projections change no word; 8 bits have the error they must have, and stream, alone and over a mesh."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import svlm_jax
from svlm_jax.config import ModelConfig, StreamConfig
from svlm_jax.errors import InputError
from svlm_jax.families import FAMILIES, config_json
from svlm_jax.inputs import Inputs
from svlm_jax.model.layers import Linear, to_int8
from svlm_jax.model.parameters import from_parameters, parameters
from svlm_jax.model.transforms import fuse, quantize
from svlm_jax.model.vlm import QwenVL
from svlm_jax.sharding import make_mesh, shardings
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Session
from tests.support.families import tiny_config


def logits(config: ModelConfig, values) -> np.ndarray:
    length = 24
    ids = np.random.default_rng(0).integers(0, 400, (2, length)).astype(np.int32)
    index = np.broadcast_to(np.arange(length, dtype=np.int32), (2, length))
    positions = np.broadcast_to(np.arange(length, dtype=np.float32), (2, 3, length))
    inputs = Inputs(ids, index, positions, np.full((2, length), -1, np.int32))
    return np.asarray(jax.jit(lambda values: from_parameters(config, values)(inputs))(values))


@pytest.fixture(scope="module")
def model(shallow_dir) -> QwenVL:
    return QwenVL(config_json.read(shallow_dir).compute("float32"), nnx.Rngs(0))


@pytest.fixture(scope="module")
def qwen3_vl() -> QwenVL:
    """With q and k norms, without biases."""
    return QwenVL(tiny_config(FAMILIES["qwen3_vl"]), nnx.Rngs(0))


def test_fused_projections_compute_what_separate_ones_compute(model):
    want = logits(model.config, parameters(model))
    np.testing.assert_allclose(logits(*fuse(model.config, parameters(model))), want, atol=1e-5 * np.abs(want).max())


def test_fuse_and_quantize_leave_nothing_behind(model):
    values = parameters(model)
    config, joined = fuse(model.config, values)
    assert values == {} and set(joined) == set(parameters(QwenVL(config, None)))
    _, small = quantize(config, joined)
    assert joined == {}
    assert {path for path, value in small.items() if value.dtype == jnp.int8} == {
        path for path in small if path.startswith("text.") and path.endswith(".kernel")
    }


def test_a_quantized_weight_is_off_by_half_a_step_at_most():
    kernel = jax.random.normal(jax.random.key(0), (3, 40, 5, 8))
    rounded, scale = to_int8(kernel.at[..., 0, 0].set(0), 2)
    assert rounded.dtype == jnp.int8 and scale.shape == (5, 8)
    off = jnp.abs(rounded * scale - kernel.at[..., 0, 0].set(0))
    assert float(jnp.max(off / scale)) <= 0.5 + 1e-4 and int(jnp.abs(rounded).max()) == 127


def test_a_quantized_product_is_that_of_its_rounded_weights():
    linear = Linear((4, 8), (3, 5), bias=True, dtype="float32", rngs=nnx.Rngs(1), weights="int8")
    assert linear.scale is not None
    x = jax.random.normal(jax.random.key(1), (2, 4, 8))
    want = jnp.einsum("bij,ijkl->bkl", x, linear.kernel[...] * linear.scale[...], precision="highest")
    np.testing.assert_allclose(linear(x), want, atol=1e-5)


@pytest.mark.parametrize("name", ["model", "qwen3_vl"])
def test_int8_logits_are_as_far_off_as_rounding_the_weights_makes_them(request, name):
    """Rounding to a step s adds noise of s / sqrt(12); a product of sums with as much relative noise in each of the 4 L + 1
    matrices on the way is off by about sqrt(4 L + 1) times that, and never by more than 4 times."""
    model = request.getfixturevalue(name)
    config, values = fuse(model.config, parameters(model))
    want = logits(config, values)
    noise = float(np.mean([np.sqrt(np.mean((_rounded(x) - x) ** 2) / np.mean(x**2)) for x in _matrices(values)]))
    off = logits(*quantize(config, dict(values))) - want
    relative = float(np.sqrt(np.mean(off**2) / np.mean(want**2)))
    expected = noise * np.sqrt(4 * config.text.num_hidden_layers + 1)
    assert 0.1 * expected < relative < 4 * expected


def _matrices(values):
    return [np.asarray(x) for path, x in values.items() if path.startswith("text.") and path.endswith(".kernel")]


def _rounded(x: np.ndarray) -> np.ndarray:
    rounded, scale = to_int8(jnp.asarray(x), 1)
    return np.asarray(rounded * scale)


def test_int8_streams(shallow_dir, processor_dir):
    vlm = svlm_jax.from_pretrained(shallow_dir, processor=processor_dir, weights="int8")
    assert vlm.model.config.weights == "int8" and vlm.model.config.fused
    frames = np.random.default_rng(0).integers(0, 255, (8, 56, 84, 3), dtype=np.uint8)
    config = StreamConfig(vision_window=2, text_rounds=2, sink=8, text_window=8)
    clips = [vlm.processor.video(list(frames[i : i + 2]), fps=2) for i in range(0, 8, 2)]
    session = Session(vlm.model, vlm.tokenizer, config, clips[0].grid)
    state = session.join(session.init_state())
    for number, clip in enumerate(clips):
        state, (reply,) = session.step(state, [Chunk(number, number + 1, clip)])
        assert reply is not None and len(reply.tokens)


@pytest.mark.parametrize("weights", ["full", "int8"])
def test_a_transformed_model_is_sharded_like_the_loaded_one(model, weights):
    mesh = make_mesh(fsdp=4, tensor=2)
    values = parameters(model)
    targets = shardings({path: value.shape for path, value in values.items()}, mesh)
    config, sharded = fuse(model.config, {path: jax.device_put(value, targets[path]) for path, value in values.items()})
    want = logits(model.config, values)
    if weights == "int8":
        config, sharded = quantize(config, sharded)
        want = logits(*quantize(*fuse(model.config, parameters(model))))
    qkv = sharded["text.layers.0.attention.qkv.kernel"]
    assert qkv.addressable_shards[0].data.size * 8 == qkv.size
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(logits(config, sharded), want, atol=1e-4 * np.abs(want).max())


def test_a_fused_model_is_not_trained(model):
    with pytest.raises(InputError, match="train first"):
        replace(model.config, scan_layers=True, fused=True)
