"""Claims about top-k without a sort: bit for bit what `lax.top_k` gives, so that a GPU samples the tokens that a CPU does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svlm_jax.decode.top_k import CHUNK, by_chunks, top_k, without_sort

pytestmark = pytest.mark.usefixtures("optimized")


def rows(kind: str, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, size)).astype(np.float32)
    if kind == "few values":  # nearly all tie, whole chunks of them
        x = rng.integers(0, 3, (3, size)).astype(np.float32)
    elif kind == "bfloat16":  # what a bfloat16 product gives: many ties
        x = x.astype(jnp.bfloat16).astype(np.float32)
    elif kind == "suppressed":  # fewer finite ones than are asked for
        x[:, rng.permutation(size)[: size - 5]] = -np.inf
    elif kind == "one chunk":
        x[:, 2 * CHUNK : 3 * CHUNK] += 10
    elif kind == "zeros and NaN":
        x = rng.choice(np.array([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf], np.float32), (3, size))
    return x


@pytest.mark.parametrize("kind", ["normal", "few values", "bfloat16", "suppressed", "one chunk", "zeros and NaN", "all equal"])
@pytest.mark.parametrize(("size", "k"), [(4096, 16), (3333, 7), (1024, 1)], ids=["whole chunks", "padded", "one"])
def test_it_is_lax_top_k_bit_for_bit(kind, size, k):
    select, reference = jax.jit(by_chunks, static_argnums=1), jax.jit(jax.lax.top_k, static_argnums=1)
    for seed in range(4):
        x = np.ones((3, size), np.float32) if kind == "all equal" else rows(kind, size, seed)
        (values, ids), (expected, expected_ids) = select(x, k), reference(x, k)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_array_equal(np.asarray(values).view(np.int32), np.asarray(expected).view(np.int32))


def test_a_gpu_gets_no_sort_and_a_cpu_keeps_its_own():
    traced = jax.jit(top_k, static_argnums=1).trace(jax.ShapeDtypeStruct((1, 152064), jnp.float32), 50)
    has_sort = {name: "chlo.top_k" in traced.lower(lowering_platforms=(name,)).as_text() for name in ("cuda", "cpu", "tpu")}
    assert has_sort == {"cuda": False, "cpu": True, "tpu": True}
    # All of the vocabulary is sorted, by whichever device.
    assert without_sort(152064, 50) and not without_sort(152064, 152064) and not without_sort(448, 50)


def test_a_vocabulary_that_is_cut_over_devices_gives_the_same():
    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.device_put(rows("bfloat16", 4096, 0), jax.NamedSharding(mesh, jax.P(None, "tensor")))
    for got, expected in zip(jax.jit(by_chunks, static_argnums=1)(x, 16), jax.lax.top_k(np.asarray(x), 16), strict=True):
        np.testing.assert_array_equal(got, expected)
