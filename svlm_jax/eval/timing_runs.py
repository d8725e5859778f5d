"""What a model said, and for which seconds, from whatever file has it: answers to Inf-Streams-Eval, predictions for
LiveSports-3K CC, captions of `svlm stream --jsonl`.

Owns which seconds are covered. Does not know metrics. Host side, never jax. Units: seconds of the video.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from svlm_jax import json_lines
from svlm_jax.errors import InputError, shortened
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.infstreams_answers import SEAM, Answers, GameAnswers, read_answers
from svlm_jax.eval.truth import Truth, truth_of
from svlm_jax.files import refuse_other_kinds_of_file
from svlm_jax.json_lines import BadLines, require, require_time

EXPECTED = "answers with items, predictions with pred, or captions with start, end and text"
_REMEDY = "give the answers, predictions or captions of a model"


class Commentary(NamedTuple):
    """Of one video. covered: the seconds for which a commentary was made, silent ones too."""

    utterances: tuple[Utterance, ...]
    covered: frozenset[int]


class Run(NamedTuple):
    """All that a model said. label: as a table names it. sha256: of the files. faults: of the files, a line each."""

    label: str
    sha256: str
    videos: dict[str, Commentary]
    faults: list[str]


def read_run_files(paths: Iterable[str | Path], truths: Mapping[str, Truth], bad: BadLines) -> Run:
    """The parts of one run: folders or files, of different videos or of different parts of one.

    Raises:
        InputError: a file of another kind, one about no video of the truth, a second that two of them have, nothing at all.
    """
    labels, digests, faults, videos = [], [], [], {}
    for path in map(Path, paths):
        label, digest, commentaries = _read(path, truths, bad, faults)
        labels.append(label)
        digests.append(digest)
        for video, commentary in commentaries.items():
            before = videos.get(video, Commentary((), frozenset()))
            if overlap := before.covered & commentary.covered:
                got = f"second {min(overlap)} of {shortened(video, 60)} again"
                raise InputError(shortened(path, 80), got, "each second once", "leave one of the files out")
            videos[video] = Commentary(before.utterances + commentary.utterances, before.covered | commentary.covered)
    if not videos:
        raise InputError("runs", "no second of a video of the truth", "some", "give the truth that belongs to the answers")
    videos = {video: videos[video] for video in truths if video in videos}  # in one order, whatever that of the files is
    return Run(labels[0], hashlib.sha256("".join(digests).encode()).hexdigest(), videos, faults)


def _read(path: Path, truths: Mapping[str, Truth], bad: BadLines, faults: list[str]) -> tuple[str, str, dict[str, Commentary]]:
    kind = "items" if path.is_dir() else _kind(path)
    if kind == "items":
        answers = read_answers(path, list(truths), bad)
        faults += answers.faults
        return answers.name, answers.sha256, _of_answers(answers, truths, bad, faults)
    commentaries = _of_predictions(path, truths, bad) if kind == "pred" else _of_captions(path, truths, bad)
    return path.stem, json_lines.digest(path), commentaries


def _kind(path: Path) -> str:
    """pred, items or text: by the keys of the first line that has one of them. Predictions may have items too."""
    if not path.is_file():
        raise InputError(shortened(path), "no such file", EXPECTED, "check the path")
    refuse_other_kinds_of_file(path, EXPECTED)
    with path.open("rb") as file:
        for line in file:
            with suppress(ValueError, RecursionError):  # a bad line is reported by the reader of the file
                record = json.loads(line)
                if isinstance(record, dict) and (keys := [key for key in ("pred", "items", "text") if key in record]):
                    return keys[0]
    raise InputError(shortened(path), "none of these keys", EXPECTED, _REMEDY)


def _of_answers(answers: Answers, truths: Mapping[str, Truth], bad: BadLines, faults: list[str]) -> dict[str, Commentary]:
    """From the first second to where the benchmark ends, but for holes: who stops earlier is silent from then on."""
    commentaries = {}
    for video, game in answers.games.items():
        if not game.spans:
            got, remedy = "answers without a start, one a segment", "leave them out: when they were said is not known"
            bad.add(InputError(f"answers for {shortened(video, 60)}", got, "one a second", remedy))
            continue
        commentaries[video] = Commentary(game.utterances, _covered(game, truths[video], faults))
    return commentaries


def _covered(game: GameAnswers, truth: Truth, faults: list[str]) -> frozenset[int]:
    last_start, last_end = game.spans[-1]
    end = last_end if game.broken else _end(truth)  # what a model was not shown it cannot speak of
    if last_end + SEAM < end:
        faults.append(f"{truth.video}: nothing after {last_end:g} s: the rest, until {end:g} s, counts as silence")
    spans = [*game.spans[:-1], (last_start, max(last_end, end))]
    return frozenset(second for start, stop in spans for second in range(int(start), math.ceil(stop)))


def _end(truth: Truth) -> float:
    """Where a run of the published protocol ends: at the whole second before the end of the last true word."""
    return float(int(max(word.end for word in truth.commentary))) if truth.commentary else truth.seconds


def _of_predictions(path: Path, truths: Mapping[str, Truth], bad: BadLines) -> dict[str, Commentary]:
    """Each in its event; the words of one without `items` lie evenly in it."""
    commentaries: dict[str, Commentary] = {}

    def parse(record: dict[str, Any], source: str) -> None:
        video = truth_of(_by_stem(truths), require(record, "video_id", str, source)).video
        start, end = (require_time(record, key, source) for key in ("begin", "end"))
        items = [item for item in require(record, "items", list, source, []) if isinstance(item, dict)]
        utterances = [_utterance(item, source, "start_time", "end_time", "response") for item in items]
        utterances = utterances or [Utterance(start, end, require(record, "pred", str, source))]
        before = commentaries.get(video, Commentary((), frozenset()))
        covered = before.covered | set(range(int(start), math.ceil(end)))
        commentaries[video] = Commentary((*before.utterances, *utterances), covered)

    json_lines.read(path, "predictions for LiveSports-3K CC", parse, bad)
    return commentaries


def _of_captions(path: Path, truths: Mapping[str, Truth], bad: BadLines) -> dict[str, Commentary]:
    """The file is named as its video is (FILM.jsonl for FILM.mp4), unless there is only one. Dropped chunks are silent."""
    truth = next(iter(truths.values())) if len(truths) == 1 else truth_of(_by_stem(truths), path.stem)
    spoken = json_lines.read(path, "captions", lambda record, source: _utterance(record, source, "start", "end", "text"), bad)
    covered = frozenset(second for each in spoken for second in range(int(each.start), math.ceil(each.end)))
    return {truth.video: Commentary(tuple(spoken), covered)}


def _utterance(record: dict[str, Any], source: str, start: str, end: str, text: str) -> Utterance:
    times = [require_time(record, key, source) for key in (start, end)]
    if not 0 <= times[0] < times[1]:
        raise InputError(source, f"{times[0]:g} to {times[1]:g} s", "a start before its end", "mend the line, or leave it out")
    return Utterance(times[0], times[1], require(record, text, str, source))


def _by_stem(truths: Mapping[str, Truth]) -> dict[str, Truth]:
    """By path without ending, for files that name a video so."""
    return {str(PurePosixPath(video).with_suffix("")): truth for video, truth in truths.items()}
