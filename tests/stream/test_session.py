"""The per-second loop on a tiny model: what a batch shares, what it refuses, what it carries on."""

import re

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
from svlm_jax.stream import programs, sequence, session
from svlm_jax.stream.results import Refusal, Reply, require_reply
from svlm_jax.stream.session import Session
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
            state = together.join(state, row, **joins[row]) if begin[row] == number else state
            state = together.leave(state, row) if end[row] == number else state
        chunks = [chunk(number, row, grids[row]) if (row, number) in takes else None for row in range(3)]
        state, replies = together.step(state, chunks, record=True)
        for row, reply in enumerate(replies):
            assert (reply is None) == ((row, number) not in takes)
            heard[row] += [reply] if reply else []

    alone = make(sampling=sampling)
    for row in range(3):
        state = alone.join(alone.init_state(), **joins[row])
        for reply, number in zip(heard[row], sorted(n for r, n in takes if r == row), strict=True):
            state, (one,) = alone.step(state, [chunk(number, row, grids[row])], record=True)
            assert one.tokens.tolist() == reply.tokens.tolist() and one.text == reply.text
            assert (one.before, one.after) == (reply.before, reply.after)
            np.testing.assert_allclose(one.logits, reply.logits, rtol=0, atol=2e-4)


def test_only_streams_with_a_chunk_are_computed(make, monkeypatch):
    """Else a page with one viewer is as slow as with all its rows taken. A step that is larger than any size is cut."""
    made, batches, see = make(num_streams=3), [], programs.encode_vision
    assert made.batch_sizes == (1, 2, 3)

    def counted(values, frames, **rest):
        batches.append(len(frames.patches))
        return see(values, frames, **rest)

    monkeypatch.setattr(programs, "encode_vision", counted)
    state = made.init_state()
    for row in range(3):
        state = made.join(state, row, seed=row)
    for sizes, taken, expected in (
        ((1, 2, 3), [2], [1]),
        ((1, 2, 3), [0, 2], [2]),
        ((1, 2, 3), [0, 1, 2], [3]),
        ((1,), [0, 1, 2], [1, 1, 1]),
        ((2,), [0, 1, 2], [2, 2]),
    ):
        batches.clear()
        made.batch_sizes = sizes
        state, replies = made.step(state, [chunk(len(batches), row) if row in taken else None for row in range(3)])
        assert [row for row, reply in enumerate(replies) if reply] == taken
        assert batches == expected


def test_a_chunk_that_one_stream_is_refused_is_no_matter_of_the_others(make):
    """Else a viewer whose picture is too large ends the captions of everybody."""
    made = make(num_streams=2)
    state = made.join(made.join(made.init_state(), 0, seed=1), 1, seed=2)
    good = made.prepare(state, 0, chunk(0))
    with pytest.raises(InputError, match=r"^frames of a chunk: "):
        made.prepare(state, 1, chunk(0, grid=(1, 6, 6)))
    after, (reply, none) = made.step(state, [good, None])
    assert isinstance(reply, Reply) and none is None
    with pytest.raises(ValueError, match="another second of it"):
        made.step(after, [good, None])


def test_a_step_refuses_one_stream_and_the_others_go_on(make):
    """Else whoever drives a batch must ask for every stream first, or lose the second of all of them."""
    made, alone = make(num_streams=2, sampling=DRAWN), make(sampling=DRAWN)
    state = made.join(made.join(made.init_state(), 0, seed=0), 1, seed=1)
    replies: dict[int, list] = {0: [], 1: []}
    bad = {0: chunk(0, 0, grid=(1, 6, 6)), 1: chunk(1, 1, question="<|im_end|>")}
    for number in range(5):
        chunks = [chunk(number, row) for row in range(2)]
        if number in bad:
            chunks[number] = bad[number]
        before = state.streams
        state, results = made.step(state, chunks)
        for row, result in enumerate(results):
            if row == number and number in bad:
                assert isinstance(result, Refusal) and isinstance(result.error, InputError)
                assert state.streams[row] is before[row]
            else:
                replies[row].append(require_reply(result))
    for row in range(2):
        numbers = [number for number in range(5) if not (row == number and number in bad)]
        single = alone.join(alone.init_state(), seed=row)
        for number, reply in zip(numbers, replies[row], strict=True):
            single, (expected,) = alone.step(single, [chunk(number, row)])
            assert reply.tokens.tolist() == require_reply(expected).tokens.tolist()


def test_a_step_that_refuses_every_stream_leaves_the_state(make):
    made = make()
    state = made.join(made.init_state())
    after, (result,) = made.step(state, [chunk(0, grid=(1, 6, 6))])
    assert isinstance(result, Refusal) and after is state and not state.cache.keys[0].is_deleted()


def test_what_was_prepared_is_not_decided_again(make, monkeypatch):
    """Else the host's part of every second is paid twice."""
    made, calls, next_turn = make(), [], sequence.next_turn
    state = made.join(made.init_state())
    monkeypatch.setattr(sequence, "next_turn", lambda *args: calls.append(1) or next_turn(*args))
    made.step(state, [made.prepare(state, 0, chunk(0))])
    assert len(calls) == 1


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
    again, _ = watch(made, 3, state=made.join(made.leave(state), seed=2), first=0)
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


def test_tokens_come_one_by_one_and_are_the_reply(make):
    made = make(num_streams=2, sampling=DRAWN)
    state = made.join(made.join(made.init_state(), 0, seed=1), 1, seed=2)
    came: dict[int, list[int]] = {0: [], 1: []}
    state, replies = made.step(state, [chunk(0), chunk(0)], on_token=lambda row, token: came[row].append(token))
    whole = made.step(made.join(made.join(made.init_state(), 0, seed=1), 1, seed=2), [chunk(0), chunk(0)])[1]
    assert [came[0], came[1]] == said(replies) == said(whole)


def test_a_callback_that_fails_for_one_stream_hurts_nobody_else(make):
    """A pipe that is closed or a bug of a user's own must not end a stream of hours, nor cost another one its words."""
    made = make(num_streams=2, sampling=DRAWN)
    join = lambda: made.join(made.join(made.init_state(), 0, seed=1), 1, seed=2)  # noqa: E731
    silent, streamed = join(), join()
    tokens: dict[int, list[int]] = {0: [], 1: []}

    def on_token(row, token):
        tokens[row].append(token)
        if row == 0 and len(tokens[0]) == 2:
            raise BrokenPipeError

    failed = 0
    for number in range(5):
        silent, expected = made.step(silent, [chunk(number), chunk(number, 1)])
        tokens[0].clear(), tokens[1].clear()
        streamed, replies = made.step(streamed, [chunk(number), chunk(number, 1)], on_token=on_token)
        assert said(replies) == said(expected) and tokens[1] == replies[1].tokens.tolist()
        assert replies[1].callback_error is None
        if len(replies[0].tokens) > 1:
            failed += 1
            assert isinstance(replies[0].callback_error, BrokenPipeError) and len(tokens[0]) == 2
            with pytest.raises(BrokenPipeError):
                require_reply(replies[0])
    assert failed


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("when", [1, 4])
def test_an_interrupt_in_a_callback_loses_no_stream(make, rows, when):
    """Ctrl-C while words appear must leave a state that can be saved."""
    made = make(num_streams=rows)
    expected, _ = watch(make(), 5)
    came: list[int] = []

    def heard(row, token):
        came.append(token)
        if len(came) == when:
            raise KeyboardInterrupt

    state = made.join(made.init_state())
    waits = [None] * (rows - 1)
    replies = []
    for number in range(5):
        if number in (0, 3, 4):  # nothing is evicted, then a slot is used again
            came.clear()
            with pytest.raises(KeyboardInterrupt):
                made.step(state, [chunk(number), *waits], on_token=heard)
            assert came == expected[number].tokens[:when].tolist()
        state, (reply, *_) = made.step(state, [chunk(number), *waits])
        replies.append(reply)
    assert said(replies) == said(expected)


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
        state = made.join(made.init_state(), previous="red ball ")
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
    state = made.join(made.init_state(), query="Commentate")
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
    monkeypatch.setattr(session, "GROWTH_CHUNKS", 1)
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


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (chunk(2, grid=(1, 6, 6)), r"^frames of a chunk: got 1 x 6x6 patches, expected at most 24, 24 in a frame; "),
        (chunk(2, question="who scored? " * 60), r"^question: got \d+ tokens of questions retained, expected at most 256 "),
        (chunk(2, question="<|im_end|>"), r"^question: got special token "),
    ],
)
def test_a_chunk_that_is_refused_loses_nothing(make, wrong, line):
    made = make()
    expected, _ = watch(made, 4)
    replies, state = watch(made, 2)
    state, (result,) = made.step(state, [wrong])
    assert isinstance(result, Refusal) and re.search(line, str(result.error))
    more, _ = watch(made, 2, state=state, first=2)
    assert said(replies + more) == said(expected)


def test_a_previous_text_for_which_there_is_no_room_is_refused(make):
    made = make(mode="window", window_chunks=2)
    with pytest.raises(InputError, match=r"^previous text: got \d+ tokens, with which the stream needs \d+ slots, expected"):
        made.join(made.init_state(), previous="red blue ball " * 400)


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
        made.check_query(query)
    with pytest.raises(InputError, match=line):
        made.join(made.init_state(), query=query)


def test_the_longest_query_is_taken_and_streams(make, tokenizer):
    made = make()
    query = " ball" * 250
    while len(tokenizer.encode(query + " ball", add_special_tokens=False)) <= made.config.question_tokens:
        query += " ball"
    watch(made, 1, query=query)


def test_a_stream_that_forgets_nothing_may_be_asked_without_end(make):
    """Its cache grows: a limit on all questions together would end the asking after a while."""
    made = make(mode="full", question_tokens=8)
    state = made.join(made.init_state(), query="who scored? " * 10)
    for number in range(3):
        state, (reply,) = made.step(state, [chunk(number, question="who has the ball? ")])
        assert reply is not None


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_is_no_32_bits_is_refused(make, seed):
    made = make()
    with pytest.raises(InputError, match=r"^seed: got "):
        made.join(made.init_state(), seed=seed)


# --- devices ---


@pytest.mark.parametrize("ways", [{"tensor": 2}, {"tensor": 2, "data": 2}], ids=["tensor", "tensor and data"])
def test_a_cache_over_devices_says_the_same(model, make, tokenizer, tiny_dir, ways):
    config = config_json.read(tiny_dir)
    mesh = make_mesh(**ways)
    cut = from_parameters(config, huggingface.load(tiny_dir, config, mesh))
    over = Session(cut, tokenizer, StreamConfig(**WINDOWS), GRID, sampling=GREEDY, num_streams=2)
    one = make(num_streams=2)
    assert over.batch_sizes == ((2,) if "data" in ways else (1, 2))
    warmed = [warm(made, made.init_state(), chunk(0).clip) for made in (one, over)]
    states = [
        made.join(made.join(state, 0, seed=1), 1, previous="red ", seed=2)
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
