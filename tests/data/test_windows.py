"""Claims about training windows: every word once, the previous text of a stream, which seconds, and the command."""

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from svlm_jax.data.annotation import Annotation, Question, Word, parse, training_turns
from svlm_jax.data.records import Records, seeks_path
from svlm_jax.data.windows import cut, to_record
from svlm_jax.errors import InputError
from svlm_jax.families import config_json
from svlm_jax.families.chat import opening
from svlm_jax.media.processor import load_tokenizer
from svlm_jax.pretrained import SHIPPED
from tests.support import FIXTURES, commands

CONFIG = config_json.read(FIXTURES / "models" / "tiny")
RECORDING = json.loads((FIXTURES / "sft" / "sft_24s.json").read_text())["annotation"]


def video(words=(), questions=(), previous="", start=0.0, end=60.0) -> Annotation:
    return Annotation(
        "a.mp4", start, end, "q", previous, tuple(Word(*w) for w in words), tuple(Question(*q) for q in questions)
    )


def windows(annotation: Annotation, **options) -> list[Annotation]:
    return [parse(item) for item in cut(annotation, **options)]


def spans(annotation: Annotation, **options) -> list[tuple[float, float]]:
    return [(window.start, window.end) for window in windows(annotation, **options)]


def words_of(annotation: Annotation) -> str:
    """The words of all replies, as they are written."""
    return "".join(turn.reply.removeprefix("\n").removesuffix(" ...") for turn in training_turns(annotation))


def text(words) -> str:
    return "".join(f" {word.text.strip()}" for word in words)


# --- where windows are ---


def test_windows_overlap_and_the_last_one_ends_with_the_video():
    assert spans(video(end=60)) == [(0, 24), (12, 36), (24, 48), (36, 60)]
    assert spans(video(end=61)) == [(0, 24), (12, 36), (24, 48), (36, 60)]  # a second is below `min_seconds`
    assert spans(video(end=62)) == [(0, 24), (12, 36), (24, 48), (36, 60), (48, 62)]
    assert spans(video(end=61), min_seconds=1) == [(0, 24), (12, 36), (24, 48), (36, 60), (48, 61)]
    assert spans(video(end=60), stride=24) == [(0, 24), (24, 48), (48, 60)]
    assert spans(video(end=49), stride=24) == [(0, 24), (24, 48)]
    assert spans(video(start=100, end=110)) == [(100, 110)]


def test_windows_are_of_whole_seconds():
    assert spans(video(start=12.5, end=40.9), stride=24) == [(13, 37), (37, 40)]
    assert spans(video(start=12.0, end=36.0 - 1e-9)) == [(12, 36)]
    assert all(isinstance(second, int) for pair in spans(video(end=61.5)) for second in pair)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"window": 0}, "window: got 0, expected a whole number of seconds"),
        ({"window": 24.0}, "window: got 24.0, expected a whole number"),
        ({"stride": -1}, "stride: got -1"),
        ({"stride": 25}, "stride: got 25, expected at most 24, the window; words between windows would be lost"),
        ({"min_seconds": 0.5}, "min_seconds: got 0.5, expected 1 to 24"),
        ({"min_seconds": float("nan")}, "min_seconds: got nan"),
        ({"visible_seconds": 25}, "visible_seconds: got 25, expected 1 to 24 (the window) seconds, or 0: all"),
        ({"window": 3, "stride": 3, "min_seconds": 4}, "min_seconds: got 4, expected 1 to 3"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options, reason):
    with pytest.raises(InputError) as error:
        cut(video(), **options)
    assert reason in str(error.value)


def test_a_video_without_a_window_is_refused():
    with pytest.raises(InputError, match=r"x\.jsonl:3: got 4\.5 to 6\.9 s, expected at least 2 whole seconds"):
        cut(video(start=4.5, end=6.9), source="x.jsonl:3")


def test_only_the_last_seconds_of_windows_are_shown():
    parts = windows(video(end=34), visible_seconds=8)
    assert [(item.start, item.end, item.hidden, item.visible_seconds) for item in parts] == [(0, 24, 16, 8), (12, 34, 14, 8)]
    assert [item.visible_seconds for item in windows(replace(video(end=34), video=None), visible_seconds=8)] == [0, 0]
    with pytest.raises(InputError, match="annotation: got video_hidden 3, expected a video with all its frames"):
        cut(replace(video(), hidden=3))


# --- what is said in them ---


def test_a_window_is_given_what_ends_in_it_and_what_was_said_before():
    words = [(0, 1, "a"), (1, 12, "b"), (11, 12.5, " c "), (23, 24, "d"), (24, 24.1, "e")]
    questions = [(12, "early?", "x"), (12.1, "in?", "y"), (24, "last?", "z"), (36.1, "late?", "w")]
    first, second = windows(video(words, questions, previous="before", end=36))
    assert (first.previous, text(first.words)) == ("before", " a b c d")
    assert (second.previous, text(second.words)) == ("before a b", " c d e")
    assert [question.text for question in second.questions] == ["in?", "last?"]
    assert (second.video, second.query) == ("a.mp4", "q")


def test_silent_windows_are_kept():
    assert [window.words for window in windows(video(end=48))] == [(), (), ()]


def test_a_record_comes_back_from_its_annotation():
    annotation = parse(RECORDING)
    assert parse(to_record(annotation)) == annotation
    with_question = video([(1, 2, "a")], [(3, "who?", "me")])
    assert parse(json.loads(json.dumps(to_record(with_question)))) == with_question


def test_previous_text_is_that_of_a_stream_whose_replies_have_moved_there():
    """Token for token, but for the newlines that open replies."""
    tokenizer = load_tokenizer(FIXTURES / "processor")
    annotation = video([(0, 1, "goal"), (1.2, 1.5, "red"), (2, 3, "team")], end=26)
    reply_tokens = [
        tokenizer.encode(turn.reply.removeprefix("\n").removesuffix(" ..."), add_special_tokens=False)
        for turn in training_turns(annotation)
    ]
    start = opening("", tokenizer, CONFIG).ids
    stream = np.concatenate([start[:-2], *reply_tokens, start[-2:]])
    last = windows(annotation, stride=24)[-1]
    np.testing.assert_array_equal(opening(last.previous, tokenizer, CONFIG).ids, stream)


def test_as_streamed_the_newlines_and_answers_are_there_too():
    """Token for token with a tokenizer that keeps newlines apart, as the shipped one does."""
    tokenizer = load_tokenizer(SHIPPED["touchline"])
    annotation = video(
        [(0, 1, "Reds"), (1.2, 1.5, "pass."), (9, 10, "Wide!")], [(3.5, "Who scored first?", "Nobody yet.")], end=26
    )
    reply_tokens = [
        tokenizer.encode(turn.reply.removesuffix(" ..."), add_special_tokens=False)
        for turn in training_turns(annotation, as_streamed=True)
    ]
    assert [len(item) for item in reply_tokens[:5]] == [2, 3, 1, 4, 1]
    start = opening("", tokenizer, CONFIG).ids
    last = windows(annotation, stride=24, as_streamed=True)[-1]
    np.testing.assert_array_equal(
        opening(last.previous, tokenizer, CONFIG).ids, np.concatenate([start[:-2], *reply_tokens[:24], start[-2:]])
    )
    odd = video([(99, 99.9, "v"), (101, 102, "w")], [(99.7, "who?", "me")], "p", start=99.5, end=126.5)
    first, other = windows(odd, stride=24, as_streamed=True)
    assert (first.previous, other.start, other.previous) == ("p v", 124, "p v\n\n w" + 22 * "\n")


times = st.integers(0, 400).map(lambda tenths: tenths / 10)
spoken = st.lists(
    st.tuples(times, st.integers(0, 30).map(lambda tenths: tenths / 10), st.text("ab '", max_size=3)), max_size=25
)


def in_order(entries) -> list[Word]:
    begins, ends = sorted(time for time, _, _ in entries), sorted(time + length for time, length, _ in entries)
    return [Word(*word) for word in zip(begins, ends, (text for _, _, text in entries), strict=True)]


@settings(deadline=None)
@given(entries=spoken, start=st.sampled_from([0.0, 0.1, 3, 12.5]), end=st.sampled_from([24, 31.7, 36.0, 40]))
@example(entries=[(0, 3.0, "a"), (1, 5.0, "b")], start=3, end=24)
def test_without_overlap_every_word_is_said_exactly_once(entries, start, end):
    words = in_order(entries)
    written = windows(video(words, previous="p", start=start, end=end), window=6, stride=6, min_seconds=1)
    first, last = math.ceil(start), math.floor(end)
    assert written[0].previous == "p" + text(word for word in words if word.end <= first)
    assert "".join(words_of(window) for window in written) == text(word for word in words if first < word.end <= last)
    assert [window.end for window in written[:-1]] == [window.start for window in written[1:]] and written[-1].end == last


@settings(deadline=None)
@given(entries=spoken, window=st.integers(2, 30), part=st.integers(1, 30), start=st.sampled_from([0, 0.1, 12.5]))
def test_previous_text_and_own_words_are_all_that_was_said_up_to_the_end(entries, window, part, start):
    words = in_order(entries)
    for item in windows(video(words, previous="p", start=start, end=40), window=window, stride=min(part, window)):
        assert item.previous + words_of(item) == "p" + text(word for word in words if word.end <= item.end)
        assert item.seconds == item.end - item.start <= window


# --- the command ---


def command(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.command("windows", *args, cwd=cwd)


@pytest.fixture
def long(tmp_path) -> Path:
    """Two videos, and between them a broken line and one without a window."""
    match = video([(n, n + 0.5, f"w{n}") for n in range(30)], end=60)
    lines = [json.dumps(to_record(match)), "[broken", json.dumps(to_record(video(end=1))), json.dumps(to_record(video(end=24)))]
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    return tmp_path / "long.jsonl"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_command_writes_windows_and_tells_what_it_left_out(long, tmp_path):
    result = command("long.jsonl", "--out", "train.jsonl", "--stride", 24, "--max-bad", 2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "4 records, 4 windows, 84 s, words in 36% of the seconds -> train.jsonl\n"
    errors = result.stderr.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith("left out long.jsonl:2: record: got broken JSON")
    assert errors[1].startswith("left out long.jsonl:3: record: got 0 to 1 s")
    written = [parse(json.loads(record.line)) for record in Records([tmp_path / "train.jsonl"])]
    assert [(item.start, item.end) for item in written] == [(0, 24), (24, 48), (48, 60), (0, 24)]
    assert seeks_path(tmp_path / "train.jsonl").is_file()


def test_only_windows_in_whose_words_something_is_said(long, tmp_path):
    options = ("--out", "some.jsonl", "--stride", 8, "--window", 8, "--max-bad", 2, "--saying", "w1[67]")
    result = command("long.jsonl", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    written = [parse(json.loads(record.line)) for record in Records([tmp_path / "some.jsonl"])]
    assert [(item.start, item.end) for item in written] == [(16, 24)] and written[0].previous.endswith(" w15")


def test_only_windows_in_which_something_is_said_long_after_it_was_said_before(long, tmp_path):
    """Said in the seconds 1, 2, 15 and 16: only 15 comes late, whichever window the one before it is in."""
    options = ("--window", 8, "--stride", 8, "--max-bad", 2, "--saying", "w[12]( |$)|w1[56]", "--apart", 13)
    result = command("long.jsonl", "--out", "far.jsonl", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    written = [parse(json.loads(record.line)) for record in Records([tmp_path / "far.jsonl"])]
    assert [(item.start, item.end) for item in written] == [(8, 16)]


def test_only_windows_in_which_enough_is_said(long, tmp_path):
    """A word a second up to second 30: all but the window from 48."""
    options = ("--stride", 24, "--max-bad", 2, "--words-per-second", 0.25)
    result = command("long.jsonl", "--out", "told.jsonl", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("4 records, 2 windows (2 left out: fewer than 0.25 words/s), 48 s, ")
    written = [parse(json.loads(record.line)) for record in Records([tmp_path / "told.jsonl"])]
    assert [(item.start, item.end) for item in written] == [(0, 24), (24, 48)]


def test_only_each_nth_window_is_kept(long, tmp_path):
    for name, step in (("all", 1), ("third", 3)):
        result = command(
            "long.jsonl", "--out", f"{name}.jsonl", "--window", 8, "--stride", 8, "--max-bad", 2, "--every", step, cwd=tmp_path
        )
        assert result.returncode == 0, result.stderr
    all_lines, parts = ([record.line for record in Records([tmp_path / f"{name}.jsonl"])] for name in ("all", "third"))
    assert len(parts) > 1 and parts == all_lines[2::3]


def test_more_bad_records_than_allowed_are_all_told_and_nothing_is_written(long, tmp_path):
    result = command("long.jsonl", "--out", "train.jsonl", "--max-bad", 1, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout == "" and "Traceback" not in result.stderr
    starts = ("left out long.jsonl:2: ", "left out long.jsonl:3: ", "error: --max-bad: got 2 bad records, expected at most 1")
    assert all(line.startswith(start) for line, start in zip(result.stderr.splitlines(), starts, strict=True))
    assert left(tmp_path) == ["long.jsonl"]


REFUSED = {
    "neither": ([], "error: --out and --tfds: got neither"),
    "window": (["--out", "x.jsonl", "--window", 0], "error: --window: got 0, expected 1 or more"),
    "stride": (["--out", "x.jsonl", "--stride", 30], "error: stride: got 30"),
    "words": (["--tfds", "x", "--words-only"], "error: --words-only: got with --tfds"),
    "shown": (["--out", "x.jsonl", "--words-only", "--visible-seconds", 8], "error: --words-only: got with --visible-seconds"),
    "fps": (["--tfds", "x", "--fps", 2.5], "error: fps: got 2.5, expected a whole number of frames a second"),
    "max-bad": (["--out", "x.jsonl", "--max-bad", -1], "error: --max-bad: got -1"),
    "every": (["--out", "x.jsonl", "--every", 0], "error: --every: got 0, expected 1 or more"),
    "words a second": (["--out", "x.jsonl", "--words-per-second", -1], "error: --words-per-second: got -1, expected a number"),
    "apart": (["--out", "x.jsonl", "--apart", 40], "error: --apart: got 40, expected --saying with it"),
    "saying": (["--out", "x.jsonl", "--saying", "("], "error: --saying: got '(', expected a regular expression"),
    "suffix": (["--out", "x.json"], "error: annotations x.json: got the suffix '.json'"),
    "itself": (["--out", "long.jsonl"], "error: long.jsonl: got something that exists already"),
    "its seeks": (["--out", "old.jsonl"], "error: old_seeks.jsonl: got something that exists already"),
    "directory": (["--tfds", "."], "error: .: got something that exists already"),
    "source": (["no.jsonl", "--out", "x.jsonl"], "error: annotations no.jsonl: got no such file"),
}


@pytest.mark.parametrize(("args", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_flags_are_one_line_before_any_work(long, tmp_path, args, reason):
    (tmp_path / "old_seeks.jsonl").write_text("[0]")
    result = command("long.jsonl", *args, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(reason) and len(result.stderr.splitlines()) == 1
    assert left(tmp_path) == ["long.jsonl", "old_seeks.jsonl"]
