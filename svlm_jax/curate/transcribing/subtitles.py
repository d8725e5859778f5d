"""Subtitles to words with times: the cues of a WebVTT or SRT file as they are in the world.

Owns what is read of a file (`parse`), which text is speech, and when each word of a cue is said. Knows no video, nor which file
goes with it (`curate.transcribing.subtitle_files`). Host side, never jax. Units: seconds.

Where a file times its words (YouTube's own subtitles: `now<00:00:01.439><c> we</c>`), these are the starts. Else the words of a
cue share its time evenly, as in LiveCC (arXiv 2504.16030). Two of its habits are not followed: it leaves out a whole cue for a
bracket in it, and every word that repeats the one before ("no, no" is said); brackets go alone here, and lines that repeat go
where subtitles roll: each cue shows the last line of the one before once more.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from svlm_jax.curate.languages import language_code
from svlm_jax.curate.outcome import Change
from svlm_jax.curate.transcribing.transcribe import Transcription, spread
from svlm_jax.curate.transcript import TimedWord

LETTER_SECONDS, SHORTEST, WORD_SECONDS = 0.1, 0.3, 0.4  # seconds a letter, of a word that ends by guess, of any word
CROWDED = 0.15  # seconds a word: nobody speaks faster for long
TOUCHING = 0.11  # seconds between cues that follow each other
ROLLING_SHARE = 0.2  # of cues that show the line before once more

_TIME = r"-?\s*(?:\d+\s*:\s*)?\d{1,2}\s*:\s*\d{1,2}(?:\s*[.,]\s*\d{1,9})?"
_TIMING = re.compile(rf"^\s*({_TIME})\s*(?:--?>|--?&gt;|[–—]>)\s*({_TIME})(?:\s.*)?$")
_STAMP = re.compile(rf"<({_TIME})>")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|<>|\{\\[^{}]*\}")  # of WebVTT and HTML, and what SRT has from ASS: {\an8}
_COMMENT = re.compile(r"^(NOTE|STYLE|REGION)(\s|$)")
_LANGUAGE = re.compile(r"^\s*Language\s*:\s*(\S+)", re.IGNORECASE)
_INVISIBLE = re.compile("[\u200b\u200e\u200f\u2060\ufeff\u202a-\u202e\u2066-\u2069\u00ad\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BRACKETS = re.compile(r"\[[^\[\]]*\]|【[^【】]*】")
_ALL_IN_PARENTHESES = re.compile(r"^\s*(?:\([^()]*\)|\uff08[^\uff08\uff09]*\uff09)\s*$")
_NOTES = "♩♪♫♬♭♮♯"
_SONG = re.compile(rf"^\s*[{_NOTES}]+[^{_NOTES}]*[{_NOTES}]+\s*$")
_SPEAKER = re.compile(r"(?:^\s*»|(?:^|(?<=\s))>{2,})\s*((?:[^\W\da-z]+[ .'-]*){1,4}:(?=\s|$))?")  # ">> JOHN:"
_STAMP_START, _STAMP_END = "\x02", "\x03"  # around a time, where a stamp was
_DASH = re.compile(r"^\s*[-–—]\s*(?=[^\d\s])")


@dataclass(frozen=True)
class Cue:
    """A text and when it is shown, as the file says. text: with its tags and lines."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Subtitles:
    """language: as the file itself says, a code; None: it says nothing. changes: what was unusual in reading it."""

    cues: tuple[Cue, ...]
    language: str | None = None
    changes: tuple[Change, ...] = ()


def decode(data: bytes, encoding: str | None = None) -> tuple[str, str]:
    """(text, name of its encoding) of a file. Without a mark at its start that is UTF-8, or UTF-16 where every other byte is 0;
    what is neither is read as Windows-1252, in which Latin-1 is, and the caller tells so.

    Raises:
        LookupError, UnicodeError: an encoding that was asked for and is unknown, or is not that of the file.
    """
    if encoding:
        return data.decode(encoding).removeprefix("\ufeff"), encoding
    marks = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"))
    for mark, name in (*marks, (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return data.decode(name, "replace").removeprefix("\ufeff"), name
    head = data[:2000]
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(head) >= 4 and head[first::2].count(0) > 0.4 * len(head[first::2]) and not head[1 - first :: 2].count(0):
            return data.decode(name, "replace"), name
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace"), "cp1252"


def parse(text: str) -> Subtitles:
    """The cues of a file, in its order, with nothing but comments left out. Also reads what players read and the formats do not
    allow: hours left out, dots for commas, cues without numbers or blank lines between them, blank lines in them."""
    lines = re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff"))
    timings = [_timing(line) for line in lines]
    is_vtt = lines[0].lstrip().startswith("WEBVTT")
    header = lines[: next((index for index, each in enumerate(timings) if each), len(lines))] if is_vtt else []
    language = next((match[1] for match in map(_LANGUAGE.match, header) if match), None)
    cues: list[Cue] = []
    texts: list[str] = []
    changes = [
        Change("clock of a stream", 0.0, line.strip(), "times as they are written")
        for line in header
        if line.startswith("X-TIMESTAMP-MAP") and not re.search(r"MPEGTS:0\b", line)
    ]
    is_times = [bool(timing) or _is_broken(line) for line, timing in zip(lines, timings, strict=True)]
    number, in_comment = 0, False
    for index, (line, timing) in enumerate(zip(lines, timings, strict=True)):
        starts_block = not index or not lines[index - 1].strip()
        if timing:
            if cues:
                cues[-1] = replace(cues[-1], text="\n".join(texts))
            cues.append(Cue(*timing, ""))
            texts, in_comment = [], False
        elif is_times[index]:
            start = cues[-1].start if cues else 0.0
            changes.append(Change("times that cannot be read", start, line.strip(), "with the cue before" if cues else ""))
        elif not line.strip():
            in_comment = False
        elif is_vtt and starts_block and _COMMENT.match(line):
            in_comment = True
        elif index + 1 < len(lines) and is_times[index + 1] and _is_identifier(line, starts_block, number):
            number = int(line) if line.strip().isdecimal() else number
        elif cues and not in_comment and not (starts_block and texts and _is_stray_number(lines, is_times, index)):
            texts.append(line)
    if cues:
        cues[-1] = replace(cues[-1], text="\n".join(texts))
    return Subtitles(tuple(cues), language_code(language), tuple(changes))


def _is_identifier(line: str, starts_block: bool, previous: int) -> bool:
    """Whether the line before times names the cue; where no blank line is before it, only the next number does."""
    return starts_block or (line.strip().isdecimal() and len(line) < 10 and int(line) == previous + 1)


def _is_stray_number(lines: list[str], is_times: list[bool], index: int) -> bool:
    """Whether a line is the number of the next cue, with blank lines between the two."""
    following = next((i for i in range(index + 1, len(lines)) if lines[i].strip()), None)
    return lines[index].strip().isdecimal() and following is not None and is_times[following]


def _timing(line: str) -> tuple[float, float] | None:
    match = _TIMING.match(line) if ">" in line or "&gt;" in line else None
    return (_seconds(match[1]), _seconds(match[2])) if match else None


def _seconds(text: str) -> float:
    """ "1:02:03,5" -> 3723.5"""
    text = re.sub(r"\s", "", text).replace(",", ".")
    parts = [float(part) for part in text.lstrip("-").split(":")]
    seconds = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    return round(-seconds if text.startswith("-") else seconds, 3)


def transcription(subtitles: Subtitles) -> Transcription:
    """The words of subtitles, in order of time."""
    changes = list(subtitles.changes)
    cues = _in_order(subtitles.cues, changes)
    cue_lines = [(cue, _speech(cue, changes)) for cue in cues]
    new = _without_repeats([(cue, lines) for cue, lines in cue_lines if lines], changes)
    times_words = any(_STAMP_START in text for _, text in new)  # then a cue of one word has no other time than its start
    words = [word for start, end, text in _bounds(new, changes) for word in _timed(text, start, end, times_words)]
    return Transcription(tuple(words), subtitles.language, changes=tuple(changes), counts={"cues": len(cues)})


def _in_order(cues: tuple[Cue, ...], changes: list[Change]) -> list[Cue]:
    """Cues by their starts, each once."""
    in_order = sorted(cues, key=lambda cue: cue.start)
    for before, after in pairwise(cues):
        if after.start < before.start:
            changes.append(Change("cue out of order", after.start, f"after one at {before.start:g} s", "by its start"))
    unique = list(dict.fromkeys(in_order))
    if len(unique) < len(cues):
        earlier: set[Cue] = set()
        for cue in in_order:
            if cue in earlier:
                changes.append(Change("cue twice", cue.start, " ".join(cue.text.split()), ""))
            earlier.add(cue)
    return unique


def _speech(cue: Cue, changes: list[Change]) -> list[str]:
    """The lines of a cue with words in them; times that the file gives to words are between _STAMP_START and _STAMP_END."""
    text = _STAMP.sub(lambda match: f"{_STAMP_START}{_seconds(match[1])}{_STAMP_END}", _INVISIBLE.sub("", cue.text))
    text = html.unescape(html.unescape(_TAG.sub("", text)))  # twice: "&amp;gt;&amp;gt;" is seen too
    text = re.sub(rf"(?![{_STAMP_START}{_STAMP_END}]){_INVISIBLE.pattern}", "", text)

    def leave_out(rule: str, pattern: re.Pattern[str], text: str) -> str:
        def note(match: re.Match[str]) -> str:
            changes.append(Change(rule, cue.start, _plain(match[0]), ""))
            return " "

        return pattern.sub(note, text)

    def leave_out_name(match: re.Match[str]) -> str:
        if match[1]:
            changes.append(Change("speaker's name", cue.start, match[1], ""))
        return " "

    text = leave_out("in brackets", _BRACKETS, text)
    lines = []
    for part in [text] if _SONG.match(text) or _ALL_IN_PARENTHESES.match(text) else text.split("\n"):
        line = leave_out("in brackets", _ALL_IN_PARENTHESES, leave_out("song", _SONG, part))
        line = _DASH.sub("", _SPEAKER.sub(leave_out_name, line).translate(dict.fromkeys(map(ord, _NOTES), " ")))
        if _plain(line):
            lines.append(line)
    return lines


def _plain(line: str) -> str:
    """A line without the times in it."""
    return " ".join(re.sub(f"{_STAMP_START}[^{_STAMP_END}]*{_STAMP_END}", "", line).split())


def _without_repeats(cue_lines: list[tuple[Cue, list[str]]], changes: list[Change]) -> list[tuple[Cue, str]]:
    """Cues with the text that is new in each. Where subtitles roll, a cue begins with lines of the one before."""
    repeats = [(0, "")] * min(len(cue_lines), 1)
    for (before, old), (cue, lines) in pairwise(cue_lines):
        repeats.append(_repeated(old, lines) if cue.start <= before.end + TOUCHING else (0, ""))
    # one that shows nothing new may be a chant, unless nobody could read it
    rolling = sum(
        count > 0 and (count < len(lines) or bool(rest) or cue.end - cue.start < TOUCHING)
        for (count, rest), (cue, lines) in zip(repeats, cue_lines, strict=True)
    )
    if not rolling or rolling < ROLLING_SHARE * (len(cue_lines) - 1):
        return [(cue, "\n".join(lines)) for cue, lines in cue_lines]
    number = sum(count for count, _ in repeats)
    changes.append(Change("rolling subtitles", cue_lines[0][0].start, f"{number} lines shown once more", "each line once"))
    new = [
        (cue, "\n".join(filter(None, [rest, *lines[count:]])))
        for (count, rest), (cue, lines) in zip(repeats, cue_lines, strict=True)
    ]
    return [(cue, text) for cue, text in new if text]


def _repeated(old: list[str], lines: list[str]) -> tuple[int, str]:
    """How many of the first lines show the last ones of the cue before, and what the last of them has more (a line that grows).
    A line whose words have times is new."""
    before, after = [_plain(line) for line in old], ["" if _STAMP_START in line else _plain(line) for line in lines]
    for count in range(min(len(before), len(after)), 0, -1):
        *complete, last = before[-count:]
        if after[: count - 1] != complete:
            continue
        if after[count - 1] == last:
            return count, ""
        if after[count - 1].startswith(f"{last} "):
            return count, after[count - 1][len(last) + 1 :]
    return 0, ""


def _bounds(cues: list[tuple[Cue, str]], changes: list[Change]) -> list[tuple[float, float, str]]:
    """(start, end, text) in which the words of a text are said. A cue ends where the next begins; where that leaves no time to
    say it in, the two are said one after the other in the time of both."""
    bounds: list[tuple[float, float, str]] = []
    for index, (cue, text) in enumerate(cues):
        start, end, count = cue.start, cue.end, len(_plain(text).split())
        following = cues[index + 1][0].start if index + 1 < len(cues) else float("inf")
        if end <= start:
            end = start + count * WORD_SECONDS
            end = min(end, following) if following > start else end
            changes.append(Change("cue without a length", start, f"{cue.start:g} to {cue.end:g}", f"to {end:g}"))
        if bounds and start < bounds[-1][1]:
            first, last, before = bounds[-1]
            has_times = _STAMP_START in before or _STAMP_START in text
            if has_times or start - first >= CROWDED * len(_plain(before).split()):
                bounds[-1] = first, start if start > first else last, before
            else:
                bounds.pop()
                start, end, text = first, max(last, end), f"{before}\n{text}"
        bounds.append((start, end, text))
    return bounds


def _timed(text: str, start: float, end: float, times_words: bool) -> Iterator[TimedWord]:
    """The words of a text between two times: spread evenly, or at the times in it. times_words: the file has times of words."""
    first, *rest = re.split(f"{_STAMP_START}([^{_STAMP_END}]*){_STAMP_END}", text)
    if not times_words:
        yield from spread(text, start, end)
        return
    parts = [(start, first)]
    for time, part in zip(map(float, rest[::2]), rest[1::2], strict=True):
        before = parts[-1][1]
        if before[-1:].isalpha() and part[:1].isalpha() and max(before[-1], part[0]) < "\u2e80":  # below are no CJK letters
            head, blank, part = re.fullmatch(r"(\S*)(\s*)(.*)", part, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
            parts[-1] = parts[-1][0], before + head
            part = blank + part
        parts.append((time, part))
    parts = [(time, part) for time, part in parts if part.strip()]
    for index, (time, part) in enumerate(parts):
        # a stamp says where a word starts; that it lasts until the next would stretch it over a pause
        guess = time + sum(max(SHORTEST, LETTER_SECONDS * len(word)) for word in part.split())
        limit = parts[index + 1][0] if index + 1 < len(parts) else end
        yield from spread(part, time, min(guess, limit) if limit > time else guess)


def _is_broken(line: str) -> bool:
    """Whether a line has times that nobody can read: an arrow, and a digit on one side of it."""
    before, arrow, _ = line.rpartition("-->")
    return bool(arrow) and (any(map(str.isdigit, before)) or any(map(str.isdigit, line.partition("-->")[2])))
