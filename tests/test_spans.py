"""Claims about svlm_jax.spans: contiguous positions, against a slow loop that places one token at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svlm_jax.families import preset
from svlm_jax.spans import Kind, Span, grid_index, positions, total, vision_span

KINDS = st.sampled_from([kind for kind in Kind if kind != Kind.VISION])
TEXT = st.builds(lambda kind, length, turn: Span(kind, length, turn), KINDS, st.integers(0, 9), st.integers(0, 3))
MASKS = st.one_of(st.none(), st.integers(0, 2**32).map(np.random.default_rng))
SIDES = st.integers(1, 7).map(lambda side: 2 * side)
VISION = st.builds(
    lambda t, h, w, turn, step, rng: vision_span((t, h, w), turn=turn, step=step, keep=masked(t, h, w, rng)),
    st.integers(1, 5),
    SIDES,
    SIDES,
    st.integers(0, 3),
    st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]),
    MASKS,
)


def masked(t, h, w, rng):
    """A random mask of a grid's merged tokens, one token or more; or None."""
    if rng is None:
        return None
    keep = rng.random(t * h * w // 4) < rng.random()
    keep[rng.integers(len(keep))] = True
    return keep


def bit(mask, index):
    """Bits are counted from the most significant one of the first byte."""
    return mask[index // 8] >> (7 - index % 8) & 1


def slowly(spans, start=0.0):
    """(t, h, w) of every token, one at a time, in Python numbers."""
    placed = []
    following = start
    for span in spans:
        new = []
        if span.kind == Kind.VISION:
            frames, rows, columns = span.grid[0], span.grid[1] // 2, span.grid[2] // 2
            for frame in range(frames):
                for row in range(rows):
                    for column in range(columns):
                        new.append((following + frame * span.step, following + row, following + column))
        else:
            for place in range(span.length):
                new.append((following + place,) * 3)
        placed += new if span.keep is None else [new[index] for index in range(len(new)) if bit(span.keep, index)]
        if new:
            following = max(max(token) for token in new) + 1
    return np.array(placed, np.float64).reshape(-1, 3).T


@settings(max_examples=200, deadline=None)
@given(spans=st.lists(st.one_of(TEXT, VISION), max_size=12), start=st.sampled_from([0.0, 1.5, 1000.0]))
def test_positions_are_those_of_a_loop_over_tokens(spans, start):
    got = positions(spans, start=start)
    assert got.dtype == np.float32
    assert got.shape == (3, total(spans))
    np.testing.assert_array_equal(got, slowly(spans, start))


@settings(max_examples=50, deadline=None)
@given(spans=st.lists(st.one_of(TEXT, VISION.map(lambda span: span._replace(step=4 / 3))), max_size=12))
def test_a_step_that_no_float_holds_is_added_up_in_the_same_order(spans):
    """3 frames a second: positions of spans far back must not depend on how a sequence is divided."""
    np.testing.assert_array_equal(positions(spans, start=0.1), slowly(spans, 0.1).astype(np.float32))


@settings(max_examples=100, deadline=None)
@given(spans=st.lists(st.one_of(TEXT, VISION), min_size=1, max_size=12))
def test_positions_have_no_gap_of_more_than_one_and_never_run_back_over_a_span(spans):
    got = positions(spans)
    ends = np.cumsum([span.length for span in spans])
    starts = ends - [span.length for span in spans]
    following = 0.0
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if start == end:
            continue
        block = got[:, start:end]
        if spans[number].keep is None:
            assert block.min() == following
            following = block.max() + 1
        else:  # a dropped token leaves a gap of its own
            assert block.min() >= following
            following = positions([*spans[: number + 1], Span(Kind.REPLY, 1)]).max()


@settings(max_examples=50, deadline=None)
@given(spans=st.lists(st.one_of(TEXT, VISION), min_size=1, max_size=8), cut=st.integers(0, 8))
def test_positions_of_a_suffix_are_those_of_the_whole_when_started_where_the_prefix_ends(spans, cut):
    head, tail = spans[:cut], spans[cut:]
    whole = positions(spans)
    following = float(positions([*head, Span(Kind.REPLY, 1)]).max())
    np.testing.assert_array_equal(whole[:, total(head) :], positions(tail, start=following))


def test_text_counts_up_by_one_on_all_axes():
    got = positions([Span(Kind.SYSTEM, 3), Span(Kind.REPLY, 2)])
    np.testing.assert_array_equal(got, np.tile(np.arange(5, dtype=np.float32), (3, 1)))


def test_a_clip_wider_than_long_pushes_the_text_behind_it_by_its_width():
    got = positions([Span(Kind.USER_TEXT, 2), vision_span((1, 4, 10)), Span(Kind.USER_TEXT, 1)])
    np.testing.assert_array_equal(got[:, 2:12], [[2] * 10, [2] * 5 + [3] * 5, [2, 3, 4, 5, 6] * 2])
    np.testing.assert_array_equal(got[:, 12], [7, 7, 7])


@pytest.mark.parametrize(("fps", "step"), [(1, 4.0), (2, 2.0), (4, 1.0), (8, 0.5)])
def test_the_temporal_step_is_a_fraction_above_4_fps(fps, step):
    assert preset("qwen2.5-vl-7b").vision.temporal_step(fps) == step


def test_at_8_fps_frames_stand_half_a_position_apart_and_the_text_follows_without_rounding():
    span = vision_span((4, 2, 2), step=0.5)
    got = positions([Span(Kind.USER_TEXT, 1), span, Span(Kind.REPLY, 2)])
    np.testing.assert_array_equal(got[0], [0, 1, 1.5, 2, 2.5, 3.5, 4.5])
    np.testing.assert_array_equal(got[1], [0, 1, 1, 1, 1, 3.5, 4.5])


def test_a_vision_span_is_as_long_as_its_merged_grid():
    span = vision_span((3, 26, 46), turn=4, step=2.0)
    assert span == Span(Kind.VISION, 3 * 13 * 23, 4, (3, 26, 46), 2.0)
    assert total([span, Span(Kind.REPLY, 5)]) == 3 * 13 * 23 + 5


def test_tokens_that_are_dropped_move_no_other():
    keep = np.array([False, True, False, False, True, False])
    some, every = ([Span(Kind.USER_TEXT, 2), vision_span((1, 4, 6), keep=mask), Span(Kind.REPLY, 3)] for mask in (keep, None))
    kept = np.concatenate([[0, 1], 2 + np.flatnonzero(keep), [8, 9, 10]])
    np.testing.assert_array_equal(positions(some), positions(every)[:, kept])
    assert some[1].length == 2 and grid_index(some[1]).tolist() == [1, 4] and hash(some[1]) != hash(every[1])


def test_a_mask_that_drops_nothing_is_none():
    """Else a stream that keeps all would not be the stream of today."""
    assert vision_span((2, 4, 6), keep=np.ones(12, bool)) == vision_span((2, 4, 6))
    assert grid_index(vision_span((2, 4, 6))).tolist() == list(range(12))


def test_no_spans_have_no_positions():
    got = positions([])
    assert got.shape == (3, 0) and got.dtype == np.float32
    assert positions([Span(Kind.REPLY, 0)]).shape == (3, 0)
