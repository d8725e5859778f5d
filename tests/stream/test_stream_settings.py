"""Sampling settings and reply lengths of single streams: two clients of one batch may differ, and neither notices the other."""

import numpy as np
import pytest

from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.stream import batch, programs, state_io
from tests.support.sessions import DRAWN, GREEDY, Compiled, chunk, make, model, said, tokenizer  # noqa: F401

CHUNKS = 5  # one more than the windows: something is evicted
NUCLEUS = Sampling(0.8, top_k=40, top_p=0.7, repetition_penalty=1.3, suppressed=(10, 220))
SETTINGS = (
    {"sampling": DRAWN, "seed": 1},
    {"sampling": NUCLEUS, "max_new_tokens": 4, "seed": 2},
    {"sampling": Sampling(), "max_new_tokens": 7, "seed": 3},
)


@pytest.fixture(scope="module")
def session(make):
    """Three streams at a time, of any top_k."""
    return make(num_streams=3, sampling=GREEDY, max_top_k=0)


def joined(session, settings=SETTINGS):
    state = session.init_state()
    for row, join in enumerate(settings):
        state = session.join(state, row, query="Commentate", **join)
    return state


def continued(session, state, numbers, on_token=None):
    """Replies of every row [row][chunk], and the state after them."""
    replies = [[] for _ in state.streams]
    for number in numbers:
        state, stepped = session.step(state, [chunk(number, row) for row in range(len(replies))], on_token=on_token)
        for row, reply in enumerate(stepped):
            replies[row].append(reply)
    return [said(row) for row in replies], state


@pytest.fixture(scope="module")
def together(session):
    return continued(session, joined(session), range(CHUNKS))[0]


@pytest.mark.parametrize("row", range(3))
def test_streams_of_different_settings_say_what_each_says_in_a_session_of_its_own(make, together, row):
    """Else what one viewer chooses changes what another one hears."""
    join = SETTINGS[row]
    alone = make(sampling=join["sampling"])
    state = alone.join(alone.init_state(), query="Commentate", seed=join["seed"], max_new_tokens=join.get("max_new_tokens"))
    replies = []
    for number in range(CHUNKS):
        state, (reply,) = alone.step(state, [chunk(number, row)])
        replies.append(reply)
    assert said(replies) == together[row]


def test_settings_have_an_effect(session, together):
    same, _ = continued(session, joined(session, [{"seed": join["seed"]} for join in SETTINGS]), range(CHUNKS))
    assert all(ours != theirs for ours, theirs in zip(together, same, strict=True))
    assert max(map(len, together[1])) == 4 and max(map(len, together[2])) == 7 and max(map(len, together[0])) > 7
    assert not {10, 220} & {token for reply in together[1] for token in reply}


def test_a_short_reply_is_the_beginning_of_a_long_one(session, together):
    first, _ = continued(session, joined(session, [{**join, "max_new_tokens": None} for join in SETTINGS]), range(1))
    assert [reply[0][: len(short[0])] for reply, short in zip(first, together, strict=True)] == [row[0] for row in together]
    assert len(first[2][0]) > len(together[2][0])


def test_nothing_compiles_when_settings_differ(session, together):
    """Else a client that asks for another temperature stalls everybody for seconds."""
    other = Sampling(0.3, top_k=7, top_p=0.2, repetition_penalty=2.0, suppressed=(5,))
    settings = [{"sampling": other, "max_new_tokens": 2}, {}, {"sampling": Sampling(2.0, top_k=0), "max_new_tokens": 19}]
    with Compiled() as compiled:
        continued(session, joined(session, settings), range(2))
        continued(session, joined(session, [{"sampling": Sampling(suppressed=(7,))}] * 3), range(2))
    assert compiled.count == 0


def test_tokens_of_replies_of_different_lengths_come_one_by_one(session, together):
    streamed: list[list[int]] = [[], [], []]
    continued(session, joined(session), range(1), on_token=lambda row, token: streamed[row].append(token))
    assert streamed == [row[0] for row in together]


def test_saved_and_resumed_each_stream_keeps_its_settings(session, together, tmp_path):
    """Else a stream that is resumed speaks in another manner."""
    _, state = continued(session, joined(session), range(2))
    state_io.save(tmp_path / "a.state", session, state)
    loaded = state_io.load(tmp_path / "a.state", session)
    for row, join in enumerate(SETTINGS):
        stream = loaded.streams[row]
        expected = join.get("max_new_tokens", session.config.max_new_tokens)
        assert (stream.sampling, stream.max_new_tokens) == (join["sampling"], expected)
    assert continued(session, loaded, range(2, CHUNKS))[0] == [row[2:] for row in together]


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
    ],
)
def test_settings_that_no_program_is_compiled_for_are_refused_at_once(make, settings, line):
    """Else they stop every stream of the batch in the middle of a step."""
    session = make(sampling=Sampling(0.9))
    with pytest.raises(InputError, match=line) as error:
        session.join(session.init_state(), **settings)
    assert "\n" not in str(error.value)


def test_a_greedy_stream_may_leave_its_top_k_as_it_is(make):
    session = make(sampling=Sampling(0.9, top_k=20))
    session.join(session.init_state(), sampling=Sampling())


def test_rows_of_a_decode_loop_may_go_up_to_different_limits(session, together):
    """What accepts several drafted tokens at once needs it: rows of a batch then have different numbers of tokens."""
    state = joined(session)
    rows = [session.prepare(state, row, chunk(0, row)).scheduled for row in range(3)]
    frames, tower_rows = session.vision_input([[chunk(0, row).clip] for row in range(3)])
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
    rows = [session.prepare(joined(session, [{}, {}, {}]), 0, chunk(0)).scheduled, None, None]
    inputs = batch.decode_inputs(rows, [None] * 3, 20, session.suppressed, session.turn_tokenizer.end_of_turn)
    assert not inputs.sampling.temperature.any()
