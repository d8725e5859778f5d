"""Subtitles as they are in the world: no word is lost or doubled, and each has the time that the file gives it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svlm_jax.curate.transcribing.subtitles import decode, parse, transcription

YOUTUBE = """WEBVTT
Kind: captions
Language: en

00:00:00.930 --> 00:00:03.080 align:start position:0%
 
and<00:00:01.230><c> now</c><00:00:01.439><c> we</c><c.colorCCCCCC><00:00:01.920><c> see</c></c>

00:00:03.080 --> 00:00:03.090 align:start position:0%
and now we<c.colorCCCCCC> see</c>
 

00:00:03.090 --> 00:00:04.849 align:start position:0%
and now we<c.colorCCCCCC> see</c>
the<00:00:03.120><c> Reds</c>

00:00:04.849 --> 00:00:04.859 align:start position:0%
the Reds
 

00:00:04.859 --> 00:00:06.000 align:start position:0%
the Reds
goal

00:00:06.000 --> 00:00:06.010 align:start position:0%
goal
 

00:00:06.010 --> 00:00:19.010 align:start position:0%
goal
&gt;&gt; goal<00:00:09.200><c> [Music]</c><00:00:09.500><c> again</c>
"""


def read(text):
    """[(start, end, word)] of the text of a file."""
    return [tuple(word[:3]) for word in transcription(parse(text)).words]


def said(text):
    return [word for _, _, word in read(text)]


def rules(text):
    return [(change.rule, change.time, change.before) for change in transcription(parse(text)).changes]


def srt(*cues):
    """Cues of (times, text)."""
    return "\n\n".join(f"{number}\n{times}\n{text}" for number, (times, text) in enumerate(cues, 1)) + "\n"


def test_youtube_times_its_words_and_shows_each_line_three_times():
    words = read(YOUTUBE)
    assert [text for _, _, text in words] == ["and", "now", "we", "see", "the", "Reds", "goal", "goal", "again"]
    assert words[:2] == [(0.93, 1.23, "and"), (1.23, 1.439, "now")]
    assert words[3] == (1.92, 2.22, "see")  # 0.1 s a letter: the cue stays until 3.08
    assert words[6] == (4.859, 5.259, "goal")  # one word has no time of its own, and starts with its cue
    assert words[8] == (9.5, 10.0, "again")
    assert transcription(parse(YOUTUBE)).language == "en"
    assert rules(YOUTUBE) == [("in brackets", 6.01, "[Music]"), ("rolling subtitles", 0.93, "6 lines shown once more")]


def test_subtitles_that_roll_without_times_of_words():
    text = srt(
        ("00:00:01,000 --> 00:00:03,000", "Reds have it"),
        ("00:00:03,000 --> 00:00:05,000", "Reds have it\nthrough the middle"),
        ("00:00:05,000 --> 00:00:07,000", "through the middle\nGOAL"),
        ("00:00:07,000 --> 00:00:08,000", "GOAL\nGOAL"),
        ("00:00:20,000 --> 00:00:21,000", "GOAL\nagain"),  # after a pause: nothing rolls
    )
    assert said(text) == ["Reds", "have", "it", "through", "the", "middle", "GOAL", "GOAL", "GOAL", "again"]


def test_a_line_that_grows_has_each_word_once():
    text = srt(
        ("00:00:01,000 --> 00:00:02,000", "What"),
        ("00:00:02,000 --> 00:00:03,000", "What a"),
        ("00:00:03,000 --> 00:00:04,000", "What a goal"),
    )
    assert read(text) == [(1.0, 2.0, "What"), (2.0, 3.0, "a"), (3.0, 4.0, "goal")]


def test_a_chant_in_subtitles_that_do_not_roll_is_kept():
    shouts = [(f"00:00:0{i},000 --> 00:00:0{i + 1},000", "Goal! Goal!") for i in range(1, 4)]
    assert said(srt(*shouts)) == ["Goal!"] * 6


def test_words_of_a_cue_share_its_time():
    assert read("WEBVTT\n\n00:01.000 --> 00:02.000\nWhat a goal now") == [
        (1.0, 1.25, "What"), (1.25, 1.5, "a"), (1.5, 1.75, "goal"), (1.75, 2.0, "now"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("times", "start", "end"),
    [
        ("01:00:01.500 --> 01:00:02.500", 3601.5, 3602.5),
        ("00:01.500 --> 00:02.500 align:start position:0% line:90%", 1.5, 2.5),
        ("00:00:01,5 --> 00:00:02,5  X1:40 X2:600 Y1:20 Y2:50", 1.5, 2.5),
        ("0:0:1.5-->0:0:2.5", 1.5, 2.5),
        ("00: 00: 01, 500 -> 00: 00: 02, 500", 1.5, 2.5),
        ("00:00:01.500 --&gt; 00:00:02.500", 1.5, 2.5),
        ("100:00:01 --> 100:00:02", 360001.0, 360002.0),
        ("-00:00:01,000 --> 00:00:02,000", -1.0, 2.0),
    ],
)
def test_times_as_they_are_written(times, start, end):
    assert read(f"1\n{times}\nGoal\n") == [(start, end, "Goal")]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends_marks_comments_styles_and_names_of_cues(newline):
    text = (
        "\ufeffWEBVTT - a title\n\nSTYLE\n::cue { color: red }\n\nNOTE\nnot said\n\nfirst cue\n00:01.000 --> 00:02.000\nOne\n\n"
    )
    text += "NOTE not said\n\n00:02.000 --> 00:03.000\nNOTE this\n"
    assert said(text.replace("\n", newline)) == ["One", "NOTE", "this"]


def test_cues_without_blank_lines_between_them_and_blank_lines_in_cues():
    text = "1\n00:00:01,000 --> 00:00:02,000\nOne\n2024\n2\n00:00:02,000 --> 00:00:03,000\n\nTwo\n\nand more\n\n3\n\n"
    text += "00:00:03,000 --> 00:00:04,000\n4\n"
    assert said(text) == ["One", "2024", "Two", "and", "more", "4"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<i>Goal</i> for <font color='red'>Reds</font>", "Goal for Reds"),
        ("<v Ann Lee>Goal</v> {\\an8}now", "Goal now"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("Ann &amp; Bo&nbsp;score &lt;i&gt;", "Ann & Bo score <i>"),
        ("&gt;&gt; Goal &amp;gt;&amp;gt; yes", "Goal yes"),
        (">> ANN O'LEE: Goal", "Goal"),
        (">> Goal: one", "Goal: one"),
        ("FINAL SCORE: 2 - 1", "FINAL SCORE: 2 - 1"),
        ("- Goal!\n- Whose?\n-2 degrees", "Goal! Whose? -2 degrees"),
        ("[Music] Goal [crowd\ncheers] now", "Goal now"),
        ("(APPLAUSE)\nGoal (a late one)", "Goal (a late one)"),
        ("♪ we are the Reds ♪\nGoal ♪", "Goal"),
        ("no, no no", "no, no no"),
        ("\u200b\u200eGo\u00adal\u200b", "Goal"),
        ("ゴール \u2066\u0645\u06cc\u200c\u0631\u0648\u062f", "ゴール \u0645\u06cc\u200c\u0631\u0648\u062f"),
    ],
)
def test_what_is_said_and_what_is_not(text, words):
    assert " ".join(said(f"WEBVTT\n\n00:01.000 --> 00:09.000\n{text}\n")) == words


def test_what_is_left_out_is_told():
    text = srt(("00:00:01,000 --> 00:00:04,000", ">> ANN: Goal [Applause]"), ("00:00:05,000 --> 00:00:06,000", "♪ la ♪"))
    assert rules(text) == [("in brackets", 1.0, "[Applause]"), ("speaker's name", 1.0, "ANN:"), ("song", 5.0, "♪ la ♪")]


def test_a_syllable_with_a_time_is_no_word():
    assert read("WEBVTT\n\n00:01.000 --> 00:03.000\nTer<00:01.500>rence <00:02.000>goes") == [
        (1.0, 1.8, "Terrence"), (2.0, 2.4, "goes"),
    ]  # fmt: skip


def test_overlapping_cues_are_said_one_after_the_other():
    clipped = srt(("00:00:01,000 --> 00:00:06,000", "One two"), ("00:00:03,000 --> 00:00:04,000", "three"))
    assert read(clipped) == [(1.0, 2.0, "One"), (2.0, 3.0, "two"), (3.0, 4.0, "three")]
    together = srt(("00:00:01,000 --> 00:00:03,000", "One two"), ("00:00:01,000 --> 00:00:02,000", "three four"))
    assert read(together) == [(1.0, 1.5, "One"), (1.5, 2.0, "two"), (2.0, 2.5, "three"), (2.5, 3.0, "four")]


def test_cues_without_a_length_out_of_order_and_twice():
    text = srt(
        ("00:00:05,000 --> 00:00:05,000", "Goal now"),
        ("00:00:01,000 --> 00:00:02,000", "One"),
        ("00:00:01,000 --> 00:00:02,000", "One"),
        ("00:00:09,000 --> 00:00:08,000", "Late"),
    )
    assert read(text) == [(1.0, 2.0, "One"), (5.0, 5.4, "Goal"), (5.4, 5.8, "now"), (9.0, 9.4, "Late")]
    assert rules(text) == [
        ("cue out of order", 1.0, "after one at 5 s"), ("cue twice", 1.0, "One"),
        ("cue without a length", 5.0, "5 to 5"), ("cue without a length", 9.0, "9 to 8"),
    ]  # fmt: skip


def test_a_line_of_arrows_is_read_at_once():
    """Half a megabyte of them: seconds, not hours. A line of arrows without a digit is words."""
    assert len(said(srt(("00:00:01,000 --> 00:00:04,000", "-->" * 200_000)))) == 1


def test_times_that_cannot_be_read_are_told_and_the_words_are_kept():
    text = "1\n00:00:01,000 --> 00:00:03,000\nOne\n\n2\n00:00:0x,000 --> 00:00:04,000\ntwo\n"
    assert read(text) == [(1.0, 2.0, "One"), (2.0, 3.0, "two")]
    assert rules(text) == [("times that cannot be read", 1.0, "00:00:0x,000 --> 00:00:04,000")]


def test_the_clock_of_a_stream_is_told():
    text = "WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:900000,LOCAL:00:00:00.000\n\n00:01.000 --> 00:02.000\nGoal"
    assert rules(text)[0][0] == "clock of a stream"
    assert not rules(text.replace("900000", "0"))


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ("Tor für Köln".encode(), "utf-8"),
        ("Tor für Köln".encode("utf-8-sig"), "utf-8"),
        ("Tor für Köln".encode("utf-16"), "utf-16"),
        ("Tor für Köln".encode("utf-16-le"), "utf-16-le"),
        ("Tor für Köln".encode("utf-16-be"), "utf-16-be"),
        ("Tor für Köln".encode("utf-32"), "utf-32"),
        ("Tor für Köln".encode("latin-1"), "cp1252"),
    ],
)
def test_encodings(data, encoding):
    assert decode(data) == ("Tor für Köln", encoding)


def test_an_encoding_that_is_asked_for():
    assert decode("Гол".encode("cp1251"), "cp1251") == ("Гол", "cp1251")


def test_a_file_that_is_no_subtitles_has_no_cue():
    assert not parse("<html><body>Not found</body></html>").cues
    assert not parse("").cues


PARTS = [*"ab<>-[]():&;♪ \n\r1\x00\ud7ff", "-->", "\n00:01.000 --> 00:02.000\n", "00:01.000", "<00:02.000>", "WEBVTT\n"]


@given(st.lists(st.sampled_from(PARTS), max_size=40))
def test_nothing_breaks_the_reader_and_times_are_in_order(parts):
    for start, end, word in read("".join(parts)):
        assert start <= end
        assert word == word.strip() != ""
