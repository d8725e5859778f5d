"""Subtitles that lie beside videos, as a transcriber: NAME.vtt, NAME.srt, NAME.en.vtt.

Owns which file is that of a video. Host side, never jax.
"""

import hashlib
import itertools
import os
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from svlm_jax.curate.languages import is_language, language_code
from svlm_jax.curate.outcome import Change, SetAside
from svlm_jax.curate.transcribing.subtitles import decode, parse, transcription
from svlm_jax.curate.transcribing.transcribe import Transcription
from svlm_jax.errors import InputError, shortened
from svlm_jax.files import refuse_other_kinds_of_file

VERSION = 1  # of the rules by which subtitles are read; another one: videos are done again
MAX_BYTES = 1 << 26  # the longest have some MB
_KINDS = (".vtt", ".srt")  # the first may have times of words
_NAME = re.compile(
    r"(?:\.(?P<tag>[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*))?(?:\.(?:sdh|cc|hi|auto|default))?\.(?:vtt|srt)", re.I
)


class SubtitleFile(NamedTuple):
    """tag: of its language, as in its name ("en-orig"); "": none."""

    path: Path
    tag: str


@dataclass(frozen=True)
class SubtitleTranscriber:
    """encoding: of all files that have no mark of one, instead of UTF-8."""

    encoding: str | None = None
    name: str = "subtitles"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"version": VERSION, "encoding": self.encoding}

    def words(self, video: Path, language: str | None) -> Transcription:
        path, tag = choose(video, language)
        try:
            refuse_other_kinds_of_file(path, "subtitles")
            if path.stat().st_size > MAX_BYTES:
                raise SetAside("subtitles of more than 64 MiB")
            text, encoding = decode(path.read_bytes(), self.encoding)
        except InputError as error:
            raise SetAside(f"subtitles that are {error.got}") from None
        except UnicodeError:
            raise SetAside(f"subtitles that are not {self.encoding}") from None
        subtitles = parse(text)
        if not subtitles.cues:
            raise SetAside("subtitles without a cue")
        if encoding == "cp1252" and not self.encoding:
            change = Change("encoding", 0.0, f"{path.name} is not UTF-8", "read as Windows-1252")
            subtitles = replace(subtitles, changes=(change, *subtitles.changes))
        result = transcription(subtitles)
        return replace(result, language=language_code(tag) or result.language or language)

    def digest(self, video: Path, language: str | None) -> dict[str, str]:
        """Which subtitles a video has, for its input line: it is done again where they are others."""
        try:
            path = choose(video, language).path
            return {"subtitles": path.name, "subtitles_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        except (SetAside, OSError):
            return {}


def choose(video: Path, language: str | None = None) -> SubtitleFile:
    """The subtitles of a video: in the language, else without one in their name, else those of the speech itself
    ("NAME.en-orig.vtt"), else the only language that there is.

    Raises:
        SetAside: none, or several languages and nothing that chooses.
    """
    files = subtitle_files(video)
    if not files:
        raise SetAside("no subtitles beside it (.vtt, .srt)")

    def rank(file: SubtitleFile) -> tuple[bool, bool, bool, int]:
        is_asked = language is not None and language_code(file.tag) == language
        return not is_asked, bool(file.tag), not file.tag.endswith("-orig"), _KINDS.index(file.path.suffix.lower())

    best = min(files, key=lambda file: (rank(file), file.path.name))
    is_clear = not rank(best)[0] or not rank(best)[1] or not rank(best)[2]
    if not is_clear and len({language_code(file.tag) for file in files}) > 1:
        raise SetAside("subtitles in several languages; --language chooses")
    if not is_clear and language is not None:
        raise SetAside("no subtitles in the language of --language")
    return best


def subtitle_files(video: Path) -> list[SubtitleFile]:
    """All that belong to a video by their names, in order of these: of "a.mp4" also "a.mp4.vtt"."""
    files = []
    for stem in dict.fromkeys((video.stem, video.name)):
        for name in _names_from(video.parent, stem):
            match = _NAME.fullmatch(name, len(stem))
            if match and (not match["tag"] or is_language(match["tag"])):
                files.append(SubtitleFile(video.parent / name, match["tag"] or ""))
    return files


def _names_from(folder: Path, start: str) -> Iterator[str]:
    """Names of subtitles in a folder that start so, in order."""
    names = _names(folder, folder.stat().st_mtime_ns)
    for name in itertools.islice(names, bisect_left(names, start), None):
        if not name.startswith(start):
            return
        yield name


@lru_cache(maxsize=64)
def _names(folder: Path, _: int) -> tuple[str, ...]:
    """Names of subtitles in a folder, sorted; kept, for a folder may have those of ten thousand videos."""
    return tuple(sorted(name for name in os.listdir(folder) if name.lower().endswith(_KINDS) and not name.startswith(".")))


def check_encoding(name: str | None) -> None:
    """Raises:
    InputError: an encoding that Python does not know.
    """
    try:
        b"a".decode(name or "utf-8")
    except UnicodeError:  # half a character of UTF-16
        pass
    except LookupError:
        raise InputError("--encoding", shortened(name, 40), "one that Python knows", "cp1251 and gb18030 are such") from None
