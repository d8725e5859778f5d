"""Steps for tests, in a module so that other processes can import them; and inputs."""

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

from svlm_jax.curate.outcome import Change, NotDone, Outcome
from svlm_jax.curate.transcript import TimedWord, Transcript, to_record
from svlm_jax.data.annotation import Annotation, Word
from svlm_jax.data.windows import cut


class StrangeError(Exception):
    """Cannot be unpickled."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


@dataclass(frozen=True)
class Shout:
    """Upper case; sets aside videos without a word; a video called "hard" has to wait for a file, and one called "endless" says
    in a file that it has begun and never ends."""

    mark: str = "!"
    waits_for: Path | None = None
    begins: Path | None = None
    name: str = "shout"

    @property
    def settings(self) -> dict[str, Any]:
        return {"mark": self.mark}

    def run(self, transcript: Transcript) -> Outcome:
        if self.waits_for is not None and not self.waits_for.exists() and transcript.title == "hard":
            raise NotDone("the server does not answer")
        if self.begins is not None and transcript.title == "endless":
            self.begins.touch()
            Event().wait()
        if transcript.title == "bug":
            raise ZeroDivisionError
        if transcript.title == "strange bug":
            raise StrangeError(1, 2)
        if transcript.title == "no memory":
            os.kill(os.getpid(), signal.SIGKILL)
        if not transcript.words:
            return Outcome(reason="no words")
        words = tuple(word._replace(text=word.text.upper() + self.mark) for word in transcript.words)
        changes = tuple(
            Change("upper case", word.start, word.text, shouted.text)
            for word, shouted in zip(transcript.words, words, strict=True)
        )
        line = to_record(replace(transcript, words=words, steps=(*transcript.steps, self.name)))
        return Outcome((line,), changes=changes, counts={"letters": sum(len(word.text) for word in transcript.words)})


@dataclass(frozen=True)
class Windows:
    """Of 3 s, every 3 s."""

    name: str = "cut"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def run(self, transcript: Transcript) -> Outcome:
        words = tuple(Word(word.start or 0, word.end or 0, word.text) for word in transcript.words)
        annotation = Annotation(transcript.video, 0, transcript.duration, "", "", words, ())
        return Outcome(tuple(cut(annotation, window=3, stride=3, min_seconds=1)))


def write_input(path: Path, count: int, *, words: int = 5, titles: Mapping[int, str] | None = None) -> Path:
    """`count` videos; each seventh has no words. titles: of some, by their number."""
    lines = []
    for number in range(count):
        said = [TimedWord(i + 0.1, i + 0.5, f"wörd{number}_{i}") for i in range(words if number % 7 != 6 else 0)]
        transcript = Transcript(
            f"v{number}.mp4", words + 1.5, tuple(said), "en", title=(titles or {}).get(number, ""), source=f"s{number % 2}"
        )
        lines.append(json.dumps(to_record(transcript)))
    path.write_text("\n".join(lines) + "\n")
    return path


def results(folder: Path, stem: str = "g") -> dict[str, bytes]:
    """Bytes of all that a run left."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name.startswith(stem + ".")}
