"""The model on interpreted kernels: over a mesh, and through recorded streams of the original."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svlm_jax.model.attention import text_attention
from svlm_jax.model.parameters import from_parameters
from svlm_jax.pretrained import from_pretrained
from svlm_jax.replay import stream
from svlm_jax.sharding import make_mesh
from tests.support import FIXTURES
from tests.support.pixels import STREAM_FRAME

STREAMS = FIXTURES / "streams"
MESHES = {
    "tensor": {"tensor": 2},
    "data and tensor": {"data": 2, "tensor": 2},
    "context": {"fsdp": 2, "context": 2, "tensor": 2},
}


def random_array(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("name", MESHES)
def test_each_device_attends_with_its_own_heads_and_queries(name):
    q, k, v = random_array(2, 4, 4, 16), random_array(2, 2, 128, 16), random_array(2, 2, 128, 16) + 1
    index = np.stack([np.random.default_rng(0).permutation(128)] * 2).astype(np.int32)
    last = np.tile(np.arange(100, 104, dtype=np.int32), (2, 1))

    def run(implementation):
        return jax.jit(lambda q: text_attention(q, k, v, last=last, index=index, implementation=implementation))(q)

    want = run("xla")
    with jax.set_mesh(make_mesh(**MESHES[name])):
        got = run("interpret_tpu")
    assert "tensor" in got.sharding.spec and ("context" in got.sharding.spec) == (name == "context")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_gradients_over_a_mesh_are_those_of_one_device():
    arrays = random_array(2, 32, 4, 16), random_array(2, 2, 32, 16), random_array(2, 2, 32, 16) + 1
    index = np.tile(np.arange(32, dtype=np.int32), (2, 1))

    def run(implementation):
        def loss(q, k, v):
            return (text_attention(q, k, v, last=index, index=index, causal=True, implementation=implementation) ** 2).sum()

        return jax.jit(jax.grad(loss, (0, 1, 2)))(*arrays)

    want = run("xla")
    with jax.set_mesh(make_mesh(**MESHES["context"])):
        got = run("interpret_tpu")
    for gradient, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=3e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["greedy", "equal_windows"])
@pytest.mark.parametrize("kernel", ["interpret_tpu", pytest.param("interpret", marks=pytest.mark.slow)])  # ten minutes
def test_recorded_streams_replay_through_the_kernels(kernel, name, tiny_dir, processor_dir, interpreted):
    vlm = from_pretrained(tiny_dir, processor=processor_dir, dtype="float32")
    model = from_parameters(replace(vlm.model.config, attention=kernel), vlm.parameters)
    result = stream.replay(stream.read(STREAMS / f"{name}.json"), model, vlm.tokenizer, STREAM_FRAME)
    assert result["ok"] is True and result["logits_max"] < 4e-4
