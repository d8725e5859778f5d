"""Files of words that other programs wrote, as a transcriber: NAME.json beside each video, or JSON lines of many videos.

Owns which words are those of a video. What programs write is `curate.transcribing.whisper_output`; lines are those of
`curate.transcript`, which LiveCC's are too ({"video", "content": [[start, end, word], ...]}). Host side, never jax.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from svlm_jax.curate.outcome import SetAside
from svlm_jax.curate.transcribing.transcribe import Transcription
from svlm_jax.curate.transcribing.whisper_output import parse_output
from svlm_jax.curate.transcript import parse
from svlm_jax.errors import InputError, shortened
from svlm_jax.files import parse_json, parse_json_list, refuse_other_kinds_of_file
from svlm_jax.json_lines import BadLines

VERSION = 1  # of the rules by which words are read
SUFFIXES = (".json", ".words.json")
MAX_BYTES = 1 << 28  # of a file of one video
_EXPECTED = "words of videos: as Whisper writes them, or LiveCC's lines"


class WordsLocation(NamedTuple):
    """Where the words of a video are: a line of a file, or all of it (size -1). digest: SHA-256 of these bytes."""

    path: Path
    offset: int
    size: int
    digest: str
    label: str


@dataclass(frozen=True)
class WordsTranscriber:
    """locations: by name of the video, of its file, and of that without its end; None where several have it."""

    locations: Mapping[str, WordsLocation | None] = field(default_factory=dict)
    name: str = "words"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"version": VERSION}  # which words: by the digest in the line of each video

    def words(self, video: Path, language: str | None) -> Transcription:
        location = self.find(video)
        with location.path.open("rb") as file:
            file.seek(location.offset)
            data = file.read(location.size if location.size >= 0 else MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise SetAside("words of more than 256 MiB")
        try:
            transcription = parse_words(data, location.label)
        except InputError as error:
            raise SetAside(
                f"words that cannot be read ({error.field.removeprefix(location.label).strip() or error.got})"
            ) from None
        return replace(transcription, language=transcription.language or language)

    def digest(self, video: Path, language: str | None) -> dict[str, str]:
        """Which words a video has, for its input line: it is done again where they are others."""
        try:
            location = self.find(video)
            return {"words": location.path.name, "words_sha256": location.digest}
        except (SetAside, OSError):
            return {}

    def find(self, video: Path) -> WordsLocation:
        """Raises:
        SetAside: there are none.
        """
        names = ("/".join(video.parts[first:]) for first in range(len(video.parts)))  # a line may name it below any folder
        for key in (str(video), *names, video.stem):
            if (location := self.locations.get(key)) is not None:
                return location
        if self.locations:
            raise SetAside("no words of it in the files of --words")
        for suffix in SUFFIXES:
            for path in (video.with_suffix(suffix), video.with_name(video.name + suffix)):
                if path.is_file():
                    return _whole_file(path)
        raise SetAside("no words beside it (NAME.json)")


def parse_words(data: bytes, source: str) -> Transcription:
    """The words of one video, in whichever form.

    Raises:
        InputError: another form, or one that is broken.
    """
    is_list = data.lstrip()[:1] == b"["
    value = parse_json_list(data, source, _EXPECTED) if is_list else parse_json(data, source, _EXPECTED)
    if isinstance(value, dict) and "content" in value:
        # LiveCC's lines have no duration; the video's own is taken
        transcript = parse(
            {"video": "-", "duration": 1.0, **{key: value[key] for key in value if value[key] is not None}}, source
        )
        words = tuple(word._replace(text=" ".join(word.text.split())) for word in transcript.words if word.text.strip())
        duration = transcript.duration if value.get("duration") is not None else None
        return Transcription(words, transcript.language, transcript.no_speech, duration)
    return parse_output(value, source)


def read_words_files(paths: Sequence[Path], bad: BadLines) -> dict[str, WordsLocation | None]:
    """Where the words of each video are, in JSON lines of many videos, or files of one that are named as the video.

    Raises:
        InputError: no such file, or nothing in it.
    """
    locations: dict[str, WordsLocation | None] = {}
    for path in paths:
        if not path.is_file():
            raise InputError("--words", f"{shortened(path)}, no such file", _EXPECTED, "check the path")
        refuse_other_kinds_of_file(path, _EXPECTED)
        entries = list(_lines(path, bad)) if _has_lines(path) else [(path.name.split(".json")[0], _whole_file(path))]
        if not entries:
            raise InputError(shortened(path), "no line with a video", _EXPECTED, "check the file")
        for name, location in entries:
            for key in dict.fromkeys((name, PurePath(name).name, PurePath(name).stem)):
                is_other = locations.get(key, location) != location
                locations[key] = location if key == name or not is_other else None
    return locations


def _has_lines(path: Path) -> bool:
    """Whether a file has an object with a video on its first line, and not one object alone."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        value = json.loads(first)
    except ValueError:
        return False
    return isinstance(value, dict) and "video" in value


def _lines(path: Path, bad: BadLines) -> Iterator[tuple[str, WordsLocation]]:
    """(video, place) of each line. A list alone is where LiveCC writes the offsets of all lines: it is passed over."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            label, start, offset = f"{path.name}:{number}", offset, offset + len(line)
            if not line.strip() or line.lstrip().startswith(b"["):
                continue
            try:
                name = parse_json(line, label, _EXPECTED).get("video")
                if not isinstance(name, str) or not name:
                    raise InputError(f"{label} video", f"{name!r:.40}", "the path of a video", "mend the line, or leave it out")
            except InputError as error:
                bad.add(error)
                continue
            yield name, WordsLocation(path, start, len(line), hashlib.sha256(line.strip()).hexdigest(), label)


def _whole_file(path: Path) -> WordsLocation:
    with path.open("rb") as file:
        return WordsLocation(path, 0, -1, hashlib.file_digest(file, "sha256").hexdigest(), path.name)
