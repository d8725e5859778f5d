"""Claims about the loss: gathered or where they stand, labels are scored alike, in any number of blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from svlm_jax.families import config_json
from svlm_jax.model.text import Decoder
from svlm_jax.model.vlm import QwenVL
from svlm_jax.train.loss import cross_entropy, cross_entropy_at

ROWS, LENGTH = 2, 37


@pytest.fixture(scope="module")
def text(shallow_dir) -> Decoder:
    return QwenVL(config_json.read(shallow_dir).compute("float32"), nnx.Rngs(0)).text


@pytest.fixture(scope="module")
def case(text):
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((ROWS, LENGTH)) < 0.3, rng.integers(0, 400, (ROWS, LENGTH)), -100).astype(np.int32)
    labels[:, 0] = 7  # counts for nothing: no token comes before it
    at, chosen = np.zeros((ROWS, 20), np.int32), np.full((ROWS, 20), -100, np.int32)
    for row in range(ROWS):
        learned = np.flatnonzero(labels[row, 1:] >= 0)
        at[row, : len(learned)], chosen[row, : len(learned)] = learned, labels[row, 1:][learned]
    hidden = 30 * rng.normal(size=(ROWS, LENGTH, text.config.hidden_size))
    return jnp.asarray(hidden, jnp.float32), labels, at, chosen


@pytest.mark.parametrize("block", [3, 20, 512])
def test_gathered_labels_are_scored_as_where_they_stand(case, text, block):
    hidden, labels, at, chosen = case

    def at_every_token(hidden):
        mean, count = cross_entropy(text, hidden, labels, block)
        return mean * count, count

    def at_labels(hidden):
        return cross_entropy_at(text, hidden, at, chosen, block)

    (want, count), gradient = jax.value_and_grad(at_every_token, has_aux=True)(hidden)
    (got, same), other = jax.value_and_grad(at_labels, has_aux=True)(hidden)
    assert count == same == (labels[:, 1:] >= 0).sum()
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(other, gradient, atol=1e-6)


def test_nothing_to_learn_is_nothing(case, text):
    hidden, _, at, chosen = case
    total, count = cross_entropy_at(text, hidden, at, np.full_like(chosen, -100))
    assert float(total) == 0 and int(count) == 0
