"""Speech with the true time of each word, videos that carry it, and an ear that tells the words apart by their sound.

Spoken by espeak-ng where the wheel espeakng-loader is there (`espeak_voice`), else each word is a chord of its own (`chord`).
Sound is int16 [N] at 16 kHz.
"""

import ctypes
import functools
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.support.films import plain

av = pytest.importorskip("av")

RATE = 16_000
HOP = RATE // 100
Voice = Callable[[str], np.ndarray]


class Spoken(NamedTuple):
    """A word and when it is heard."""

    word: str
    start: float
    end: float


class Track(NamedTuple):
    """Sound as a track of a film. start: second of its first sample. gap: (first, last) second, left out of the file."""

    samples: np.ndarray
    start: float = 0.0
    rate: int = 44_100
    layout: str = "stereo"
    codec: str = "aac"
    language: str = ""
    gap: tuple[float, float] = (0.0, 0.0)


def chord(word: str) -> np.ndarray:
    """A third of a second of three tones, chosen by the letters of a word."""
    tones = np.random.default_rng(zlib.crc32(word.encode())).uniform(250.0, 3500.0, 3)
    seconds = np.arange(RATE // 3) / RATE
    fade = np.minimum(1.0, np.minimum(seconds, seconds[::-1]) / 0.01)
    return (sum(np.sin(2 * np.pi * tone * seconds) for tone in tones) * fade * 4000).astype(np.int16)


@functools.cache
def espeak_voice() -> Voice:
    """A word as espeak-ng says it, without the silence around it; skips the test where the library is not there."""
    loader = pytest.importorskip("espeakng_loader")
    library = ctypes.CDLL(loader.get_library_path())
    rate = library.espeak_Initialize(2, 0, loader.get_data_path().encode(), 1 << 15)  # 2: the sound is handed to a callback
    assert rate > 0
    blocks: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def take(wav, size, _):
        if wav and size:
            blocks.append(np.ctypeslib.as_array(wav, (size,)).copy())
        return 0

    library.espeak_SetSynthCallback(take)
    library.espeak_SetVoiceByName(b"en")

    def speak(word: str) -> np.ndarray:
        blocks.clear()
        text = word.encode()
        library.espeak_Synth(text, len(text) + 1, 0, 1, 0, 1, None, None)  # 1: of characters; 1: UTF-8
        library.espeak_Synchronize()
        sound = resampled(np.concatenate(blocks), rate, RATE)
        loud = np.flatnonzero(np.abs(sound.astype(np.int32)) > 300)
        return sound[loud[0] : loud[-1] + 1]

    speak.take = take  # pyright: ignore[reportFunctionMemberAccess] (the library holds a bare pointer to it)
    return speak


def say(words: Sequence[str], starts: Sequence[float], seconds: float, voice: Voice = chord) -> tuple[np.ndarray, list[Spoken]]:
    """Sound with each word at its second, and when each is heard."""
    sound, spoken = np.zeros(round(seconds * RATE), np.int16), []
    for word, start in zip(words, starts, strict=True):
        samples, first = voice(word), round(start * RATE)
        sound[first : first + len(samples)] = samples
        spoken.append(Spoken(word, start, start + len(samples) / RATE))
    return sound, spoken


def resampled(samples: np.ndarray, rate: int, to: int, layout: str = "mono") -> np.ndarray:
    """int16 [N] to int16 [N', channels]; [N'] where mono."""
    resampler = av.AudioResampler(format="s16", layout=layout, rate=to)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="s16", layout="mono")
    frame.sample_rate = rate
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    channels = av.AudioLayout(layout).nb_channels
    out = np.concatenate([each.to_ndarray().reshape(-1) for each in frames])
    return out if channels == 1 else out.reshape(-1, channels)


def sounding_film(
    path: Path, *tracks: Track, seconds: float = 2.0, picture_start: float = 0.0, form: str | None = None
) -> Path:
    """A film of plain grey pictures, one a second, with these tracks."""
    with av.open(str(path), "w", format=form) as container:
        video = container.add_stream("mpeg4", rate=1)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        streams = [container.add_stream(track.codec, rate=track.rate, layout=track.layout) for track in tracks]
        for stream, track in zip(streams, tracks, strict=True):
            if track.language:
                stream.metadata["language"] = track.language
        for number in range(max(round(seconds), 1)):
            frame = av.VideoFrame.from_ndarray(plain((90, 90, 90)), format="rgb24")
            for packet in video.encode(frame):
                packet.pts = packet.dts = round((number + picture_start) / packet.time_base)
                container.mux(packet)
        container.mux(video.encode(None))
        for stream, track in zip(streams, tracks, strict=True):
            _encode(container, stream, track)
    return path


def _encode(container, stream, track: Track) -> None:
    sound = resampled(track.samples, RATE, track.rate, track.layout)
    sound = sound[:, None] if sound.ndim == 1 else sound
    form = stream.codec_context.format.name if stream.codec_context.format else "s16"
    converter = av.AudioResampler(format=form, layout=track.layout, rate=track.rate)
    for first in range(0, len(sound), 1024):
        second = first / track.rate
        if track.gap[0] <= second < track.gap[1]:
            continue
        block = np.ascontiguousarray(sound[first : first + 1024]).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(block, format="s16", layout=track.layout)
        frame.sample_rate = track.rate
        [frame] = converter.resample(frame)
        frame.pts, frame.time_base = first + round(track.start * track.rate), _tick(track.rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _tick(rate: int):
    from fractions import Fraction

    return Fraction(1, rate)


def onsets(sound: np.ndarray, level: float = 300.0, merge: float = 0.03) -> list[tuple[float, float]]:
    """(start, end) of stretches that are loud, in seconds, to a hundredth."""
    hops = len(sound) // HOP
    energy = np.sqrt(np.square(sound[: hops * HOP].astype(np.float32).reshape(hops, HOP)).mean(1))
    loud = np.flatnonzero(energy > level)
    breaks = np.flatnonzero(np.diff(loud) * HOP / RATE > merge)
    firsts, lasts = loud[np.r_[0, breaks + 1]] if len(loud) else loud, loud[np.r_[breaks, -1]] if len(loud) else loud
    return [(first * HOP / RATE, (last + 1) * HOP / RATE) for first, last in zip(firsts, lasts, strict=True)]


class Ear:
    """Tells words apart: each stretch of sound is the word of the vocabulary whose spectrum is nearest."""

    def __init__(self, vocabulary: Sequence[str], voice: Voice = chord, merge: float = 0.03) -> None:
        """merge: seconds of silence inside a word."""
        self.merge = merge
        self._heard: dict[bytes, list[Spoken]] = {}  # the same sound is listened to by many tests
        self._prints: Mapping[str, np.ndarray] = {word: _print(voice(word)) for word in dict.fromkeys(vocabulary)}

    def __call__(self, sound: np.ndarray) -> list[Spoken]:
        key = hashlib.sha256(sound.tobytes()).digest()
        if key not in self._heard:
            self._heard[key] = self._listen(sound)
        return self._heard[key]

    def _listen(self, sound: np.ndarray) -> list[Spoken]:
        heard = []
        for start, end in onsets(sound, merge=self.merge):
            mark = _print(sound[round(start * RATE) : round(end * RATE)])
            heard.append(Spoken(max(self._prints, key=lambda word: float(self._prints[word] @ mark)), start, end))
        return heard


def _print(sound: np.ndarray) -> np.ndarray:
    """The spectrum of five parts of a sound, in bands of 62 Hz; a vector of length 1."""
    parts = np.array_split(sound.astype(np.float32), 5)
    bands = [np.abs(np.fft.rfft(part * np.hanning(len(part)), 4096))[:1024].reshape(64, 16).max(1) ** 0.5 for part in parts]
    mark = np.concatenate(bands)
    return mark / (np.linalg.norm(mark) or 1.0)
