"""Claims about `Session.step` when something goes wrong for one stream: a chunk that is refused, a callback that raises."""

import re

import pytest

from svlm_jax.errors import InputError
from svlm_jax.stream import programs, sequence
from svlm_jax.stream.groups import gather
from svlm_jax.stream.results import Refusal, Reply, require_reply
from svlm_jax.stream.step import StageTimer
from svlm_jax.stream.stream_settings import StreamSettings
from tests.support.sessions import DRAWN, GREEDY, GRID, WINDOWS, Compiled, chunk, make, model, said, tokenizer, watch  # noqa: F401


def test_a_chunk_that_one_stream_is_refused_is_no_matter_of_the_others(make):
    """Else a viewer whose picture is too large ends the captions of everybody."""
    made = make(num_streams=2)
    state = made.join(made.join(made.init_state(), 0, StreamSettings(seed=1)), 1, StreamSettings(seed=2))
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
    state = made.join(made.join(made.init_state(), 0, StreamSettings(seed=0)), 1, StreamSettings(seed=1))
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
        single = alone.join(alone.init_state(), settings=StreamSettings(seed=row))
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


@pytest.mark.parametrize("mode", ["streaming", "recompute"])
def test_frames_are_sent_before_anything_is_decided(make, monkeypatch, mode):
    """Else the device waits for the host's part of every second."""
    made, order = make(mode=mode), []
    state = made.join(made.init_state())
    for module, name in ((programs, "encode_vision"), (sequence, "next_turn"), (programs, "prefill")):
        function = vars(module)[name]
        called = lambda *args, name=name, function=function, **rest: order.append(name) or function(*args, **rest)  # noqa: E731
        monkeypatch.setattr(module, name, called)
    for number in range(4):
        state, _ = made.step(state, [chunk(number)])
    assert order == ["encode_vision", "next_turn", "prefill"] * 4


def test_streams_whose_frames_were_sent_apart_are_stepped_apart(make):
    """A caller may prepare streams one by one, and step them together."""
    made = make(num_streams=2, sampling=DRAWN)
    both = [chunk(0, 0), chunk(0, 1)]
    state = made.join(made.join(made.init_state(), 0, StreamSettings(seed=1)), 1, StreamSettings(seed=2))
    timer, apart = StageTimer(), []
    for b, one in enumerate(both):
        encoded = made.encode(state, [one if b == other else None for other in range(2)], timer)
        apart.append(made.prepare(state, b, one, encoded[b]))
    assert apart[0].encoded is not apart[1].encoded
    said_apart = said(made.step(state, apart)[1])
    state = made.join(made.join(made.init_state(), 0, StreamSettings(seed=1)), 1, StreamSettings(seed=2))
    assert said_apart == said(made.step(state, both)[1])


def test_an_interrupt_in_a_callback_loses_no_stream_of_several_groups(make):
    """The page compiles larger batches while it runs: until then a step runs several groups."""
    made = make(num_streams=2)
    made.batch_sizes = (1,)
    state = made.join(made.join(made.init_state(), 0, StreamSettings(seed=1)), 1, StreamSettings(seed=2))
    came: list[int] = []

    def heard(row, token):
        came.append(row)
        if row == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.step(state, [chunk(0), chunk(0, 1)], on_token=heard)
    assert 0 in came  # the first stream had been decoded
    again = said(made.step(state, [chunk(0), chunk(0, 1)])[1])
    fresh = made.join(made.join(made.init_state(), 0, StreamSettings(seed=1)), 1, StreamSettings(seed=2))
    assert again == said(made.step(fresh, [chunk(0), chunk(0, 1)])[1])


@pytest.mark.parametrize("wait", [False, True])
def test_stages_add_up_to_the_step(make, monkeypatch, wait):
    """Else a benchmark counts what the device does beside the host twice."""
    made, clock = make(), iter(range(1000))
    monkeypatch.setattr("svlm_jax.stream.step.time.perf_counter", lambda: next(clock) / 1000)
    timer = StageTimer(wait)
    state = made.join(made.init_state())
    _, (reply,) = made.step(state, [chunk(0)], timer=timer)
    dispatch = {f"{stage} dispatch" for stage in ("vision", "prefill", "decode")}
    assert set(reply.ms) == dispatch | {"policy", "vision", "prefill", "decode", "text"}
    assert sum(reply.ms.values()) == pytest.approx(next(clock) - 1)


def test_tokens_come_one_by_one_and_are_the_reply_and_one_that_is_cancelled_ends_for_itself_alone(make):
    """Else who interrupts one reply changes another one's words, or has to wait for the end of what nobody hears."""
    made = make(num_streams=2, sampling=DRAWN)
    both = [chunk(0), chunk(0, 1)]
    join = lambda: made.join(made.join(made.init_state(), 0, StreamSettings(seed=1)), 1, StreamSettings(seed=2))  # noqa: E731
    came: dict[int, list[int]] = {0: [], 1: []}
    on_token = lambda row, token: came[row].append(token)  # noqa: E731
    _, replies = made.step(join(), both, on_token=on_token)
    whole = said(made.step(join(), both)[1])
    assert [came[0], came[1]] == said(replies) == whole and len(whole[0]) > 3
    came[0].clear(), came[1].clear()
    with Compiled() as compiled:
        cancelled = lambda row: row == 0 and len(came[0]) == 3  # noqa: E731
        state, replies = made.step(join(), both, on_token=on_token, cancelled=cancelled, recoverable=False)
        assert said(replies) == [whole[0][:3], whole[1]] == [came[0], came[1]]
        assert replies[0].finish == "cancelled" and {replies[1].finish} <= {"stop", "length"}
        end = made.turn_tokenizer.end_of_turn
        assert state.streams[0].ids[-4:].tolist() == [*whole[0][:3], end]  # what it has said it goes on from
        _, again = made.step(state, [chunk(1), chunk(1, 1)], cancelled=lambda row: False)
    assert compiled.count == 0 and all(len(reply.tokens) for reply in again)


@pytest.mark.parametrize("recoverable", [True, False])
def test_a_step_that_nothing_has_to_outlive_copies_no_cache(make, monkeypatch, recoverable):
    """Else a server of many streams moves gigabytes every second for an interrupt that ends it anyway."""
    made, copied = make(), []
    monkeypatch.setattr("svlm_jax.stream.session.gather", lambda *args: copied.append(1) or gather(*args))
    made.step(made.join(made.init_state()), [chunk(0)], on_token=lambda row, token: None, recoverable=recoverable)
    assert len(copied) == recoverable


def test_a_callback_that_fails_for_one_stream_hurts_nobody_else(make):
    """A pipe that is closed or a bug of a user's own must not end a stream of hours, nor cost another one its words."""
    made = make(num_streams=2, sampling=DRAWN)
    join = lambda: made.join(made.join(made.init_state(), 0, StreamSettings(seed=1)), 1, StreamSettings(seed=2))  # noqa: E731
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
