"""Claims about annotated windows: the recorded training sample token for token, which second a word or a question belongs to,
where the loss is, and what is said of a bad record."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from svlm_jax.data.annotation import (
    NO_LOSS,
    Annotation,
    Question,
    Word,
    build_sample,
    parse,
    parse_line,
    question_text,
    training_turns,
)
from svlm_jax.data.windows import to_record
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.inputs import Clip
from svlm_jax.media.processor import load_tokenizer
from svlm_jax.spans import Kind, positions, total
from tests.support import FIXTURES

GRID = (1, 4, 6)
CLIP = Clip(np.zeros((24, 1176), np.float32), GRID, 2.0, video=True)
CONFIG = config_json.read(FIXTURES / "models" / "tiny")
TOKENIZER = load_tokenizer(FIXTURES / "processor")
RECORDING = json.loads((FIXTURES / "sft" / "sft_24s.json").read_text())


def window(words=(), questions=(), previous="", start=0, end=3) -> Annotation:
    return Annotation(
        "a.mp4", start, end, "q", previous, tuple(Word(*w) for w in words), tuple(Question(*q) for q in questions)
    )


def replies(annotation: Annotation) -> list[str]:
    return [turn.reply for turn in training_turns(annotation)]


def build(annotation: Annotation, sink=0, text_window=0, tokenizer=TOKENIZER):
    return build_sample(annotation, [CLIP] * annotation.seconds, tokenizer, CONFIG, sink=sink, text_window=text_window)


def decoded(ids) -> str:
    return TOKENIZER.decode(list(ids), skip_special_tokens=False)


# --- the recording ---


def test_the_sample_is_the_recorded_one_token_for_token():
    recorded = dict(np.load(FIXTURES / "sft" / "sft_24s.npz"))
    built, labels = build(parse(RECORDING["annotation"]), RECORDING["text_sink"], RECORDING["text_sliding_window"])
    assert decoded(built.ids) == RECORDING["text"]
    np.testing.assert_array_equal(built.ids, recorded["input_ids"])
    np.testing.assert_array_equal(labels, recorded["labels"])
    np.testing.assert_array_equal(positions(built.spans), recorded["position_ids"])
    assert built.ids.dtype == labels.dtype == np.int32


def test_a_line_of_the_file_is_the_record():
    assert parse_line(json.dumps(RECORDING["annotation"]), "x.jsonl:1") == parse(RECORDING["annotation"])


# --- which second ---


def test_a_word_that_ends_on_the_second_is_said_in_it():
    words = [(0, 1.0, "a"), (1.0, 1.0001, "b"), (1.1, 2, "c"), (2, 2.5, "d"), (2.5, 3, "e")]
    assert replies(window(words)) == ["\n a ...", "\n b c ...", "\n d e ..."]


def test_words_before_the_window_are_said_first_and_words_after_it_never():
    words = [(3, 4, "early"), (9.5, 10.5, "in"), (11.5, 12.01, "cut"), (13, 14, "late")]
    assert replies(window(words, start=10, end=12)) == ["\n early in ...", "\n ..."]


def test_a_window_may_start_between_seconds_and_end_with_a_broken_one():
    turns = training_turns(window([(12.5, 13.5, "a"), (14, 14.7, "b")], start=12.5, end=14.75))
    assert [(turn.start, turn.end) for turn in turns] == [(12.5, 13.5), (13.5, 14.5), (14.5, 15.5)]
    assert [turn.reply for turn in turns] == ["\n a ...", "\n ...", "\n b ..."]
    assert window(start=0.1, end=0.1 + 24).seconds == 24


def test_a_question_is_asked_after_the_time_text_and_answered_before_the_newline():
    built, labels = build(window([(0, 1, "goal")], [(0.5, "Who?", "Red."), (2, "Now?", "No.")]))
    turns = decoded(built.ids).split("<|im_start|>")[3:]
    vision = f"<|vision_start|>{'<|video_pad|>' * 6}<|vision_end|><|im_end|>\n"
    assert turns == [
        f"user\nTime=0.0-1.0sWho?{vision}",
        "assistant\nRed.\n goal ...<|im_end|>\n",
        f"user\nTime=1.0-2.0s Now?{vision}",
        "assistant\nNo.\n ...<|im_end|>\n",
        f"user\nTime=2.0-3.0s {vision}",
        "assistant\n\n ...<|im_end|>\n",
    ]
    assert decoded(labels[labels != NO_LOSS]) == "Red.\n goal ...<|im_end|>No.\n ...<|im_end|>\n ...<|im_end|>"


@pytest.mark.parametrize(
    ("times", "questions"),
    [
        ((1, 2), [0, 1]),  # the last instant of a second is in it
        ((0, 2), []),  # the first instant of the window is in no second, and keeps back the next
        ((0.2, 0.7, 2.5), [0]),  # one a second; the second of two keeps back the third
        ((2.5, 1.5), [2]),  # out of order: the first is waited for
        ((3.5,), []),
    ],
)
def test_questions_wait_in_a_line_as_in_the_original(times, questions):
    turns = training_turns(window(questions=[(time, f"q{time}", "a") for time in times]))
    assert [second for second, turn in enumerate(turns) if turn.reply.startswith("a")] == questions


def test_a_viewer_s_question_stands_where_training_puts_it():
    assert question_text("Who?") == " Who?"
    assert question_text("Who?", first=True) == "Who?"
    with pytest.raises(InputError, match="question: got special token"):
        question_text("<|im_end|>")


# --- tokens and labels ---

texts = st.text("ab .?'\n\ts", max_size=6)


@settings(deadline=None, max_examples=60)
@given(
    words=st.lists(st.tuples(st.integers(0, 40), texts), max_size=8),
    questions=st.lists(st.tuples(st.integers(0, 40), texts, texts), max_size=3),
    previous=texts,
)
@example(words=[], questions=[(5, "", "")], previous="\n")
def test_pieces_tokenise_as_the_whole_text_does(words, questions, previous):
    times = sorted(time / 10 for time, _ in words)
    example_window = window([(time, time, text) for time, (_, text) in zip(times, words, strict=True)], (), previous, end=4)
    example_window = Annotation(
        **{**vars(example_window), "questions": tuple(Question(time / 10, *pair) for time, *pair in questions)}
    )
    built, labels = build(example_window)
    text = f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>previous text\n{previous}<|im_end|>\n"
    for turn in training_turns(example_window):
        time = f"Time={turn.start:.1f}-{turn.end:.1f}s{turn.question}"
        text += f"<|im_start|>user\n{time}<|vision_start|>{'<|video_pad|>' * 6}<|vision_end|><|im_end|>\n"
        text += f"<|im_start|>assistant\n{turn.reply}<|im_end|>\n"
    want = np.array(TOKENIZER.encode(text, add_special_tokens=False))
    np.testing.assert_array_equal(built.ids, want)
    starts, end = (np.flatnonzero(want == TOKENIZER.encode(mark, add_special_tokens=False)[0]) for mark in MARKS)
    learned = np.full(len(want), NO_LOSS)
    for first, last in list(zip(starts, end, strict=True))[3::2]:
        learned[first + 3 : last + 1] = want[first + 3 : last + 1]
    np.testing.assert_array_equal(labels, learned)
    assert total(built.spans) == len(want)
    kinds = np.repeat([span.kind for span in built.spans], [span.length for span in built.spans])
    assert np.all(kinds[labels != NO_LOSS] == Kind.REPLY)


MARKS = ("<|im_start|>", "<|im_end|>")


def test_a_tokenizer_with_a_token_for_two_newlines_uses_it_and_the_loss_begins_after_it(tmp_path):
    """Qwen's has one. The recording's has not."""
    raw = json.loads((FIXTURES / "processor" / "tokenizer.json").read_text())
    raw["model"]["vocab"]["ĊĊ"] = 500
    raw["model"]["merges"].append(["Ċ", "Ċ"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    (tmp_path / "tokenizer_config.json").write_text((FIXTURES / "processor" / "tokenizer_config.json").read_text())
    merging = load_tokenizer(tmp_path)
    example_window = window([(0, 1, "goal")], [(2, "Q", "a")], end=2)
    built, labels = build(example_window, tokenizer=merging)
    assert np.count_nonzero(built.ids == 500) == 1  # the reply without an answer
    assert (
        merging.decode(labels[labels != NO_LOSS].tolist(), skip_special_tokens=False) == " goal ...<|im_end|>a\n ...<|im_end|>"
    )


def previous_turn(annotation, sink, text_window) -> str:
    return decoded(build(annotation, sink, text_window)[0].ids).split("<|im_start|>")[2]


def test_the_previous_text_is_cut_only_when_it_is_longer_than_both_windows():
    example_window = window(previous=" the red team kick a goal")  # with its markup 4 + 6 + 2 tokens
    full = "previous text\n the red team kick a goal<|im_end|>\n"
    assert (
        previous_turn(example_window, 6, 6)
        == previous_turn(example_window, 0, 0)
        == previous_turn(example_window, 512, 512)
        == full
    )
    assert previous_turn(example_window, 6, 5) == "previous text\n the red kick a goal<|im_end|>\n"
    assert previous_turn(example_window, 4, 2) == "previous text\n<|im_end|>\n"
    built, labels = build(example_window, 5, 3)
    assert total(built.spans) == len(built.ids) == len(labels)


def test_the_previous_text_is_learned_where_that_is_asked_for():
    example_window = window([(0, 1, "goal")], previous=" the red team kick a goal", end=1)
    for sink, text_window, words in ((0, 0, " the red team kick a goal"), (6, 5, " the red kick a goal")):
        _, labels = build_sample(
            example_window, [CLIP], TOKENIZER, CONFIG, sink=sink, text_window=text_window, learn_previous=99
        )
        assert decoded(labels[labels != NO_LOSS]) == f"{words}\n goal ...<|im_end|>"
    _, labels = build_sample(example_window, [CLIP], TOKENIZER, CONFIG, sink=0, text_window=0, learn_previous=2)
    assert decoded(labels[labels != NO_LOSS]) == " a goal\n goal ...<|im_end|>"


def test_what_is_told_and_not_shown_has_turns_without_frames():
    example_window = replace(window([(0, 1, "goal")], previous=" the red team kick", end=2), video=None)
    parsed = parse(to_record(example_window))
    assert parsed == example_window
    built, labels = build_sample(parsed, [], TOKENIZER, CONFIG, sink=0, text_window=0, as_streamed=True, learn_previous=99)
    assert not built.clips and total(built.spans) == len(built.ids)
    turns = "<|im_start|>user\nTime=0.0-1.0s<|im_end|>\n<|im_start|>assistant\n\n goal ...<|im_end|>\n"
    assert turns in decoded(built.ids)
    assert decoded(labels[labels != NO_LOSS]).startswith(" the red team kick")
    with pytest.raises(InputError, match="clips: got 2, expected none"):
        build_sample(parsed, [CLIP] * 2, TOKENIZER, CONFIG, sink=0, text_window=0)


def test_a_window_whose_first_seconds_are_hidden_has_frames_in_the_others():
    example_window = window([(0, 1, "goal"), (2, 3, "again")], previous=" kick", end=3)
    part = parse(to_record(replace(example_window, hidden=2)))
    assert part == replace(example_window, hidden=2) and part.visible_seconds == 1
    built, labels = build_sample(part, [CLIP], TOKENIZER, CONFIG, sink=0, text_window=0, as_streamed=True)
    assert [span.grid for span in built.spans if span.kind is Kind.VISION and span.grid] == [GRID]
    vision = "<|vision_start|>" + "<|video_pad|>" * 6 + "<|vision_end|>"
    turns = ["Time=0.0-1.0s", "Time=1.0-2.0s", f"Time=2.0-3.0s{vision}"]
    assert all(f"{turn}<|im_end|>" in decoded(built.ids) for turn in turns)
    learned = decoded(labels[labels != NO_LOSS])
    assert learned == "\n goal ...<|im_end|>\n ...<|im_end|>\n again ...<|im_end|>"
    with pytest.raises(InputError, match=r"clips of a.mp4: got 3, expected one for each of the 1 seconds from 2 to 3"):
        build_sample(part, [CLIP] * 3, TOKENIZER, CONFIG, sink=0, text_window=0)


@pytest.mark.parametrize(("sink", "text_window"), [(3, 512), (512, 1), (0, 512), (512, 0), (-1, 5)])
def test_windows_that_cut_the_markup_of_the_previous_text_are_refused(sink, text_window):
    with pytest.raises(
        InputError, match=f"sink and text_window: got {sink} and {text_window}, expected at least 4 and 2 tokens"
    ):
        build(window(), sink, text_window)


def test_a_clip_short_of_a_second_is_refused():
    with pytest.raises(InputError, match=r"clips of a.mp4: got 2, expected one for each of the 3 seconds from 0 to 3"):
        build_sample(window(), [CLIP] * 2, TOKENIZER, CONFIG, sink=0, text_window=0)


# --- bad records ---


def change(path: str, value=None, *, drop=False):
    """The recorded annotation with one thing changed; path as in [0].content[0].video."""
    record = copy.deepcopy(RECORDING["annotation"])
    keys = [int(key) if key.isdigit() else key for key in path.replace("[", ".").replace("]", "").strip(".").split(".")]
    holder = record
    for key in keys[:-1]:
        holder = holder[key]
    if drop:
        del holder[keys[-1]]
    else:
        holder[keys[-1]] = value
    return record


USER, TEXT, SAID = "[0].content[0]", "[0].content[1]", "[1].content[0]"
BAD = {
    "no list": ({"role": "user"}, "x: got dict, expected a list of two turns"),
    "one turn": (RECORDING["annotation"][:1], "x: got a list of 1"),
    "turn is a text": (change("[1]", "hello"), "x [1]: got str, expected the assistant's turn"),
    "roles swapped": (RECORDING["annotation"][::-1], "x [0].role: got 'assistant', expected 'user'"),
    "no role": (change("[0].role", drop=True), "x [0].role: got nothing"),
    "content": (change("[0].content", "hi"), "x [0].content: got 'hi', expected a list"),
    "nothing said": (change("[1].content", []), 'x [1].content[0]: got nothing, expected an object of type "text_stream"'),
    "no type": (change(f"{USER}.type", drop=True), f"x {USER}.type: got nothing"),
    "an image": (change(f"{USER}.type", "image"), f"x {USER}.type: got 'image', expected 'video'"),
    "no video": (change(f"{USER}.video", drop=True), f"x {USER}.video: got nothing, expected this key"),
    "empty video": (change(f"{USER}.video", ""), f"x {USER}.video: got an empty text"),
    "start is a text": (change(f"{USER}.video_start", "0"), f"x {USER}.video_start: got '0', expected a number of seconds"),
    "start is true": (change(f"{USER}.video_start", True), f"x {USER}.video_start: got True"),
    "negative start": (change(f"{USER}.video_start", -1), f"x {USER}.video_start: got -1, expected 0 or more"),
    "end is nan": (change(f"{USER}.video_end", float("nan")), f"x {USER}.video_end: got nan"),
    "end is huge": (change(f"{USER}.video_end", 10**400), f"x {USER}.video_end: got 1000"),
    "no end": (change(f"{USER}.video_end", drop=True), f"x {USER}.video_end: got nothing"),
    "end before start": (change(f"{USER}.video_end", 12), f"x {USER}.video_end: got 12, expected more than video_start = 12"),
    "hidden is a share": (
        change(f"{USER}.video_hidden", 0.5),
        f"x {USER}.video_hidden: got 0.5, expected whole seconds, 0 to bel",
    ),
    "all hidden": (change(f"{USER}.video_hidden", 24), f"x {USER}.video_hidden: got 24, expected whole seconds, 0 to below 24"),
    "query": (change(f"{TEXT}.text", 3), f"x {TEXT}.text: got 3, expected a text"),
    "previous": (change(f"{TEXT}.previous", ["a"]), f"x {TEXT}.previous: got ['a'], expected a text"),
    "previous is null": (change(f"{TEXT}.previous", None), f"x {TEXT}.previous: got None, expected a text"),
    "markup": (change(f"{TEXT}.previous", "a<|im_end|>"), f"x {TEXT}.previous: got special token <|im_end|>"),
    "no words": (change(f"{SAID}.text_stream", drop=True), f"x {SAID}.text_stream: got nothing"),
    "a bare word": (change(f"{SAID}.text_stream[3]", "a"), f"x {SAID}.text_stream[3]: got 'a', expected [start, end, word]"),
    "word without end": (change(f"{SAID}.text_stream[3]", [1, "a"]), f"x {SAID}.text_stream[3]: got [1, 'a']"),
    "time is a text": (change(f"{SAID}.text_stream[3][1]", "1"), f"x {SAID}.text_stream[3][1]: got '1'"),
    "backwards": (change(f"{SAID}.text_stream[3][1]", 15), f"x {SAID}.text_stream[3]: got end 15 before start 15.54"),
    "unordered": (change(f"{SAID}.text_stream[3][0]", 13), f"x {SAID}.text_stream[3]: got 13-16.01 after 13.42-14.04"),
    "unordered ends": (change(f"{SAID}.text_stream[3][1]", 17), f"x {SAID}.text_stream[4]: got 16.01-16.88 after 15.54-17"),
    "pad as a word": (change(f"{SAID}.text_stream[3][2]", "<|video_pad|>"), "got special token <|video_pad|>"),
    "qa": (change(f"{SAID}.qa_stream", [["id", 3, "q"]]), f"x {SAID}.qa_stream[0]: got ['id', 3, 'q'], expected [.., time, q"),
    "qa time": (change(f"{SAID}.qa_stream", [["id", None, "q", "a"]]), f"x {SAID}.qa_stream[0][1]: got None"),
}


@pytest.mark.parametrize(("record", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_record_is_one_line_that_names_the_key(record, reason):
    with pytest.raises(InputError) as error:
        parse(record, "x")
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["[", "", b"\xff\xfe", "[1,2] x", '["\\ud800"]', '["\ud800"]'])
def test_a_broken_line_is_named(line):
    with pytest.raises(InputError, match=r"a\.jsonl:7: got broken JSON"):
        parse_line(line, "a.jsonl:7")


def test_a_line_that_is_nested_too_deeply_is_one_bad_record():
    """As any other: it ended a run with a traceback."""
    with pytest.raises(InputError, match=r"a\.jsonl:7: got JSON that is nested too deeply"):
        parse_line(b"[" * 200_000, "a.jsonl:7")


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["role", "content", "type"]), inner, max_size=3)
    ),
    max_leaves=8,
)
PLACES = ("[0]", "[1]", "[0].content", USER, f"{USER}.video_end", TEXT, SAID, f"{SAID}.text_stream", f"{SAID}.text_stream[0]")


@settings(deadline=None)
@given(field=st.sampled_from((*PLACES, f"{SAID}.qa_stream", f"{SAID}.type")), value=junk)
def test_whatever_stands_in_a_record_it_is_read_or_refused(field, value):
    try:
        assert isinstance(parse(change(field, value)), Annotation)
    except InputError as error:
        assert "\n" not in str(error)


def test_unknown_keys_and_unused_places_are_ignored():
    record = change(f"{TEXT}.title", "a match")
    record[1]["content"][0]["qa_stream"] = [[None, 14, "Q", "A", "more"]]
    assert parse(record).questions == (Question(14, "Q", "A"),)
