"""The files of LiveSports-3K CC (arXiv 2504.16030): commentary on events of sports videos, and who said what about them.

Owns events, predictions and prompts, in the published form. Does not know models or judges. An event's key, in every file, is
`VIDEO_ID_EVENT_ID`. Units: seconds of the whole video. Host side, never jax.
"""

import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from svlm_jax.errors import InputError, shortened
from svlm_jax.eval.commentary import Utterance
from svlm_jax.files import local_path
from svlm_jax.json_lines import BadLines, is_below, read, require, require_time

PREDICTIONS = "predictions.jsonl"
PROMPT = "livesports_cc.txt"
SUFFIXES = (".mp4", ".mkv", ".webm")  # of a file that is named by its video_id
SAME_TIME = 0.5  # seconds by which the times of a prediction may differ from those of its event


class Event(NamedTuple):
    """A part of a video with a commentary. event_id: as the file has it, a number or a text. previous: the words
    before it (`preasr_text`); reference: its words (`event_asr_text`). video: the name of the file, "" for none."""

    video_id: str
    event_id: int | str
    start: float
    end: float
    title: str
    sport: str
    previous: str
    reference: str
    video: str = ""

    @property
    def key(self) -> str:
        return f"{self.video_id}_{self.event_id}"


class Prediction(NamedTuple):
    """What a model said about an event. text: "" where there is no word in it ("..." is silence). utterances: the same with
    times, where the file has them; the published ones do not."""

    text: str
    utterances: tuple[Utterance, ...] = ()


def read_events(path: str | Path, bad: BadLines) -> list[Event]:
    """LiveSports-3K-CC.json, or the same as lines, in its order.

    Raises:
        InputError: an event that cannot be played or judged (no reference, no time), or is there twice.
    """
    keys: set[str] = set()

    def parse(record: dict[str, Any], source: str) -> Event:
        event = _event(record, source)
        if event.key in keys:
            raise InputError(f"{source} event", f"{shortened(event.key, 60)} a second time", "each event once", "leave it out")
        keys.add(event.key)
        return event

    return read(path, "events of LiveSports-3K CC", parse, bad)


def _event(record: dict[str, Any], source: str) -> Event:
    video_id, event_id = _ids(record, source)
    start, end = require_time(record, "begin", source), require_time(record, "end", source)
    if not 0 <= start < end:
        raise InputError(f"{source} begin, end", f"{start:g}, {end:g}", "0 <= begin < end, seconds", "leave the event out")
    reference = require(record, "event_asr_text", str, source).strip()
    if not has_words(reference):
        raise InputError(f"{source} event_asr_text", "no word", "what the commentator said", "leave the event out")
    title, sport, previous, video = (
        require({key: value for key, value in record.items() if value is not None}, key, str, source, "")
        for key in ("event_title", "class", "preasr_text", "video")
    )
    return Event(video_id, event_id, float(start), float(end), title.strip(), sport, previous.strip(), reference, video)


def _ids(record: dict[str, Any], source: str) -> tuple[str, int | str]:
    kind = str if isinstance(record.get("event_id"), str) else int
    return require(record, "video_id", str, source), require(record, "event_id", kind, source)


def read_predictions(path: str | Path, events: Iterable[Event], bad: BadLines) -> dict[str, Prediction]:
    """What a model said, by the key of the event: a published caption file, or what `livesports generate` wrote (or its
    folder). Events that the file has and `events` has not are left out.

    Raises:
        InputError: an event twice, or one with other times than in `events`: another revision of the data.
    """
    path = local_path(path)
    file = path / PREDICTIONS if path.is_dir() else path
    by_key = {event.key: event for event in events}
    predictions: dict[str, Prediction] = {}

    def parse(record: dict[str, Any], source: str) -> None:
        key = "{}_{}".format(*_ids(record, source))
        text = require(record, "pred", str, source).strip()
        start, end = require_time(record, "begin", source), require_time(record, "end", source)
        if key in predictions:
            raise InputError(f"{source} event", f"{shortened(key, 60)} a second time", "each event once", "leave one out")
        event = by_key.get(key)
        if event and max(abs(start - event.start), abs(end - event.end)) > SAME_TIME:
            expected = f"{event.start:g} to {event.end:g} s, as the events have it"
            got = f"{start:g} to {end:g} s"
            raise InputError(f"{source} {shortened(key, 60)}", got, expected, "take one revision of the data")
        items = [_utterance(item, source) for item in require(record, "items", list, source, [])]
        predictions[key] = Prediction(text if has_words(text) else "", tuple(items))

    read(file, "predictions for LiveSports-3K CC", parse, bad)
    return {key: prediction for key, prediction in predictions.items() if key in by_key}


def _utterance(item: Any, source: str) -> Utterance:
    if not isinstance(item, dict):
        raise InputError(f"{source} items", f"{item!r:.40}", "objects", "mend the line, or leave it out")
    start, end = require_time(item, "start_time", source), require_time(item, "end_time", source)
    return Utterance(start, end, require(item, "response", str, source))


def prediction_record(event: Event, text: str, utterances: Iterable[Utterance] = ()) -> dict[str, Any]:
    """The line of a prediction, as the published scripts read it. `items` is ours: the same with times, in the words of
    Inf-Streams-Eval."""
    record: dict[str, Any] = {"video_id": event.video_id, "event_id": event.event_id, "begin": event.start, "end": event.end}
    record["pred"] = text
    items = [{"response": each.text, "start_time": each.start, "end_time": each.end} for each in utterances]
    return record | ({"items": items} if items else {})


def has_words(text: str) -> bool:
    """Whether anything is said: 166 of the 1,702 captions of LiveCC-7B-Base are "..." alone."""
    return any(char.isalnum() for char in text)


def find_video(folder: str | Path, event_id: str, name: str, video_id: str) -> Path:
    """The file of a video: `name` under the folder, with or without its own folders, or VIDEO_ID.mp4 (.mkv, .webm).

    Raises:
        InputError: none of them, or an empty one.
    """
    folder = local_path(folder)
    names = [name, Path(name).name] if name else []
    names += [video_id + suffix for suffix in SUFFIXES]
    for candidate in filter(is_below, names):
        path = folder / candidate
        if path.is_file():
            if path.stat().st_size == 0:
                raise InputError(f"{event_id} video", f"an empty file, {shortened(path, 80)}", "a video", "download it again")
            return path
    expected = f"{' or '.join(dict.fromkeys(names[:3]))} in {shortened(folder, 60)}"
    raise InputError(f"{event_id} video", "no file", expected, "check --videos")


def default_prompt() -> str:
    """Our wording; the published one is not copied."""
    return read_prompt(PROMPT)


def read_prompt(name: str) -> str:
    """A template of this package."""
    return (files("svlm_jax.eval") / "prompts" / name).read_text(encoding="utf-8")


def fill_prompt(template: str, values: Mapping[str, str]) -> str:
    """A prompt from its template: sections parted by lines of "---", with {name} for a value. A section that names an
    empty value is left out. Braces in values stay as they are."""
    sections = []
    for section in re.split(r"^---[ \t]*\n", template, flags=re.MULTILINE):
        if all(values[name] for name in values if f"{{{name}}}" in section):
            sections.append(re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), section))
    return "".join(sections).strip()
