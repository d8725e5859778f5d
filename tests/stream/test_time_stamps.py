"""Streams of families with a time stamp before each frame pair: what is retained and seen, against the oracle; and that a stamp
goes when its frames go, and never before."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError
from svlm_jax.families.chat import user_turn
from svlm_jax.inputs import Clip
from svlm_jax.spans import Kind, Part, Span, merged_tokens, total
from svlm_jax.stream import batch, frames, policy, sequence
from svlm_jax.stream.admission import check_query
from svlm_jax.stream.cache_view import cache_runs, evicted_runs
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.turn_tokenizer import longest_turn
from tests.support.engine import LONGEST, WORDS, Engine, compare, encode, turns

STAMPED = "qwen3_vl"
LARGEST = (3, 4, 4)
GRIDS = ((1, 2, 2), (1, 4, 4), (2, 2, 4), (3, 2, 2))
WINDOWS = [(3, 3), (2, 5), (5, 2), (1, 1)]


def stamped(config: StreamConfig, previous: str = "", query: str = "") -> Engine:
    return Engine(config, previous, query, turns(STAMPED), LARGEST)


def windows(vision: int, rounds: int, **rest) -> StreamConfig:
    return StreamConfig(vision_window=vision, text_rounds=rounds, sink=5, text_window=5, max_new_tokens=LONGEST, **rest)


def clip(grid: tuple[int, int, int]) -> Clip:
    return Clip(np.zeros((int(np.prod(grid)), 1176), np.float32), grid, 1.0, video=True)


def watch(engine: Engine, chunks: int, *, start: float = 0, grid=(2, 2, 2), questions=()):
    """The sequence as each reply begins."""
    for number in range(chunks):
        chunk = Chunk(start + number, start + number + 1, clip(grid), "who scored?" if number in questions else "")
        turn, _ = sequence.next_turn(engine.state, chunk, engine.turns)
        row = batch.ScheduledSequence(turn, *policy.allocate(turn.slots, LONGEST, engine.capacity))
        yield turn
        state = turn._replace(slots=row.slots)
        engine.state = sequence.with_reply(state, np.arange(5, dtype=np.int32), row.reply_slots, engine.turns)


def user_text(turn: sequence.StreamSequence) -> list[str]:
    """What is retained of each user turn, without its markup; [ and ] are the marks, # the vision tokens between them."""
    text = turns().tokenizer.decode(turn.ids.tolist(), skip_special_tokens=False)
    text = text.replace("<|vision_start|>", "[").replace("<|vision_end|>", "]").replace("<|video_pad|>", "#")
    return [part.split("<|im_end|>")[0] for part in text.split("<|im_start|>user\n")[1:]]


def orphans(spans: tuple[Span, ...]) -> list[Span]:
    """Marks with a time stamp that are not before their vision tokens."""
    found = []
    for span, after in zip(spans, itertools.chain(spans[1:], [None]), strict=True):
        is_stamp = span.kind == Kind.VISION and span.part == Part.HEAD
        if is_stamp and (after is None or after.grid is None or after.turn != span.turn):
            found.append(span)
    return found


# --- against the oracle ---

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


def check_random(data, config: StreamConfig, previous: list[str], query: str, chunks: int, size: int, start: int) -> None:
    def draw(number: int):
        grid = data.draw(st.sampled_from(GRIDS))
        cells = merged_tokens(grid)
        return (
            grid,
            1.0,
            data.draw(st.lists(st.integers(0, 400), max_size=LONGEST - 1)),
            data.draw(st.booleans()),
            data.draw(st.sampled_from(["", "", "who scored?"])),
            data.draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=cells, max_size=cells))),
        )

    text = "".join(previous)
    compare(config, text, query, draw, chunks, size, engine=stamped(config, text, query), start=start)


random_streams = given(
    data=st.data(),
    config=CONFIGS,
    previous=st.lists(st.sampled_from(WORDS), max_size=4),
    query=st.sampled_from(["", "Commentate on this match"]),
    chunks=st.integers(1, 14),
    size=st.sampled_from([16, 256]),
    start=st.sampled_from([0, 95, 9_995]),
)
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@settings(max_examples=15, deadline=None, suppress_health_check=QUIET)
@random_streams
def test_any_stream_retains_and_sees_what_the_oracle_does(data, config, previous, query, chunks, size, start):
    check_random(data, config, previous, query, chunks, size, start)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=QUIET)
@random_streams
def test_many_more_streams_do(data, config, previous, query, chunks, size, start):
    check_random(data, config, previous, query, chunks, size, start)


@pytest.mark.parametrize(("vision", "rounds"), WINDOWS)
def test_streams_do_too_while_stamps_grow_longer(vision, rounds):
    config, rng = windows(vision, rounds), np.random.default_rng(vision)

    def draw(number: int):
        words = rng.integers(0, 400, rng.integers(0, LONGEST)).tolist()
        return (2, 2, 4), 1.0, words, bool(rng.integers(2)), "who scored?" if number % 7 == 3 else "", None

    engine = stamped(config, "red blue ball ", "Commentate")
    most = compare(config, "red blue ball ", "Commentate", draw, chunks=25, size=64, engine=engine, start=9_985)
    assert most <= 3 + 11 * (max(vision, rounds) + 1)


# --- rules, by name ---


def test_a_turn_has_a_stamp_before_each_frame_pair_and_no_other_time():
    (first,) = watch(stamped(windows(3, 3), query="Commentate"), 1, start=12, questions=[0])
    text = turns().tokenizer.decode(first.ids.tolist(), skip_special_tokens=False)
    assert text == (
        "<|im_start|>previous text\n<|im_end|>\n<|im_start|>user\nwho scored?"
        "<12.1 seconds><|vision_start|><|video_pad|><|vision_end|>"
        "<12.6 seconds><|vision_start|><|video_pad|><|vision_end|>Commentate<|im_end|>\n<|im_start|>assistant\n"
    )


def test_vision_window_longer_than_the_text_s_keeps_stamps_and_drops_the_question_of_the_moved_reply():
    *_, last = watch(stamped(windows(3, 1)), 4, questions=[1, 3])
    assert user_text(last) == [
        "<1.1 seconds>[#]<1.6 seconds>[#]",
        "<2.1 seconds>[#]<2.6 seconds>[#]",
        "who scored?<3.1 seconds>[#]<3.6 seconds>[#]",
    ]


def test_a_newer_question_stays_when_an_older_reply_moves():
    """No turn but the first has a question: "the oldest turn with one" would be another than the one whose reply moves."""
    *_, last = watch(stamped(windows(5, 2)), 4, questions=[3])
    assert [text.startswith("who") for text in user_text(last)] == [False, False, False, True]


def test_vision_window_shorter_than_the_text_s_keeps_the_question_and_nothing_else():
    *_, last = watch(stamped(windows(1, 3)), 3, questions=[0])
    assert user_text(last) == ["who scored?", "", "<2.1 seconds>[#]<2.6 seconds>[#]"]


@pytest.mark.parametrize(
    ("vision", "rounds", "chunks"), [(2, 5, 60), (5, 2, 60), *(pytest.param(*w, 2000, marks=pytest.mark.slow) for w in WINDOWS)]
)
def test_no_stamp_is_ever_an_orphan_and_the_sequence_stays_bounded(vision, rounds, chunks):
    engine, spans = stamped(windows(vision, rounds)), 0
    for number, turn in enumerate(watch(engine, chunks, start=9_950, questions=range(0, chunks, 50))):
        assert not orphans(turn.spans)
        grids = [span for span in turn.spans if span.grid is not None]
        assert len(grids) == 2 * min(number + 1, vision) and {span.grid for span in grids} == {(1, 2, 2)}
        spans = max(spans, len(turn.spans))
        assert len(turn.ids) + LONGEST <= engine.capacity
    assert spans <= 3 + 11 * (max(vision, rounds) + 1)


def test_a_frame_pair_that_loses_all_its_tokens_keeps_its_stamp_and_the_next_finds_its_rows():
    config = windows(2, 2)
    engine = stamped(config)
    keep = np.array([False] * 4 + [True, False, True, True])
    turn, _ = sequence.next_turn(engine.state, Chunk(0, 1, clip((2, 4, 4)), keep=keep), engine.turns)
    assert user_text(turn) == ["<0.1 seconds>[]<0.6 seconds>[###]"]
    rows = np.arange(100, 108)
    scheduled = batch.ScheduledSequence(turn, *policy.allocate(turn.slots, LONGEST, engine.capacity))
    (prefill,) = batch.prefill_batches([scheduled], [rows], 64, engine.capacity, 2)
    index = prefill.inputs.vision_index[0]
    assert index[index >= 0].tolist() == [104, 106, 107]


def test_the_page_shows_stamps_as_part_of_the_vision():
    *_, last = watch(stamped(windows(2, 2)), 3)
    runs = [run for run in cache_runs(last.spans, windows(2, 2)) if run.kind == "vision"]
    lengths = [total(span for span in last.spans if (span.kind, span.turn) == (Kind.VISION, turn)) for turn in (1, 2)]
    assert [(run.turn, run.length) for run in runs] == list(zip((1, 2), lengths, strict=True))
    gone = [span for span in last.spans if span.turn == 1 and span.kind == Kind.VISION]
    assert evicted_runs(gone) == [runs[0]]


# --- room ---


def test_the_capacity_counts_stamps_at_their_longest_and_holds_all_questions_that_are_let_in():
    config = windows(2, 4, question_tokens=64)
    engine = stamped(config, "goal " * 20, "Commentate")
    refused = 0
    for number in range(12):
        chunk = Chunk(9_999_900 + number, 9_999_901 + number, clip(LARGEST), "who scored the last goal of this match? ")
        try:
            turn, _ = sequence.next_turn(engine.state, chunk, engine.turns)
        except InputError as error:
            assert str(error).startswith("question: got ")
            refused += 1
            turn, _ = sequence.next_turn(engine.state, chunk._replace(question=""), engine.turns)
        row = batch.ScheduledSequence(turn, *policy.allocate(turn.slots, LONGEST, engine.capacity))  # never refuses
        state = turn._replace(slots=row.slots)
        engine.state = sequence.with_reply(state, np.arange(LONGEST, dtype=np.int32), row.reply_slots, engine.turns)
    assert refused
    longest = total(longest_turn(LARGEST, engine.turns.tokenizer, engine.turns.config))
    now = total(user_turn(9_999_998, 9_999_999, LARGEST, 1.0, engine.turns.tokenizer, engine.turns.config).spans)
    assert now == longest


def test_a_question_takes_the_same_room_as_without_stamps():
    lengths = {}
    for family in ("qwen2_5_vl", STAMPED):
        turn_tokenizer = turns(family)
        turn = user_turn(7, 8, (2, 2, 2), 1.0, turn_tokenizer.tokenizer, turn_tokenizer.config)
        lengths[family] = turn_tokenizer.max_plain_text - total(span for span in turn.spans if span.kind == Kind.USER_TEXT)
    assert lengths[STAMPED] == 0 <= lengths["qwen2_5_vl"]
    limit = StreamConfig(question_tokens=len(encode("who scored?")))
    check_query("who scored?", limit, turns(STAMPED))
    with pytest.raises(InputError, match=r"^query: got \d+ tokens, expected at most \d+"):
        check_query("who scored? red", limit, turns(STAMPED))


def test_more_frame_pairs_than_a_session_has_room_for_are_refused():
    """As many patches in smaller frames would be as many vision tokens, and more stamps."""
    config = turns(STAMPED).config
    frames.check_clip(clip((1, 4, 4)), (1, 4, 4), None, config)
    frames.check_clip(clip((2, 2, 4)), (1, 4, 4), None, turns().config)
    with pytest.raises(InputError, match=r"^frames of a chunk: got 2 temporal patches, expected at most 1; "):
        frames.check_clip(clip((2, 2, 4)), (1, 4, 4), None, config)
