"""Claims about pallas_kernels.xla on a CPU: a chunk of queries goes over the slots in tiles, and reads only what it can see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pallas_kernels import xla as module
from pallas_kernels.rotary import Rotary, rotate
from pallas_kernels.xla import attention
from tests.kernels.test_xla import FLOAT32, causal, check, check_gradients, dense, random_qkv

compiled = jax.jit(lambda q, k, v, first, last, index: attention(q, k, v, first=first, last=last, index=index))


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 8 slots, whatever the number of queries; how often the running softmax is traced."""
    monkeypatch.setattr(module, "CPU_TILE", 8)
    monkeypatch.setattr(module, "CPU_TILE_ROWS", 1)
    monkeypatch.setattr(module, "_on_cpu", lambda: True)
    counts, attend = [], module._attend_by_tiles
    monkeypatch.setattr(module, "_attend_by_tiles", lambda *args, **rest: counts.append(args) or attend(*args, **rest))
    return counts


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), used=st.integers(0, 29))
def test_slots_by_tiles_are_the_dense_softmax_wherever_the_used_ones_lie(small_tiles, seed, used):
    rng = np.random.default_rng(seed)
    slots, length = 29, 5  # the last tile shares three slots with the one before
    index = np.full((2, slots), -1, np.int32)
    for row in index:
        row[rng.permutation(slots)[:used] if seed % 2 else slice(used)] = rng.permutation(used)
    first, last = rng.integers(0, 8, (2, length), np.int32), rng.integers(-1, 29, (2, length), np.int32)
    ranges = {"first": first, "last": last, "index": index}
    arrays = random_qkv(2, length, 4, 2, slots)
    out = compiled(*arrays, **ranges)
    np.testing.assert_allclose(out, dense(*arrays, **ranges)[0], rtol=0, atol=FLOAT32)


def test_gradients_through_tiles_are_those_worked_out_by_hand(small_tiles):
    check_gradients(random_qkv(2, 20), causal(2, 20))
    assert small_tiles


def test_keys_are_rotated_a_tile_at_a_time(small_tiles):
    q, k, v = random_qkv(1, 21)
    angles = np.random.default_rng(1).uniform(0, 100, (1, 21, 10)).astype(np.float32)
    rotary = Rotary(jnp.cos(angles), jnp.sin(angles))
    ranges = causal(1, 21)
    first, last, index = ranges.values()
    out = jax.jit(lambda k: attention(q, k, v, first=first, last=last, index=index, rotary=rotary))(k)
    want, _ = dense(q, rotate(k, rotary, head_axis=1), v, **ranges)
    np.testing.assert_allclose(out, want, rtol=0, atol=FLOAT32)
    assert small_tiles


def test_queries_in_blocks_over_tiles_are_the_dense_softmax(small_tiles, monkeypatch):
    monkeypatch.setattr(module, "SCORE_BUDGET", 2 * 4 * 8 * 16)
    check(random_qkv(2, 43), causal(2, 43))
    assert [args[0].shape[1] for args in small_tiles] == [16]


def test_tiles_outside_what_is_visible_are_not_read(small_tiles):
    """What cannot be seen costs nothing: such tiles may hold anything, even NaN, which any product with them would spread."""
    q, k, v = random_qkv(1, 4, slots=40)
    index = np.full((1, 40), -1, np.int32)
    index[:, 8:24] = np.arange(16)
    unused = (np.arange(40) < 8) | (np.arange(40) >= 24)
    ranges = {"first": np.zeros((1, 4), np.int32), "last": np.full((1, 4), 15, np.int32), "index": index}
    k, v = (jnp.where(unused[:, None], jnp.nan, x) for x in (k, v))
    check((q, k, v), ranges)
