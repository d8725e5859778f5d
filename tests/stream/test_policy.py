"""What a stream retains, in which slots, and what its tokens see: the host side of the engine against the oracle of
tests/support/oracle.py, which was written independently (lists of tokens, nothing moved, what each token saw)."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError
from svlm_jax.families import chat
from svlm_jax.families.chat import reply_turn
from svlm_jax.inputs import Clip
from svlm_jax.spans import Kind, Part, Span, merged_tokens, total, truncate
from svlm_jax.stream import batch, policy, sequence
from svlm_jax.stream.sequence import Chunk
from tests.support.engine import GRIDS, LONGEST, WORDS, Engine, compare, turns

CONFIGS = st.builds(
    lambda cut, **rest: StreamConfig(sink=cut[0], text_window=cut[1], max_new_tokens=LONGEST, question_tokens=200, **rest),
    cut=st.one_of(st.just((None, None)), st.tuples(st.integers(0, 12), st.integers(1, 12))),
    mode=st.sampled_from(["streaming", "streaming", "streaming", "full", "window", "recompute"]),
    vision_window=st.integers(1, 6),
    text_rounds=st.integers(1, 6),
    rope_positions=st.sampled_from(["contiguous", "native"]),
    mrope_axes=st.sampled_from([1, 3]),
    window_chunks=st.integers(1, 7),
).filter(lambda config: config.rope_positions == "contiguous" or config.text_rounds > 1)
# (append with one round: where a new turn goes on after an evicted reply is said nowhere, and the two differ)


def check_random(data, config: StreamConfig, previous: list[str], query: str, chunks: int, size: int) -> None:
    def draw(number: int):
        grid = data.draw(st.sampled_from(GRIDS))
        return (
            grid,
            data.draw(st.sampled_from([2.0, 1.0, 0.5])),
            data.draw(st.lists(st.integers(0, 400), max_size=LONGEST - 1)),
            data.draw(st.booleans()),
            data.draw(st.sampled_from(["", "", "", "who scored?"])),
            data.draw(
                st.one_of(st.none(), st.lists(st.booleans(), min_size=merged_tokens(grid), max_size=merged_tokens(grid)))
            ),
        )

    compare(config, "".join(previous), query, draw, chunks, size)


random_streams = given(
    data=st.data(),
    config=CONFIGS,
    previous=st.lists(st.sampled_from(WORDS), max_size=8),
    query=st.sampled_from(["", "Commentate on this match"]),
    chunks=st.integers(1, 14),
    size=st.sampled_from([16, 32, 256]),
)
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@settings(max_examples=40, deadline=None, suppress_health_check=QUIET)
@random_streams
def test_any_stream_retains_and_sees_what_the_oracle_does(data, config, previous, query, chunks, size):
    check_random(data, config, previous, query, chunks, size)


@pytest.mark.slow
@settings(max_examples=600, deadline=None, suppress_health_check=QUIET)
@random_streams
def test_many_more_streams_do(data, config, previous, query, chunks, size):
    check_random(data, config, previous, query, chunks, size)


def regular(seed: int, drop: bool = False):
    rng = np.random.default_rng(seed)

    def draw(number: int):
        words = rng.integers(0, 400, rng.integers(0, LONGEST)).tolist()
        keep = (rng.random(merged_tokens(GRIDS[2])) < 0.6).tolist() if drop else None
        return GRIDS[2 if drop else 1], 1.0, words, bool(rng.integers(2)), "", keep

    return draw


EVEN = [pytest.param(*both, marks=pytest.mark.slow) for both in ((3, 3), (1, 1))]  # the random streams have them, only shorter


@pytest.mark.parametrize(("vision", "rounds"), [(2, 5), (5, 2), *EVEN])
def test_hundreds_of_chunks_do_too_in_a_bounded_number_of_spans(vision, rounds):
    config = StreamConfig(vision_window=vision, text_rounds=rounds, sink=5, text_window=5, max_new_tokens=LONGEST)
    most = compare(config, "red blue ball ", "Commentate", regular(vision), chunks=200, size=64)
    assert most <= 4 + 8 * (max(vision, rounds) + 1)


@pytest.mark.parametrize("rope_positions", ["contiguous", "native"])
def test_hundreds_of_chunks_that_lose_vision_tokens_do_too(rope_positions):
    """Masks that differ from chunk to chunk, on grids of two frames, through every kind of eviction."""
    config = StreamConfig(
        vision_window=2, text_rounds=4, sink=5, text_window=5, max_new_tokens=LONGEST, rope_positions=rope_positions
    )
    most = compare(config, "red blue ball ", "Commentate", regular(7, drop=True), chunks=200, size=64)
    assert most <= 4 + 8 * 5


def test_fractional_steps_that_no_float_holds_are_counted_as_the_oracle_counts():
    config = StreamConfig(vision_window=2, text_rounds=2, sink=4, text_window=4, max_new_tokens=LONGEST)
    step = 4 / 3

    def draw(number: int):
        return (2, 4, 2), step, [5, 6], True, "", None

    compare(config, "", "", draw, chunks=8, size=64)


# --- slots ---


def test_a_cache_that_is_too_small_is_one_line():
    slots = np.array([0, 1, -1, -1], np.int32)
    with pytest.raises(InputError, match=r"^slots: got 4 tokens and a reply of 3, expected at most 6 \(the capacity\); "):
        policy.allocate(slots, 3, 6)
    filled, ahead = policy.allocate(slots, 2, 6)
    assert filled.tolist() == [0, 1, 2, 3] and ahead.tolist() == [4, 5]


def test_the_lowest_free_slots_are_given_first():
    filled, ahead = policy.allocate(np.array([3, 0, -1], np.int32), 2, 10)
    assert filled.tolist() == [3, 0, 1] and ahead.tolist() == [2, 4]


@settings(max_examples=40, deadline=None, suppress_health_check=QUIET)
@given(config=CONFIGS.filter(lambda config: config.bounded), previous=st.integers(0, 40))
def test_the_capacity_holds_the_longest_replies_and_all_questions_that_are_let_in(config, previous):
    engine = Engine(config, "goal " * previous, "Commentate")
    clip = Clip(np.zeros((24, 1176), np.float32), (1, 4, 6), 1.0, video=True)
    refused = 0
    for number in range(20):
        chunk = Chunk(9_999_000 + number, 9_999_001 + number, clip, "who scored the last goal of this match? " * 3)
        before = engine.state
        try:
            turn, _ = sequence.next_turn(before, chunk, turns())
        except InputError as error:
            assert str(error).startswith("question: got ") and "\n" not in str(error)
            assert engine.state is before
            refused += 1
            turn, _ = sequence.next_turn(before, chunk._replace(question=""), turns())
        row = batch.ScheduledSequence(turn, *policy.allocate(turn.slots, LONGEST, engine.capacity))  # never refuses
        state = turn._replace(slots=row.slots)
        engine.state = sequence.with_reply(state, np.arange(LONGEST, dtype=np.int32), row.reply_slots, turns())
    assert refused or config.mode != "full"


def test_rows_of_a_batch_are_described_apart():
    config = StreamConfig(vision_window=2, text_rounds=2, sink=4, text_window=4, max_new_tokens=LONGEST)
    rows: list[batch.ScheduledSequence | None] = []
    for number, words in enumerate(["red ", "", "blue ball goal "]):
        engine = Engine(config, words, "")
        clip = Clip(np.ones((24, 1176), np.float32), GRIDS[3], 1.0, video=True)
        engine.turn(Chunk(0, 1, clip), _serials(engine, clip), 64)
        rows.append(None if number == 1 else engine.scheduled)
    capacity = 400
    index, positions = batch.slot_metadata(rows, capacity)
    clips = [[clip for _, clip in row.seq.clips] if row else [] for row in rows]
    frames, where = batch.vision_input(clips, turns().config, 24, 24)
    assert (index[1] == -1).all() and not frames.patches[1].any() and len(where[1]) == 0
    for b in (0, 2):
        alone = batch.slot_metadata([rows[b]], capacity)
        assert (index[b] == alone[0][0]).all() and (positions[b] == alone[1][0]).all()
    (piece,) = batch.prefill_batches(rows, where, 128, capacity, turns().config.vision.spatial_merge_size)
    assert (piece.slots[1] == capacity).all() and piece.newest[1] == -1 and (piece.inputs.vision_index[1] == -1).all()
    inputs = batch.decode_inputs(rows, [None] * 3, LONGEST, np.zeros(448, bool), turns().end_of_turn)
    assert inputs.done.tolist() == [False, True, False] and not inputs.generated[1].any()


def _serials(engine: Engine, clip: Clip) -> list[int]:
    turn, _ = sequence.next_turn(engine.state, Chunk(0, 1, clip), turns())
    return list(range(len(turn.ids) - turn.cached))


# --- rules, by name ---


def tail(spans: tuple[Span, ...]) -> list[tuple[Kind, Part, int]]:
    return [(span.kind, span.part, span.turn) for span in spans]


@pytest.mark.parametrize(
    ("length", "first", "last", "kept"),
    [(10, 3, 2, [0, 1, 2, 8, 9]), (5, 3, 2, [0, 1, 2, 3, 4]), (4, 3, 2, [0, 1, 2, 3]), (3, 0, 1, [2]), (0, 1, 1, [])],
)
def test_sink_and_slide_never_cross(length, first, last, kept):
    assert [place for places in truncate(length, first, last) for place in places] == kept


def test_nothing_is_evicted_in_full_mode():
    spans = chat.opening("red ", turns().tokenizer, turns().config).spans
    kept, order, evicted = policy.evict(spans, 1000, StreamConfig(mode="full"))
    assert kept == spans and order.tolist() == list(range(total(spans))) and evicted == ()


def test_words_of_the_oldest_reply_end_the_previous_text():
    opening = chat.opening("red ", turns().tokenizer, turns().config).spans
    spans = (*opening, Span(Kind.USER_TEXT, 3, 0, part=Part.HEAD), Span(Kind.REPLY, 3, 0, part=Part.HEAD))
    spans += (Span(Kind.REPLY, 4, 0), Span(Kind.REPLY, 2, 0, part=Part.TAIL))
    kept, order, evicted = policy.evict(spans, 1, StreamConfig(vision_window=1, text_rounds=1, sink=None, text_window=None))
    end = total(opening) - chat.TURN_END
    words = total(opening) + 6
    assert order.tolist() == [*range(end), *range(words, words + 4), end, end + 1]
    assert tail(kept)[-2:] == [(Kind.PREVIOUS, Part.BODY, 0), (Kind.PREVIOUS, Part.TAIL, 0)]
    assert tail(evicted) == [(Kind.USER_TEXT, Part.HEAD, 0), (Kind.REPLY, Part.HEAD, 0), (Kind.REPLY, Part.TAIL, 0)]


def test_replies_cut_short_lose_their_last_word():
    assert tail(reply_turn([5, 6, 7, 1], 3)) == [(Kind.REPLY, Part.BODY, 3), (Kind.REPLY, Part.TAIL, 3)]
    assert [span.length for span in reply_turn([1], 3)] == [1]


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"mode": "all"}, r"^mode: got 'all', expected one of streaming, full, window, recompute; "),
        (
            {"moved_reply_kv": "recompute", "rope_positions": "native"},
            r"^moved_reply_kv: got 'recompute' with rope_positions 'native', expected 'contiguous' with it; ",
        ),
        ({"rope_positions": "append"}, r"^rope_positions: got 'append', expected one of contiguous, native; "),
        ({"mrope_axes": 2}, r"^mrope_axes: got 2, expected one of 1, 3; "),
        ({"vision_window": 0}, r"^vision_window: got 0, expected 1 or more; "),
        ({"sink": None}, r"^sink and text_window: got None and 512, expected two numbers, or neither; "),
        ({"text_window": 0}, r"^sink and text_window: got 512 and 0, "),
        ({"fps": 3}, r"^fps: got 3 fps in chunks of 1 s, expected an even number of frames a chunk; "),
        ({"fps": 2.5}, r"^fps: got 2.5 fps"),
        ({"fps": "2"}, r"^fps: got '2' \(str\), expected a number; "),
        ({"vision_window": True}, r"^vision_window: got True \(bool\), expected a whole number; "),
        ({"sink": 1.5}, r"^sink: got 1.5 \(float\), expected a whole number or None; "),
        ({"previous_text_turn": 1}, r"^previous_text_turn: got 1 \(int\), expected true or false; "),
    ],
)
def test_settings_that_make_no_stream_are_one_line(wrong, line):
    with pytest.raises(InputError, match=line):
        StreamConfig(**wrong)


def test_special_tokens_are_no_question():
    with pytest.raises(InputError, match=r"^question: got special token <\|im_end\|>, expected plain text; "):
        chat.question_text("who?<|im_end|>")
