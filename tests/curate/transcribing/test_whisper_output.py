"""Words of programs and servers of the Whisper family: the same words, however they name them."""

import math

import pytest

from svlm_jax.curate.languages import language_code
from svlm_jax.curate.transcribing.transcribe import spread
from svlm_jax.curate.transcribing.whisper_output import parse_output
from svlm_jax.curate.transcript import NoSpeech, TimedWord
from svlm_jax.errors import InputError

GOAL = TimedWord(1.2, 1.5, "Goal!", 0.98)


@pytest.mark.parametrize(
    "result",
    [
        {"segments": [{"words": [{"word": " Goal!", "start": 1.2, "end": 1.5, "probability": 0.98}]}]},
        {"segments": [{"words": [{"word": "Goal!", "start": 1.2, "end": 1.5, "score": 0.98}]}], "word_segments": []},
        {"segments": [{"words": [{"text": "Goal!", "start": 1.2, "end": 1.5, "confidence": 0.98}]}]},
        {"task": "transcribe", "words": [{"word": "Goal!", "start": "1.2", "end": 1.5, "probability": 0.98}], "segments": []},
        [{"id": 0, "words": [{"word": " Goal!", "start": 1.2, "end": 1.5, "probability": 0.98}, {"word": " "}]}],
    ],
    ids=["openai-whisper", "whisperx", "whisper-timestamped", "verbose_json", "a list of segments"],
)
def test_the_same_word_of_each_program(result):
    assert parse_output(result, "a.json").words == (GOAL,)


def test_whisperx_gives_no_times_to_numbers_and_the_word_is_kept():
    words = [{"word": "2-1"}, {"word": "Reds", "start": 3.0, "end": 3.4, "score": 0.5}, {"word": "7", "start": 4.0}]
    assert parse_output({"segments": [{"words": words}]}, "a.json").words == (
        TimedWord(None, None, "2-1"), TimedWord(3.0, 3.4, "Reds", 0.5), TimedWord(4.0, None, "7"),
    )  # fmt: skip


def test_a_segment_without_words_is_spread_and_its_log_probability_is_each_words():
    segment = {"start": 10.0, "end": 12.0, "text": " what a goal now", "avg_logprob": math.log(0.5)}
    words = parse_output({"segments": [segment]}, "a.json", offset=100.0).words
    assert words[0] == TimedWord(110.0, 110.5, "what", 0.5)
    assert words[3] == TimedWord(111.5, 112.0, "now", 0.5)


def test_silence_is_what_whisper_itself_takes_for_it():
    def segment(no_speech, logprob):
        return {"start": 1.0, "end": 2.0, "text": "thanks", "no_speech_prob": no_speech, "avg_logprob": logprob}

    assert parse_output([segment(0.9, -1.5)], "a.json", offset=10).no_speech == (NoSpeech(11.0, 12.0, 0.9),)
    assert not parse_output([segment(0.9, -0.3), segment(0.5, -2.0)], "a.json").no_speech  # sure of its words; not silent


def test_language_and_duration():
    transcription = parse_output({"language": "english", "duration": "9.5", "words": []}, "a.json")
    assert (transcription.language, transcription.duration, transcription.words) == ("en", 9.5, ())


@pytest.mark.parametrize(
    ("result", "line"),
    [
        ({"text": "Goal!"}, 'a.json: got keys text, expected "segments" or "words"'),
        ({"segments": "x"}, "a.json segments: got 'x', expected a list"),
        ({"segments": [{"words": [{"start": 1}]}]}, "a.json segments[0] words[0] word: got None, expected a text"),
        ({"words": [{"word": "a", "start": True}]}, "a.json words[0] start: got True, expected a number"),
        ({"words": [{"word": "a", "start": "one"}]}, "a.json words[0] start: got 'one', expected a number"),
        ([3], "a.json segments[0]: got 3, expected an object"),
    ],
)
def test_what_is_wrong_is_named(result, line):
    with pytest.raises(InputError, match=r"a\.json") as error:
        parse_output(result, "a.json")
    assert str(error.value).startswith(line)


@pytest.mark.parametrize(
    ("name", "code"),
    [("English", "en"), ("en-US", "en"), ("en-orig", "en"), ("ger", "de"), ("zh-Hans", "zh"), ("haw", "haw"), ("iw", "he"),
     ("und", None), ("", None), (None, None), ("no language at all", None)],
)  # fmt: skip
def test_a_language_has_one_code(name, code):
    assert language_code(name) == code


def test_words_share_the_time_of_a_text_evenly():
    assert [*spread("a goal now", 1.0, 2.0)] == [
        TimedWord(1.0, 1.333, "a"), TimedWord(1.333, 1.667, "goal"), TimedWord(1.667, 2.0, "now"),
    ]  # fmt: skip
    assert [*spread("a goal", 2.0, 1.0)] == [TimedWord(None, None, "a"), TimedWord(None, None, "goal")]
