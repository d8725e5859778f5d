"""Sentences are what a reader takes for one: an editor that gets halves of them corrects the wrong things."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svlm_jax.curate.sentences import joined, segments, split_sentences, split_words
from svlm_jax.curate.transcript import TimedWord
from svlm_jax.errors import InputError


def said(text: str, start: float = 0.0, each: float = 0.5) -> list[TimedWord]:
    """Words that follow each other without a pause."""
    return [TimedWord(start + i * each, start + (i + 1) * each, word) for i, word in enumerate(text.split(" "))]


def texts(words: list[TimedWord]) -> list[str]:
    return [sentence.text for sentence in split_sentences(words)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He shoots. He scores! Really?", ["He shoots.", "He scores!", "Really?"]),
        ("It is 2-1. Reds lead 2.5 to one.", ["It is 2-1.", "Reds lead 2.5 to one."]),
        ("Mr. Smith and Dr. Jones vs. Reds.", ["Mr. Smith and Dr. Jones vs. Reds."]),
        ("J. K. Smith of the U.S. team.", ["J. K. Smith of the U.S. team."]),
        ("Then so do I. They win.", ["Then so do I.", "They win."]),
        ("No. He missed. No. 10 tries.", ["No.", "He missed.", "No. 10 tries."]),
        ("He shoots... and scores. Well... That was it.", ["He shoots... and scores.", "Well...", "That was it."]),
        ("“Goal!” he says (again.) Yes.", ["“Goal!”", "he says (again.)", "Yes."]),
        ('He said "go. " Then this', ['He said "go. "', "Then this"]),
        ("What?! No way!!! ok", ["What?!", "No way!!!", "ok"]),
        ("Reds win . Blues lose", ["Reds win .", "Blues lose"]),
        ("传球 。 进球 了! 好", ["传球。", "进球了!", "好"]),
        ("هدف ؟ نعم", ["هدف ؟", "نعم"]),
        ("लक्ष्य। हाँ", ["लक्ष्य।", "हाँ"]),
        ("no marks at all", ["no marks at all"]),
        (".", ["."]),
    ],
)
def test_a_sentence_ends_at_its_mark_and_not_at_an_abbreviation(text, expected):
    assert texts(said(text)) == expected


def test_a_pause_of_two_seconds_ends_a_sentence_and_a_shorter_one_does_not():
    before, after = said("he runs"), said("and runs")
    assert texts(before + [word._replace(start=word.start + 3.0, end=word.end + 3.0) for word in after]) == [
        "he runs",
        "and runs",
    ]
    assert texts(before + [word._replace(start=word.start + 2.99, end=word.end + 2.99) for word in after]) == [
        "he runs and runs"
    ]


def test_where_there_are_no_marks_a_sentence_has_forty_words():
    assert [len(sentence.words) for sentence in split_sentences(said(" ".join(["word"] * 85)))] == [40, 40, 5]
    assert [len(sentence.words) for sentence in split_sentences(said(" ".join(["word"] * 39) + " end. Next"))] == [40, 1]


def test_a_segment_has_the_sentences_whose_first_word_starts_in_it():
    words = said("One.", 0.0) + said("Late one across.", 119.0) + said("At once.", 120.5) + said("Much later.", 500.0)
    found = list(segments(split_sentences(words)))
    assert [(segment.start, segment.end) for segment in found] == [(0, 120), (120, 240), (480, 600)]
    assert [[s.text for s in segment.sentences] for segment in found] == [
        ["One.", "Late one across."],
        ["At once."],
        ["Much later."],
    ]


def test_words_without_times_are_refused_with_the_remedy():
    with pytest.raises(InputError, match=r"content\[1\]: got 'b' without times, .*svlm curate clean"):
        split_sentences([TimedWord(0.0, 1.0, "a"), TimedWord(None, 2.0, "b")])


WORDS = st.lists(st.text("aB.?!。我 \"'0-", max_size=4), max_size=60)


@settings(max_examples=25, deadline=None)
@given(WORDS, st.lists(st.sampled_from([0.0, 0.5, 2.0, 9.0]), min_size=60, max_size=60))
def test_each_word_is_in_one_sentence_in_order(found, gaps):
    words, now = [], 0.0
    for text, gap in zip(found, gaps, strict=False):
        words.append(TimedWord(now + gap, now + gap + 0.3, text))
        now += gap + 0.3
    cut = split_sentences(words)
    assert [word for sentence in cut for word in sentence.words] == words
    assert all(sentence.words == tuple(words[sentence.first : sentence.first + len(sentence.words)]) for sentence in cut)
    assert [sentence for segment in segments(cut, 20) for sentence in segment.sentences] == cut


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("He don't score 2-1, (O'Neil).", ["He", "don't", "score", "2-1,", "(O'Neil)."]),
        ("我们赢了!GOAL好", ["我", "们", "赢", "了!", "GOAL", "好"]),
        ("他说“好”。", ["他", "说", "“好”。"]),
        ("ラーメン", ["ラー", "メ", "ン"]),
        ("축구 경기", ["축구", "경기"]),
        ("", []),
    ],
)
def test_words_of_a_text(text, words):
    assert split_words(text) == words
    assert joined(words) == text.replace("GOAL", " GOAL ")  # as in print


def test_joined_words_have_one_blank_between_them_and_no_line_breaks():
    assert joined([" Reds", "pass\nit ", "", "on."]) == "Reds pass it on."


def test_a_text_without_blanks_however_long_is_split_at_once():
    """Ten megabytes without a blank, as models in a loop write them: seconds, not hours."""
    assert split_words("a" * 10_000_000) == ["a" * 10_000_000]
    assert split_words("a" * 200_000 + "天地。玄") == ["a" * 200_000, "天", "地。", "玄"]
