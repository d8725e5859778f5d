"""Whisper in this process, as transcribers: faster-whisper (the extra `asr`) and whisperx.

Owns how their models are called. What they give is `curate.transcribing.whisper_output`; the sound is
`curate.transcribing.audio`. A model is loaded with the first video, and hears one at a time; what it heard is kept by the
SHA-256 of the sound. Host side, never jax.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np

from svlm_jax.curate.outcome import Change, SetAside
from svlm_jax.curate.transcribing.audio import RATE, read_sound
from svlm_jax.curate.transcribing.transcribe import Transcription
from svlm_jax.curate.transcribing.videos import fingerprint
from svlm_jax.curate.transcribing.whisper_output import parse_output
from svlm_jax.errors import InputError, shortened
from svlm_jax.remote.response_cache import ResponseCache, canonical

MODEL = "large-v3-turbo"  # LiveCC's
BATCH = 16  # stretches of 30 s that are heard at a time, LiveCC's too
# whisperx 3.8 wants huggingface_hub below 1 and transformers 5 one above it: pip installs the two into no one environment
INSTALL = {
    "faster-whisper": 'pip install "svlm-jax[asr]"',
    "whisperx": "run whisperx in an environment of its own, and read what it wrote with --asr words",
}
FULL_SCALE = 32768.0  # of a sample of 16 bits


class Engine(Protocol):
    """A loaded model: sound, float32 [N] at 16 kHz, to what `whisper_output.parse_output` reads."""

    def __call__(self, sound: np.ndarray, language: str | None) -> dict[str, Any]: ...


@dataclass(frozen=True)
class WhisperSettings:
    """model: a name of the package's ("large-v3-turbo"), a repository, or a folder. compute_type: "default" is the model's own;
    "int8" is usual on CPUs, "float16" on GPUs. batch_size: 1: one stretch after the other, each with the text before it."""

    model: str = MODEL
    device: str = "auto"
    compute_type: str = "default"
    batch_size: int = BATCH


class WhisperTranscriber:
    """Thread-safe: the sound of one video is decoded while another one is heard."""

    def __init__(self, package: str, settings: WhisperSettings, cache: Path | None = None) -> None:
        """package: "faster-whisper" or "whisperx".

        Raises:
            InputError: it is not installed.
        """
        try:
            self.version = version(package)
        except PackageNotFoundError:
            raise InputError("--asr", f"{package}, which is not installed", "an engine that is", INSTALL[package]) from None
        self.package, self.options, self.lock = package, settings, Lock()
        weights = Path(settings.model) / "model.bin"
        self.weights = fingerprint(weights) if weights.is_file() else None  # a folder of any name may hold any model
        self.cache = ResponseCache(cache) if cache else None
        self.engine: Engine | None = None

    @property
    def name(self) -> str:
        return f"{self.package} {Path(self.options.model).name}"

    @property
    def settings(self) -> Mapping[str, Any]:
        options = asdict(self.options)
        del options["device"]
        options |= {"model": Path(self.options.model).name, "weights": self.weights}
        return {"engine": self.package, "version": self.version, **options}

    def words(self, video: Path, language: str | None) -> Transcription:
        changes: list[Change] = []
        blocks = list(
            read_sound(video, language=language, on_note=lambda s, text: changes.append(Change("sound", s, text, "")))
        )
        samples = np.concatenate(blocks)
        digest = hashlib.sha256(samples.tobytes()).hexdigest()
        request = canonical({"sound": digest, "language": language, **self.settings})
        entry = self.cache.read(request) if self.cache else None
        with self.lock:
            result = json.loads(entry["response"]) if entry else self._hear(samples.astype(np.float32) / FULL_SCALE, language)
        if self.cache and not entry:
            self.cache.write(request, {}, json.dumps(result))
        transcription = parse_output(result, f"{self.package}: {shortened(video, 80)}")
        duration = len(samples) / RATE
        return Transcription(
            transcription.words, transcription.language or language, transcription.no_speech, duration, tuple(changes)
        )

    def _hear(self, sound: np.ndarray, language: str | None) -> dict[str, Any]:
        if self.engine is None:
            load = _load_faster_whisper if self.package == "faster-whisper" else _load_whisperx
            self.engine = load(self.options)
        return self.engine(sound, language)


def _load_faster_whisper(options: WhisperSettings) -> Engine:
    from faster_whisper import BatchedInferencePipeline, WhisperModel  # pyright: ignore[reportMissingImports]

    try:
        model = WhisperModel(options.model, device=options.device, compute_type=options.compute_type)
    except (ValueError, RuntimeError, OSError) as error:
        raise _unusable(options, error) from None
    # one stretch at a time takes no batch_size, and hears the pauses itself unless it is told not to
    engine, batch = (model, {"vad_filter": True}) if options.batch_size == 1 else (BatchedInferencePipeline(model), None)
    batch = batch or {"batch_size": options.batch_size}

    def hear(sound: np.ndarray, language: str | None) -> dict[str, Any]:
        try:
            segments, info = engine.transcribe(sound, language=language, word_timestamps=True, **batch)
            return {"language": info.language, "segments": [_plain_segment(segment) for segment in segments]}
        except ValueError as error:  # a language that the model does not know; of no other video
            raise SetAside(f"faster-whisper refuses it ({str(error).split(';')[0][:60]})") from None

    return hear


def _plain_segment(segment: Any) -> dict[str, Any]:
    """What is read of a segment; log probabilities and times may be numpy's."""
    words = [
        {"word": word.word, "start": float(word.start), "end": float(word.end), "probability": float(word.probability)}
        for word in segment.words or ()
    ]
    numbers = {key: float(getattr(segment, key)) for key in ("start", "end", "avg_logprob", "no_speech_prob")}
    return {"text": segment.text, "words": words, **numbers}


def _load_whisperx(options: WhisperSettings) -> Engine:
    import ctranslate2  # pyright: ignore[reportMissingImports]
    import whisperx  # pyright: ignore[reportMissingImports]

    device = options.device
    if device == "auto":
        device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    # numbers as words: the aligner knows letters alone, and gives no times to "2-1"
    asr_options = {"suppress_numerals": True}
    try:
        model = whisperx.load_model(options.model, device, compute_type=options.compute_type, asr_options=asr_options)
    except (ValueError, RuntimeError, OSError) as error:
        raise _unusable(options, error) from None
    aligners: dict[str, Any] = {}

    def hear(sound: np.ndarray, language: str | None) -> dict[str, Any]:
        result = model.transcribe(sound, batch_size=options.batch_size, language=language)
        code = result["language"]
        try:
            if code not in aligners:
                aligners[code] = whisperx.load_align_model(language_code=code, device=device)
        except ValueError:
            raise SetAside(f"whisperx has no aligner for the language {code}") from None
        aligner, metadata = aligners[code]
        aligned = whisperx.align(result["segments"], aligner, metadata, sound, device, return_char_alignments=False)
        return {"language": code, "segments": json.loads(json.dumps(aligned["segments"], default=float))}

    return hear


def _unusable(options: WhisperSettings, error: Exception) -> InputError:
    got = f"{shortened(options.model, 60)}, which cannot be loaded ({shortened(str(error), 100)})"
    return InputError("--asr-model", got, f"a model as {MODEL}, or a folder with one", "check the name, --device and --compute")
