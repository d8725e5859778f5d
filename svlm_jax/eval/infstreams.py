"""Inf-Streams-Eval: its games, its segments and the rows of its answer files, with the published names and keys.

Owns what a line of each file says, how a game is cut into judged segments, and which words are believed. Does not know models
or judges; answers that others wrote are read in `eval.infstreams_answers`. Host side, never jax. Units: seconds of the video.

Source: StreamingVLM (arXiv 2510.09608), section 4 and its folder `eval/model_compete`. No script that makes the segments was
published; the rule here is the paper's. Words that end at the last instant of a segment belong to it, as in training.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from svlm_jax.data.annotation import Word
from svlm_jax.errors import InputError, shortened
from svlm_jax.eval.commentary import Utterance
from svlm_jax.json_lines import BadLines, read, require, require_time, require_video

SECONDS = 100.0  # of a segment
MIN_WORDS = 200  # of a segment that is judged
START = 1000  # second at which models begin, so that there is previous text
DISORDER = 2.0  # seconds by which a word may end before the word in front of it: two people speak at once
LONGEST_WORD = 30.0  # seconds
MENDED = "put after the word before it"  # what becomes of a word with a broken time
_REMEDY = "mend it, or allow it with --bad"


class Game(NamedTuple):
    """A whole game and its true commentary. video: its path below the folder of videos. words: in order of their ends."""

    video: str
    words: tuple[Word, ...]
    title: str = ""


class Segment(NamedTuple):
    """A part of a game that is judged. words: the reference. previous: all words of the game before it."""

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
    """The intervals between multiples of `seconds`, from 0, that have `min_words` or more; and the number of intervals with any
    word. A word belongs to the interval in which it ends."""
    words_by_interval: dict[int, list[Word]] = {}
    for word in game.words:
        words_by_interval.setdefault(max(0, math.ceil(word.end / seconds) - 1), []).append(word)
    segments = [
        Segment(game.video, tuple(words), game.title, said_before(game.words, number * seconds))
        for number, words in sorted(words_by_interval.items())
        if len(words) >= min_words
    ]
    return segments, len(words_by_interval)


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
    """The games of eval_all_metadata.jsonl, in order. Words with broken times are bad lines; see `_words`.

    Raises:
        InputError: as of `lines.read`, of a bad line; one with the video of another is bad.
    """
    videos: set[str] = set()

    def parse(record: dict[str, Any], source: str) -> Game:
        words = _words(require(record, "content", list, source), source, bad)
        game = Game(require_video(record, "video", source), words, _text(record, "title", source))
        _add_new(game.video, videos, source)
        return game

    return read(path, "one game of Inf-Streams-Eval a line", parse, bad)


def read_segments(path: str | Path, bad: BadLines) -> list[Segment]:
    """The segments of score_all_clips.jsonl, in order; words as in `read_games`.

    Raises:
        InputError: as of `lines.read`, of a bad line; one with the video and the seconds of another is bad.
    """
    keys: set[str] = set()

    def parse(record: dict[str, Any], source: str) -> Segment:
        if "preasr" not in record:
            raise InputError(
                f"{source} preasr", "nothing", "a segment, not a game", "cut games: svlm evaluate infstreams segments"
            )
        words = _words(require(record, "content", list, source), source, bad)
        segment = Segment(
            require_video(record, "video", source), words, _text(record, "title", source), _text(record, "preasr", source)
        )
        if segment.end <= segment.start:
            raise InputError(f"{source} content", f"words from {segment.start} to {segment.end} s", "a second or more", _REMEDY)
        _add_new(segment.key, keys, source)
        return segment

    return read(path, "one segment of Inf-Streams-Eval a line", parse, bad)


def _add_new(key: str, keys: set[str], source: str) -> None:
    if key in keys:
        raise InputError(source, f"{shortened(key, 80)} a second time", "each once", "leave it out")
    keys.add(key)


def _text(record: dict[str, Any], key: str, source: str) -> str:
    """Of a key that may be missing, or null."""
    return "" if record.get(key) is None else require(record, key, str, source)


def _words(content: Sequence[Any], source: str, bad: BadLines) -> tuple[Word, ...]:
    """The words of `content`, in order of their ends. A word with an impossible time is reported to `bad`; if allowed,
    it stays, at the end of the word before it: without it a segment of 200 words would not be judged.
    """
    texts: list[str] = []
    words: list[Word | None] = []  # None: with a broken time
    for number, entry in enumerate(content):
        name = f"{source} content[{number}]"
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[2], str):
            bad.add(InputError(name, f"{entry!r:.60}", "[start, end, word]", _REMEDY))
        elif entry[2].strip():  # one without letters says nothing
            texts.append(entry[2].strip())
            words.append(_word(entry, name, bad))
    for index, word, expected in _disordered(words):
        got = f"{word.text!r:.40} that ends at {word.end:g} s"
        bad.add(InputError(f"{source} content", got, expected, _REMEDY), MENDED)
        words[index] = None
    time = next((word.start for word in words if word is not None), None)
    if time is None:
        raise InputError(f"{source} content", "no word with times", "[start, end, word], ...", _REMEDY)
    mended = []
    for text, word in zip(texts, words, strict=True):
        mended.append(word or Word(time, time, text))
        time = max(time, mended[-1].end)
    return tuple(sorted(mended, key=lambda word: word.end))


def _disordered(words: Sequence[Word | None]) -> Iterator[tuple[int, Word, str]]:
    """(index, word, what was expected) for each that leaps ahead of those after it, or falls back behind those before it. One
    word that leaps does not take the rest with it."""
    timed = [(index, word) for index, word in enumerate(words) if word is not None]
    latest = 0.0
    for (index, word), following in zip(timed, [*timed, None][1:], strict=True):
        after = following[1].end if following else math.inf
        if word.end < latest - DISORDER:
            yield index, word, f"{latest:g} s or later"
        elif word.end > after + DISORDER and after >= latest - DISORDER:
            yield index, word, f"{latest:g} to {after:g} s"
        else:
            latest = max(latest, word.end)


def _word(entry: list[Any], name: str, bad: BadLines) -> Word | None:
    times = {"start": entry[0], "end": entry[1]}
    try:
        start, end = (require_time(times, key, name) for key in ("start", "end"))
        if not 0 <= start <= end <= start + LONGEST_WORD:
            got = f"{entry[2]!r:.40} from {start:g} to {end:g} s"
            raise InputError(name, got, f"0 <= start <= end, {LONGEST_WORD:g} s at most", _REMEDY)
    except InputError as error:
        bad.add(error, MENDED)
        return None
    return Word(start, end, entry[2].strip())
