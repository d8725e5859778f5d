"""Answers of a model to Inf-Streams-Eval: our files and published ones, as they are.

Owns what counts as an answer. A segment is *missing* if the model was not run on all of it, and *silent* if it was and said
nothing, or stopped before. Each fault of a file is reported in one line: what it is, and how it is handled. Host side,
never jax. Units: seconds of the video.

Of published files: the script that merges shards reads its own earlier output too, so that every answer after the first chunk
comes twice; answers of GPT have no start, are one a segment, and where a request failed there is none, though the line claims
the whole game; games are known by the name of their file alone; LiveCC's streams end a second early.
"""

import hashlib
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from svlm_jax.errors import InputError, shortened
from svlm_jax.eval.commentary import Utterance, spoken
from svlm_jax.eval.infstreams import Segment
from svlm_jax.eval.judging import Candidate
from svlm_jax.eval.run_directory import RUN, read_run
from svlm_jax.files import local_path
from svlm_jax.json_lines import BadLines, digest, read, require, require_time

MERGED = "merged_result.jsonl"
SHARDS = "result_*.jsonl"
SEAM = 2.0  # seconds without an item, at most, that are neither a hole nor an early end
_MISSING = Candidate("", missing=True)


class Answer(NamedTuple):
    """An item of a file. start: None in answers that are one a segment."""

    start: float | None
    end: float
    text: str


class GameAnswers(NamedTuple):
    """What was said about a game, in order. spans: the stretches, without a hole, on which the model was run; () for answers
    that are one a segment. broken: why the model was not shown what comes after them; "": it was free to speak to the end."""

    utterances: tuple[Utterance, ...]
    spans: tuple[tuple[float, float], ...]
    broken: str = ""

    @property
    def end(self) -> float:
        """0 where there is nothing."""
        return max([end for _, end in self.spans] + [each.end for each in self.utterances], default=0.0)

    def candidate(self, segment: Segment) -> tuple[Candidate, str]:
        """The answer for a segment, and why there is none where it is missing."""
        if not self.spans:
            return self._window(segment)
        if segment.start < self.spans[0][0]:
            return _MISSING, f"begins before {self.spans[0][0]:g} s, the first answer"
        _, end = max(span for span in self.spans if span[0] <= segment.start)
        is_last = end == self.spans[-1][1]  # what comes after the last answer is silence, and no exemption
        if segment.end > end + SEAM and not (is_last and not self.broken):
            return _MISSING, f"not watched: {self.broken}" if is_last else "a hole in the answers"
        inside = [each for each in self._near(segment) if segment.start < int(each.end) <= segment.end and each.text.strip()]
        return Candidate(spoken(inside, segment.start, segment.end), tuple(inside)), ""

    def _near(self, segment: Segment) -> Sequence[Utterance]:
        """Those that may be of a segment: a game has thousands."""
        start, end = (
            bisect_left(self.utterances, time, key=lambda each: each.end) for time in (segment.start, segment.end + 1)
        )
        return self.utterances[start:end]

    def _window(self, segment: Segment) -> tuple[Candidate, str]:
        """Of answers that are one a segment: the last that ends in its later half. The one before may end in it too, because a
        segment begins with its first word, and that may have begun before the last one ended."""
        middle = (segment.start + segment.end) / 2
        inside = [each for each in self._near(segment) if middle < int(each.end) <= segment.end]
        if not inside:
            return _MISSING, "no answer for this segment"
        utterance = inside[-1]._replace(start=float(segment.start))
        return Candidate(utterance.text.strip(), (utterance,)), ""


class Answers(NamedTuple):
    """All of a model. settings: its run.json, {} for files of others. sha256: of the files. games: by the video of their
    segments. faults: of the files, a line each. unusable: by video, why the answers that there are do not count."""

    name: str
    settings: dict[str, Any]
    sha256: str
    games: dict[str, GameAnswers]
    faults: list[str]
    unusable: Mapping[str, str] = {}

    def candidate(self, segment: Segment) -> tuple[Candidate, str]:
        """The answer for a segment, and why there is none where it is missing."""
        if segment.video not in self.games:
            return _MISSING, self.unusable.get(segment.video, "no answers for this game")
        return self.games[segment.video].candidate(segment)


class _Line(NamedTuple):
    """error: ours have it where a video could not be watched beyond `end`."""

    name: str
    start: int
    end: int
    answers: tuple[Answer, ...]
    error: str


def read_answers(path: str | Path, videos: Sequence[str], bad: BadLines) -> Answers:
    """The answers in a folder of result_*.jsonl, in one with merged_result.jsonl alone, or in a file.

    Args:
        videos: of the segments. A game that has the path of one is that; else one that alone has its file name.
        bad: lines, items and games that may be left out.

    Raises:
        InputError: as of `lines.read`; no such files; two different answers for one second of a game.
    """
    path = local_path(path)
    faults: list[str] = []
    files = _answer_files(path, faults)
    lines: dict[str, list[_Line]] = {}
    expected = "answers of Inf-Streams-Eval, a game or chunk a line"
    for file in files:
        for line in read(file, expected, lambda record, source: _line(record, source, bad), bad):
            lines.setdefault(line.name, []).append(line)
    names, unusable = _match(sorted(lines), videos, faults)
    games = {}
    for name, video in names.items():
        try:
            games[video] = _assemble(name, lines[name], faults)
        except InputError as error:
            bad.add(error)
            unusable[video] = "two different answers for one second"
    settings = read_run(path) if (path / RUN).is_file() else {}
    model = settings.get("model", path.name if path.is_dir() else path.parent.name or path.stem)
    label = " ".join(filter(None, (str(model), str(settings.get("mode", "")))))
    sha256 = hashlib.sha256("".join(map(digest, files)).encode()).hexdigest()
    return Answers(label, settings, sha256, games, faults, unusable)


def _answer_files(path: Path, faults: list[str]) -> list[Path]:
    if not path.is_dir():
        return [path]
    shards = sorted(path.glob(SHARDS))
    if shards:
        if (path / MERGED).is_file():
            faults.append(f"{MERGED} beside {SHARDS}: not read, it may be older or have answers twice")
        return shards
    if not (path / MERGED).is_file():
        raise InputError(shortened(path), f"a folder without {SHARDS} or {MERGED}", "answers", "check the path")
    return [path / MERGED]


def _line(record: dict[str, Any], source: str, bad: BadLines) -> _Line:
    name = require(record, "path", str, source, require(record, "video", str, source))
    start, end = (int(require_time(record, key, source)) for key in ("chunk_start", "chunk_end"))
    answers = []
    for number, item in enumerate(require(record, "items", list, source)):
        try:
            answers.append(_answer(item, f"{source} items[{number}]"))
        except InputError as error:
            bad.add(error)
    return _Line(name, start, end, tuple(answers), require(record, "error", str, source, ""))


def _answer(item: Any, source: str) -> Answer:
    if not isinstance(item, dict):
        raise InputError(source, f"{item!r:.40}", "an object", "mend the line, or leave it out")
    text = require(item, "response" if "response" in item else "text", str, source)
    end = require_time(item, "end_time", source)
    start = None if item.get("start_time") is None else require_time(item, "start_time", source)
    if start is not None and start > end:
        raise InputError(f"{source} end_time", end, f"start_time {start:g} or later", "mend the line, or leave it out")
    return Answer(start, end, text)


def _match(names: Sequence[str], videos: Sequence[str], faults: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The video that each name means; and, with the reason, the videos for which that is ambiguous."""
    answered = set(names)
    matches = {video: video for video in videos if video in answered}  # in the order of the benchmark
    rest_of_videos, rest_of_names = (_by_file_name(set(paths) - matches.keys()) for paths in (videos, names))
    unusable: dict[str, str] = {}
    for file_name in sorted(rest_of_names):
        candidates, names_of_file = rest_of_videos.get(file_name, []), rest_of_names[file_name]
        if len(candidates) == len(names_of_file) == 1:
            matches[names_of_file[0]] = candidates[0]
        elif candidates:
            unusable |= dict.fromkeys(candidates, "a file name of several games")
            number = max(len(candidates), len(names_of_file))
            faults.append(f"{file_name}: the file name of {number} games, and no path: their answers are not used")
    if unknown := sum(len(names_of_file) for name, names_of_file in rest_of_names.items() if name not in rest_of_videos):
        faults.append(f"{unknown} games without a segment: not used")
    return matches, unusable


def _by_file_name(paths: set[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for path in sorted(paths):
        groups.setdefault(PurePosixPath(path).name, []).append(path)
    return groups


def _assemble(name: str, lines: Sequence[_Line], faults: list[str]) -> GameAnswers:
    """The answers for a game of all its lines: those that come twice once, in order.

    Raises:
        InputError: two different answers for one second: which of them counts is unknown.
    """
    lines = sorted(lines, key=lambda line: line.start)
    known: set[Answer] = set()
    seconds: set[int] = set()
    answers: list[Answer] = []
    num_duplicates = 0
    for run in (run for line in lines for run in _runs(line.answers)):
        new_answers = [answer for answer in run if answer not in known]
        num_duplicates += len(run) - len(new_answers)
        if conflict := next((answer for answer in new_answers if int(answer.end) in seconds), None):
            got, remedy = f"two answers for second {int(conflict.end)}", "give the files of one run, not merged"
            raise InputError(f"game {name}", got, "one", remedy)
        known.update(new_answers)
        seconds.update(int(answer.end) for answer in new_answers)
        answers += new_answers
    if num_duplicates:
        total = num_duplicates + len(answers)
        faults.append(
            f"{name}: {num_duplicates} of {total} answers twice, as files that were merged twice have them: kept once"
        )
    answers.sort(key=lambda answer: answer.end)
    return _game(name, lines, answers, faults)


def _game(name: str, lines: Sequence[_Line], answers: Sequence[Answer], faults: list[str]) -> GameAnswers:
    """Of lines in order of their starts and answers in order of their ends."""
    utterances = tuple(Utterance(answer.end if answer.start is None else answer.start, *answer[1:]) for answer in answers)
    if any(answer.start is None for answer in answers) or (not answers and any(line.end > line.start for line in lines)):
        faults.append(f"{name}: answers without a start: taken as one a segment; segments without one are missing, not silent")
        return GameAnswers(utterances, ())
    starts = [(float(line.start), float(line.start)) for line in lines]
    spans = tuple(_spans(sorted(starts + [(each.start, each.end) for each in utterances])))
    for (_, before), (after, _) in pairwise(spans):
        faults.append(f"{name}: no answer between {before:g} and {after:g} s: segments there are missing, not silent")
    broken = lines[-1].error
    if broken:
        faults.append(f"{name}: not watched after {spans[-1][1]:g} s ({broken}): segments there are missing, not silent")
    return GameAnswers(utterances, spans, broken)


def _runs(answers: Sequence[Answer]) -> Iterator[list[Answer]]:
    """A line in parts in which time goes on. More than one: shards were appended to a line that had been merged before."""
    run: list[Answer] = []
    latest = -math.inf
    for answer in answers:
        if answer.end < latest:
            yield run
            run = []
        run.append(answer)
        latest = answer.end
    yield run


def _spans(parts: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    start, end = parts[0]
    for next_start, next_end in parts[1:]:
        if next_start > end + SEAM:
            yield start, end
            start = next_start
            end = next_end
        end = max(end, next_end)
    yield start, end
