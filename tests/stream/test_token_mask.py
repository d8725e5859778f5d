"""A stream whose chunks lose vision tokens: the session against the decoder in numpy, and a state that is saved."""

from functools import partial

import jax
import numpy as np
import pytest

from svlm_jax.data.batch import collate
from svlm_jax.inputs import Sample, pack_vision
from svlm_jax.spans import Kind, Span, grid_index, total, vision_span
from svlm_jax.stream import state_io
from svlm_jax.stream.results import Refusal
from svlm_jax.stream.stream_settings import StreamSettings
from tests.support.oracle import Oracle, Windows, opening_parts, turn_parts
from tests.support.oracle_numeric import NumpyDecoder
from tests.support.sessions import DRAWN, GRID, WINDOWS, chunk, make, model, said, tokenizer  # noqa: F401

LARGEST, MEDIAN = 2e-3, 2e-4  # of a difference of logits, as the recordings of the original promise


def masked(number: int, grid: tuple[int, int, int] = GRID):
    """A chunk of which a random part is kept; of one in four chunks nothing is dropped."""
    keep = np.random.default_rng([7, number]).random(grid[0] * grid[1] * grid[2] // 4) < 0.5
    return chunk(number, grid=grid)._replace(keep=keep if number % 4 else np.ones_like(keep))


def test_keeping_all_says_what_a_stream_without_masks_says(make):
    made = make(sampling=DRAWN)
    masks, plain = (made.join(made.init_state(), settings=StreamSettings(seed=1)) for _ in range(2))
    for number in range(6):
        keep = np.ones(GRID[0] * GRID[1] * GRID[2] // 4, bool)
        masks, ours = made.step(masks, [chunk(number)._replace(keep=keep)], record=True)
        plain, theirs = made.step(plain, [chunk(number)], record=True)
        assert said(ours) == said(theirs) and masks.streams[0].spans == plain.streams[0].spans
        np.testing.assert_array_equal(ours[0].logits, theirs[0].logits)


@pytest.mark.parametrize("rope_positions", ["contiguous", "native"])
def test_logits_are_those_of_what_is_kept(make, model, tokenizer, shallow_dir, rope_positions):
    """The decoder in numpy is given the tower's output for the cells that are kept, through every kind of eviction."""
    made = make(vision_window=2, text_rounds=3, rope_positions=rope_positions)
    encode = partial(tokenizer.encode, add_special_tokens=False)
    windows = Windows(2, 3, WINDOWS["sink"], WINDOWS["text_window"], rope_positions=rope_positions)
    oracle = Oracle(windows, made.turn_tokenizer.end_of_turn, int(made.turn_tokenizer.newline[0]))
    oracle.begin(opening_parts(encode, ""))
    decoder, tower = NumpyDecoder(shallow_dir), jax.jit(lambda frames: model.vision(frames).rows)
    state, features, differences = made.join(made.init_state(), settings=StreamSettings(query="Commentate")), {}, []
    for number in range(8):
        this = masked(number)
        frames, (rows,) = pack_vision([[(this.clip.patches, GRID)]], made.model_config.vision, made.max_patches)
        features[number] = np.asarray(tower(frames))[0, rows]
        query = "" if number else "Commentate"
        parts = turn_parts(
            encode,
            number,
            number + 1,
            GRID,
            step=this.clip.step,
            query=query,
            keep=None if this.keep.all() else this.keep.tolist(),
        )
        state, (reply,) = made.step(state, [this], record=True)
        computed = [*oracle.turn(parts).computed, *oracle.reply(reply.tokens.tolist()).computed]
        logits = [decoder.compute(one, None if one.pad is None else features[one.turn][one.pad.index]) for one in computed]
        differences.append(np.abs(np.array(logits[-len(reply.logits) :]) - reply.logits))
        assert state.streams[0].ids.tolist() == oracle.ids
    assert max(one.max() for one in differences) <= LARGEST
    assert max(np.median(one) for one in differences) <= MEDIAN


@pytest.mark.parametrize("mode", ["streaming", "recompute"])
def test_a_saved_state_knows_which_tokens_are_there(make, tmp_path, mode):
    made = make(sampling=DRAWN, mode=mode)
    state = made.join(made.init_state(), settings=StreamSettings(seed=1))
    for number in range(4):
        state, _ = made.step(state, [masked(number)])
    state_io.save(tmp_path / "a.state", made, state)
    loaded = state_io.load(tmp_path / "a.state", made)
    assert loaded.streams[0].spans == state.streams[0].spans
    assert any(span.keep is not None and len(grid_index(span)) == span.length for span in state.streams[0].spans)
    for number in range(4, 7):
        state, ours = made.step(state, [masked(number)], record=True)
        loaded, theirs = made.step(loaded, [masked(number)], record=True)
        np.testing.assert_array_equal(ours[0].logits, theirs[0].logits)


def test_a_training_sample_with_a_mask_finds_the_rows_of_the_tokens_that_are_there(model):
    """Else what is trained with dropped tokens is not what is streamed with them."""
    keep = np.array([True, False, False, True, True, False])
    clips = (chunk(0).clip, chunk(1).clip)

    def collated(mask):
        spans = (Span(Kind.USER_TEXT, 2), vision_span(GRID, keep=mask), vision_span(GRID))
        return collate([Sample(np.zeros(total(spans), np.int32), spans, clips)], model.config.vision).vision_index[0]

    every, some = collated(None), collated(keep)
    tokens = np.concatenate([[0, 1], 2 + np.flatnonzero(keep), np.arange(8, 14)])
    np.testing.assert_array_equal(some[: len(tokens)], every[tokens])


@pytest.mark.parametrize("keep", [np.ones(5, bool), np.ones(6, np.int32), np.ones((1, 6), bool)])
def test_a_mask_of_another_shape_is_refused(make, keep):
    made = make()
    state = made.join(made.init_state())
    _, (result,) = made.step(state, [chunk(0)._replace(keep=keep)])
    assert isinstance(result, Refusal)
    assert str(result.error).startswith("keep of a chunk: got ") and "expected bool of shape (6,)" in str(result.error)


def test_a_chunk_may_lose_all_its_vision_tokens(make):
    made = make()
    state = made.join(made.init_state())
    for number in range(5):
        state, (reply,) = made.step(state, [chunk(number)._replace(keep=np.zeros(6, bool))])
        assert reply.tokens.size
    assert not any(span.grid for span in state.streams[0].spans)
