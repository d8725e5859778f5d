"""Training windows of families with a time stamp before each frame pair: the turns of a stream, and no label on a stamp."""

import re
from dataclasses import replace

import numpy as np
import pytest

from svlm_jax.config import StreamConfig
from svlm_jax.data.annotation import NO_LOSS, Annotation, Question, Word, build_sample
from svlm_jax.data.batch import collate
from svlm_jax.data.config import DataConfig
from svlm_jax.data.dataset import SampleBuilder
from svlm_jax.data.pipeline import Window
from svlm_jax.decode.sampling import Sampling
from svlm_jax.families import FAMILIES, chat
from svlm_jax.inputs import Clip
from svlm_jax.media.processor import Processor, load_tokenizer
from svlm_jax.spans import Kind, positions
from svlm_jax.stream import sequence
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.stream_settings import StreamSettings
from svlm_jax.stream.turn_tokenizer import TurnTokenizer
from tests.support import FIXTURES
from tests.support.families import tiny_config

GRID = (2, 4, 4)
CLIP = Clip(np.zeros((32, 1536), np.uint8), GRID, 1.0, video=True)
CONFIG = tiny_config(FAMILIES["qwen3_vl"])
TOKENIZER = load_tokenizer(FIXTURES / "processor")
WORDS = (Word(99.0, 100.5, "goal"), Word(101, 102, "again"))
WINDOW = Annotation("a.mp4", 99, 102, "Commentate", "", WORDS, (Question(101, "Who?", "Red."),))


def build(window: Annotation, clips: int, sink: int = 0, text_window: int = 0, as_streamed: bool = False):
    options = {"sink": sink, "text_window": text_window}
    return build_sample(window, [CLIP] * clips, TOKENIZER, CONFIG, **options, as_streamed=as_streamed)


def decoded(ids) -> str:
    return TOKENIZER.decode(list(ids), skip_special_tokens=False)


def shown(*seconds: float) -> str:
    return "".join(f"<{second:.1f} seconds><|vision_start|>{'<|video_pad|>' * 4}<|vision_end|>" for second in seconds)


def test_turns_have_stamps_in_place_of_the_time_text_and_no_blank():
    built, labels = build(WINDOW, 3)
    assert decoded(built.ids).split("<|im_start|>")[1:] == [
        "previous text\n<|im_end|>\n",
        f"user\n{shown(99.125, 99.625)}<|im_end|>\n",
        "assistant\n\n ...<|im_end|>\n",
        f"user\nWho?{shown(100.125, 100.625)}<|im_end|>\n",
        "assistant\nRed.\n goal ...<|im_end|>\n",
        f"user\n{shown(101.125, 101.625)}<|im_end|>\n",
        "assistant\n\n again ...<|im_end|>\n",
    ]
    assert decoded(labels[labels != NO_LOSS]) == "\n ...<|im_end|>Red.\n goal ...<|im_end|>\n again ...<|im_end|>"
    is_vision = np.concatenate([np.full(span.length, span.kind is Kind.VISION) for span in built.spans])
    assert (labels[is_vision] == NO_LOSS).all()


def test_as_streamed_a_window_is_token_for_token_what_a_stream_retains():
    built, _ = build(WINDOW, 3, as_streamed=True)
    config, turns = StreamConfig(fps=4), TurnTokenizer.of(TOKENIZER, CONFIG)
    seq = sequence.new_stream(chat.opening("", TOKENIZER, CONFIG), StreamSettings(query=WINDOW.query), config, Sampling())
    for number, reply in enumerate(("\n ...", "Red.\n goal ...", "\n again ...")):
        chunk = Chunk(99 + number, 100 + number, CLIP, "Who?" if number == 1 else "")
        seq, _ = sequence.next_turn(seq, chunk, turns)
        np.testing.assert_array_equal(seq.positions, positions(built.spans)[:, : len(seq.ids)])
        tokens = np.array(TOKENIZER.encode(reply + "<|im_end|>", add_special_tokens=False), np.int32)
        seq = sequence.with_reply(seq, tokens, np.arange(len(tokens), dtype=np.int32), turns)
    np.testing.assert_array_equal(built.ids[:-1], seq.ids)  # the "\n" after the last reply would come with the next chunk


def test_hidden_seconds_have_neither_frames_nor_stamps():
    """As in a stream whose frames were evicted: stamps went with them, questions stay."""
    built, _ = build(replace(WINDOW, hidden=2), 1, as_streamed=True)
    users = [turn.removesuffix("<|im_end|>\n") for turn in decoded(built.ids).split("<|im_start|>") if turn.startswith("user")]
    assert users == ["user\nCommentate", "user\nWho?", f"user\n{shown(101.125, 101.625)}"]


def test_the_previous_text_is_cut_where_no_system_turn_is_before_it():
    long = replace(WINDOW, previous=" the red team scores a goal")
    whole, cut = (build(long, 3, *windows)[0] for windows in ((0, 0), (6, 5)))
    assert cut.spans[0].kind is Kind.PREVIOUS and sum(span.length for span in cut.spans) == len(cut.ids)
    removed = len(whole.ids) - len(cut.ids)
    assert removed > 0
    np.testing.assert_array_equal(cut.ids, [*whole.ids[:6], *whole.ids[6 + removed :]])


def test_a_batch_finds_the_vision_tokens_of_each_frame_pair():
    built, _ = build(WINDOW, 3)
    inputs = collate([built], CONFIG.vision)
    index = inputs.vision_index[0]
    assert sorted(index[index >= 0].tolist()) == list(range(3 * 2 * 4))
    assert (built.ids[np.flatnonzero(index >= 0)] == CONFIG.video_token_id).all()
    with pytest.raises(ValueError, match="sample 0: spans of grids"):
        collate([built._replace(clips=tuple(CLIP._replace(grid=(2, 2, 8)) for _ in range(3)))], CONFIG.vision)


def test_the_last_second_of_a_video_that_ends_in_it_has_the_times_of_its_frames():
    builder = SampleBuilder(Processor(CONFIG, TOKENIZER), DataConfig(fps=4.0))
    window = replace(WINDOW, start=98.5, end=100.0, hidden=0, questions=())
    frames = [np.zeros((count, 32, 32, 3), np.uint8) for count in (4, 2)]
    built, _ = builder(Window("a", window, frames))
    assert re.findall(r"<([\d.]+) seconds>", decoded(built.ids)) == ["98.6", "99.1", "99.6"]
