"""Words with times from videos: what an engine gives (`Transcriber`), and the step that makes a line of it.

Owns which transcript a video gets. Engines have files of their own: subtitles (`curate.transcribing.subtitles`), files that
other programs wrote (`curate.transcribing.words_files`), Whisper in this process (`curate.transcribing.whisper`), a server
(`curate.transcribing.http_transcriber`). Times are repaired by `curate.cleaning.clean`, not here. Host side, never jax. Units:
seconds of the video.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from svlm_jax.curate.outcome import Change, Outcome, SetAside
from svlm_jax.curate.transcribing.videos import Video, video_duration
from svlm_jax.curate.transcript import NoSpeech, TimedWord, Transcript, to_record


@dataclass(frozen=True)
class Transcription:
    """What an engine heard, or read, of one video.

    Attributes:
        words: in the order in which the engine gives them, without blanks around them. Times count from the start of the
            video, not of its sound (`media.container`: the container's start); None where the engine gives none.
        language: a code such as "en", heard or written; None: unknown.
        no_speech: stretches that the engine itself takes for music or noise.
        duration: seconds of the sound; None: unknown. A transcript has the video's, and this where a header says none.
        changes: what was left out or moved on the way in, such as a cue "[Music]".
        counts: numbers for the report: {"chunks": 3, "seconds_of_sound": 5400.2}.
    """

    words: tuple[TimedWord, ...]
    language: str | None = None
    no_speech: tuple[NoSpeech, ...] = ()
    duration: float | None = None
    changes: tuple[Change, ...] = ()
    counts: Mapping[str, float] = field(default_factory=dict)


class Transcriber(Protocol):
    """An engine that gives words with times.

    Attributes:
        name: what `asr` of a transcript says: "subtitles", "faster-whisper large-v3-turbo".
        settings: JSON; all that its words depend on besides the video. No key and no address.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def words(self, video: Path, language: str | None) -> Transcription:
        """What is said in a video, or in a file of sound. May be called by several threads at a time.

        Args:
            language: a code, where the user knows it; None: the engine finds out.

        Raises:
            SetAside: there is nothing to hear: no track of sound, no subtitles, a file that cannot be decoded.
            NotDone: it cannot be done now, and may be later: a server that does not answer.
            InputError: no video can be done: a refused key, a model that is not there.
        """
        ...


@dataclass(frozen=True)
class Transcribe:
    """The step: a video to its transcript."""

    transcriber: Transcriber
    name: str = "transcribe"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"version": 1, "asr": self.transcriber.name, **self.transcriber.settings}

    def run(self, video: Video) -> Outcome:
        """Set aside: a file that cannot be read, one without words, and what the engine sets aside."""
        try:
            duration = video_duration(video.path)
            transcription = self.transcriber.words(video.path, video.language)
        except SetAside as error:
            return Outcome(reason=str(error))
        if not transcription.words:
            return Outcome(reason="no words", changes=transcription.changes, counts=transcription.counts)
        duration = duration or transcription.duration or max(word.end or word.start or 0.0 for word in transcription.words)
        if duration <= 0:
            return Outcome(reason="a video whose length is unknown", changes=transcription.changes, counts=transcription.counts)
        transcript = Transcript(
            video.name, round(duration, 3), transcription.words, transcription.language, video.title, video.source,
            self.transcriber.name, transcription.no_speech, (self.name,),
        )  # fmt: skip
        return Outcome((to_record(transcript),), changes=transcription.changes, counts=transcription.counts)


def spread(text: str, start: float | None, end: float | None, probability: float | None = None) -> Iterator[TimedWord]:
    """The words of a text, each with an even part of its time (LiveCC's rule, arXiv 2504.16030); without times where one is
    missing or the end comes first."""
    words = text.split()
    if start is None or end is None or end < start:
        yield from (TimedWord(None, None, word, probability) for word in words)
        return
    for index, word in enumerate(words):
        word_start, word_end = (round(start + (end - start) * i / len(words), 3) for i in (index, index + 1))
        yield TimedWord(word_start, word_end, word, probability)
