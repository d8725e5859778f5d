"""The step that makes a transcript of a video."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from svlm_jax.curate.outcome import Change, SetAside
from svlm_jax.curate.transcribing.transcribe import Transcribe, Transcription
from svlm_jax.curate.transcribing.videos import Video
from svlm_jax.curate.transcript import NoSpeech, TimedWord, parse
from tests.curate.transcribing.test_videos import make_video

GOAL = TimedWord(0.5, 0.9, "Goal!", 0.8)


@dataclass
class Heard:
    """A transcriber that knows what it hears."""

    result: Transcription | str
    name: str = "an engine"
    settings: dict[str, Any] = field(default_factory=lambda: {"model": "m"})

    def words(self, video, language):
        if isinstance(self.result, str):
            raise SetAside(self.result)
        return self.result


def run(path, result):
    return Transcribe(Heard(result)).run(Video("league/a.mp4", path, "Reds - Blues", "league", "en"))


def test_a_transcript_has_what_is_known_of_the_video_and_what_was_heard(tmp_path):
    noise = NoSpeech(1.0, 1.5, 0.9)
    transcription = Transcription((GOAL,), "en", (noise,), 9.0, (Change("song", 1.0, "la", ""),), {"chunks": 2})
    outcome = run(make_video(tmp_path / "a.mp4"), transcription)
    transcript = parse(outcome.lines[0], "line")
    assert (transcript.video, transcript.title, transcript.source) == ("league/a.mp4", "Reds - Blues", "league")
    assert (transcript.duration, transcript.language, transcript.asr) == (2.0, "en", "an engine")
    assert (transcript.words, transcript.no_speech, transcript.steps) == ((GOAL,), (noise,), ("transcribe",))
    assert (outcome.changes, outcome.counts) == (transcription.changes, {"chunks": 2})
    assert Transcribe(Heard(transcription)).settings == {"version": 1, "asr": "an engine", "model": "m"}


@pytest.mark.parametrize(
    ("result", "reason"), [("no track of sound", "no track of sound"), (Transcription(()), "no words")], ids=str
)
def test_a_video_without_words_is_set_aside(tmp_path, result, reason):
    outcome = run(make_video(tmp_path / "a.mp4"), result)
    assert (outcome.reason, outcome.lines) == (reason, ())


def test_a_file_that_is_no_video_is_set_aside_before_anything_is_heard(tmp_path):
    (tmp_path / "a.mp4").write_text("not a video")
    assert run(tmp_path / "a.mp4", Transcription((GOAL,))).reason.startswith("a file that cannot be read")


@pytest.mark.parametrize(("duration", "expected"), [(9.5, 9.5), (None, 0.9)])
def test_where_a_header_says_no_length_the_sound_or_the_last_word_does(tmp_path, monkeypatch, duration, expected):
    monkeypatch.setattr("svlm_jax.curate.transcribing.transcribe.video_duration", lambda path: None)
    outcome = run(tmp_path / "a.mp4", Transcription((GOAL,), duration=duration))
    assert outcome.lines[0]["duration"] == expected
