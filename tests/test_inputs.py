"""Claims about svlm_jax.inputs and svlm_jax.data.batch: window order, layout in rows, and padding of a batch."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svlm_jax.data.batch import collate
from svlm_jax.errors import InputError
from svlm_jax.families import preset
from svlm_jax.inputs import VISION_TABLES, Clip, Sample, bucket, pack_vision, window_order
from svlm_jax.spans import Kind, Span, positions, vision_span

VISION = preset("qwen2.5-vl-7b").vision
SMALL = replace(VISION, window_size=56)  # windows of 2x2 merged units
SIDES = st.integers(1, 14).map(lambda side: 2 * side)
GRIDS = st.tuples(st.integers(1, 3), SIDES, SIDES)
AWKWARD = [(1, 26, 46), (2, 26, 46), (1, 2, 2), (3, 8, 8), (1, 16, 24), (2, 18, 10), (1, 2, 30)]


def windows_slowly(grid, side):
    """Units of every window, window by window: a loop over frames, over windows, over the units of one window."""
    frames, rows, columns = grid[0], grid[1] // 2, grid[2] // 2
    result = []
    for frame in range(frames):
        for top in range(0, rows, side):
            for left in range(0, columns, side):
                window = []
                for row in range(top, min(top + side, rows)):
                    for column in range(left, min(left + side, columns)):
                        window.append((frame * rows + row) * columns + column)
                result.append(window)
    return result


def numbered(grid, start=0):
    """Patches whose first number tells which one it is."""
    count = int(np.prod(grid))
    patches = np.zeros((count, VISION.patch_dim), np.float32)
    patches[:, 0] = start + np.arange(count)
    return patches


def sample_of(*parts, step=1.0):
    """Text lengths and grids -> a Sample; token n has id 100 + n, patches are numbered through."""
    spans, clips, start = [], [], 0
    for part in parts:
        if isinstance(part, int):
            spans.append(Span(Kind.USER_TEXT, part))
        else:
            spans.append(vision_span(part, step=step))
            clips.append(Clip(numbered(part, start), part, step))
            start += int(np.prod(part))
    count = sum(span.length for span in spans)
    return Sample(100 + np.arange(count, dtype=np.int32), tuple(spans), tuple(clips))


# --- window order ---


@pytest.mark.parametrize("config", [VISION, SMALL])
@pytest.mark.parametrize("grid", AWKWARD)
def test_window_order_is_that_of_a_loop_over_windows(grid, config):
    units, window = window_order(grid, config)
    expected = windows_slowly(grid, config.window_size // 28)
    np.testing.assert_array_equal(units, np.concatenate(expected))
    np.testing.assert_array_equal(window, np.repeat(np.arange(len(expected)), [len(window) for window in expected]))


@settings(max_examples=150, deadline=None)
@given(grid=GRIDS, config=st.sampled_from([VISION, SMALL]))
def test_windows_partition_the_units_into_runs_that_fit_and_stay_in_a_frame(grid, config):
    units, window = window_order(grid, config)
    count = grid[0] * (grid[1] // 2) * (grid[2] // 2)
    np.testing.assert_array_equal(np.sort(units), np.arange(count))
    assert (np.diff(window) >= 0).all()
    assert np.bincount(window).max() * config.merge_unit <= config.window_patches
    frame = units // (count // grid[0])
    for number in np.unique(window):
        assert len(set(frame[window == number])) == 1


def test_13_by_23_units_have_69776_pairs_of_patches_in_windows():
    for frames in (1, 3):
        _, window = window_order((frames, 26, 46), VISION)
        assert ((np.bincount(window) * VISION.merge_unit) ** 2).sum() == frames * 69_776
        packed, _ = pack_vision([[(numbered((frames, 26, 46)), (frames, 26, 46))]], VISION, 4096)
        assert (packed.window_range[0, :, 1] - packed.window_range[0, :, 0] + 1).sum() == frames * 69_776


def test_a_grid_that_divides_evenly_has_no_empty_window():
    _, window = window_order((2, 16, 24), VISION)
    np.testing.assert_array_equal(np.bincount(window), np.full(2 * 2 * 3, 16))


# --- layout of one sample ---


def alone(packed):
    """The one sample of a batch, without the batch axis."""
    return replace(packed, **{name: getattr(packed, name)[0] for name in ("patches", *VISION_TABLES)})


@settings(max_examples=40, deadline=None)
@given(grids=st.lists(GRIDS, min_size=1, max_size=3), config=st.sampled_from([VISION, SMALL]))
def test_every_patch_stands_where_its_row_and_its_ranges_say(grids, config):
    size = sum(int(np.prod(grid)) for grid in grids) + 24
    clips, start = [], 0
    for grid in grids:
        clips.append((numbered(grid, start), grid))
        start += int(np.prod(grid))
    packed, (rows,) = pack_vision([clips], config, size)
    packed = alone(packed)
    patch_numbers = packed.patches[:, 0].astype(int)
    np.testing.assert_array_equal(np.sort(patch_numbers[:start]), np.arange(start))
    # merged unit m is patches 4m .. 4m+3 in patchify order, and stands at rows[m]
    np.testing.assert_array_equal(patch_numbers[:start].reshape(-1, 4)[rows], np.arange(start).reshape(-1, 4))
    key_window, key_frame, places = [], [], []
    for number, (t, h, w) in enumerate(grids):
        side = config.window_size // 14
        for frame in range(t):
            for row2 in range(h // 2):
                for column2 in range(w // 2):
                    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
                        r, c = 2 * row2 + row, 2 * column2 + column
                        places.append((r, c))
                        key_frame.append((number, frame))
                        key_window.append((number, frame, r // side, c // side))
    np.testing.assert_array_equal(packed.positions[:start], np.array(places)[patch_numbers[:start]])
    for ranges, keys in ((packed.window_range, key_window), (packed.frame_range, key_frame)):
        ordered = [keys[patch] for patch in patch_numbers[:start]]
        for index, (first, last) in enumerate(ranges[:start]):
            assert first <= index <= last
            assert set(ordered[first : last + 1]) == {ordered[index]}
            assert (first == 0 or ordered[first - 1] != ordered[index]) and (
                last + 1 == start or ordered[last + 1] != ordered[index]
            )
    assert packed.frame_span >= max(h * w for _, h, w in grids)


def test_pads_see_nothing_and_are_seen_by_none():
    packed = alone(pack_vision([[(numbered((1, 4, 6)), (1, 4, 6))]], VISION, 64)[0])
    for ranges in (packed.window_range, packed.frame_range):
        assert (ranges[24:, 0] > ranges[24:, 1]).all()
        assert ranges[:24].max() == 23
    assert not packed.patches[24:].any()


def test_patches_that_do_not_fit_their_grid_or_their_bucket_are_refused():
    with pytest.raises(ValueError, match=r"grid \(1, 4, 4\): got shape \(24, 1176\), expected \(16, 1176\)"):
        pack_vision([[(numbered((1, 4, 6)), (1, 4, 4))]], VISION, 64)
    with pytest.raises(ValueError, match="bucket of 16 patches: got 24"):
        pack_vision([[(numbered((1, 4, 6)), (1, 4, 6))]], VISION, 16)


@pytest.mark.parametrize(("size", "want"), [(0, 4), (4, 4), (5, 8), (8, 8)])
def test_the_bucket_is_the_smallest_that_holds_the_size(size, want):
    assert bucket(size, (4, 8), "tokens") == want


def test_what_fits_no_bucket_is_one_line_with_the_largest():
    with pytest.raises(InputError) as error:
        bucket(9, (4, 8), "tokens in a prompt")
    assert str(error.value).startswith("tokens in a prompt: got 9, expected at most 8; ")


# --- batches ---

BATCH = (
    sample_of(3, (1, 4, 6), 4),
    sample_of(5),
    sample_of(1, (2, 8, 4), 2, (1, 2, 2), 1, step=0.5),
)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_sample_is_the_same_wherever_the_padding_stands(side):
    inputs = collate(BATCH, VISION, side=side, token_buckets=(16, 32), patch_buckets=(96, 128), pad_id=7)
    assert inputs.ids.shape == (3, 32) and inputs.vision.patches.shape == (3, 96, 1176)
    assert [array.dtype for array in inputs[:4]] == [np.int32, np.int32, np.float32, np.int32]
    for b, sample in enumerate(BATCH):
        length = len(sample.ids)
        index = slice(32 - length, 32) if side == "left" else slice(0, length)
        pads = np.setdiff1d(np.arange(32), np.arange(32)[index])
        np.testing.assert_array_equal(inputs.ids[b, index], sample.ids)
        np.testing.assert_array_equal(inputs.index[b, index], np.arange(length))
        np.testing.assert_array_equal(inputs.positions[b, :, index], positions(sample.spans))
        assert (inputs.ids[b, pads] == 7).all() and (inputs.index[b, pads] == -1).all()
        assert (inputs.vision_index[b, pads] == -1).all()


def test_every_vision_token_finds_its_own_patches_and_no_text_token_finds_any():
    inputs = collate(BATCH, VISION, side="left")
    units = inputs.vision.patches[:, :, 0].reshape(3, -1, 4)
    for b, sample in enumerate(BATCH):
        vision = np.concatenate([np.full(span.length, span.kind == Kind.VISION) for span in sample.spans])
        rows = inputs.vision_index[b, -len(sample.ids) :]
        assert (rows[~vision] == -1).all()
        count = 4 * int(vision.sum())
        np.testing.assert_array_equal(units[b][rows[vision]], np.arange(count).reshape(-1, 4))


def test_the_clips_of_a_sample_do_not_see_one_another():
    vision = collate(BATCH, VISION).vision
    first, last = vision.frame_range[2, :, 0], vision.frame_range[2, :, 1]
    np.testing.assert_array_equal(np.unique(np.stack([first, last], 1)[:68], axis=0), [[0, 31], [32, 63], [64, 67]])
    assert (first[68:] > last[68:]).all()


def test_a_sample_without_vision_beside_one_with_has_only_pads():
    vision = collate(BATCH, VISION).vision
    assert (vision.frame_range[1, :, 0] > vision.frame_range[1, :, 1]).all()
    assert not vision.patches[1].any()


def test_a_batch_without_vision_has_none():
    assert collate([sample_of(5), sample_of(2)], VISION).vision is None


def test_what_is_too_long_is_one_line():
    with pytest.raises(InputError, match=r"^tokens in a prompt: got 17, expected at most 16; [^\n]*$"):
        collate([sample_of(17)], VISION, token_buckets=(8, 16))
    with pytest.raises(InputError, match=r"^patches in a prompt: got 64, expected at most 32; [^\n]*$"):
        collate([sample_of((1, 8, 8))], VISION, patch_buckets=(32,))
    with pytest.raises(InputError, match=r"^samples: got none"):
        collate([], VISION)


def test_spans_that_do_not_add_up_to_the_ids_are_refused():
    good = sample_of(2, (1, 4, 4), 1)
    with pytest.raises(ValueError, match="sample 1: spans add up to 7, ids to 6"):
        collate([good, good._replace(ids=good.ids[:-1])], VISION)


def test_vision_spans_without_their_clips_are_refused():
    good = sample_of(2, (1, 4, 4), 1)
    with pytest.raises(ValueError, match="sample 1: 4 vision tokens for 0 merged patches"):
        collate([good, good._replace(clips=())], VISION)
    with pytest.raises(ValueError, match="sample 0: 0 vision tokens for 4 merged patches"):
        collate([good._replace(spans=(Span(Kind.USER_TEXT, 7),))], VISION)


def test_a_clip_whose_grid_differs_from_its_span_is_refused():
    turned = sample_of(2, (1, 4, 8), 1)
    turned = turned._replace(clips=(turned.clips[0]._replace(grid=(1, 8, 4)),))
    with pytest.raises(ValueError, match="sample 0"):
        collate([turned], VISION)


def test_the_bucket_of_a_frame_is_that_of_the_largest_frame():
    inputs = collate([sample_of((1, 4, 4)), sample_of((2, 10, 10))], VISION)
    assert inputs.vision.frame_span == 128
