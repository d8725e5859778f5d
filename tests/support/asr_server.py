"""A server on loopback with OpenAI's endpoint of transcriptions, which listens to what it is sent.

What comes, and how it may misbehave, is as of `judge_server`: `respond(body, times)` gives a `Fault`; `transcribes(ear)` is one
that answers. `body` has the fields of the form, lists where they may occur often; the sound is `sound_of(body)`.
"""

import functools
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest

from tests.support.judge_server import Fault, JudgeServer, Respond, judge_server
from tests.support.speech import RATE, Spoken

av = pytest.importorskip("av")

Listen = Callable[[np.ndarray], list[Spoken]]
GRANULARITIES = "timestamp_granularities[]"


def asr_server(respond: Respond | Fault) -> AbstractContextManager[JudgeServer]:
    return judge_server(respond, decode=_form)


def transcribes(listen: Listen, language: str = "english") -> Respond:
    """The answer of a server that gives words and segments, as far as it is asked for them."""

    def respond(body: dict[str, Any], _: int) -> Fault:
        sound = sound_of(body)
        return verbose_json(listen(sound), len(sound) / RATE, body.get(GRANULARITIES, ["segment"]), language)

    return respond


def verbose_json(words: list[Spoken], seconds: float, granularities: list[str], language: str = "english") -> Fault:
    """A segment a word is what a server gives that cuts at pauses."""
    answer: dict[str, Any] = {"task": "transcribe", "language": language, "duration": seconds}
    answer["text"] = " ".join(word.word for word in words)
    if "word" in granularities:
        answer["words"] = [{"word": word, "start": start, "end": end} for word, start, end in words]
    if "segment" in granularities:
        scores = {"avg_logprob": -0.1, "no_speech_prob": 0.01}
        answer["segments"] = [{"start": start, "end": end, "text": f" {word}", **scores} for word, start, end in words]
    return Fault(body=json.dumps(answer))


def sound_of(body: dict[str, Any]) -> np.ndarray:
    """The samples of a request, int16 [N] at 16 kHz."""
    return _decoded(body["file"])


@functools.lru_cache(16)  # the same sound is sent by many tests
def _decoded(file: str) -> np.ndarray:
    with av.open(io.BytesIO(file.encode("latin-1"))) as container:
        assert container.streams.audio[0].rate == RATE
        return np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])


def _form(content_type: str, body: bytes) -> dict[str, Any]:
    """The fields of a form; a file as a text of one letter a byte, so that a request can be compared as JSON."""
    match = re.search(r"boundary=\"?([^\";]+)", content_type)
    assert match
    fields: dict[str, Any] = {}
    for name, value in _parts(body, match[1].encode()):
        if name.endswith("[]"):
            fields.setdefault(name, []).append(value)
        else:
            assert name not in fields
            fields[name] = value
    return fields


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[str, str]]:
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        match = re.search(rb'name="([^"]+)"', head)
        assert match
        yield match[1].decode(), content.removesuffix(b"\r\n").decode("latin-1")
