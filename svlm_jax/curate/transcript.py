"""A video and the words said in it: the line that steps of curation read and write.

    {"video": "final.mp4", "duration": 5400.2, "language": "en", "title": "Reds - Blues", "content": [[1.2, 1.5, "Goal!"], ...]}

The layout is LiveCC's (arXiv 2504.16030): its readers and ours share files. Start and end of a word may be null on the way in;
`clean` gives each its times. Owns the fields and their kinds, not what good times are (`curate.cleaning.clean`). Keys that are
not known here stay. Host side, never jax. Units: seconds of the video.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from svlm_jax.errors import InputError, shortened
from svlm_jax.json_lines import MAX_SECONDS

_REMEDY = "mend the line, or leave it out"
_TEXTS = ("video", "language", "title", "source", "asr")


class TimedWord(NamedTuple):
    """A word as an ASR or a subtitle gives it. start, end: None where unknown. probability: of the ASR; None: it gives none."""

    start: float | None
    end: float | None
    text: str
    probability: float | None = None


class NoSpeech(NamedTuple):
    """A stretch that the ASR itself takes for music or noise, and how sure it is."""

    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class Transcript:
    """
    Attributes:
        video: its path, as training will read it: relative to a root, or absolute.
        duration: seconds.
        language: a code such as "en"; None: unknown.
        title: teams, competition, date: what an editor may know about the video; "".
        source: where the video comes from (a channel, a data set), by which reports group; "".
        asr: what made the words: an engine and its model, "subtitles"; "".
        no_speech: as the ASR says.
        steps: names of the steps that made this line, in order.
        others: keys of the line that are not known here.
    """

    video: str
    duration: float
    words: tuple[TimedWord, ...]
    language: str | None = None
    title: str = ""
    source: str = ""
    asr: str = ""
    no_speech: tuple[NoSpeech, ...] = ()
    steps: tuple[str, ...] = ()
    others: Mapping[str, Any] = field(default_factory=dict)


def parse(record: Mapping[str, Any], source: str) -> Transcript:
    """A decoded line.

    Args:
        source: what errors call it, "FILE:LINE".

    Raises:
        InputError: the key, what it holds, what it should.
    """
    texts = {key: _text(record, key, source) for key in _TEXTS}
    if not texts["video"]:
        raise InputError(f"{source} video", "nothing", "the path of a video", _REMEDY)
    duration = _seconds(record.get("duration"), f"{source} duration")
    if duration is None or duration <= 0:
        raise InputError(f"{source} duration", f"{record.get('duration')!r:.40}", "seconds of the video, above 0", _REMEDY)
    words = _words(_list(record, "content", source), _list(record, "probabilities", source), source)
    no_speech = tuple(
        _no_speech(entry, f"{source} no_speech[{i}]") for i, entry in enumerate(_list(record, "no_speech", source))
    )
    steps = _list(record, "steps", source)
    if not all(isinstance(step, str) for step in steps):
        raise InputError(f"{source} steps", f"{steps!r:.40}", "names of steps", _REMEDY)
    known = {*_TEXTS, "duration", "content", "probabilities", "no_speech", "steps"}
    others = {key: value for key, value in record.items() if key not in known}
    return Transcript(
        texts["video"], duration, words, texts["language"] or None, texts["title"], texts["source"], texts["asr"],
        no_speech, tuple(steps), others,
    )  # fmt: skip


def to_record(transcript: Transcript) -> dict[str, Any]:
    """The line that `parse` reads; keys always in this order, those without a value left out."""
    record: dict[str, Any] = {"video": transcript.video, "duration": transcript.duration, "language": transcript.language}
    texts = {"title": transcript.title, "source": transcript.source, "asr": transcript.asr}
    record |= {key: text for key, text in texts.items() if text}
    record |= {"steps": list(transcript.steps)} if transcript.steps else {}
    record |= transcript.others
    record["content"] = [[word.start, word.end, word.text] for word in transcript.words]
    if any(word.probability is not None for word in transcript.words):
        record["probabilities"] = [word.probability for word in transcript.words]
    if transcript.no_speech:
        record["no_speech"] = [list(stretch) for stretch in transcript.no_speech]
    return record


def _text(record: Mapping[str, Any], key: str, source: str) -> str:
    value = record.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{source} {key}", f"{value!r:.40}", "a text", _REMEDY)
    return value or ""


def _list(record: Mapping[str, Any], key: str, source: str) -> list[Any]:
    value = record.get(key)
    if value is not None and not isinstance(value, list):
        raise InputError(f"{source} {key}", f"{value!r:.40}", "a list", _REMEDY)
    return value or []


def _seconds(value: Any, name: str, expected: str = "a number of seconds, or null") -> float | None:
    """A number of seconds; None where there is none: null, NaN, infinite. Negative ones are for `clean` to mend."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_SECONDS:
        raise InputError(name, f"{value!r:.40}", expected, _REMEDY)
    return float(value)


def _words(content: list[Any], probabilities: list[Any], source: str) -> tuple[TimedWord, ...]:
    if probabilities and len(probabilities) != len(content):
        got = f"{len(probabilities)} for {len(content)} words"
        raise InputError(f"{source} probabilities", got, "one for each word, or none at all", _REMEDY)
    words = []
    for index, entry in enumerate(content):
        name = f"{source} content[{index}]"
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[2], str):
            raise InputError(name, f"{entry!r:.40}", "[start, end, word]", _REMEDY)
        sure = f"{source} probabilities[{index}]"
        probability = _seconds(probabilities[index], sure, "a number from 0 to 1, or null") if probabilities else None
        words.append(TimedWord(_seconds(entry[0], f"{name}[0]"), _seconds(entry[1], f"{name}[1]"), entry[2], probability))
    return tuple(words)


def _no_speech(entry: Any, name: str) -> NoSpeech:
    numbers = [_seconds(each, name) for each in entry] if isinstance(entry, list) else []
    if len(numbers) != 3 or None in numbers:
        raise InputError(name, shortened(repr(entry), 40), "[start, end, probability]", _REMEDY)
    return NoSpeech(*numbers)  # type: ignore[arg-type]
