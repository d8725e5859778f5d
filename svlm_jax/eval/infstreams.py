"""Inf-Streams-Eval: its games, its segments and the rows of its answer files, with the published names and keys.

Owns what a line of each file says, how a game is cut into judged segments, and which words are believed. Does not know models
or judges; answers that others wrote are read in `eval.infstreams_answers`. Host side, never jax. Units: seconds of the video.

Source: StreamingVLM (arXiv 2510.09608), section 4 and its folder `eval/model_compete`. No script that makes the segments was
published; the rule here is the paper's. Words that end at the last instant of a piece belong to it, as in training.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from svlm_jax.data.annotation import Word
from svlm_jax.errors import InputError
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.lines import BadLines, read, require

SECONDS = 100.0  # of a piece
MIN_WORDS = 200  # of a piece that is judged
START = 1000  # second at which models begin, so that there is something that was said before
DISORDER = 2.0  # seconds by which a word may end before the word in front of it: two people speak at once
LONGEST_WORD = 30.0  # seconds
_REMEDY = "mend it, or allow it with --bad"


class Game(NamedTuple):
    """A whole game and its true commentary. video: its path below the folder of videos. words: in order of their ends."""

    video: str
    words: tuple[Word, ...]
    title: str = ""


class Segment(NamedTuple):
    """A piece of a game that is judged. words: the reference. previous: all that was said in the game before."""

    video: str
    words: tuple[Word, ...]
    title: str = ""
    previous: str = ""

    @property
    def start(self) -> int:
        """Whole second in which its first word begins: the published rule, as for `end`."""
        return int(self.words[0].start)

    @property
    def end(self) -> int:
        """Whole second in which its last word ends."""
        return int(self.words[-1].end)

    @property
    def key(self) -> str:
        return f"{self.video}:{self.start}-{self.end}"

    @property
    def reference(self) -> str:
        """As the published judge reads it: a word a line."""
        return "\n".join(word.text for word in self.words)


def said_before(words: Iterable[Word], time: float) -> str:
    """The words that end at `time` at the latest, joined by blanks: with what a model is seeded that begins there."""
    return " ".join(word.text for word in words if word.end <= time)


def cut(game: Game, seconds: float = SECONDS, min_words: int = MIN_WORDS) -> tuple[list[Segment], int]:
    """The pieces between multiples of `seconds`, from 0, that have `min_words` or more; and the number of pieces with any word.
    A word belongs to the piece in which it ends."""
    pieces: dict[int, list[Word]] = {}
    for word in game.words:
        pieces.setdefault(max(0, math.ceil(word.end / seconds) - 1), []).append(word)
    segments = [
        Segment(game.video, tuple(words), game.title, said_before(game.words, number * seconds))
        for number, words in sorted(pieces.items())
        if len(words) >= min_words
    ]
    return segments, len(pieces)


def segment_record(segment: Segment) -> dict[str, Any]:
    """A line of score_all_clips.jsonl."""
    content = [[word.start, word.end, word.text] for word in segment.words]
    return {"video": segment.video, "title": segment.title, "preasr": segment.previous, "content": content}


def answer_record(video: str, start: float, end: float, utterances: Iterable[Utterance]) -> dict[str, Any]:
    """A line of result_*.jsonl: one stretch of a game on which a model was run, an item a second, silent ones too.

    Published scripts know a game by the name of its file alone. `path`, which they pass over, tells two of one name apart.
    """
    items = [{"response": each.text, "start_time": each.start, "end_time": each.end} for each in utterances]
    name = PurePosixPath(video).name
    return {"video": name, "path": video, "chunk_start": int(start), "chunk_end": int(end), "items": items}


def answer_name(video: str) -> str:
    """The name of the file with the answers for a game: another for each path, and found by the published merge."""
    return f"result_{PurePosixPath(video).stem}_{hashlib.sha256(video.encode()).hexdigest()[:8]}.jsonl"


def read_games(path: str | Path, bad: BadLines) -> list[Game]:
    """The games of eval_all_metadata.jsonl, in order. Words with broken times are bad, and left out where that is allowed.

    Raises:
        InputError: as of `lines.read`; the same video twice.
    """

    def parse(record: dict[str, Any], source: str) -> Game:
        words = _words(require(record, "content", list, source), source, bad)
        return Game(_video(record, source), words, require(record, "title", str, source, ""))

    return _unlike(read(path, "one game of Inf-Streams-Eval a line", parse, bad), lambda game: game.video, path)


def read_segments(path: str | Path, bad: BadLines) -> list[Segment]:
    """The segments of score_all_clips.jsonl, in order; words as in `read_games`."""

    def parse(record: dict[str, Any], source: str) -> Segment:
        words = _words(require(record, "content", list, source), source, bad)
        title, previous = (require(record, key, str, source, "") for key in ("title", "preasr"))
        segment = Segment(_video(record, source), words, title, previous)
        if segment.end <= segment.start:
            raise InputError(f"{source} content", f"words from {segment.start} to {segment.end} s", "a second or more", _REMEDY)
        return segment

    return _unlike(read(path, "one segment of Inf-Streams-Eval a line", parse, bad), lambda segment: segment.key, path)


def _video(record: dict[str, Any], source: str) -> str:
    video = require(record, "video", str, source)
    if not PurePosixPath(video).name:
        raise InputError(f"{source} video", repr(video), "the path of a video", _REMEDY)
    return video


def _unlike(entries: list, key: Any, path: str | Path) -> list:
    seen = set()
    for entry in entries:
        if key(entry) in seen:
            raise InputError(str(path), f"{key(entry)!r} twice", "each once", "remove one of the lines")
        seen.add(key(entry))
    return entries


def _words(content: Sequence[Any], source: str, bad: BadLines) -> tuple[Word, ...]:
    """The words of `content`, in order of their ends; those whose times can not be are told to `bad`.

    The end of a word decides where it belongs. One that leaps ahead of those after it, or falls back behind those before it, is
    the broken one; a word that leaps does not take the rest with it.
    """
    entries: list[tuple[str, Word]] = []
    for number, entry in enumerate(content):
        name = f"{source} content[{number}]"
        try:
            word = _word(entry, name)
        except InputError as error:
            bad.add(error)
            continue
        if word.text:  # one without letters says nothing
            entries.append((name, word))
    words: list[Word] = []
    latest = -math.inf
    for (name, word), after in zip(entries, [*(word for _, word in entries[1:]), None], strict=True):
        leaps = after is not None and word.end > after.end + DISORDER and after.end >= latest - DISORDER
        if leaps or word.end < latest - DISORDER:
            between = f"between {max(latest, 0):g} and {after.end:g} s" if leaps else f"{latest:g} s or later"
            bad.add(InputError(name, f"{word.text!r:.40} that ends at {word.end:g} s", between, _REMEDY))
            continue
        words.append(word)
        latest = max(latest, word.end)
    if not words:
        raise InputError(f"{source} content", "no word", "[start, end, word], ...", _REMEDY)
    return tuple(sorted(words, key=lambda word: word.end))


def _word(entry: Any, name: str) -> Word:
    if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[2], str):
        raise InputError(name, f"{entry!r:.60}", "[start, end, word]", _REMEDY)
    times = {"start": entry[0], "end": entry[1]}
    start, end = (float(require(times, key, float, name)) for key in ("start", "end"))
    if not 0 <= start <= end <= start + LONGEST_WORD:
        got = f"{entry[2]!r:.40} from {start:g} to {end:g} s"
        raise InputError(name, got, f"0 <= start <= end, {LONGEST_WORD:g} s at most", _REMEDY)
    return Word(start, end, entry[2].strip())
