"""What steps of curation did, added up from the files that they left: hours, words, decisions, repairs, sources, samples.

Reads of `g.jsonl` what `curate.running.run` wrote beside it, `g.report.json` and `g.changes.jsonl`, and of transcripts the
words too, one line at a time: a report of thousands of games fits into memory. A transcript that no step wrote is reported by
its words alone. Owns the numbers; `curate.reporting.report_page` and `curate.reporting.plots` show them. Host side, never jax.
Units: seconds of the video.

Samples are drawn by the digest of what they are: the same files give the same report, however they were sharded.
"""

import hashlib
import heapq
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from svlm_jax.curate.sentences import split_sentences
from svlm_jax.curate.transcript import Transcript, parse
from svlm_jax.errors import InputError, shortened
from svlm_jax.files import local_path, parse_json, read_json
from svlm_jax.json_lines import digest

STRETCH = 24  # seconds, in which words are counted: a window of the paper
_REPORT_BYTES = 1 << 28  # a report with a large glossary among its settings
_EXPECTED = "a file of svlm curate"
_QUOTED = re.compile(r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"")  # not from one apostrophe to the next
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class Sample(NamedTuple):
    """One change to read. time: None: nowhere in particular. after: "" where it was deleted."""

    video: str
    time: float | None
    before: str
    after: str


class Samples:
    """So many of each kind, those whose digests are smallest: the same ones in whatever order they come."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._heaps: dict[str, list[tuple[int, Sample]]] = {}

    def add(self, kind: str, sample: Sample) -> None:
        content = json.dumps([kind, *sample], ensure_ascii=False, allow_nan=False)
        rank = -int.from_bytes(hashlib.sha256(content.encode("utf-8", "replace")).digest()[:12], "big")
        heap = self._heaps.setdefault(kind, [])
        if len(heap) < self.size:
            heapq.heappush(heap, (rank, sample))
        elif heap and rank > heap[0][0]:
            heapq.heapreplace(heap, (rank, sample))

    def of(self, kind: str) -> list[Sample]:
        """In order of video and time."""
        return sorted((sample for _, sample in self._heaps.get(kind, ())), key=lambda each: (each.video, each.time or 0.0))


@dataclass
class Totals:
    """Of several videos. seconds, words: [in, out]; what is in two windows counts once."""

    videos: int = 0
    kept_videos: int = 0
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    words: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, row: Mapping[str, Any]) -> None:
        self.videos += 1
        self.kept_videos += row["status"] == "kept"
        for total, values in ((self.seconds, row["seconds"]), (self.words, row["words"])):
            total[:] = (before + value for before, value in zip(total, values, strict=True))

    @property
    def spoken_words(self) -> int:
        """Words that came in; of a step to which none came, as to the first, those that it found."""
        return self.words[0] or self.words[1]


@dataclass
class Tally:
    """How often something happened, in how many videos, of how many seconds, and where for example. words: that were deleted.
    text: what was said of it, where that was always the same."""

    count: int = 0
    videos: int = 0
    seconds: float = 0.0
    words: int = 0
    example: str = ""
    text: str = ""


@dataclass
class StepReport:
    """What one step did.

    Attributes:
        name: of the step; "words": a transcript that no step wrote.
        settings, versions: of its run.
        input_file: its name. input_sha256, output_sha256: of the files; "" where there is no report.
        sources: totals by the source of videos, as they came; "" is none.
        counts: the step's own, added up.
        rules: changes by rule, most frequent first when shown.
        reasons: set-aside videos by reason, where numbers are N.
        windows: lines that are windows; 0 of a step that makes transcripts.
        pace: how many stretches of STRETCH seconds have so many words, of the transcripts that came out; empty for windows.
    """

    file: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    input_file: str = ""
    input_sha256: str = ""
    output_sha256: str = ""
    totals: Totals = field(default_factory=Totals)
    sources: dict[str, Totals] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    rules: dict[str, Tally] = field(default_factory=dict)
    reasons: dict[str, Tally] = field(default_factory=dict)
    windows: int = 0
    pace: Counter[int] = field(default_factory=Counter)
    samples: Samples = field(default_factory=lambda: Samples(0))

    def add(self, row: Mapping[str, Any], *, deletes_words: bool = True) -> None:
        """A line of changes.jsonl. deletes_words: a change to nothing deletes the words before it, and leaves out no window."""
        for totals in (self.totals, self.sources.setdefault(row["source"], Totals())):
            totals.add(row)
        self.counts.update(row["counts"])
        if row["status"] != "kept":
            reason = row["reason"]
            tally = self._tally(self.reasons, kind_of_reason(reason), row)
            tally.text = reason if tally.videos == 1 or tally.text == reason else ""
        for rule, time, before, after in row["changes"]:
            tally = self.rules.setdefault(rule, Tally())
            tally.count += 1
            tally.words += len(before.split()) if deletes_words and not after else 0
            self.samples.add(rule, Sample(row["video"], time, before, after))
        for rule in {change[0] for change in row["changes"]}:
            self._tally(self.rules, rule, row, count=0)

    def _tally(self, tallies: dict[str, Tally], kind: str, row: Mapping[str, Any], count: int = 1) -> Tally:
        tally = tallies.setdefault(kind, Tally())
        tally.count += count
        tally.videos += 1
        tally.seconds += row["seconds"][0]
        tally.example = min(filter(None, (tally.example, row["video"])))
        return tally


def read_chain(files: Iterable[str | Path], samples: int = 3) -> list[StepReport]:
    """The steps that wrote these files, in the order given.

    Args:
        samples: of each rule.

    Raises:
        InputError: a file that is missing, or that is neither a transcript nor of a step; the same file twice.
    """
    paths = [local_path(file) for file in files]
    for index, path in enumerate(paths):
        if path.resolve() in (each.resolve() for each in paths[:index]):
            raise InputError(shortened(path), "the same file twice", "each once", "leave one out")
    return [read_step(path, samples) for path in paths]


def training_set(chain: Sequence[StepReport]) -> StepReport:
    """What the chain was run for: the first that makes windows (clips for annealing are cut from the same words), or the
    last."""
    return next((step for step in chain if step.windows), chain[-1])


def broken_links(chain: Iterable[StepReport]) -> list[str]:
    """Steps that read another file than the one that is reported before them under its name."""
    broken, outputs = [], dict[str, str]()
    for step in chain:
        if step.input_sha256 and outputs.get(step.input_file, step.input_sha256) != step.input_sha256:
            broken.append(f"{step.file} was made from an earlier {step.input_file}: run its step again")
        outputs[step.file] = step.output_sha256
    return broken


def read_step(path: Path, samples: int) -> StepReport:
    """Raises:
    InputError: no such file; one of no step that holds no transcripts; a report without its list of changes.
    """
    if not path.is_file():
        raise InputError(shortened(path), "no such file", _EXPECTED, "check the path; svlm curate merge joins shards")
    report_path, changes = (path.with_name(f"{path.stem}.{ending}") for ending in ("report.json", "changes.jsonl"))
    if not report_path.is_file():
        return _read_words(path, samples)
    report = read_json(report_path, "the report of a step", _REPORT_BYTES)
    if not isinstance(report.get("step"), str) or not changes.is_file():
        got = "no changes.jsonl beside it" if isinstance(report.get("step"), str) else "no step"
        raise InputError(shortened(report_path), got, "what a step wrote", f"run the step that makes {path.name:.40} again")
    step = StepReport(path.name, report["step"], _object(report, "settings"), samples=Samples(samples))
    step.versions, step.output_sha256 = _object(report, "versions"), str(_object(report, "files").get("out", ""))
    step.input_file, step.input_sha256 = (str(_object(report, "input").get(key, "")) for key in ("file", "sha256"))
    has_windows = _has_windows(path)
    transcripts = iter(()) if has_windows else _transcripts(path)
    for source, row in _rows(changes):
        try:
            step.add(row, deletes_words=not has_windows)
            step.windows += row["lines"] * has_windows
            for transcript in islice(transcripts, row["lines"]):  # its own: both files are in the order of the input
                _add_transcript(step, transcript, row["changes"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(source, f"{error!r:.60}", "a line that a step wrote", "run the step again") from None
    return step


def _object(report: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = report.get(key)
    return value if isinstance(value, dict) else {}


def _read_words(path: Path, samples: int) -> StepReport:
    step = StepReport(path.name, "words", output_sha256=digest(path), samples=Samples(samples))
    for transcript in _transcripts(path):
        seconds, words = transcript.duration, len(transcript.words)
        step.add(
            {
                "video": transcript.video, "source": transcript.source, "status": "kept", "reason": "",
                "seconds": [seconds, seconds], "words": [words, words], "counts": {}, "changes": [],
            }
        )  # fmt: skip
        _add_transcript(step, transcript, [])
    if not step.totals.videos:
        raise InputError(shortened(path), "no line", _EXPECTED, "check the file")
    return step


def _add_transcript(step: StepReport, transcript: Transcript, changes: list[list[Any]]) -> None:
    step.pace.update(word_counts(transcript))
    if step.name == "edit":  # sentences that were kept leave no change behind
        changed = {round(time, 3) for _, time, _, _ in changes if time is not None}
        for sentence in split_sentences(transcript.words):
            if round(sentence.start, 3) not in changed:
                step.samples.add("kept", Sample(transcript.video, sentence.start, sentence.text, sentence.text))


def word_counts(transcript: Transcript) -> Iterator[int]:
    """Words that end in each whole stretch of STRETCH seconds of a video; words without times are in none."""
    counts = [0] * int(transcript.duration // STRETCH)
    for word in transcript.words:
        index = math.ceil(word.end / STRETCH) - 1 if word.end is not None else -1
        if 0 <= index < len(counts):
            counts[index] += 1
    return iter(counts)


def kind_of_reason(reason: str) -> str:
    """A reason without what may be of one video alone: "line N: got '...'"."""
    return _NUMBER.sub("N", _QUOTED.sub("'...'", reason))


def _has_windows(path: Path) -> bool:
    """Whether a file has windows in its lines, which are lists, and not transcripts."""
    with path.open("rb") as file:
        return file.read(1) == b"["


def _transcripts(path: Path) -> Iterator[Transcript]:
    for source, record in _rows(path):
        yield parse(record, source)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(its name for errors, what it holds) of each line that is not blank, one at a time."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                source = f"{path.name}:{number}"
                yield source, parse_json(line, source, "a line that svlm curate wrote")
