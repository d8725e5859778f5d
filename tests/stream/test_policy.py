"""What a stream retains, in which slots, and what its tokens see: the host side of the engine against the oracle of
tests/support/oracle.py, which was written independently (lists of tokens, nothing moved, what each token saw)."""

from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.families import chat, config_json
from svlm_jax.inputs import Clip
from svlm_jax.media.processor import load_tokenizer
from svlm_jax.spans import Kind, Part, Span, merged_tokens, total, truncate
from svlm_jax.stream import batch, policy, sequence
from svlm_jax.stream.sequence import Chunk, TurnTokenizer
from tests.support import FIXTURES, oracle
from tests.support.oracle import Oracle, Windows, opening_parts, turn_parts

LONGEST = 6  # tokens of a reply
GRIDS = ((1, 2, 2), (1, 2, 4), (2, 4, 2), (1, 4, 6))
WORDS = ("red ", "blue ball ", "goal", "the team scores ")


@cache
def turns() -> TurnTokenizer:
    config = config_json.read(FIXTURES / "models" / "tiny")
    return TurnTokenizer.of(load_tokenizer(FIXTURES / "processor"), config)


def encode(text: str) -> list[int]:
    return turns().tokenizer.encode(text, add_special_tokens=False)


class Engine:
    """One stream through sequence, policy and tables, with the device told by numpy: which token each slot holds."""

    def __init__(self, config: StreamConfig, previous: str, query: str) -> None:
        self.config = config
        opening = chat.opening(previous, turns().tokenizer, turns().config)
        turn = sequence.longest_turn(max(GRIDS, key=np.prod), turns().tokenizer, turns().config)
        self.capacity = policy.capacity(config, opening.spans, turn, chunks=200)
        self.held = sequence.new_stream(opening, query, seed=0, sampling=Sampling(), max_new_tokens=LONGEST)
        self.slots = np.full(self.capacity, -1)  # serial number of what each slot holds

    def turn(self, chunk: Chunk, serials: list[int], size: int) -> list[list[tuple[int, tuple]]]:
        """Take a chunk; the new tokens have these serial numbers. What each of them sees, as the oracle tells it."""
        turn, _ = sequence.next_turn(self.held, chunk, self.config, turns())
        self.check(turn)
        kept = turn.slots[turn.slots >= 0]
        assert len(set(kept.tolist())) == len(kept)
        self.scheduled = batch.ScheduledSequence(turn, *policy.allocate(turn.slots, LONGEST, self.capacity))
        every = np.concatenate([self.scheduled.slots, self.scheduled.reply_slots])
        assert len(set(every.tolist())) == len(every) and every.max() < self.capacity
        np.testing.assert_array_equal(self.scheduled.slots[: turn.cached], turn.slots[: turn.cached])  # nothing cached moves
        self.index, self.positions = (array[0] for array in batch.slot_metadata([self.scheduled], self.capacity))
        seen, left, self.vision_index = [], iter(serials), []
        vision = turns().config.vision
        _, where = batch.vision_input([[clip for _, clip in turn.clips]], turns().config, 64 * 8, 64)
        sizes = [merged_tokens(clip.grid) for _, clip in turn.clips]
        tower_rows = np.split(where[0], np.cumsum(sizes)[:-1])
        self.tower_rows = {number: rows for (number, _), rows in zip(turn.clips, tower_rows, strict=True)}
        newest = []
        for piece in batch.prefill_batches([self.scheduled], where, size, self.capacity, vision.spatial_merge_size):
            real = np.flatnonzero(piece.inputs.index[0] >= 0)
            for column in real:
                self.slots[piece.slots[0, column]] = next(left)
            for column in real:
                place = piece.inputs.index[0, column]
                assert piece.inputs.ids[0, column] == turn.ids[place]
                self.vision_index.append(int(piece.inputs.vision_index[0, column]))
                np.testing.assert_array_equal(piece.inputs.positions[0, :, column], turn.positions[:, place])
                seen.append(self.visible(place))
            assert (piece.slots[0][piece.inputs.index[0] < 0] == self.capacity).all()
            newest += [real[-1]] if piece.newest[0] >= 0 else []
            assert piece.newest[0] in (-1, real[-1])
        assert len(newest) == 1 and next(left, None) is None and vision.spatial_merge_size == 2
        return seen

    def reply(self, tokens: list[int], serials: list[int]) -> list[list[tuple[int, tuple]]]:
        inputs = batch.decode_inputs([self.scheduled], [None], LONGEST, np.zeros(448, bool), turns().end_of_turn)
        assert set(np.flatnonzero(inputs.generated[0])) == set(self.scheduled.seq.ids.tolist())
        seen = []
        for count, serial in enumerate(serials):
            slot, place = inputs.slots[0, count], inputs.index[0] + count
            assert self.index[slot] == place and (self.positions[:, slot] == inputs.position[0] + count).all()
            self.slots[slot] = serial
            seen.append(self.visible(place))
        held = self.scheduled.seq._replace(slots=self.scheduled.slots)
        self.held = sequence.with_reply(held, np.array(tokens, np.int32), self.scheduled.reply_slots, self.config, turns())
        self.check(self.held)
        return seen

    def visible(self, place: int) -> list[tuple[int, tuple]]:
        """(serial, position) of the slots that a token at `place` sees, in the order of their indexes."""
        slots = np.flatnonzero((self.index >= 0) & (self.index <= place))
        slots = slots[np.argsort(self.index[slots])]
        return [(int(self.slots[slot]), tuple(self.positions[:, slot].tolist())) for slot in slots]

    @staticmethod
    def check(held: sequence.StreamSequence) -> None:
        assert total(held.spans) == len(held.ids) == len(held.slots) == held.positions.shape[1]
        assert (held.slots[: held.cached] >= 0).all() and (held.slots[held.cached :] < 0).all()


def told(seen: list[tuple[int, tuple]]) -> list[tuple[int, tuple]]:
    return [(serial, tuple(np.float32(place).tolist())) for serial, place in seen]


def question_parts(parts: list[oracle.Part], chunk: Chunk, asked: str) -> list[oracle.Part]:
    """A user turn whose time text has a question after it."""
    time = encode(f"Time={chunk.start:.1f}-{chunk.end:.1f}s{asked}")
    return [part._replace(ids=time) if part.part == oracle.TIME else part for part in parts]


def compare(config: StreamConfig, previous: str, query: str, draw, chunks: int, size: int) -> int:
    """Run both; the largest number of spans that there was."""
    ours = Engine(config, previous, query)
    windows = Windows(
        vision_window=config.vision_window,
        text_rounds=config.text_rounds,
        sink=config.sink or 0,
        text_window=config.text_window,
        rope_positions=config.rope_positions,
        mrope_axes=config.mrope_axes,  # pyright: ignore[reportArgumentType]
        mode=config.mode,
        window_chunks=config.window_chunks,
    )
    theirs = Oracle(windows, turns().end_of_turn, int(turns().newline[0]))
    theirs.begin(opening_parts(encode, previous))
    most = 0
    for number in range(chunks):
        grid, step, words, ends, asked, keep = draw(number)
        clip = Clip(np.zeros((int(np.prod(grid)), 1176), np.float32), grid, step, video=True)
        chunk = Chunk(number, number + 1, clip, asked, None if keep is None else np.array(keep, bool))
        first = number == 0 or (config.mode == "window" and number % config.window_chunks == 0)
        parts = turn_parts(encode, number, number + 1, grid, step=step, query=query if first else "", keep=keep)
        if asked:
            parts = question_parts(parts, chunk, asked if first else f" {asked}")
        turn = theirs.turn(parts)
        seen = ours.turn(chunk, [one.serial for one in turn.computed], size)
        assert ours.scheduled.seq.ids.tolist() == theirs.ids
        assert ours.scheduled.seq.cached == turn.cached_before
        np.testing.assert_array_equal(ours.scheduled.seq.positions, theirs.positions)
        assert seen == [told(one.seen) for one in turn.computed]
        rows = [ours.tower_rows[one.turn][one.pad.index] if one.pad else -1 for one in turn.computed]
        assert ours.vision_index == rows
        tokens = [*words, turns().end_of_turn] if ends else [*words, 7][:LONGEST]
        reply = theirs.reply(tokens)
        seen = ours.reply(tokens, [one.serial for one in reply.computed])
        assert seen == [told(one.seen) for one in reply.computed]
        assert ours.held.ids.tolist() == theirs.ids and ours.held.cached == theirs.cached
        most = max(most, len(ours.held.spans))
    return most


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


@settings(max_examples=60, deadline=None, suppress_health_check=QUIET)
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


@pytest.mark.parametrize(("vision", "rounds"), [(3, 3), (2, 5), (5, 2), (1, 1)])
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
        before = engine.held
        try:
            turn, _ = sequence.next_turn(before, chunk, config, turns())
        except InputError as error:
            assert str(error).startswith("question: got ") and "\n" not in str(error)
            assert engine.held is before
            refused += 1
            turn, _ = sequence.next_turn(before, chunk._replace(question=""), config, turns())
        row = batch.ScheduledSequence(turn, *policy.allocate(turn.slots, LONGEST, engine.capacity))  # never refuses
        held = turn._replace(slots=row.slots)
        engine.held = sequence.with_reply(held, np.arange(LONGEST, dtype=np.int32), row.reply_slots, config, turns())
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
    turn, _ = sequence.next_turn(engine.held, Chunk(0, 1, clip), engine.config, turns())
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
    assert tail(sequence.reply_turn([5, 6, 7, 1], 3)) == [(Kind.REPLY, Part.BODY, 3), (Kind.REPLY, Part.TAIL, 3)]
    assert [span.length for span in sequence.reply_turn([1], 3)] == [1]


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
    ],
)
def test_settings_that_make_no_stream_are_one_line(wrong, line):
    with pytest.raises(InputError, match=line):
        StreamConfig(**wrong)


def test_special_tokens_are_no_question():
    with pytest.raises(InputError, match=r"^question: got special token <\|im_end\|>, expected plain text; "):
        chat.question_text("who?<|im_end|>")
