"""LiveCC's own protocol on the engine: its sequence of tokens, its positions, a longer first chunk, no previous text."""

from itertools import islice

import numpy as np
import pytest

from svlm_jax import from_pretrained
from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError
from svlm_jax.inputs import Clip, Frames
from svlm_jax.media.video import write_video
from svlm_jax.presets import LIVECC, LIVECC_1D, PRESETS
from svlm_jax.spans import Kind, Part
from svlm_jax.stream import policy, sequence
from svlm_jax.stream.frames import frame_box
from svlm_jax.stream.runner import Runner
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Session
from svlm_jax.stream.stream_settings import StreamSettings
from svlm_jax.stream.turn_tokenizer import TurnTokenizer
from svlm_jax.stream.warmup import warm
from svlm_jax.touchline.film import Film
from tests.support.sessions import Compiled, make, model, said, tokenizer  # noqa: F401

FIRST, NEXT = (3, 4, 6), (1, 4, 6)  # grids of 6 and 2 frames: 18 and 6 tokens
SECONDS = ((0.0, 3.0), (3.0, 4.0), (4.0, 5.0))


def chunk(number: int, seed: int = 0, question: str = "") -> Chunk:
    grid = NEXT if number else FIRST
    patches = np.random.default_rng([seed, number]).normal(size=(int(np.prod(grid)), 1176)).astype(np.float32)
    start = 2.0 + number if number else 0.0
    return Chunk(start, 3.0 + number, Clip(patches, grid, 1.0, video=True), question)


def published(encode, replies: list[list[int]], pad: int) -> list[list[int]]:
    """`input_ids` of each turn, as live_cc of showlab/livecc (demo/infer.py) makes them: what was generated before without its
    newest token, then "<|im_end|>", a newline and the next turn."""
    past, turns = [], []
    for number, (start, end) in enumerate(SECONDS):
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        text = f"{'<|im_end|>' + chr(10) if number else system}<|im_start|>user\nTime={start:.1f}-{end:.1f}s<|vision_start|>"
        query = "" if number else "Please describe the video."
        rest = f"<|vision_end|>{query}<|im_end|>\n<|im_start|>assistant\n"
        ids = past + encode(text) + [pad] * (6 if number else 18) + encode(rest)
        turns.append(ids)
        past = (ids + replies[number])[:-1]
    return turns


@pytest.fixture(scope="module")
def turns(make, tokenizer):
    """The three sequences as their replies begin, and what was published; one reply ends by itself, another is cut."""
    session = make(**LIVECC.stream)
    (end,) = tokenizer.encode("<|im_end|>", add_special_tokens=False)
    words = tokenizer.encode(" red blue ball goal the team scores red blue ball goal the", add_special_tokens=False)
    replies = [[*words[:4], end], (words * 16)[:16], [*words[:2], end]]
    seq, result = session.admission.new_stream(StreamSettings(query=LIVECC.query)), []
    for number, reply in enumerate(replies):
        seq, _ = sequence.next_turn(seq, chunk(number), session.turn_tokenizer)
        result.append(seq)
        slots = np.arange(len(seq.ids) + 16, dtype=np.int32)
        seq = seq._replace(slots=slots[: len(seq.ids)])
        seq = sequence.with_reply(seq, np.array(reply, np.int32), slots[-16:], session.turn_tokenizer)
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    return result, published(encode, replies, session.model_config.video_token_id)


def test_the_sequence_of_tokens_is_that_of_the_published_code(turns):
    """Else LiveCC is shown turns that it was not trained on, and a comparison with it means nothing."""
    ours, theirs = turns
    assert [seq.ids.tolist() for seq in ours] == theirs


def test_frames_of_the_first_turn_alone_stand_on_three_axes_as_transformers_counts_with_a_cache(turns):
    """transformers 4.52 computes M-RoPE for the first prefill; later ones count up from its end, vision tokens too."""
    positions, ids = turns[0][-1].positions, turns[0][-1].ids
    first = len(turns[0][0].ids)
    start = int(np.argmax(ids == np.bincount(ids[:first]).argmax()))  # of the pads: nothing else occurs 18 times
    t, h, w = np.indices((3, 2, 3)).reshape(3, -1)
    np.testing.assert_array_equal(positions[:, start : start + 18], start + np.stack([t, h, w]))
    np.testing.assert_array_equal(positions[:, :start], np.tile(np.arange(start), (3, 1)))
    rest = start + 3 + np.arange(len(ids) - start - 18)
    np.testing.assert_array_equal(positions[:, start + 18 :], np.tile(rest, (3, 1)))


def test_the_other_form_counts_all_tokens_on_one_axis(make):
    session = make(**LIVECC_1D.stream)
    seq = session.admission.new_stream(StreamSettings(query=LIVECC.query))
    seq, _ = sequence.next_turn(seq, chunk(0), session.turn_tokenizer)
    np.testing.assert_array_equal(seq.positions, np.tile(np.arange(len(seq.ids)), (3, 1)))
    assert set(PRESETS) == {"livecc", "livecc-1d"}


def test_a_question_stands_after_the_frames(make, tokenizer):
    session = make(**LIVECC.stream)
    seq = session.admission.new_stream(StreamSettings(query="Commentate."))
    seq, _ = sequence.next_turn(seq, chunk(0, question="Who leads?"), session.turn_tokenizer)
    expected = "<|vision_end|>Commentate.Who leads?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(seq.ids.tolist(), skip_special_tokens=False).endswith(expected)


def test_nothing_compiles_after_warm_up_and_a_first_chunk_disturbs_no_other_stream(model, tokenizer):
    """Else every stream of a server stands still when another viewer starts one."""

    def play(number: int, seed: int) -> Chunk:
        grid = NEXT if number else FIRST
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (2 * grid[0], 56, 84, 3), np.uint8)
        clip = Clip(np.zeros((0, 1176), np.uint8), grid, 1.0, video=True, frames=Frames(pixels, 56, 84))
        return Chunk(2.0 + number if number else 0.0, 3.0 + number, clip)

    config, first = StreamConfig(**{**LIVECC.stream, "max_new_tokens": 4}), play(0, 0).clip
    session = Session(model, tokenizer, config, FIRST, num_streams=2, frame_box=frame_box(first, model.config.vision))
    session.batch_sizes = (1,)  # the programs of one size are enough to show it
    runner = Runner(session)
    runner.state = warm(session, runner.state, first)
    assert session.grid == NEXT and [(size.grid, size.box.num_frames) for size in session.sizes] == [(NEXT, 2), (FIRST, 6)]
    with Compiled() as compiled:
        runner.join("a", StreamSettings(query="Commentate"))
        alone = [runner.tick({"a": play(number, 1)})[0] for number in range(3)]
        runner.leave("a")
        runner.join("a", StreamSettings(query="Commentate"))
        runner.join("b", StreamSettings(query="Commentate"))
        together = [runner.tick({"a": play(0, 1)})]
        together += [runner.tick({"a": play(n, 1), "b": play(n - 1, 2)}) for n in (1, 2)]
    assert compiled.count == 0
    assert said(alone) == said(events[0] for events in together)
    assert [event.start for event in together[2]] == [4.0, 3.0]


def test_without_previous_text_old_words_are_dropped_with_their_turn(make):
    """Else a stream of a model that knows no previous text is shown one, or its cache runs over."""
    windows = {"vision_window": 3, "text_rounds": 2, "max_new_tokens": 4, "question_tokens": 16}
    session = make(previous_text_turn=False, first_chunk_seconds=3, **windows)
    assert session.config.bounded
    seq = session.admission.new_stream(StreamSettings(query="Commentate"))
    for number in range(8):
        seq, _ = sequence.next_turn(seq, chunk(number), session.turn_tokenizer)
        assert not any(span.kind == Kind.PREVIOUS for span in seq.spans)
        replies = {span.turn for span in seq.spans if span.kind == Kind.REPLY and span.part == Part.BODY}
        frames = {span.turn for span in seq.spans if span.kind == Kind.VISION}
        assert replies == set(range(max(0, number - 1), number)) and frames == set(range(max(0, number - 2), number + 1))
        slots, reply_slots = policy.allocate(seq.slots, 4, session.capacity)
        reply = np.array([5, 6, 7, 8], np.int32)
        seq = sequence.with_reply(seq._replace(slots=slots), reply, reply_slots, session.turn_tokenizer)
    with pytest.raises(InputError, match=r"^previous text: got Earlier, expected none: this stream has no turn for it; "):
        session.join(session.init_state(), settings=StreamSettings(previous="Earlier"))


def test_a_stream_without_any_opening_begins_with_its_first_turn(make, tokenizer):
    """A family without a system prompt leaves nothing to begin with."""
    session = make(previous_text_turn=False)
    opening = session.admission.opening
    empty = opening._replace(ids=opening.ids[:0], spans=())
    seq = sequence.new_stream(empty, StreamSettings(), session.config, session.sampling)
    seq, evicted = sequence.next_turn(seq, chunk(1), session.turn_tokenizer)
    assert (
        tokenizer.decode(seq.ids.tolist(), skip_special_tokens=False).startswith("<|im_start|>user\nTime=3.0") and not evicted
    )


def test_a_video_is_watched_by_the_preset(shallow_dir, processor_dir, tmp_path):
    """From the file to the words: 3 s first, then seconds; frames of at most 384 tokens."""
    path = tmp_path / "film.mp4"
    write_video(path, islice(Film(1, size=(168, 112)).frames(10), 55), 10)
    vlm = from_pretrained(shallow_dir, processor=processor_dir, preset="livecc")
    assert vlm.processor.video_config.max_pixels <= 384 * 28 * 28
    with pytest.warns(UserWarning, match="ends 0.5 s early"):
        captions = list(vlm.watch(str(path), query=LIVECC.query, max_new_tokens=4))
    assert [(caption.start, caption.end) for caption in captions] == [(0, 3), (3, 4), (4, 5), (5, 6)]


def test_turn_tokenizer_knows_the_silence_token(model, tokenizer):
    """Of LiveCC's tokenizer " ..." is one token; of others the last one of it, as the published code takes it."""
    turns = TurnTokenizer.of(tokenizer, model.config)
    assert turns.silence == tokenizer.encode(" ...", add_special_tokens=False)[-1]
