"""What programs of the Whisper family and servers give, as JSON: segments with words in them, to one `Transcription`.

Owns the names that the same thing has in openai-whisper, faster-whisper, whisperx, whisper-timestamped, stable-ts and
`verbose_json` of OpenAI-compatible servers. Does not know files or sound. Host side, never jax. Units: seconds.

    {"language": "en", "duration": 9.5, "segments": [{"start": 0.0, "end": 2.1, "text": " Goal!", "no_speech_prob": 0.01,
        "avg_logprob": -0.2, "words": [{"word": " Goal!", "start": 1.2, "end": 1.5, "probability": 0.98}]}]}
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Any

from svlm_jax.curate.languages import language_code
from svlm_jax.curate.transcribing.transcribe import Transcription, spread
from svlm_jax.curate.transcript import NoSpeech, TimedWord
from svlm_jax.errors import InputError
from svlm_jax.json_lines import MAX_SECONDS

NO_SPEECH = 0.6  # probability above which Whisper takes a segment for silence,
NO_SPEECH_LOGPROB = -1.0  # unless it is surer of its words than that (its own two thresholds)
_WORD, _PROBABILITY = ("word", "text", "punctuated_word"), ("probability", "score", "confidence")
_REMEDY = "write it again with times of words, or leave it out"


def parse_output(result: Mapping[str, Any] | list[Any], source: str, offset: float = 0.0) -> Transcription:
    """
    Args:
        result: the object, or the list of its segments alone.
        source: what errors call it.
        offset: seconds that are added to each time: where in the video a chunk of sound begins.

    A word keeps its text without blanks around it; empty ones are left out. A word without times (whisperx gives none to
    numbers) has none here. A segment without words has its text spread evenly over it. Where a server gives words and segments
    side by side, the words count.

    Raises:
        InputError: neither words nor segments, or one of them of another kind.
    """
    result = {"segments": result} if isinstance(result, list) else result
    segments = [_object(entry, f"{source} segments[{i}]") for i, entry in enumerate(_list(result, "segments", source))]
    words = [_object(entry, f"{source} words[{i}]") for i, entry in enumerate(_list(result, "words", source))]
    if "segments" not in result and "words" not in result:
        got = f"keys {', '.join(map(str, result))}" if result else "an empty object"
        raise InputError(source, got, '"segments" or "words", as Whisper and its servers write', _REMEDY)
    if words and not any(_list(segment, "words", source) for segment in segments):
        timed = [word for index, entry in enumerate(words) for word in _word(entry, f"{source} words[{index}]")]
        timed = _with_probabilities(timed, segments, source)
    else:
        timed = [word for index, segment in enumerate(segments) for word in _segment(segment, f"{source} segments[{index}]")]
    shifted = tuple(word._replace(start=_plus(word.start, offset), end=_plus(word.end, offset)) for word in timed)
    silent = tuple(stretch for index, segment in enumerate(segments) for stretch in _silence(segment, f"{source} [{index}]"))
    no_speech = tuple(NoSpeech(start + offset, end + offset, probability) for start, end, probability in silent)
    language = result.get("language")
    duration = _seconds(result, "duration", source)
    return Transcription(shifted, language_code(language) if isinstance(language, str) else None, no_speech, duration)


def _segment(segment: Mapping[str, Any], source: str) -> Iterator[TimedWord]:
    words = _list(segment, "words", source)
    if not words:
        text = segment.get("text") or ""
        if not isinstance(text, str):
            raise InputError(f"{source} text", f"{text!r:.40}", "a text", _REMEDY)
        start, end = _seconds(segment, "start", source), _seconds(segment, "end", source)
        yield from spread(text, start, end, _mean_probability(segment, source))
    for index, entry in enumerate(words):
        yield from _word(_object(entry, f"{source} words[{index}]"), f"{source} words[{index}]")


def _word(entry: Mapping[str, Any], source: str) -> Iterator[TimedWord]:
    text = next((entry[key] for key in _WORD if key in entry), None)
    if not isinstance(text, str):
        raise InputError(f"{source} word", f"{text!r:.40}", "a text", _REMEDY)
    probability = next((_seconds(entry, key, source) for key in _PROBABILITY if key in entry), None)
    start, end = (_seconds(entry, key, source) for key in ("start", "end"))
    if len(text.split()) > 1 and start is not None and end is not None and start <= end:
        yield from spread(text, start, end, probability)  # an aligner's number: "2 - 1"
    else:
        yield from (TimedWord(start, end, word, probability) for word in text.split())


def _mean_probability(segment: Mapping[str, Any], source: str) -> float | None:
    """Of the tokens of a segment, by the mean of their logarithms: the nearest to a word's own that there is."""
    logprob = _seconds(segment, "avg_logprob", source)
    return None if logprob is None else round(math.exp(min(logprob, 0.0)), 4)


def _with_probabilities(words: list[TimedWord], segments: list[Mapping[str, Any]], source: str) -> list[TimedWord]:
    """Words that have none with that of the segment in which they begin: servers give words and segments side by side, and
    say only of segments how sure they are."""
    bounds = []
    for index, segment in enumerate(segments):
        name = f"{source} segments[{index}]"
        start, end, probability = (
            _seconds(segment, "start", name),
            _seconds(segment, "end", name),
            _mean_probability(segment, name),
        )
        if start is not None and end is not None and probability is not None:
            bounds.append((start, end, probability))
    bounds.sort()
    starts, result = [start for start, _, _ in bounds], []
    for word in words:
        index = -1 if word.start is None else bisect_right(starts, word.start) - 1
        if word.probability is None and index >= 0 and word.start is not None and word.start < bounds[index][1]:
            word = word._replace(probability=bounds[index][2])
        result.append(word)
    return result


def _silence(segment: Mapping[str, Any], source: str) -> Iterator[NoSpeech]:
    probability, logprob = (_seconds(segment, key, source) for key in ("no_speech_prob", "avg_logprob"))
    start, end = (_seconds(segment, key, source) for key in ("start", "end"))
    if probability is None or start is None or end is None:
        return
    if probability > NO_SPEECH and (logprob is None or logprob < NO_SPEECH_LOGPROB):
        yield NoSpeech(start, end, probability)


def _plus(time: float | None, offset: float) -> float | None:
    return None if time is None else time + offset


def _seconds(entry: Mapping[str, Any], key: str, source: str) -> float | None:
    """A number, None where there is none; some servers write numbers as texts."""
    value = entry.get(key)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise InputError(f"{source} {key}", f"{value!r:.40}", "a number", _REMEDY) from None
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_SECONDS:
        raise InputError(f"{source} {key}", f"{value!r:.40}", "a number", _REMEDY)
    return float(value)


def _list(entry: Mapping[str, Any], key: str, source: str) -> list[Any]:
    value = entry.get(key)
    if value is not None and not isinstance(value, list):
        raise InputError(f"{source} {key}", f"{value!r:.40}", "a list", _REMEDY)
    return value or []


def _object(value: Any, source: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(source, f"{value!r:.40}", "an object", _REMEDY)
    return value
