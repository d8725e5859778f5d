"""Settings of single streams: two clients of one batch may differ, and neither notices the other."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.spans import Kind, Part
from svlm_jax.stream import batch, programs, sequence, state_io, state_settings
from svlm_jax.stream.alerts import AlertRule
from svlm_jax.stream.pacing import Pacing
from svlm_jax.stream.policy import allocate
from svlm_jax.stream.stream_settings import StreamSettings
from tests.support.sessions import DRAWN, GREEDY, WINDOWS, Compiled, chunk, make, model, said, tokenizer  # noqa: F401

CHUNKS = 5  # one more than the windows: something is evicted
NUCLEUS = Sampling(0.8, top_k=40, top_p=0.7, repetition_penalty=1.3, suppressed=(10, 220))
OURS = {**WINDOWS, "fps": 4}
NARROW = {**OURS, "vision_window": 2, "text_rounds": 1, "sink": 3, "text_window": 2, "fps": 2}
FORGETFUL = {**OURS, "mode": "window", "window_chunks": 2, "mrope_axes": 1}
CONFIGS = (OURS, NARROW, FORGETFUL)
SETTINGS = (
    {"sampling": DRAWN, "seed": 1},
    {"sampling": NUCLEUS, "max_new_tokens": 4, "seed": 2, "config": StreamConfig(**NARROW)},
    {"sampling": Sampling(), "max_new_tokens": 7, "seed": 3, "config": StreamConfig(**FORGETFUL)},
)
GRIDS = ((2, 4, 6), (1, 4, 6), (2, 4, 6))  # of the frames of a chunk: half as many at half the frame rate


def video(number, row):
    return chunk(number, row, GRIDS[row])


@pytest.fixture(scope="module")
def session(make):
    """Three streams at a time, of any top_k."""
    return make(num_streams=3, sampling=GREEDY, max_top_k=0, grid=GRIDS[0], fps=4)


def joined(session, settings=SETTINGS):
    state = session.init_state()
    for row, own in enumerate(settings):
        state = session.join(state, row, StreamSettings(query="Commentate", **own))
    return state


def continued(session, state, numbers, on_token=None):
    """Replies of every row [row][chunk], and the state after them."""
    replies = [[] for _ in state.streams]
    for number in numbers:
        state, stepped = session.step(state, [video(number, row) for row in range(len(replies))], on_token=on_token)
        for row, reply in enumerate(stepped):
            replies[row].append(reply)
    return [said(row) for row in replies], state


@pytest.fixture(scope="module")
def together(session):
    return continued(session, joined(session), range(CHUNKS))[0]


@pytest.mark.parametrize("row", range(3))
def test_streams_of_different_settings_say_what_each_says_in_a_session_of_its_own(make, together, row):
    """Else what one viewer chooses changes what another one hears."""
    own = {name: value for name, value in SETTINGS[row].items() if name != "config"}
    alone = make(sampling=own["sampling"], grid=GRIDS[row], **CONFIGS[row])
    state = alone.join(alone.init_state(), settings=StreamSettings(query="Commentate", **own))
    replies = []
    for number in range(CHUNKS):
        state, (reply,) = alone.step(state, [video(number, row)])
        replies.append(reply)
    assert said(replies) == together[row]


def test_settings_have_an_effect(session, together):
    same, _ = continued(session, joined(session, [{"seed": own["seed"]} for own in SETTINGS]), range(CHUNKS))
    assert all(ours != theirs for ours, theirs in zip(together, same, strict=True))
    assert max(map(len, together[1])) == 4 and max(map(len, together[2])) == 7 and max(map(len, together[0])) > 7
    assert not {10, 220} & {token for reply in together[1] for token in reply}


def test_a_short_reply_is_the_beginning_of_a_long_one(session, together):
    first, _ = continued(session, joined(session, [{**own, "max_new_tokens": None} for own in SETTINGS]), range(1))
    assert [reply[0][: len(short[0])] for reply, short in zip(first, together, strict=True)] == [row[0] for row in together]
    assert len(first[2][0]) > len(together[2][0])


def test_nothing_compiles_when_settings_differ(session, together):
    """Else a client that asks for another temperature stalls everybody for seconds."""
    other = Sampling(0.3, top_k=7, top_p=0.2, repetition_penalty=2.0, suppressed=(5,))
    settings = [{"sampling": other, "max_new_tokens": 2}, {}, {"sampling": Sampling(2.0, top_k=0), "max_new_tokens": 19}]
    settings[1] = {"config": StreamConfig(**{**NARROW, "fps": 4, "rope_positions": "native"})}
    with Compiled() as compiled:
        continued(session, joined(session, settings), range(2))
        continued(session, joined(session, [{"sampling": Sampling(suppressed=(7,))}] * 3), range(2))
    assert compiled.count == 0


def test_tokens_of_replies_of_different_lengths_come_one_by_one(session, together):
    streamed: list[list[int]] = [[], [], []]
    continued(session, joined(session), range(1), on_token=lambda row, token: streamed[row].append(token))
    assert streamed == [row[0] for row in together]


def test_saved_and_resumed_each_stream_keeps_its_settings(session, together, tmp_path):
    """Else a stream that is resumed speaks in another manner, and forgets at another time."""
    settings = [SETTINGS[0], {**SETTINGS[1], "pacing": Pacing(min_gap=0.5)}, SETTINGS[2]]
    _, state = continued(session, joined(session, settings), range(2))
    state_io.save(tmp_path / "a.state", session, state)
    loaded = state_io.load(tmp_path / "a.state", session)
    for before, after in zip(state.streams, loaded.streams, strict=True):
        assert (after.settings, after.config, after.sampling) == (before.settings, before.config, before.sampling)
    assert loaded.streams[1].settings.pacing.min_gap == 0.5
    assert continued(session, loaded, range(2, CHUNKS))[0] == [row[2:] for row in together]


def test_all_settings_come_back_from_a_file_but_the_previous_text_which_has_become_tokens():
    rule = AlertRule("Is it over?", yes=("Yes", "Over"), threshold=0.4, schema={"type": "object"}, confirm=2)
    settings = StreamSettings(
        query="Who?", seed=7, config=StreamConfig(**NARROW), sampling=NUCLEUS, max_new_tokens=3, alert=rule
    )
    saved = json.loads(json.dumps(state_settings.to_json(replace(settings, previous="Red leads."))))
    assert state_settings.from_json(saved) == settings


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"sampling": Sampling(1.0, top_k=51)},
            r"^top_k of a stream: got 51, expected 1 to 50 \(max_top_k of the session\); choose a smaller one, or ",
        ),
        ({"sampling": Sampling(1.0, top_k=0)}, r"^top_k of a stream: got 0 \(the whole vocabulary\), expected 1 to 50 "),
        ({"max_new_tokens": 21}, r"^max_new_tokens of a stream: got 21, expected 1 to 20 \(max_new_tokens of the session\); "),
        ({"max_new_tokens": 0}, r"^max_new_tokens of a stream: got 0, expected 1 to 20 "),
        (
            {"sampling": Sampling(suppressed=(10**6,))},
            r"^suppressed ids of a stream: got 1000000, expected ids from 0 to 447",
        ),
        (
            {"config": StreamConfig(vision_window=200)},
            r"^config of a stream: got windows that need \d+ slots \(vision_window 200, .*, expected at most \d+ slots",
        ),
        ({"config": StreamConfig(mode="full")}, r"^mode of a stream: got full, without a bound, expected one with a bound"),
        ({"config": StreamConfig(mode="recompute")}, r"^mode of a stream: got recompute, expected streaming, as of the "),
        ({"config": StreamConfig(fps=4)}, r"^fps of a stream: got 4 frames a chunk, expected at most 2, as of the session"),
        ({"config": StreamConfig(first_chunk_seconds=2)}, r"^first_chunk_seconds of a stream: got 4 frames a chunk, expected "),
        ({"config": StreamConfig(max_new_tokens=30)}, r"^max_new_tokens of a stream: got 30, expected 1 to 20 "),
    ],
)
def test_settings_that_no_program_is_compiled_for_are_refused_at_once(make, settings, line):
    """Else they stop every stream of the batch in the middle of a step."""
    session = make(sampling=Sampling(0.9))
    with pytest.raises(InputError, match=line) as error:
        session.join(session.init_state(), settings=StreamSettings(**settings))
    assert "\n" not in str(error.value)


def test_a_greedy_stream_may_leave_its_top_k_as_it_is(make):
    session = make(sampling=Sampling(0.9, top_k=20))
    session.join(session.init_state(), settings=StreamSettings(sampling=Sampling()))


def test_rows_of_a_decode_loop_may_go_up_to_different_limits(session, together):
    """What accepts several drafted tokens at once needs it: rows of a batch then have different numbers of tokens."""
    state = joined(session)
    rows = [session.prepare(state, row, video(0, row)).scheduled for row in range(3)]
    frames, tower_rows = session.vision_input([[video(0, row).clip] for row in range(3)])
    pieces, slots, inputs = session.program_inputs(rows, None, session.capacity, tower_rows)
    features = programs.encode_vision(session.vision_params, frames, config=session.model_config)
    hidden, cache = np.zeros((3, session.model_config.text.hidden_size), np.float32), state.cache
    for piece in pieces:
        cache = cache._replace(**slots)
        hidden, cache = programs.prefill(session.text_params, piece, features, hidden, cache, config=session.model_config)
    decoded = programs.decode(
        session.text_params, inputs, hidden, cache, np.array([2, 3, 1]), **session.static_args, record=False
    )
    counts = []
    for limit in ([2, 9, 1], [5, 9, 4], [20, 20, 20]):
        counts.append(np.asarray(decoded.count).tolist())
        decoded = programs.resume_decode(session.text_params, inputs, decoded, np.array(limit), **session.static_args)
    assert counts == [[2, 3, 1], [2, 4, 1], [5, 4, 4]] and np.asarray(decoded.done).all()
    tokens = [row[:count].tolist() for row, count in zip(np.asarray(decoded.tokens), np.asarray(decoded.count), strict=True)]
    assert tokens == [row[0] for row in together]


def test_a_row_without_a_stream_does_not_make_a_greedy_batch_draw(session):
    rows = [session.prepare(joined(session, [{}, {}, {}]), 0, video(0, 0)).scheduled, None, None]
    inputs = batch.decode_inputs(rows, [None] * 3, 20, session.suppressed, session.turn_tokenizer.end_of_turn)
    assert not inputs.sampling.temperature.any()


# --- while it plays ---


def played(session, seq, numbers, settings=None):
    """What a stream retains after some chunks, the host's part of it: every reply is of four tokens."""
    for number in numbers:
        seq, _ = sequence.next_turn(seq, chunk(number), session.turn_tokenizer)
        slots, reply_slots = allocate(seq.slots, seq.config.max_new_tokens, session.capacity)
        seq = seq._replace(slots=slots)
        seq = sequence.with_reply(seq, np.array([5, 6, 7, 8], np.int32), reply_slots, session.turn_tokenizer)
    return seq


def turns(seq):
    """Turns whose frames are retained, and those whose replies are."""
    frames = {span.turn for span in seq.spans if span.kind == Kind.VISION}
    return sorted(frames), sorted({span.turn for span in seq.spans if span.kind == Kind.REPLY and span.part == Part.BODY})


@pytest.mark.parametrize("rope_positions", ["contiguous", "native"])
def test_windows_that_change_while_a_stream_plays_hold_from_the_next_chunk_on(make, rope_positions):
    """Else a slider of the page has an effect after minutes, or none."""
    session = make(vision_window=6, text_rounds=6, rope_positions=rope_positions)
    windows = lambda vision, rounds, **others: StreamSettings(  # noqa: E731
        config=StreamConfig(**{**asdict(session.config), "vision_window": vision, "text_rounds": rounds, **others})
    )
    seq = played(session, session.admission.new_stream(windows(3, 2)), range(5))
    assert turns(seq) == ([2, 3, 4], [3, 4])
    seq = played(session, session.admission.changed(seq, windows(6, 4)), range(5, 6))
    assert turns(seq) == ([2, 3, 4, 5], [3, 4, 5])  # what is gone does not come back
    seq = played(session, seq, range(6, 10))
    assert turns(seq) == ([4, 5, 6, 7, 8, 9], [6, 7, 8, 9])
    seq = played(session, session.admission.changed(seq, windows(1, 2, text_window=4)), range(10, 11))
    assert turns(seq) == ([10], [9, 10])  # at once, not one chunk after the other
    previous = sum(span.length for span in seq.spans if span.kind == Kind.PREVIOUS and span.part != Part.HEAD)
    assert previous == session.config.sink + 4 + 1
    other = session.admission.changed(seq, StreamSettings(sampling=NUCLEUS, max_new_tokens=3, pacing=Pacing(4.0)))
    assert other.sampling == NUCLEUS and other.config.max_new_tokens == 3 and other.settings.pacing.min_gap == 4.0
    assert other.ids is seq.ids


def test_windows_that_change_again_and_again_never_need_more_than_the_session_has(make):
    """Else a stream ends because somebody played with a slider."""
    session, rng = make(vision_window=6, text_rounds=6), np.random.default_rng(0)
    frames, replies = set[int](), set[int]()
    seq = session.admission.new_stream(StreamSettings())
    for number in range(120):
        if rng.random() < 0.4:
            vision, rounds, sink, text_window = (int(rng.integers(low, 7)) for low in (1, 1, 0, 1))
            own = StreamConfig(vision_window=vision, text_rounds=rounds, sink=sink, text_window=text_window)
            seq = session.admission.changed(seq, StreamSettings(config=own))
        vision, rounds = seq.config.vision_window, seq.config.text_rounds
        seq = played(session, seq, range(number, number + 1))  # allocates, or raises
        frames = {turn for turn in frames | {number} if number - turn < vision}
        replies = {turn for turn in replies if number - turn < rounds} | {number}
        assert turns(seq) == (sorted(frames), sorted(replies))
        previous = sum(span.length for span in seq.spans if span.kind == Kind.PREVIOUS and span.part != Part.HEAD)
        assert previous <= seq.config.sink + seq.config.text_window + 1


def test_another_query_stands_in_the_first_turn_of_the_next_window(make, tokenizer):
    session = make(mode="window", window_chunks=2)
    seq = played(session, session.admission.new_stream(StreamSettings(query="red")), range(1))
    seq = session.admission.changed(seq, StreamSettings(query="blue goal"))
    assert "blue goal" not in tokenizer.decode(played(session, seq, range(1, 2)).ids.tolist())
    assert "blue goal" in tokenizer.decode(played(session, seq, range(1, 3)).ids.tolist())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"config": StreamConfig(**{**WINDOWS, "mode": "window"})},
            r"^mode of a stream: got window, expected streaming,",
        ),
        ({"config": StreamConfig(**WINDOWS, chunk_seconds=2, fps=1)}, r"^fps of a stream: got 1, expected 2.0, while it plays"),
        ({"previous": "red ball "}, r"^previous text: got another, expected none, while a stream plays; start another stream"),
        ({"sampling": Sampling(silence_threshold=0.5)}, r"^silence_threshold of a stream: got 0.5, expected none in this"),
        ({"query": "<|im_end|>"}, r"^query: got special token <\|im_end\|>"),
    ],
)
def test_what_cannot_change_while_a_stream_plays_is_one_line_and_the_stream_goes_on(make, settings, line):
    session = make(sampling=Sampling(0.9))
    state = session.join(session.init_state())
    with pytest.raises(InputError, match=line) as error:
        session.change(state, 0, StreamSettings(**settings))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert session.change(state, 0, StreamSettings(previous="")).streams[0] == state.streams[0]
