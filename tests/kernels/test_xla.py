"""Claims about pallas_kernels.xla: every path of it against one dense float64 softmax, forwards and backwards."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import xla as module
from pallas_kernels.rotary import Rotary, rotate
from pallas_kernels.xla import attention

FLOAT32 = 2e-6  # absolute, of values of order one: float32 rounding over a few hundred terms


def dense(q, k, v, first, last, index):
    """One query, one head at a time, in float64; also the weights [B, N, T, S]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, length, heads, width = q.shape
    out, weights = np.zeros(q.shape), np.zeros((batch, heads, length, k.shape[2]))
    for b in range(batch):
        for t in range(length):
            visible = [s for s in range(k.shape[2]) if index[b, s] >= 0 and first[b, t] <= index[b, s] <= last[b, t]]
            if not visible:
                continue
            for n in range(heads):
                group = n * k.shape[1] // heads
                scores = k[b, group, visible] @ q[b, t, n] / np.sqrt(width)
                weight = np.exp(scores - scores.max())
                weights[b, n, t, visible] = weight / weight.sum()
                out[b, t, n] = weights[b, n, t, visible] @ v[b, group, visible]
    return out, weights


def dense_gradients(q, k, v, first, last, index, upstream):
    """Gradients of sum(out * upstream) to q, k and v, by hand."""
    q, k, v, upstream = (np.asarray(x, np.float64) for x in (q, k, v, upstream))
    weights = dense(q, k, v, first, last, index)[1]
    groups = q.shape[2] // k.shape[1]
    wide_k, wide_v = (np.repeat(x, groups, axis=1) for x in (k, v))
    to_weights = np.einsum("btnh,bnsh->bnts", upstream, wide_v)
    to_scores = weights * (to_weights - (weights * to_weights).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    narrow = lambda x: x.reshape(x.shape[0], k.shape[1], groups, *x.shape[2:]).sum(2)  # noqa: E731
    to_k = narrow(np.einsum("bnts,btnh->bnsh", to_scores, q))
    to_v = narrow(np.einsum("bnts,btnh->bnsh", weights, upstream))
    return np.einsum("bnts,bnsh->btnh", to_scores, wide_k), to_k, to_v


def random_qkv(batch=2, length=12, heads=4, kv_heads=2, slots=None, width=20, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    slots = length if slots is None else slots
    q = rng.normal(size=(batch, length, heads, width))
    k, v = (rng.normal(size=(batch, kv_heads, slots, width)) for _ in range(2))
    return tuple(jnp.asarray(x, dtype) for x in (q, k, v))


def causal(batch, length):
    position = np.tile(np.arange(length, dtype=np.int32), (batch, 1))
    return {"first": np.zeros_like(position), "last": position, "index": position}


@cache
def compiled(span):
    """For the property tests: ranges are arguments, so a shape compiles once."""
    return jax.jit(lambda q, k, v, first, last, index: attention(q, k, v, first=first, last=last, index=index, span=span))


def segments(lengths, total):
    """Ranges of consecutive segments, then padding that attends to nothing and is no slot."""
    first, last = np.ones((1, total), np.int32), np.zeros((1, total), np.int32)
    start = 0
    for length in lengths:
        first[0, start : start + length], last[0, start : start + length] = start, start + length - 1
        start += length
    position = np.arange(total, dtype=np.int32)[None]
    return {"first": first, "last": last, "index": np.where(position < start, position, -1)}


def check(arrays, ranges, tolerance=FLOAT32, **options):
    out = jax.jit(lambda q, k, v: attention(q, k, v, **ranges, **options))(*arrays)
    want, _ = dense(*arrays, **ranges)
    assert out.shape == arrays[0].shape and out.dtype == arrays[0].dtype
    np.testing.assert_allclose(out, want, rtol=0, atol=tolerance)
    return np.asarray(out)


def gradients(arrays, ranges, seed=9, **options):
    upstream = np.random.default_rng(seed).normal(size=arrays[0].shape).astype(np.float32)
    total = lambda q, k, v: jnp.sum(attention(q, k, v, **ranges, **options) * upstream)  # noqa: E731
    return jax.jit(jax.grad(total, (0, 1, 2)))(*arrays), upstream


def check_gradients(arrays, ranges, tolerance=1e-5, **options):
    got, upstream = gradients(arrays, ranges, **options)
    for gradient, want in zip(got, dense_gradients(*arrays, **ranges, upstream=upstream), strict=True):
        np.testing.assert_allclose(gradient, want, rtol=0, atol=tolerance)


@pytest.fixture
def calls(monkeypatch):
    """Shapes (queries, slots) of every dense block that is computed (once a trace), and whether the local path ran."""
    counts = {"blocks": [], "local": 0}
    attend, local = module._attend, module._local

    def spy_attend(q, k, *rest):
        counts["blocks"].append((q.shape[1], k.shape[2]))
        return attend(q, k, *rest)

    def spy_local(*arguments):
        counts["local"] += 1
        return local(*arguments)

    monkeypatch.setattr(module, "_attend", spy_attend)
    monkeypatch.setattr(module, "_local", spy_local)
    return counts


# --- what is visible ---


@pytest.mark.parametrize(
    ("heads", "width"),
    [((28, 4), 128), ((64, 8), 128), ((16, 2), 128), ((16, 16), 80), ((7, 1), 64), ((8, 1), 20), ((2, 2), 20)],
)
def test_causal_attention_is_the_dense_softmax(heads, width):
    check(random_qkv(2, 9, *heads, width=width), causal(2, 9))


def test_a_token_does_not_see_what_comes_later():
    q, k, v = random_qkv()
    run = jax.jit(lambda q, k, v: attention(q, k, v, **causal(2, 12)))
    before, after = run(q, k, v), run(q, k.at[:, :, 7:].add(3.0), v.at[:, :, 7:].add(3.0))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (np.asarray(before != after)[:, 7:]).any(axis=(2, 3)).all()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_ranges_over_slots_in_any_order_are_the_dense_softmax(data):
    length, slots = 6, 11
    limits = st.lists(st.integers(-2, 12), min_size=2 * length, max_size=2 * length)
    index = st.permutations(range(slots)).flatmap(
        lambda order: st.lists(st.booleans(), min_size=slots, max_size=slots).map(
            lambda filled: [number if is_filled else -1 for number, is_filled in zip(order, filled, strict=True)]
        )
    )
    first, last = (np.array(data.draw(limits), np.int32).reshape(2, length) for _ in range(2))
    ranges = {"first": first, "last": last, "index": np.array([data.draw(index), data.draw(index)], np.int32)}
    arrays = random_qkv(2, length, 4, 2, slots)
    np.testing.assert_allclose(compiled(None)(*arrays, **ranges), dense(*arrays, **ranges)[0], rtol=0, atol=FLOAT32)


def test_the_order_of_slots_in_a_ring_does_not_matter():
    q, k, v = random_qkv(2, 3, slots=16)
    index = np.tile(np.arange(16, dtype=np.int32), (2, 1))
    last = np.array([[12, 13, 14]] * 2, np.int32)
    ranges = {"first": np.full_like(last, 2), "last": last}
    straight = check((q, k, v), ranges | {"index": index})
    rolled = check(tuple([q, jnp.roll(k, 5, 2), jnp.roll(v, 5, 2)]), ranges | {"index": np.roll(index, 5, 1)})
    np.testing.assert_allclose(straight, rolled, rtol=0, atol=FLOAT32)


def test_padding_left_or_right_changes_no_real_row():
    arrays = random_qkv(1, 8)
    alone = check(arrays, causal(1, 8))
    for left, right in ((5, 0), (0, 5), (3, 2)):
        q, k, v = (
            jnp.pad(x, [(left, right) if axis == length_axis else (0, 0) for axis in range(4)], constant_values=50.0)
            for x, length_axis in zip(arrays, (1, 2, 2), strict=True)
        )
        index = np.pad(causal(1, 8)["index"], ((0, 0), (left, right)), constant_values=-1)
        ranges = {"first": np.where(index < 0, 1, 0), "last": np.maximum(index, 0), "index": index}
        out = check((q, k, v), ranges)
        np.testing.assert_allclose(out[:, left : left + 8], alone, rtol=0, atol=FLOAT32)
        assert not out[:, :left].any() and not out[:, left + 8 :].any()


@pytest.mark.parametrize("span", [None, 4])
def test_a_query_that_attends_to_nothing_is_zero_and_sends_no_gradient(span):
    arrays = random_qkv(1, 20, 4, 2)
    ranges = segments([4, 3, 4], 20)
    out = check(arrays, ranges, span=span)
    assert (out[:, 11:] == 0).all()
    (to_q, to_k, to_v), _ = gradients(arrays, ranges, span=span)
    assert all(np.isfinite(gradient).all() for gradient in (to_q, to_k, to_v))
    assert (np.asarray(to_q)[:, 11:] == 0).all()
    assert (np.asarray(to_k)[:, :, 11:] == 0).all() and (np.asarray(to_v)[:, :, 11:] == 0).all()
    assert np.asarray(to_q)[:, :11].any(axis=(2, 3)).all()


def test_an_empty_cache_gives_zeros():
    q, k, v = random_qkv(2, 3, slots=8)
    empty = {"first": np.zeros((2, 3), np.int32), "last": np.full((2, 3), 7, np.int32), "index": np.full((2, 8), -1, np.int32)}
    assert (check((q, k, v), empty) == 0).all()


def test_scores_of_hundreds_do_not_overflow():
    q, k, v = random_qkv(1, 12)
    check((30 * q, 30 * k, v), causal(1, 12), tolerance=2e-4)  # scores near 4000, rounded to 2**-12 of themselves


# --- rotation ---


@pytest.mark.parametrize("span", [None, 4])
def test_keys_rotated_on_use_are_keys_rotated_before(span):
    q, k, v = random_qkv(1, 20)
    angles = np.random.default_rng(1).uniform(0, 100, (1, 20, 10)).astype(np.float32)
    rotary = Rotary(jnp.cos(angles), jnp.sin(angles))
    ranges = segments([3, 4, 4, 2, 4], 20)
    on_use = jax.jit(lambda k: attention(q, k, v, **ranges, rotary=rotary, span=span))(k)
    rotated = rotate(k, rotary, head_axis=1)
    np.testing.assert_allclose(on_use, dense(q, rotated, v, **ranges)[0], rtol=0, atol=FLOAT32)
    np.testing.assert_allclose(on_use, compiled(span)(q, rotated, v, **ranges), rtol=0, atol=FLOAT32)
    assert np.abs(np.asarray(on_use - compiled(span)(q, k, v, **ranges))).max() > 0.1


# --- blocks ---

LENGTHS = [(48, 4), (50, 4), (47, 8), (65, 16)]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_windows_of_any_lengths_are_the_dense_softmax(data):
    length, span = data.draw(st.sampled_from(LENGTHS))
    lengths = []
    while sum(lengths) < length and (not lengths or data.draw(st.integers(0, 19))):
        lengths.append(data.draw(st.integers(1, min(span, length - sum(lengths)))))
    arrays, ranges = random_qkv(1, length, 2, 1, width=8, seed=span), segments(lengths, length)
    out = compiled(span)(*arrays, **ranges)
    np.testing.assert_allclose(out, dense(*arrays, **ranges)[0], rtol=0, atol=FLOAT32)


@pytest.mark.parametrize(("length", "span"), LENGTHS)
@pytest.mark.parametrize("first_length", [1, 3])
def test_windows_across_the_edges_of_blocks_take_the_local_path(calls, length, span, first_length):
    lengths = [first_length]
    while sum(lengths) < length - 2:
        lengths.append(min(span, length - 2 - sum(lengths)))
    arrays, ranges = random_qkv(2, length, 4, 2), segments(lengths, length)
    ranges = {name: np.repeat(value, 2, axis=0) for name, value in ranges.items()}
    check(arrays, ranges, span=span)
    assert calls["local"] == 1
    assert set(calls["blocks"]) == {(span, 3 * span)}
    if first_length == 3:
        check_gradients(arrays, ranges, span=span)


def test_each_row_of_a_batch_has_its_own_windows(calls):
    rows = [segments(lengths, 40) for lengths in ([4] * 10, [1, 3, 2, 4, 4], [])]
    ranges = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    check(random_qkv(3, 40), ranges, span=4)
    assert calls["local"] == 1


def test_the_local_path_in_several_rounds_is_the_same(calls, monkeypatch):
    arrays, ranges = random_qkv(1, 50), segments([3, 4, 4, 1, 4, 4, 2, 4, 4, 4, 3], 50)
    in_one_round = check(arrays, ranges, span=4)
    monkeypatch.setattr(module, "SCORE_BUDGET", 3 * 4 * 4 * 4 * 2)  # two blocks a round
    np.testing.assert_allclose(check(arrays, ranges, span=4), in_one_round, rtol=0, atol=FLOAT32)
    check_gradients(arrays, ranges, span=4)
    assert calls["local"] == 3


def test_few_slots_are_computed_densely_whatever_the_span(calls):
    check(random_qkv(1, 12), segments([4, 4, 3], 12), span=4)
    assert calls == {"blocks": [(12, 12)], "local": 0}


@pytest.mark.parametrize(("kind", "length"), [("causal", 43), ("segments", 45)])
def test_queries_in_blocks_are_the_dense_softmax(calls, monkeypatch, kind, length):
    arrays = random_qkv(2, length, 14, 2)
    ranges = causal(2, length)
    if kind == "segments":
        ranges = {name: np.repeat(value, 2, axis=0) for name, value in segments([20, 1, 15], length).items()}
    monkeypatch.setattr(module, "SCORE_BUDGET", 2 * 14 * length * 20)
    check(arrays, ranges)
    check_gradients(arrays, ranges)
    assert set(calls["blocks"]) == {(16, length)}  # 20 fit; blocks are multiples of 16


def test_a_query_block_is_never_longer_than_its_limit(calls, monkeypatch):
    monkeypatch.setattr(module, "QUERY_BLOCK", 16)
    monkeypatch.setattr(module, "SCORE_BUDGET", 4 * 40 * 35)
    check(random_qkv(1, 40), causal(1, 40))
    assert set(calls["blocks"]) == {(16, 40)}


@pytest.mark.parametrize("budget", [1, 2 * 4 * 8 * 32, 1 << 26])
def test_a_causal_sequence_is_cut_into_chunks_that_read_nothing_after_them(calls, monkeypatch, budget):
    monkeypatch.setattr(module, "MIN_CAUSAL_CHUNK", 8)
    monkeypatch.setattr(module, "SCORE_BUDGET", budget)
    arrays, ranges = random_qkv(2, 43), causal(2, 43)
    ranges["last"][1, 20:] = ranges["index"][1, 20:] = -1  # padding
    check(arrays, ranges, causal=True)
    assert sorted({slots for _, slots in calls["blocks"]}) == [9, 18, 27, 36, 43]
    check_gradients(arrays, ranges, causal=True)


def test_a_short_sequence_is_not_cut(calls):
    check(random_qkv(2, 12), causal(2, 12), causal=True)
    assert calls["blocks"] == [(12, 12)]


@pytest.mark.parametrize("heads", [(7, 1), (8, 1), (4, 4)])
def test_gradients_are_those_worked_out_by_hand(heads):
    check_gradients(random_qkv(2, 11, *heads, width=16), causal(2, 11))


# --- precision and misuse ---


@pytest.mark.parametrize("span", [None, 8])
def test_bfloat16_errs_at_most_twice_as_much_as_plain_bfloat16(span):
    arrays = random_qkv(1, 64, 14, 2, width=64, dtype=jnp.bfloat16)
    ranges = segments([8] * 8, 64) if span else causal(1, 64)
    want, _ = dense(*arrays, **ranges)
    out = compiled(span)(*arrays, **ranges)
    assert out.dtype == jnp.bfloat16
    position = ranges["index"][:, None, None, :]
    visible = (ranges["first"][:, None, :, None] <= position) & (position <= ranges["last"][:, None, :, None])

    @jax.jit
    def plain(q, k, v):
        k, v = (jnp.repeat(x, 7, axis=1) for x in (k, v))
        scores = jnp.einsum("btnh,bnsh->bnts", q, k) * jnp.bfloat16(64**-0.5)
        weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf).astype(jnp.float32), axis=-1)
        return jnp.einsum("bnts,bnsh->btnh", weights.astype(jnp.bfloat16), v)

    error, error_of_plain = (np.abs(np.asarray(x, np.float64) - want) for x in (out, plain(*arrays)))
    assert error_of_plain.max() > 1e-3  # it is computed in bfloat16
    assert error.max() <= 2 * error_of_plain.max()
    assert np.sqrt((error**2).mean()) <= 2 * np.sqrt((error_of_plain**2).mean())
