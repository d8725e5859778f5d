"""What happens in a video, when, and how a commentary says so: the truth that timing is measured against.

Owns the file of truth, of any kind of video. Does not know files of commentary, or metrics (`eval.timing`). Host side.
Units: seconds of the video.

A file of JSON lines, one for each video:

    {"video": "videos/final.mp4", "seconds": 5400,
     "mentions": [
       {"name": "goal", "kind": "event", "pattern": "(?i)goal for (\\w+)", "values": [[12.4, 20, "Reds"], [900, 910, "Blues"]]},
       {"name": "score", "kind": "state", "pattern": "(\\d+-\\d+)", "values": [[0, 12.4, "0-0"], [12.4, 900, "1-0"]]}],
     "commentary": [[12.6, 13.0, "Goal"], [13.0, 13.4, "for"], [13.4, 13.9, "Reds!"]]}

Every match of a pattern in a commentary is a claim. Its text is the first group of the pattern; "" where the pattern has none,
or the group is empty. The claim of an event is right if the text is the value of one that is near enough in time ("" fits any).
The claim of a state is right if the text is the value at that time. A value holds from its start until before its end; for an
event
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from svlm_jax import json_lines
from svlm_jax.errors import InputError, shortened
from svlm_jax.eval.commentary import Utterance
from svlm_jax.json_lines import BadLines, require, require_time

EXPECTED = "a file of truth: a line for each video with its mentions"
KINDS = ("event", "state")
_REMEDY = "mend the line, or leave it out"


class Value(NamedTuple):
    """What is true between start and end (excluded)."""

    start: float
    end: float
    text: str


class Mention(NamedTuple):
    """A kind of event or state, how it is said, and its values in order of time."""

    name: str
    kind: Literal["event", "state"]
    pattern: str
    values: tuple[Value, ...]


class Truth(NamedTuple):
    """Of one video. seconds: its length. commentary: of a good commentator; None: unknown, which is not the same as silence."""

    video: str
    seconds: float
    mentions: tuple[Mention, ...]
    commentary: tuple[Utterance, ...] | None = None


def read_truth(path: str | Path, bad: BadLines | None = None) -> dict[str, Truth]:
    """Video -> its truth, in the order of the file.

    Args:
        bad: lines that may be left out; None: none.

    Raises:
        InputError: a line that is no truth, a pattern that is no regular expression, the same video twice.
    """
    truths: dict[str, Truth] = {}

    def parse(record: dict[str, Any], source: str) -> None:
        truth = _parse(record, source)
        if truth.video in truths:
            raise InputError(f"{source} video", f"{shortened(truth.video, 60)} again", "one line for each video", _REMEDY)
        truths[truth.video] = truth

    json_lines.read(path, EXPECTED, parse, bad or BadLines())
    return truths


def write_truth(path: str | Path, truths: Iterable[Truth]) -> None:
    """Write what `read_truth` reads, complete or not at all."""
    json_lines.write(path, map(_record, truths))


def truth_of(truths: Mapping[str, Truth], video: str) -> Truth:
    """The truth of a video: of that very name, or of the only one with the same file name, as published answers have it.

    Raises:
        InputError: there is none, or more than one.
    """
    if video in truths:
        return truths[video]
    name = PurePosixPath(video).name
    same = [truth for key, truth in truths.items() if PurePosixPath(key).name == name]
    if len(same) != 1:
        got = f"{len(same)} videos called {shortened(name, 60)}" if same else f"no truth of {shortened(video, 60)}"
        raise InputError("truth", got, "one line for each video", "give the file of truth that belongs to the answers")
    return same[0]


def _parse(record: dict[str, Any], source: str) -> Truth:
    mentions = tuple(
        _mention(entry, f"{source} mentions[{number}]")
        for number, entry in enumerate(require(record, "mentions", list, source))
    )
    names = [mention.name for mention in mentions]
    if len(set(names)) != len(names):
        got = f"the names {', '.join(names):.60}"
        raise InputError(f"{source} mentions", got, "each of another name", _REMEDY)
    seconds = require_time(record, "seconds", source)
    if seconds <= 0:
        raise InputError(f"{source} seconds", seconds, "the length of the video", _REMEDY)
    commentary = None
    if record.get("commentary") is not None:
        spans = _spans(require(record, "commentary", list, source), f"{source} commentary")
        commentary = tuple(Utterance(*span) for span in spans)
    return Truth(require(record, "video", str, source), seconds, mentions, commentary)


def _mention(entry: Any, source: str) -> Mention:
    if not isinstance(entry, dict):
        raise InputError(source, f"{entry!r:.40}", "an object with name, kind, pattern and values", _REMEDY)
    name, kind, pattern = (require(entry, key, str, source) for key in ("name", "kind", "pattern"))
    if kind not in KINDS:
        raise InputError(f"{source} kind", f"{kind!r:.40}", "event or state", _REMEDY)
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"{source} pattern", f"{pattern!r:.60} ({error})", "a regular expression", _REMEDY) from None
    values = tuple(Value(*span) for span in _spans(require(entry, "values", list, source), f"{source} values"))
    for before, after in itertools.pairwise(values):
        if kind == "state" and after.start < before.end:
            raise InputError(
                f"{source} values", f"one at {after.start:g} s, before the end of another", "one at a time", _REMEDY
            )
    return Mention(name, "event" if kind == "event" else "state", pattern, values)


def _spans(entries: list[Any], source: str) -> list[tuple[float, float, str]]:
    """[start, end, text] entries, checked and in order of time."""
    spans = []
    for number, entry in enumerate(entries):
        entry_source, expected = f"{source}[{number}]", "[start, end, text]"
        if not isinstance(entry, list) or len(entry) != 3:
            raise InputError(entry_source, f"{entry!r:.40}", expected, _REMEDY)
        named: dict[str, Any] = dict(zip(("start", "end", "text"), entry, strict=True))
        start, end = (require_time(named, key, entry_source) for key in ("start", "end"))
        if not 0 <= start < end:
            raise InputError(entry_source, f"{start:g} to {end:g} s", "a start before its end", _REMEDY)
        spans.append((start, end, require(named, "text", str, entry_source)))
    return sorted(spans, key=lambda span: span[:2])


def _record(truth: Truth) -> dict[str, Any]:
    record: dict[str, Any] = {"video": truth.video, "seconds": truth.seconds}
    record["mentions"] = [{**mention._asdict(), "values": [[*value] for value in mention.values]} for mention in truth.mentions]
    if truth.commentary is not None:
        record["commentary"] = [[*utterance] for utterance in truth.commentary]
    return record
