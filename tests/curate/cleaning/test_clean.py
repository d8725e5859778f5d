"""Claims about cleaning: each rule with the value worked out by hand; a clean file stays as it is; training takes it."""

import json
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svlm_jax.curate.cleaning.clean import CleanStep, Limits, clean
from svlm_jax.curate.outcome import Outcome
from svlm_jax.curate.transcript import NoSpeech, TimedWord, Transcript, parse, to_record
from svlm_jax.data import annotation, windows
from svlm_jax.touchline import commentary, match

LIMITS = Limits()


def transcript(*words, duration=60.0, **options) -> Transcript:
    """words: (start, end, text) or (start, end, text, probability)."""
    return Transcript("a.mp4", duration, tuple(TimedWord(*word) for word in words), **options)


def content(outcome: Outcome) -> list[tuple]:
    assert outcome.lines, outcome.reason
    return [tuple(word) for word in outcome.lines[0]["content"]]


def cleaned(*words, limits=LIMITS, **options) -> list[tuple]:
    return content(clean(transcript(*words, **options), limits))


def texts(*words, **options) -> list[str]:
    return [text for _, _, text in cleaned(*words, **options)]


def rules(*words, **options) -> list[str]:
    return [change.rule for change in clean(transcript(*words, **options)).changes]


def spoken(text: str, start=0.0, pace=0.4, probability=None) -> list[tuple]:
    """Words one right after the other."""
    return [(start + i * pace, start + (i + 1) * pace, word, probability) for i, word in enumerate(text.split())]


def test_true_commentary_is_not_touched():
    """Else curated data would be worse than raw data: in the generated game the same short phrases come again and again."""
    world = match.World(0)
    for _ in world.moments():
        if world.time > 300:
            break
    words = [tuple(word) for word in commentary.words(world.events) if word.end <= 300]
    outcome = clean(transcript(*words, duration=300.0))
    assert len(words) > 250
    assert not outcome.changes
    assert content(outcome) == words


# --- 1: the end before the start ---


def test_start_and_end_are_swapped_where_that_fits_between_the_neighbours():
    words = [(1.0, 1.4, "The"), (2.0, 1.6, "ball"), (2.1, 2.4, "is")]
    assert cleaned(*words) == [(1.0, 1.4, "The"), (1.6, 2.0, "ball"), (2.1, 2.4, "is")]
    assert rules(*words) == ["end before start"]


def test_two_swapped_words_in_a_row_are_both_swapped_back():
    assert cleaned((1.5, 1.0, "Goal"), (2.0, 1.6, "for"), (2.1, 2.4, "Reds")) == [
        (1.0, 1.5, "Goal"), (1.6, 2.0, "for"), (2.1, 2.4, "Reds")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("following", "end"),
    [(5.0, 2.24), (2.15, 2.15), (2.05, 2.08)],
    ids=["0.06 s a letter", "the next word starts", "0.08 s at least"],
)
def test_else_the_start_is_believed_and_the_end_set(following, end):
    words = cleaned((1.0, 1.5, "The"), (2.0, 1.2, "ball!"), (following, following + 0.3, "is"))
    assert words[1] == (2.0, end, "ball!")


def test_an_end_that_is_set_lies_within_the_video():
    assert cleaned((1.0, 1.5, "The"), (59.97, 1.2, "end."))[1] == (59.97, 60.0, "end.")


# --- 2: no time ---


def test_words_without_times_share_the_time_between_their_neighbours_by_letters():
    words = [(0.5, 1.0, "The"), (None, None, "ball"), (None, None, "is"), (1.9, 2.1, "in")]
    assert cleaned(*words) == [(0.5, 1.0, "The"), (1.0, 1.6, "ball"), (1.6, 1.9, "is"), (1.9, 2.1, "in")]
    assert rules(*words) == ["no time", "no time"]


def test_over_a_pause_the_rest_of_a_sentence_follows_its_beginning_and_the_next_sentence_waits():
    """Spread over the pause, "pass." would be said four seconds late, and the next words seconds before they are true."""
    lost = [(None, None, text) for text in ("pass.", "Blues", "win")]
    words = cleaned((0.5, 1.0, "Reds"), *lost, (9.0, 9.2, "it."), (10.0, 10.2, "So"))
    assert words[1:4] == [(1.0, 1.24, "pass."), (8.52, 8.82, "Blues"), (8.82, 9.0, "win")]


def test_in_the_middle_of_a_sentence_a_pause_of_at_most_3_s_a_word_is_bridged():
    assert cleaned((0.0, 1.0, "It's"), (None, None, "2-1"), (3.9, 4.0, "now."))[1] == (1.0, 3.9, "2-1")
    assert cleaned((0.0, 1.0, "It's"), (None, None, "four"), (6.0, 6.2, "now."))[1] == (5.76, 6.0, "four")


def test_words_at_the_edges_of_a_video_are_next_to_their_neighbours():
    words = [(None, None, "Kick"), (3.0, 3.2, "off"), (57.0, 58.0, "all"), (None, None, "over.")]
    assert cleaned(*words)[0] == (2.76, 3.0, "Kick")
    assert cleaned(*words)[3] == (58.0, 58.24, "over.")
    assert cleaned(*words, duration=58.1)[3] == (58.0, 58.1, "over.")


def test_one_time_gives_the_other_by_letters():
    assert cleaned((0.5, 1.0, "A"), (None, 3.0, "Goal!"))[1] == (2.76, 3.0, "Goal!")
    assert cleaned((0.5, 1.0, "A"), (2.9, 3.0, "late"), (None, 3.1, "Goal!"))[2] == (3.0, 3.1, "Goal!")
    assert cleaned((2.0, None, "Goal!"), (5.0, 5.2, "Yes"))[0] == (2.0, 2.24, "Goal!")


def test_neighbours_that_overlap_leave_no_time():
    words = cleaned((1.0, 2.0, "The"), (None, None, "ball"), (1.8, 2.2, "is"))
    assert words == [(1.0, 1.8, "The"), (1.8, 1.8, "ball"), (1.8, 2.2, "is")]


def test_without_most_times_a_video_is_set_aside():
    lost = [(None, None, word) for word in ["Reds", "win", "it"]]
    assert clean(transcript(*lost)).reason == "no times of most words"
    assert clean(transcript((1.0, 1.2, "So"), *lost)).reason == "no times of most words"
    assert not clean(transcript((0.5, 0.9, "And"), (1.0, 1.2, "so"), (1.3, 1.5, "the"), *lost)).reason


# --- 3: order ---


def test_words_up_to_2_s_out_of_order_are_sorted_by_start_then_end():
    words = [(3.0, 3.4, "shoot!"), (1.0, 1.4, "Reds"), (4.0, 4.2, "a"), (4.0, 4.1, "b"), (4.0, 4.1, "c")]
    assert cleaned(*words) == [words[1], words[0], (4.0, 4.1, "b"), (4.0, 4.1, "c"), (4.0, 4.2, "a")]
    assert rules(*words) == ["out of order"] * 3


def test_a_word_far_off_keeps_its_place_and_loses_its_times():
    words = [(float(i), i + 0.3, f"w{i:02}") for i in range(20)]
    words[10] = (50.0, 50.3, "w10")
    assert cleaned(*words)[10] == (9.3, 11.0, "w10")
    assert sorted(rules(*words)) == ["no time", "time far off"]


def test_a_video_whose_parts_are_in_another_order_is_set_aside():
    first, second = spoken("a b c d e f g h i j", 0.0), spoken("k l m n o p", 30.0)
    assert clean(transcript(*second, *first)).reason == "words not in the order of time"


# --- 4 and 5: length and overlap ---


def test_an_end_that_lies_seconds_before_its_start_is_not_believed():
    words = [(1.0, 1.5, "Reds"), (6.0, 3.0, "win"), (6.5, 7.0, "it.")]
    assert cleaned(*words) == [(1.0, 1.5, "Reds"), (6.0, 6.18, "win"), (6.5, 7.0, "it.")]


def test_a_word_of_more_than_3_s_lasts_as_long_as_its_letters():
    words = [(1.0, 4.0, "Gooooal!"), (10.0, 13.01, "and"), (13.5, 14.0, "so")]
    assert cleaned(*words) == [(1.0, 4.0, "Gooooal!"), (10.0, 10.18, "and"), (13.5, 14.0, "so")]
    assert cleaned((1.0, 5.0, "Internationalisation")) == [(1.0, 2.0, "Internationalisation")]  # 1 s at most
    assert rules(*words) == ["stuck over a pause"]


def test_a_phrase_without_blanks_may_be_longer():
    assert cleaned((1.0, 6.0, "曼联队员射门被守门员扑出"))[0] == (1.0, 6.0, "曼联队员射门被守门员扑出")
    assert cleaned((1.0, 9.0, "曼联队员射门被守门员扑出"))[0] == (1.0, 4.0, "曼联队员射门被守门员扑出")


def test_overlaps_stay_and_ends_do_not_go_back():
    assert not rules((1.0, 1.6, "Goal"), (1.5, 2.0, "yes"))
    words = [(1.0, 2.5, "Goal"), (1.5, 2.0, "yes"), (1.7, 2.0, "yes")]
    assert cleaned(*words) == [(1.0, 2.0, "Goal"), *words[1:]]
    assert rules(*words) == ["ends after the next word"]


# --- 7 and 8: what nobody said ---


def test_of_a_loop_the_first_saying_stays():
    said = [
        *spoken("What a save. " * 5 + "What a", 10.0),
        *spoken("But Blues win it and are off, and they shoot far wide.", 30.0),
    ]
    assert texts(*said)[:5] == ["What", "a", "save.", "But", "Blues"]
    change = clean(transcript(*said)).changes[0]
    assert (change.rule, change.before, change.after) == ("loop", "What a save. " * 4 + "What a", "")
    assert change.time == pytest.approx(10 + 3 * 0.4)


def test_what_people_say_three_times_or_with_pauses_stays():
    assert not rules(*spoken("Goal! Goal! Goal! Off the post and in."))
    paced = [(1.0 + 1.5 * i, 1.4 + 1.5 * i, word) for i, word in enumerate(["Reds", "pass."] * 6)]
    assert not rules(*paced)


def test_loops_are_seen_through_case_and_punctuation():
    assert texts(*spoken("Oh, oh! OH oh... it is in the net")) == ["Oh,", "it", "is", "in", "the", "net"]


def test_marks_that_turn_the_direction_of_text_are_removed_and_joiners_stay():
    said = [(1.0, 1.4, "Re\u202eds"), (1.5, 1.9, "\u2066win\u2069"), (2.0, 2.4, "\u0645\u06cc\u200c\u0632\u0646\u062f")]
    assert texts(*said) == ["Reds", "win", "\u0645\u06cc\u200c\u0632\u0646\u062f"]
    assert rules(*said) == ["characters", "characters"]


def test_a_burst_that_nobody_can_say_is_deleted_alone():
    names = " ".join(f"n{i}" for i in range(40))
    normal = spoken(names, 0.0)
    burst = [(20.0 + 0.05 * i, 20.05 + 0.05 * i, f"x{i}") for i in range(19)]  # 19 words in 0.95 s
    assert texts(*normal, *burst) == names.split()
    assert texts(*normal, *burst[:18]) == [*names.split(), *(word[2] for word in burst[:18])]  # 18 in 3 s are 6 a second


def test_two_syllables_of_han_count_as_a_word():
    said = [(0.15 * i, 0.15 * (i + 1), char) for i, char in enumerate("天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏")]
    assert not rules(*said)  # 6.7 characters a second, 3.3 words


def test_sentences_of_which_the_asr_is_unsure_are_deleted_and_names_alone_are_not():
    words = spoken("Reds win it again.", 0, probability=0.9) + spoken("bla da di dum.", 10, probability=0.39)
    assert texts(*words) == ["Reds", "win", "it", "again."]
    assert rules(*words) == ["low probability"]
    assert not rules(*spoken("one two three four.", 10, probability=0.4))
    assert not rules(*spoken("Reds win it. ", 0, probability=0.9), *spoken("Kane!", 10, probability=0.1))


def test_words_where_the_asr_hears_no_speech_are_deleted_unless_it_is_sure_of_them():
    words = [*spoken("Reds win it. And they shoot!", 0.0), (12.0, 12.4, "Thank"), (12.4, 12.8, "you.")]
    assert texts(*words, no_speech=(NoSpeech(10, 20, 0.6),)) == ["Reds", "win", "it.", "And", "they", "shoot!"]
    assert texts(*words, no_speech=(NoSpeech(10, 20, 0.59),))[-1] == "you."
    sure = [*words[:-2], (12.0, 12.4, "Thank", 0.6), (12.4, 12.8, "you.", 0.6)]
    assert texts(*sure, no_speech=(NoSpeech(10, 20, 0.9),))[-1] == "you."


def test_tags_of_sounds_are_deleted():
    """However many there are: subtitles of a quiet game are mostly tags."""
    assert texts(*spoken("[Music] Reds [crowd cheering]. win ♪ it [ Applause ] [Music] [Music]")) == ["Reds", "win", "it"]
    never_closed = "[the bracket is never closed in this sentence"
    assert " ".join(texts(*spoken(never_closed))) == never_closed


def test_a_video_that_is_mostly_hallucinated_is_set_aside():
    assert clean(transcript(*spoken("Thank you. " * 20))).reason == "most words are no speech"
    assert not clean(transcript(*spoken("Thank you. " * 20)), Limits(max_deleted=1.0)).reason


# --- 9: outside the video ---


def test_words_over_the_borders_of_the_video_are_cut_there():
    middle = spoken("one two three four five six seven eight nine ten", 10.0)
    words = cleaned((-0.3, 0.2, "So"), *middle, (59.8, 60.4, "over"), (60.5, 60.9, "now"))
    assert (words[0], *words[-2:]) == ((0.0, 0.2, "So"), (59.8, 60.0, "over"), (60.0, 60.0, "now"))


def test_words_wholly_outside_are_deleted_at_the_edges_and_in_between_get_times():
    middle = spoken("one two three four five six seven eight nine ten", 10.0)
    assert texts(*middle, (61.5, 62.0, "Bye."))[-1] == "ten"
    assert texts((-2.0, -1.5, "Hello."), *middle)[0] == "one"
    words = [*middle]
    words[5] = (-7.0, -6.5, "six")
    assert [round(time, 3) for time in cleaned(*words)[5][:2]] == [12.0, 12.4]
    words[5] = (70.0, 70.5, "six")
    assert [round(time, 3) for time in cleaned(*words)[5][:2]] == [12.0, 12.4]


def test_the_words_of_another_video_are_set_aside():
    words = spoken(" ".join(f"w{i}" for i in range(100)), 40.0)
    assert clean(transcript(*words)).reason.startswith("times outside the video")


# --- 10, and what a word is ---


def test_nothing_left_is_set_aside():
    for words in ([], [(0.0, 1.0, " ")], [(0.0, 1.0, "...")], [(0.0, 1.0, "\u200b")], [(0.0, 1.0, "(")]):
        assert clean(transcript(*words)).reason == "no words"
    assert clean(transcript((1.0, 1.3, "[Music]"))).reason == "no words"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Goal!", "Goal!"),  # Whisper's blank
        ("cafe\u0301", "café"),
        ("<|endoftext|>Reds", "Reds"),
        ("<|0.00|>Reds", "Reds"),
        ("<|<|a|>im_end|>x", "x"),  # what is removed makes another one
        ("Re\u00adds\ufeff", "Reds"),
        ("Reds\x00\x1b", "Reds"),
        ("a\ud83d", "a"),  # half a character, which no file of UTF-8 can hold
        ("🏆", "🏆"),
        ("سجل!", "سجل!"),
        ("नमस्ते", "नमस्ते"),
    ],
)
def test_a_word_is_text(text, expected):
    outcome = clean(transcript((1.0, 1.4, text)))
    assert content(outcome) == [(1.0, 1.4, expected)]
    json.dumps(outcome.lines[0], ensure_ascii=False).encode()


def test_marks_that_stand_apart_are_on_their_words():
    said = spoken('" Goal ! " ( wide . ) It is 2 - 1 and 50 % of the ball , so ... ?')
    assert " ".join(texts(*said)) == "Goal! (wide.) It is 2 - 1 and 50 % of the ball, so..."


def test_several_words_in_one_share_its_time_by_letters():
    assert cleaned((1.0, 2.0, "Reds win it.")) == [(1.0, 1.444, "Reds"), (1.444, 1.778, "win"), (1.778, 2.0, "it.")]
    assert cleaned((1.0, 2.0, "Reds ! ( win")) == [(1.0, 1.571, "Reds!"), (1.571, 2.0, "(win")]
    assert clean(transcript((1.0, 2.0, "( )"))).reason == "no words"


# --- the video, and the step ---


def test_other_languages_are_set_aside_and_unknown_ones_are_not():
    word, english = (1.0, 1.4, "Tor!"), Limits(language="en")
    assert clean(transcript(word, language="de"), english).reason == "language de, not en"
    for language in ("en", "en-GB", "EN_us", "english", "eng", None):
        assert not clean(transcript(word, language=language), english).reason
    assert not clean(transcript(word, language="de")).reason


def test_a_video_with_too_few_words_is_set_aside():
    word = (1.0, 1.4, "Goal!")
    assert clean(transcript(word), Limits(min_words_per_second=0.1)).reason == "fewer than 0.1 words a second"
    assert not clean(transcript(word, duration=10.0), Limits(min_words_per_second=0.1)).reason


def test_all_else_of_the_line_stays():
    other = transcript((1.0, 1.4, "Goal!", 0.8), title="Reds - Blues", source="cup", asr="x", language="en", others={"id": 7})
    line = CleanStep().run(other).lines[0]
    assert line == to_record(other) | {"steps": ["clean"]}
    assert clean(parse(line, "line")).lines[0]["steps"] == ["clean"]
    assert clean(replace(parse(line, "line"), steps=("clean", "edit"))).lines[0]["steps"] == ["clean", "edit", "clean"]


def test_settings_are_what_the_outcome_depends_on():
    assert CleanStep().settings != CleanStep(Limits(language="en")).settings
    json.dumps(CleanStep().settings)


# --- any file ---

TIME = st.none() | st.floats(-3, 40, allow_nan=False) | st.sampled_from([-1.0, 0.0, 30.0, 31.0, 500.0])
TEXT = st.sampled_from(["a", "b", "a b", "Goal!", ".", "(", ")", "[", "]", "[x]", "♪", "-", "", " ", "日本", "<|a|>", "é", '"'])
WORD = st.builds(TimedWord, TIME, TIME, TEXT | st.text(max_size=3), st.none() | st.floats(0, 1))


@st.composite
def transcripts(draw) -> Transcript:
    """Words at a pace of speech, of which some have other times: most are mended, some set aside."""
    words, time = [], 0.0
    for word in draw(st.lists(WORD, max_size=40)):
        kind = draw(st.integers(0, 12))
        length = draw(st.sampled_from([0.02, 0.1, 0.3, 0.5, 2.0, 3.5]))
        words.append(
            word if not kind else word._replace(start=time, end=time + length * draw(st.sampled_from([1, 1, 1, -1, 3])))
        )
        time += length
    return Transcript("a.mp4", 30.0, tuple(words), no_speech=draw(st.sampled_from([(), (NoSpeech(2.0, 6.0, 0.9),)])))


def letters(words) -> list[str]:
    return sorted(char for word in words for char in unicodedata.normalize("NFC", word.text) if char.isalnum())


@settings(max_examples=30, deadline=None)
@given(transcripts())
def test_whatever_comes_is_clean_the_first_time_and_training_takes_it(raw):
    outcome = clean(raw)
    if outcome.reason:
        return
    line = json.loads(json.dumps(outcome.lines[0]))
    again = clean(parse(line, "line"))
    assert (again.reason, again.changes, again.lines) == ("", (), outcome.lines)
    words = tuple(annotation.Word(*word) for word in line["content"])
    assert all(0 <= word.start <= word.end <= 30 and word.text.split() == [word.text] for word in words)
    annotation.parse(windows.to_record(annotation.Annotation("a.mp4", 0.0, 30.0, "", "", words)))
    if not any(change.after == "" or change.rule == "characters" for change in outcome.changes):
        assert letters(words) == letters(raw.words)  # no word is lost without a change that says so
