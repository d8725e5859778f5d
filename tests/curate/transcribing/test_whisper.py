"""Whisper in this process: what it heard becomes words on the video's clock, and is not heard twice. The packages are stood in
for: what their calls take and give is that of faster-whisper 1.2.1 and whisperx 3.8.6."""

import sys
import wave
from types import SimpleNamespace

import numpy as np
import pytest

from svlm_jax.curate.outcome import SetAside
from svlm_jax.curate.transcribing import whisper
from svlm_jax.curate.transcribing.whisper import WhisperSettings, WhisperTranscriber
from svlm_jax.curate.transcript import NoSpeech, TimedWord
from svlm_jax.errors import InputError


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "game.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.full(16_000, 16384, np.int16).tobytes())
    return path


@pytest.fixture
def calls(monkeypatch):
    """What a stand-in for faster-whisper was called with."""
    calls = []

    class Model:
        def __init__(self, name, **options):
            if name == "none":
                raise RuntimeError("no such model")
            calls.append((name, options))

        def transcribe(self, samples, language=None, **options):
            calls.append((samples.dtype, samples.shape, float(samples.max()), language, options))
            if language == "xx":
                raise ValueError("'xx' is not a valid language code (accepted: many)")
            number = np.float64
            word = SimpleNamespace(word=" Goal!", start=number(0.2), end=number(0.5), probability=number(0.9))
            good = SimpleNamespace(text=" Goal!", words=[word], start=0.2, end=0.5, avg_logprob=-0.1, no_speech_prob=0.9)
            noise = SimpleNamespace(text="", words=None, start=0.5, end=1.0, avg_logprob=number(-1.5), no_speech_prob=0.8)
            return iter([good, noise]), SimpleNamespace(language=language or "en")

    class Batched(Model):
        def __init__(self, model):
            self.model = model

    package = SimpleNamespace(WhisperModel=Model, BatchedInferencePipeline=Batched)
    monkeypatch.setitem(sys.modules, "faster_whisper", package)
    monkeypatch.setattr(whisper, "version", lambda package: "1.2.1")
    return calls


def test_faster_whisper_hears_in_batches_and_its_words_lose_their_blank(sound, calls):
    transcription = WhisperTranscriber("faster-whisper", WhisperSettings("tiny", "cpu", "int8")).words(sound, None)
    assert transcription.words == (TimedWord(0.2, 0.5, "Goal!", 0.9),)
    assert transcription.no_speech == (NoSpeech(0.5, 1.0, 0.8),)  # and not where it is sure of its words
    assert (transcription.language, transcription.duration) == ("en", 1.0)
    options = {"word_timestamps": True, "batch_size": 16}
    assert calls == [
        ("tiny", {"device": "cpu", "compute_type": "int8"}),
        (np.float32, (16_000,), 0.5, None, options),
    ]


def test_one_stretch_at_a_time_leaves_out_pauses_too(sound, calls):
    WhisperTranscriber("faster-whisper", WhisperSettings(batch_size=1)).words(sound, "en")
    assert calls[1][3:] == ("en", {"word_timestamps": True, "vad_filter": True})


def test_what_was_heard_is_kept_for_the_same_sound_and_settings(sound, calls, tmp_path):
    def words(path=sound, language=None, **options):
        transcriber = WhisperTranscriber("faster-whisper", WhisperSettings(**options), tmp_path / "cache")
        return transcriber.words(path, language)

    first = words()
    copy = tmp_path / "copy.wav"
    copy.write_bytes(sound.read_bytes())
    num_calls = len(calls)
    assert words(copy) == words() == first
    assert len(calls) == num_calls
    words(language="de")
    words(model="tiny")
    assert len(calls) > num_calls + 2


def test_a_folder_of_the_same_name_may_be_another_model(tmp_path, calls):
    settings = []
    for content in (b"one", b"two"):
        (tmp_path / "model.bin").write_bytes(content)
        settings.append(WhisperTranscriber("faster-whisper", WhisperSettings(str(tmp_path))).settings)
    assert settings[0]["model"] == tmp_path.name
    assert settings[0] != settings[1]


def test_what_cannot_be_used(sound, calls, tmp_path):
    with pytest.raises(InputError, match=r"--asr-model: got none, which cannot be loaded \(no such model\)"):
        WhisperTranscriber("faster-whisper", WhisperSettings("none")).words(sound, None)
    with pytest.raises(SetAside, match="faster-whisper refuses it"):
        WhisperTranscriber("faster-whisper", WhisperSettings()).words(sound, "xx")
    (tmp_path / "page.mp4").write_text("<html>")
    with pytest.raises(SetAside, match="cannot be read"):
        WhisperTranscriber("faster-whisper", WhisperSettings()).words(tmp_path / "page.mp4", None)


def test_of_a_package_that_is_not_installed_it_is_said_how_to_install_it():
    with pytest.raises(InputError, match=r"whisperx, which is not installed.*--asr words"):
        WhisperTranscriber("whisperx", WhisperSettings())


def test_whisperx_aligns_and_what_it_cannot_spell_has_no_times(sound, monkeypatch):
    seen = {}

    def load_model(name, device, **options):
        seen["model"] = name, device, options
        return SimpleNamespace(transcribe=lambda sound, batch_size, language: {"language": language or "en", "segments": []})

    def load_align_model(language_code, device):
        if language_code != "en":
            raise ValueError("No default align-model")
        return "aligner", "metadata"

    def align(segments, aligner, metadata, sound, device, return_char_alignments):
        words = [{"word": "Goal!", "start": np.float32(0.25), "end": 0.5, "score": 0.75}, {"word": "2-1"}]
        return {"segments": [{"start": 0.25, "end": 0.9, "text": " Goal! 2-1", "words": words}], "word_segments": words}

    package = SimpleNamespace(load_model=load_model, load_align_model=load_align_model, align=align)
    monkeypatch.setitem(sys.modules, "whisperx", package)
    monkeypatch.setitem(sys.modules, "ctranslate2", SimpleNamespace(get_cuda_device_count=lambda: 1))
    monkeypatch.setattr(whisper, "version", lambda package: "3.8.6")
    transcriber = WhisperTranscriber("whisperx", WhisperSettings())
    transcription = transcriber.words(sound, None)
    assert transcription.words == (TimedWord(0.25, 0.5, "Goal!", 0.75), TimedWord(None, None, "2-1"))
    assert seen["model"] == (
        "large-v3-turbo", "cuda", {"compute_type": "default", "asr_options": {"suppress_numerals": True}},
    )  # fmt: skip
    with pytest.raises(SetAside, match="no aligner for the language xh"):
        transcriber.words(sound, "xh")
