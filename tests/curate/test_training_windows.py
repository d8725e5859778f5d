"""Claims about windows of transcripts: which, with which words, the same as `svlm windows` makes, and what is left out."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svlm_jax.cli.curate.windows import main as cut_transcripts
from svlm_jax.cli.windows import main as cut_annotations
from svlm_jax.curate.training_windows import TrainingWindows, to_annotation
from svlm_jax.curate.transcript import TimedWord, Transcript
from svlm_jax.curate.transcript import to_record as transcript_record
from svlm_jax.data.annotation import parse
from svlm_jax.data.records import Records
from svlm_jax.data.windows import cut, says_enough, to_record
from svlm_jax.errors import InputError


def spoken(*stretches: tuple[int, int, int], duration: float = 60.0) -> Transcript:
    """Words spread over stretches (start, end, how many), the last of each ending with it."""
    words = []
    for start, end, count in stretches:
        step = (end - start) / count
        words += [TimedWord(start + i * step, start + (i + 1) * step, f"w{start}.{i}") for i in range(count)]
    return Transcript("a.mp4", duration, tuple(words), "en")


def windows(transcript: Transcript, **options) -> list:
    return [parse(line) for line in TrainingWindows(**options).run(transcript).lines]


# --- how many words are enough ---


def test_a_window_of_24_s_needs_48_words_and_a_shorter_one_two_a_second():
    assert [(w.start, w.end) for w in windows(spoken((0, 24, 48), duration=24))] == [(0, 24)]
    assert windows(spoken((0, 24, 47), duration=24)) == []
    assert [(w.start, w.end) for w in windows(spoken((0, 10, 20), duration=10))] == [(0, 10)]
    assert windows(spoken((0, 10, 19), duration=10)) == []


def test_the_rate_is_exact_where_floats_are_not():
    """2.2 * 25 is 55.00000000000001: 55 words are enough all the same."""
    assert 2.2 * 25 > 55
    options = {"window": 25, "stride": 25, "words_per_second": 2.2}
    assert len(windows(spoken((0, 25, 55), duration=25), **options)) == 1
    assert len(windows(spoken((0, 25, 54), duration=25), **options)) == 0


def test_only_words_that_the_window_says_count():
    """48 words of which one ends at the window's start, or one of blanks, are 47; an entry of two words is two."""
    entries = [[2.0, 2.0, "early"], *[[3.0, 4.0, "w"]] * 47]
    record = to_record(to_annotation(Transcript("a.mp4", 26.0, tuple(TimedWord(*e) for e in entries))))
    window = parse(record)
    assert not says_enough(replace(window, start=2, end=26), 2)
    assert says_enough(replace(window, start=1, end=25), 2)
    full = spoken((0, 24, 48), duration=24)
    assert len(windows(replace(full, words=(full.words[0]._replace(text="   "), *full.words[1:])))) == 0
    assert len(windows(replace(full, words=(full.words[0]._replace(text="of the"), *full.words[2:])))) == 1


def test_silent_stretches_have_no_window_and_their_words_stay_in_the_text_before_later_ones():
    outcome = TrainingWindows().run(spoken((0, 24, 48), (24, 48, 10), (48, 72, 60), duration=72))
    kept = [parse(line) for line in outcome.lines]
    assert [(w.start, w.end) for w in kept] == [(0, 24), (48, 72)]
    assert kept[1].previous.split() == [f"w0.{i}" for i in range(48)] + [f"w24.{i}" for i in range(10)]
    assert [(c.rule, c.time, c.before, c.after) for c in outcome.changes] == [
        ("too few words", 12, "29 words in 24 s", ""),
        ("too few words", 24, "10 words in 24 s", ""),
        ("too few words", 36, "35 words in 24 s", ""),
    ]
    assert outcome.counts == {"windows": 2, "windows left out": 3}


# --- which words ---


def test_a_word_belongs_to_the_window_that_it_ends_in():
    words = (TimedWord(23.0, 24.0, "on"), TimedWord(23.5, 24.1, "over"), TimedWord(35.9, 36.0, "last"))
    first, second, third = windows(Transcript("a.mp4", 48.0, words), words_per_second=0)
    assert [[w.text for w in each.words] for each in (first, second, third)] == [
        ["on"], ["on", "over", "last"], ["over", "last"]
    ]  # fmt: skip
    assert [each.previous for each in (first, second, third)] == ["", "", " on"]


def test_records_say_what_the_viewer_asked_for_and_which_video():
    (window,) = windows(spoken((0, 24, 48), duration=24.9), query="Commentary, please.")
    assert (window.video, window.query, window.start, window.end) == ("a.mp4", "Commentary, please.", 0, 24)


@settings(deadline=None, max_examples=40)
@given(
    ends=st.lists(st.integers(0, 700), max_size=120).map(sorted),
    rate=st.sampled_from([0, 0.5, 1, 2]),
    window=st.integers(2, 30),
    stride=st.integers(1, 30),
    as_streamed=st.booleans(),
)
def test_they_are_the_windows_of_svlm_windows_that_say_enough(ends, rate, window, stride, as_streamed):
    transcript = Transcript("a.mp4", 65.5, tuple(TimedWord(end / 10 - 0.05, end / 10, f"w{end}") for end in ends if end))
    options = {"window": window, "stride": min(stride, window), "as_streamed": as_streamed}
    outcome = TrainingWindows(words_per_second=rate, **options).run(transcript)
    all_windows = list(cut(to_annotation(transcript), min_seconds=2, **options))
    assert list(outcome.lines) == [each for each in all_windows if says_enough(parse(each), rate)]
    assert bool(outcome.lines) != bool(outcome.reason)


# --- what is set aside ---


@pytest.mark.parametrize(
    ("words", "reason", "found"),
    [
        ([(1.0, None, "a")], "start and end", "content[0]: a word without times"),
        ([(2.0, 3.0, "a"), (1.0, 1.5, "b")], "words in order of time", "content[1]: 1-1.5 after 2-3"),
        ([(2.0, 1.0, "a")], "start <= end", "content[0]: end 1 before start 2"),
        ([(1.0, 2.0, "<|im_end|>")], "plain text", "content[0][2]: special token <|im_end|>"),
    ],
)
def test_words_that_were_not_cleaned_are_set_aside_and_not_trained_on(words, reason, found):
    outcome = TrainingWindows().run(Transcript("a.mp4", 60.0, tuple(TimedWord(*word) for word in words)))
    assert outcome.lines == ()
    assert outcome.reason == f"not to be cut, expected {reason}; run svlm curate clean first"
    assert outcome.changes == (("not to be cut", None, found, ""),)


def test_a_video_in_which_too_little_is_said_is_set_aside_and_its_windows_tell_how_little():
    for words, most in ((0, "0 words in 24 s"), (30, "30 words in 24 s")):
        outcome = TrainingWindows().run(spoken(*[(0, 24, words)] * bool(words), duration=30))
        assert outcome.lines == () and outcome.reason == "no window has 2 words a second"
        assert outcome.changes[0] == ("too few words", 0, most, "")


def test_a_video_of_a_second_is_set_aside():
    outcome = TrainingWindows().run(Transcript("a.mp4", 1.5, (TimedWord(0.0, 1.0, "a"),)))
    assert outcome.reason == "not to be cut, expected at least 2 whole seconds; leave the record out"


def test_windows_that_cannot_be_are_refused_before_any_video():
    with pytest.raises(InputError, match="stride: got 30, expected at most 24"):
        TrainingWindows(stride=30)
    assert json.loads(json.dumps(dict(TrainingWindows().settings))) == {
        "window": 24, "stride": 12, "words_per_second": 2.0, "query": "", "as_streamed": False, "visible_seconds": 0
    }  # fmt: skip


# --- the command ---


def test_the_command_writes_the_bytes_of_svlm_windows_and_the_seeks_that_training_reads(tmp_path, monkeypatch):
    """Of three videos, of which one has too few words."""
    transcripts = [spoken((0, 60, 140)), spoken((0, 60, 20)), spoken((10, 48, 100), (50, 90, 90), duration=95.5)]
    (tmp_path / "edited.jsonl").write_text("".join(json.dumps(transcript_record(each)) + "\n" for each in transcripts))
    annotations = (to_record(to_annotation(each)) for each in transcripts)
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(each) + "\n" for each in annotations))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["svlm-windows", "long.jsonl", "--out", "a.jsonl", "--words-per-second", "2"])
    cut_annotations()
    monkeypatch.setattr("sys.argv", ["svlm-curate-windows", "--in", "edited.jsonl", "--out", "b.jsonl"])
    cut_transcripts()
    for ending in (".jsonl", "_seeks.jsonl"):
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()
    read = [parse(json.loads(record.line)) for record in Records(["b.jsonl"])]
    assert [each.start for each in read] == [0, 12, 24, 36, 12, 24, 36, 48, 60]
    report = json.loads((tmp_path / "b.report.json").read_text())
    assert report["set_aside"] == {"no window has 2 words a second": 1}
    assert report["counts"] == {"windows": 9, "windows left out": 6}
    # the seconds 12 to 84 of the last video, which overlapping windows share
    assert report["words"] == [350, 140 + sum(12 < word.end <= 84 for word in to_annotation(transcripts[2]).words)]
    assert report["hours"][1] == round((60 + 72) / 3600, 6)
