"""A `Transcriber` behind HTTP: the sound of a video, in chunks, sent to a server with OpenAI's endpoint of transcriptions.

Owns how large a chunk is, that each is paid for once, and that a video has all of its words or none. Where the words of chunks
meet: `sound_chunks`; what an answer says: `whisper_output`. Host side, never jax. Units: seconds of the video.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import BoundedSemaphore, Event
from typing import Any, NamedTuple

import numpy as np

from svlm_jax.curate.outcome import Change, NotDone
from svlm_jax.curate.transcribing.audio import ENCODINGS, RATE, encode, read_sound, sound_seconds
from svlm_jax.curate.transcribing.sound_chunks import OVERLAP, Chunk, cut_into_chunks, stitch
from svlm_jax.curate.transcribing.transcribe import Transcription
from svlm_jax.curate.transcribing.whisper_output import parse_output
from svlm_jax.curate.transcript import NoSpeech
from svlm_jax.errors import InputError
from svlm_jax.remote.connection import RequestError
from svlm_jax.remote.transcription_client import TranscriptionClient
from svlm_jax.remote.workers import Workers

MAX_SECONDS = 600.0  # of a chunk
MAX_MEGABYTES = 25.0  # of a file: OpenAI's and Groq's limit
CONCURRENCY = 4
BYTES_PER_SECOND = 2 * RATE  # of sound that FLAC cannot make smaller, such as noise
SILENCE = 8  # of 32768: sound that is never louder is not sent
MAX_LATE = 60.0  # by which Whisper may be wrong about the end of a chunk; times later than that are no seconds
SOUND = "sound"  # the rule that changes name


class ChunkTranscription(NamedTuple):
    """What an answer says of a chunk, whose sound is not kept; the cuts are those of `Chunk`."""

    first_cut: float
    last_cut: float
    transcription: Transcription


class HttpTranscriber:
    """Threads may share it: no more than `concurrency` requests are under way in all."""

    def __init__(
        self,
        client: TranscriptionClient,
        *,
        max_seconds: float = MAX_SECONDS,
        max_megabytes: float = MAX_MEGABYTES,
        encoding: str = "flac",
        prompt: str = "",
        track: int | None = None,
        concurrency: int = CONCURRENCY,
    ) -> None:
        """
        Args:
            max_seconds, max_megabytes: of a chunk; the smaller one counts.
            encoding: of `audio.ENCODINGS`.
            prompt: words that the model is told before, names for example.
            track: of the sound, from 1; None: `audio.choose_track`.

        Raises:
            InputError: chunks that are too small, or another encoding.
        """
        if encoding not in ENCODINGS:
            raise InputError(f"{client.flag}-encoding", encoding, f"one of {', '.join(ENCODINGS)}", "choose one")
        self.seconds = min(max_seconds, (max_megabytes * 1e6 - 10_000) / BYTES_PER_SECOND)  # 10 kB: of its header
        if self.seconds < 10 * OVERLAP:
            got, expected = f"chunks of {self.seconds:.1f} s", f"{10 * OVERLAP:g} s or more"
            remedy = f"raise {client.flag}-seconds or {client.flag}-megabytes"
            raise InputError(f"{client.flag}-seconds", got, expected, remedy)
        self.client, self.encoding, self.prompt, self.track = client, encoding, prompt, track
        self.concurrency = concurrency
        self._slots = BoundedSemaphore(concurrency)

    @property
    def name(self) -> str:
        return f"http {self.client.model}"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "engine": "http",
            "model": self.client.model,
            "prompt": self.prompt,
            "track": self.track,
            "chunk_seconds": self.seconds,
            "overlap": OVERLAP,
        }

    def estimate(self, videos: Sequence[Path], price: float | None = None) -> str:
        """What is sent for these videos at most, by their headers. price: of a minute of sound."""
        seconds = [sound_seconds(video) for video in videos]
        minutes = sum(each + 2 * OVERLAP * (each // self.seconds) for each in seconds) / 60
        cost = "" if price is None else f", {minutes * price:,.2f} at {price:g} a minute"
        return f"{minutes:,.1f} minutes of sound in {sum(1 for each in seconds if each):,} videos{cost}"

    def words(self, video: Path, language: str | None) -> Transcription:
        """See `Transcriber`. Chunks are read, sent and answered side by side; no more are held than requests are under way.

        Raises:
            NotDone: a chunk was not answered. No other is begun then; those under way are waited for, and the next run finds
                their answers in the cache.
            SetAside, InputError: those of `read_sound` and `TranscriptionClient.transcribe`.
        """
        notes: list[Change] = []

        def note(second: float, text: str) -> None:
            notes.append(Change(SOUND, second, text, ""))

        failed = Event()

        def chunks() -> Iterator[Chunk]:
            for chunk in cut_into_chunks(read_sound(video, language=language, track=self.track, on_note=note), self.seconds):
                if failed.is_set():
                    return
                yield chunk

        def hear(chunk: Chunk) -> ChunkTranscription:
            try:
                return self._hear(chunk, language)
            except Exception:  # raised again: no further chunk is cut, nor paid for
                failed.set()
                raise

        results: list[ChunkTranscription | Exception] = [result for _, result in Workers(hear, chunks(), self.concurrency)]
        errors = [result for result in results if isinstance(result, Exception)]
        for error in sorted(errors, key=lambda error: isinstance(error, RequestError)):  # what ends all videos goes first
            if isinstance(error, RequestError):
                raise NotDone(f"no transcription of a chunk of its sound ({error})")
            raise error
        transcribed_chunks = sorted(
            (result for result in results if isinstance(result, ChunkTranscription)), key=lambda each: each.first_cut
        )
        return _put_together(transcribed_chunks, language, tuple(notes))

    def _hear(self, chunk: Chunk, language: str | None) -> ChunkTranscription:
        if np.abs(chunk.samples.astype(np.int32)).max() <= SILENCE:
            return ChunkTranscription(chunk.first_cut, chunk.last_cut, Transcription(()))
        samples = chunk.samples
        digest = hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()

        def read(answer: Mapping[str, Any]) -> Transcription:
            try:
                transcription = parse_output(answer, "answer", chunk.start)
            except InputError as error:
                raise ValueError(str(error)) from None
            late = max((word.start for word in transcription.words if word.start is not None), default=0.0)
            if late > chunk.start + chunk.seconds + MAX_LATE:
                raise ValueError(f"a word at {late - chunk.start:g} s of {chunk.seconds:.1f} s of sound")
            return transcription

        with self._slots:
            transcription = self.client.transcribe(
                digest,
                lambda: encode(samples, self.encoding),
                f"sound.{self.encoding}",
                read,
                language=language,
                prompt=self.prompt,
            )
        return ChunkTranscription(chunk.first_cut, chunk.last_cut, transcription)


def _put_together(
    transcribed_chunks: Sequence[ChunkTranscription], language: str | None, notes: tuple[Change, ...]
) -> Transcription:
    cuts = [each.first_cut for each in transcribed_chunks[1:]]
    words = stitch([each.transcription.words for each in transcribed_chunks], cuts)
    languages = Counter[str]()
    for each in transcribed_chunks:
        if each.transcription.language:
            languages[each.transcription.language] += len(each.transcription.words)
    return Transcription(
        words=tuple(words),
        language=language or (languages.most_common(1)[0][0] if languages else None),
        no_speech=tuple(stretch for each in transcribed_chunks for stretch in _no_speech(each)),
        duration=transcribed_chunks[-1].last_cut,
        changes=tuple(sorted(notes, key=lambda change: change.time or 0.0)),
        counts={"chunks": len(transcribed_chunks), "seconds_of_sound": round(transcribed_chunks[-1].last_cut, 3)},
    )


def _no_speech(chunk: ChunkTranscription) -> Iterator[NoSpeech]:
    """What lies between the cuts."""
    for start, end, probability in chunk.transcription.no_speech:
        start, end = max(start, chunk.first_cut), min(end, chunk.last_cut)
        if end > start:
            yield NoSpeech(start, end, probability)
