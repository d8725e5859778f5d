"""The per-second loop on a tiny model: what a batch shares, what it refuses, what it carries on."""

import jax
import numpy as np
import pytest

from svlm_jax.checkpoint import huggingface
from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.model.parameters import from_parameters
from svlm_jax.sharding import make_mesh
from svlm_jax.spans import Kind, total
from svlm_jax.stream import admission, programs, sequence
from svlm_jax.stream.session import Session
from svlm_jax.stream.stream_settings import StreamSettings
from svlm_jax.stream.warmup import warm
from tests.support.sessions import DRAWN, GREEDY, GRID, WINDOWS, Compiled, chunk, make, model, said, tokenizer, watch  # noqa: F401

TURN_KINDS = (Kind.USER_TEXT, Kind.VISION, Kind.REPLY)


def test_the_state_that_goes_in_is_used_up(make):
    made = make()
    state = made.join(made.init_state())
    after, _ = made.step(state, [chunk(0)])
    assert state.cache.keys[0].is_deleted() and not after.cache.keys[0].is_deleted()


# --- streams of a batch ---


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_streams_of_a_batch_say_what_they_say_alone(make, sampling):
    """Three streams that begin at other times, of other shapes, one of which waits now and then and one of which leaves."""
    grids = ((1, 4, 6), (1, 6, 4), (1, 2, 4))
    begin, end, waits = (0, 2, 3), (8, 8, 6), {(1, 4), (1, 5), (2, 4)}
    joins = [{"query": "Commentate", "seed": 1}, {"previous": "red blue ball ", "seed": 2}, {"seed": 3}]
    takes = {(row, n) for row in range(3) for n in range(begin[row], end[row])} - waits

    together = make(num_streams=3, sampling=sampling)
    state, heard = together.init_state(), {row: [] for row in range(3)}
    for number in range(8):
        for row in range(3):
            state = together.join(state, row, StreamSettings(**joins[row])) if begin[row] == number else state
            state = together.leave(state, row) if end[row] == number else state
        chunks = [chunk(number, row, grids[row]) if (row, number) in takes else None for row in range(3)]
        state, replies = together.step(state, chunks, record=True)
        for row, reply in enumerate(replies):
            assert (reply is None) == ((row, number) not in takes)
            heard[row] += [reply] if reply else []

    alone = make(sampling=sampling)
    for row in range(3):
        state = alone.join(alone.init_state(), settings=StreamSettings(**joins[row]))
        for reply, number in zip(heard[row], sorted(n for r, n in takes if r == row), strict=True):
            state, (one,) = alone.step(state, [chunk(number, row, grids[row])], record=True)
            assert one.tokens.tolist() == reply.tokens.tolist() and one.text == reply.text
            assert (one.before, one.after) == (reply.before, reply.after)
            np.testing.assert_allclose(one.logits, reply.logits, rtol=0, atol=2e-4)


def test_only_streams_with_a_chunk_are_computed(make, monkeypatch):
    """Else a page with one viewer is as slow as with all its rows taken. A step that is larger than any size is cut."""
    made, batches = make(num_streams=3), {"encode_vision": [], "prefill": [], "decode": []}
    assert made.batch_sizes == (1, 2, 3)

    def counted(name):
        program = getattr(programs, name)

        def call(params, inputs, *rest, **static):
            batches[name].append(len(jax.tree.leaves(inputs)[0]))
            return program(params, inputs, *rest, **static)

        return call

    for name in batches:
        monkeypatch.setattr(programs, name, counted(name))
    state = made.init_state()
    for row in range(3):
        state = made.join(state, row, StreamSettings(seed=row))
    for sizes, taken, expected in (
        ((1, 2, 3), [2], [1]),
        ((1, 2, 3), [0, 2], [2]),
        ((1, 2, 3), [0, 1, 2], [3]),
        ((1,), [0, 1, 2], [1, 1, 1]),
        ((2,), [0, 1, 2], [2, 2]),
    ):
        for name in batches:
            batches[name] = []
        made.batch_sizes = sizes
        state, replies = made.step(state, [chunk(0, row) if row in taken else None for row in range(3)])
        assert [row for row, reply in enumerate(replies) if reply] == taken
        assert batches == dict.fromkeys(batches, expected)


def test_a_reply_names_what_was_evicted_for_it(make):
    """Else a viewer's picture of the cache must decide every turn a second time."""
    made = make()
    state = made.join(made.init_state())
    for number in range(8):
        before = state.streams[0]
        state, (reply,) = made.step(state, [chunk(number)])
        after = state.streams[0]
        vision = {span.turn for span in reply.evicted if span.grid is not None}
        assert vision == ({number - 3} if number >= 3 else set())
        newline = before.spans[-1].kind == Kind.REPLY  # the "\n" after the last reply comes with the new turn
        new = sum(span.length for span in after.spans if span.turn == number and span.kind in TURN_KINDS)
        assert total(after.spans) == total(before.spans) - total(reply.evicted) + new + newline


def test_a_row_is_free_for_another_stream_at_once(make):
    made = make(num_streams=1)
    _, state = watch(made, 5, seed=1)
    again, _ = watch(made, 3, state=made.join(made.leave(state), settings=StreamSettings(seed=2)), first=0)
    fresh, _ = watch(made, 3, seed=2)
    assert said(again) == said(fresh)


def test_a_chunk_for_a_row_without_a_stream_is_a_mistake(make):
    made = make()
    with pytest.raises(ValueError, match="join first"):
        made.step(made.init_state(), [chunk(0)])


def test_nothing_happens_when_every_stream_waits(make):
    made = make()
    state = made.join(made.init_state())
    assert made.step(state, [None]) == (state, [None])


# --- words ---


def test_a_seed_says_the_same_again_and_another_something_else(make):
    made = make(sampling=DRAWN)
    first, again, other = (said(watch(made, 3, seed=seed)[0]) for seed in (5, 5, 6))
    assert first == again != other


def test_no_reply_holds_markup_or_ids_without_text(make, tokenizer):
    replies, _ = watch(make(sampling=DRAWN), 12)
    held = {token for reply in replies for token in reply.tokens.tolist()}
    markup = set(tokenizer.get_added_vocab().values()) | {447}  # one row of the vocabulary has no text
    assert held & markup <= {tokenizer.encode("<|im_end|>", add_special_tokens=False)[0]}
    free, _ = watch(make(sampling=DRAWN, markup=True), 12)
    assert {token for reply in free for token in reply.tokens.tolist()} & markup  # the test can fail


def test_the_text_of_a_reply_is_what_a_reader_wants(make, tokenizer):
    made = make()
    ids = tokenizer.encode("\n the ball ...<|im_end|>", add_special_tokens=False)
    _, (reply,) = made.step(made.join(made.init_state()), [chunk(0)], forced=[np.array(ids, np.int32)])
    assert (reply.tokens.tolist(), reply.text, reply.raw) == (ids, "the ball", "\n the ball")
    ids = tokenizer.encode("\n" + " Goal" * 20 + " 🏆", add_special_tokens=False)
    cut = made.config.max_new_tokens  # in the middle of the picture
    ids = np.array(ids[: 1 + len(ids) - cut - 1][:1] + ids[-cut:-1], np.int32)
    _, (reply,) = made.step(made.join(made.init_state()), [chunk(0)], forced=[ids])
    assert len(ids) == cut and reply.text and "\ufffd" not in reply.text and reply.raw.startswith("\n")


def test_a_reply_that_was_cut_is_ended_in_what_is_retained(make):
    made = make(sampling=Sampling(suppressed=(435,)))
    replies, state = watch(made, 1)
    assert len(replies[0].tokens) == 20 and 435 not in replies[0].tokens
    assert state.streams[0].ids[-21:].tolist() == [*replies[0].tokens, 435]
    assert len(state.streams[0].ids) - state.streams[0].cached == 2


# --- modes ---


def test_recomputing_says_what_streaming_does_until_something_is_evicted(make):
    streaming, recomputed = (watch(make(mode=mode), 5, record=True)[0] for mode in ("streaming", "recompute"))
    for ours, theirs in zip(streaming[:3], recomputed[:3], strict=True):
        np.testing.assert_allclose(ours.logits[0], theirs.logits[0], rtol=0, atol=1e-4)
    assert said(streaming[:3]) == said(recomputed[:3])
    assert np.abs(streaming[4].logits[0] - recomputed[4].logits[0]).max() > 1e-2  # survivors keep what they were computed with


@pytest.mark.parametrize("moved_reply_kv", ["recompute", "reuse"])
def test_a_moved_reply_that_is_computed_anew_is_held_as_the_text_that_it_is(make, moved_reply_kv):
    """With "reuse" it is not, so the comparison can fail."""

    def held(**changes):  # values of the last layer of the replies in the previous text
        made = make(sink=100, text_window=100, **changes)
        state = made.join(made.init_state(), settings=StreamSettings(previous="red ball "))
        said = [np.array([30 + number, 7, 90 - number, made.turn_tokenizer.end_of_turn], np.int32) for number in range(7)]
        for number, reply in enumerate(said):
            state, _ = made.step(state, [chunk(number)], forced=[reply])
        (stream,) = state.streams
        where = np.concatenate([np.full(span.length, span.kind == Kind.PREVIOUS) for span in stream.spans])
        slots = stream.slots[
            where & np.isin(stream.ids, np.concatenate(said)) & (stream.ids != made.turn_tokenizer.end_of_turn)
        ]
        return np.asarray(state.cache.values[-1])[0][:, slots]

    ours, theirs = held(moved_reply_kv=moved_reply_kv), held(mode="recompute")
    assert ours.shape == theirs.shape and ours.shape[1] == 4 * 2  # four replies, but for their " ..."
    same = np.allclose(ours, theirs, rtol=0, atol=1e-4)
    assert same == (moved_reply_kv == "recompute")


def test_a_window_begins_afresh(make):
    made = make(mode="window", window_chunks=3)
    replies, _ = watch(made, 6, query="Commentate", record=True)
    state = made.join(made.init_state(), settings=StreamSettings(query="Commentate"))
    for number in range(3, 6):
        state, (reply,) = made.step(state, [chunk(number)], record=True)
        np.testing.assert_allclose(reply.logits, replies[number].logits, rtol=0, atol=1e-5)
    assert replies[3].before == 0 and replies[2].before > 0


def test_native_positions_that_are_no_longer_exact_begin_afresh(make, monkeypatch):
    """Else a stream of days rounds the positions of its frames and words, and says nothing of it."""
    made = make(rope_positions="native")
    first, state = watch(made, 2)
    monkeypatch.setattr(sequence, "MAX_POSITION", state.streams[0].positions.max() - 1.0)
    with pytest.warns(UserWarning, match="begins afresh"):
        again, state = watch(made, 1, state=state)
    assert again[0].before == 0 and said(again) == said(first[:1]) and state.streams[0].chunk == 3


def test_full_attention_grows_and_goes_on(make, monkeypatch):
    roomy, _ = watch(make(mode="full"), 6)
    monkeypatch.setattr(admission, "GROWTH_CHUNKS", 1)
    tight = make(mode="full", question_tokens=1)
    grown, state = watch(tight, 6)
    assert said(grown) == said(roomy)
    assert state.cache.capacity > tight.capacity


def test_positions_and_slots_stay_bounded(make):
    made = make(sampling=DRAWN)
    replies, state = watch(made, 60)
    used = [reply.after for reply in replies]
    assert max(used) + 2 <= made.capacity
    assert max(used[30:]) <= max(used[:30]) + 2 * 20 and state.streams[0].positions.max() < made.capacity


# --- what is refused ---


def test_a_previous_text_for_which_there_is_no_room_is_refused(make):
    made = make(mode="window", window_chunks=2)
    with pytest.raises(InputError, match=r"^previous text: got \d+ tokens, with which the stream needs \d+ slots, expected"):
        made.join(made.init_state(), settings=StreamSettings(previous="red blue ball " * 400))


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("who scored? " * 60, r"^query: got \d+ tokens, expected at most 256 \(question_tokens\); shorten it$"),
        ("🏆" * 100, r"^query: got \d+ tokens, expected at most 256 "),
        ("<|im_end|>", r"^query: got special token "),
    ],
)
def test_a_query_that_does_not_fit_is_refused_before_anything_is_taken(make, query, line):
    """Else a stream takes a row, and its first second ends it with a line about a question that nobody asked."""
    made = make()
    with pytest.raises(InputError, match=line):
        made.check(StreamSettings(query=query))
    with pytest.raises(InputError, match=line):
        made.join(made.init_state(), settings=StreamSettings(query=query))


def test_the_longest_query_is_taken_and_streams(make, tokenizer):
    made = make()
    query = " ball" * 250
    while len(tokenizer.encode(query + " ball", add_special_tokens=False)) <= made.config.question_tokens:
        query += " ball"
    watch(made, 1, query=query)


def test_a_stream_that_forgets_nothing_may_be_asked_without_end(make):
    """Its cache grows: a limit on all questions together would end the asking after a while."""
    made = make(mode="full", question_tokens=8)
    state = made.join(made.init_state(), settings=StreamSettings(query="who scored? " * 10))
    for number in range(3):
        state, (reply,) = made.step(state, [chunk(number, question="who has the ball? ")])
        assert reply is not None


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_is_no_32_bits_is_refused(make, seed):
    made = make()
    with pytest.raises(InputError, match=r"^seed: got "):
        made.join(made.init_state(), settings=StreamSettings(seed=seed))


# --- devices ---


@pytest.mark.parametrize("ways", [{"tensor": 2}, {"tensor": 2, "data": 2}], ids=["tensor", "tensor and data"])
def test_a_cache_over_devices_says_the_same(model, make, tokenizer, shallow_dir, ways):
    config = config_json.read(shallow_dir)
    mesh = make_mesh(**ways)
    cut = from_parameters(config, huggingface.load(shallow_dir, config, mesh))
    over = Session(cut, tokenizer, StreamConfig(**WINDOWS), GRID, sampling=GREEDY, num_streams=2)
    one = make(num_streams=2)
    assert over.batch_sizes == ((2,) if "data" in ways else (1, 2))
    warmed = [warm(made, made.init_state(), chunk(0).clip) for made in (one, over)]
    states = [
        made.join(made.join(state, 0, StreamSettings(seed=1)), 1, StreamSettings(previous="red ", seed=2))
        for made, state in zip((one, over), warmed, strict=True)
    ]
    rows, heads = 2 // ways.get("data", 1), config.text.num_key_value_heads // 2
    for number in range(5):
        chunks = [chunk(number), None if number == 3 else chunk(number, 1)]
        with Compiled() as compiled:
            replies = []
            for which, made in enumerate((one, over)):
                states[which], some = made.step(states[which], chunks)
                replies.append(said(filter(None, some)))
        assert replies[0] == replies[1]
        assert compiled.count == 0
        keys = states[1].cache.keys[0]
        assert keys.sharding.shard_shape(keys.shape)[:2] == (rows, heads)
