"""The sound of a video as one run of samples: mono, 16 kHz, from second 0 of the video on, as `media.container` counts it.

Owns which track is heard, and that sample n is what is heard at second n / 16000: a track that begins late, or has gaps, has
silence there, and one that overlaps itself counts once. Damage ends nothing: what cannot be decoded is silence, and noted. Does
not know speech. PyAV inside the functions that need it. Host side, never jax. Axes: N samples.
"""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from svlm_jax.curate.outcome import SetAside
from svlm_jax.errors import InputError
from svlm_jax.json_lines import MAX_SECONDS
from svlm_jax.media.container import (
    FAILURES,
    Damage,
    OnNote,
    can_jump,
    is_scannable,
    joined_audio,
    open_file,
    origin_of,
    video_streams,
)
from svlm_jax.media.mp4 import lacks_index
from svlm_jax.media.paths import existing_file
from svlm_jax.media.timestamps import Joiner, TrackJoiner

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

RATE = 16_000  # samples a second: what Whisper and its servers work on
TOLERANCE = 0.04  # seconds by which time stamps may differ from the number of samples: Matroska rounds them to milliseconds
BLOCK = 10 * RATE  # samples of silence that are given at a time
PAST_THE_END = 60.0  # seconds after the end by the header; a stamp later than that is damaged
ENCODINGS = ("flac", "wav")  # both without loss, and without the silence that AAC, MP3 and Opus put in front


def read_sound(
    path: Path, *, language: str | None = None, track: int | None = None, on_note: OnNote = lambda second, text: None
) -> Iterator[np.ndarray]:
    """The sound from second 0 to its end, int16 [N] after int16 [N].

    Args:
        language: a code of two letters: of several tracks, one in this language is heard.
        track: of sound, from 1; None: see `choose_track`.
        on_note: called with (second, what is unusual at it).

    Raises:
        SetAside: no such track, or nothing in it that can be decoded.
        InputError: no such file.
    """
    from av.error import FFmpegError

    path, position, codec = existing_file(path, "video"), 0, ""
    try:
        with open_file(path) as container:
            stream = choose_track(container, language, track, on_note)
            codec = stream.codec_context.name
            limit = container.duration / 1e6 + PAST_THE_END if container.duration else MAX_SECONDS
            for second, samples in _runs(_frames(container, stream, on_note)):
                start = round(second * RATE)
                if second > limit:
                    on_note(position / RATE, f"a time stamp of {second:.3f} s is past the end: what follows it is left out")
                    break
                if start > position + TOLERANCE * RATE and position:
                    on_note(position / RATE, f"no sound for {(start - position) / RATE:.3f} s: silence stands for it")
                for size in _sizes(start - position):
                    yield np.zeros(size, np.int16)
                samples = samples[max(position - start, 0) :]  # those of before are there already
                position = max(position, start) + len(samples)
                yield samples
    except FFmpegError as error:
        if not position:
            missing_index = "an MP4 without its index: the recording was not finished"
            broken = f"a file that cannot be read ({type(error).__name__})"
            raise SetAside(missing_index if lacks_index(path) else broken) from None
        on_note(position / RATE, f"reading stopped ({type(error).__name__})")
    if not position:
        raise SetAside(f"a track of sound that cannot be decoded ({codec})")


def choose_track(
    container: "InputContainer", language: str | None, track: int | None, on_note: OnNote = lambda second, text: None
) -> "av.AudioStream":
    """The track to listen to: one in the language, before one made for the blind or the deaf or without voices, then the
    container's default, then the first. The others are not read.

    Raises:
        SetAside: there is none, or none that can be decoded.
    """
    from av.stream import Discard

    from svlm_jax.curate.languages import language_code

    streams = list(container.streams.audio)
    if not streams:
        raise SetAside("no track of sound")
    if track is not None and track > len(streams):
        raise SetAside(f"no track {track} of sound: there are {len(streams)}")
    usable = [stream for stream in (streams if track is None else streams[track - 1 : track]) if stream.codec_context]
    if not usable:
        raise SetAside("a track of sound in a codec that cannot be decoded")

    def rank(stream: "av.AudioStream") -> tuple[bool, bool, bool, int]:
        has_language = language is not None and language_code(stream.metadata.get("language")) == language
        is_default = "default" in _dispositions(stream)
        return not has_language, _is_special(stream), not is_default, stream.index

    best = min(usable, key=rank)
    for stream in container.streams:
        if stream != best and not is_scannable(container):  # where the picture jumps, the sound does
            stream.discard = Discard.all
    if len(streams) > 1:
        others = ", ".join(_title(streams, stream) for stream in streams if stream != best)
        on_note(0.0, f"{len(streams)} tracks of sound: {_title(streams, best)} is heard, not {others}")
    return best


def sound_seconds(path: Path) -> float:
    """Of a file, by its header; 0.0 where it has none or is silent about it. For estimates."""
    from av.error import FFmpegError

    try:
        with open_file(path) as container:
            streams = container.streams.audio
            lengths = [stream.duration * float(stream.time_base or 0) for stream in streams if stream.duration]
            return max(lengths, default=(container.duration or 0) / 1e6 if streams else 0.0)
    except (FFmpegError, OSError):
        return 0.0


def encode(samples: np.ndarray, encoding: str) -> bytes:
    """A file of sound, int16 [N] at 16 kHz: "flac", about half the size of "wav". Both give back the same samples."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=encoding) as container:
        stream: Any = container.add_stream("flac" if encoding == "flac" else "pcm_s16le", rate=RATE, layout="mono")
        stream.codec_context.format = "s16"
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        for each in (frame, None):
            container.mux(stream.encode(each))
    return file.getvalue()


def _dispositions(stream: "av.AudioStream") -> set[str]:
    from av.stream import Disposition

    return {each.name for each in Disposition if each in stream.disposition and each.name}


def _is_special(stream: "av.AudioStream") -> bool:
    return bool(_dispositions(stream) & {"visual_impaired", "hearing_impaired", "clean_effects", "karaoke"})


def _title(streams: list["av.AudioStream"], stream: "av.AudioStream") -> str:
    return f"{streams.index(stream) + 1} ({stream.metadata.get('language') or 'no language'})"


def _frames(
    container: "InputContainer", stream: "av.AudioStream", on_note: OnNote
) -> Iterator[tuple[float | None, "av.AudioFrame"]]:
    """(second of its first sample or None: not known, frame) of a track, in order."""
    from av.error import FFmpegError

    tick, codec = float(stream.time_base or 1), stream.codec_context
    damage, tracks, joiner = Damage(on_note), _joined_tracks(container, stream), Joiner(tick, 0.0, can_jump(container))
    join = TrackJoiner(joiner.another) if tracks != (stream,) else joiner
    origin = origin_of(container, stream) or 0  # pyright: ignore[reportArgumentType] (what it reads, sound has too)
    second = 0.0
    for packet in _packets(container, tracks, on_note):
        if packet is not None:
            jump = join(packet)
            if jump is not None:
                on_note((jump.stamp - origin) * tick, jump.note())
            if packet.stream != stream:
                continue
        try:
            decoded = codec.decode(packet)
        except FFmpegError as error:
            damage.add(second, type(error).__name__)
            continue
        for frame in decoded:
            known = None if frame.time is None else frame.time - origin * tick
            second = second if known is None else known
            damage.report(second)
            yield known, frame
    damage.report(second, is_last=True)


def _joined_tracks(container: "InputContainer", stream: "av.AudioStream") -> tuple[Any, ...]:
    """The track, and those that are joined where it is: those that `media.container` reads with the picture."""
    try:
        picture = video_streams(container, "")[0] if is_scannable(container) else None
    except InputError:  # sound alone
        picture = None
    audio = joined_audio(container, picture) if picture is not None else ()
    return (picture, *audio) if stream in audio else (stream,)


def _packets(container: "InputContainer", tracks: tuple[Any, ...], on_note: OnNote) -> Iterator["av.Packet | None"]:
    """Those of some tracks, then None, which asks the decoder for what is still in it."""
    from av.error import FFmpegError, InvalidDataError

    for failures in range(FAILURES + 1):
        try:
            for packet in container.demux(*tracks):
                if packet.size:
                    yield packet
            break
        except InvalidDataError as error:  # what follows may be readable
            if failures == FAILURES:
                on_note(0.0, f"reading stopped ({type(error).__name__})")
        except (FFmpegError, OSError) as error:
            on_note(0.0, f"reading stopped ({type(error).__name__})")
            break
    yield None


def _runs(frames: Iterable[tuple[float | None, "av.AudioFrame"]]) -> Iterator[tuple[float, np.ndarray]]:
    """(second of the first sample, int16 [N]) at 16 kHz. What is without a gap goes through one resampler: a new one for each
    frame would click at their borders."""
    import av

    resampler, form, start, num_samples, rate, num_resampled = None, None, 0.0, 0, 1, 0

    def resampled(frame: "av.AudioFrame | None") -> Iterator[tuple[float, np.ndarray]]:
        nonlocal num_resampled
        for each in resampler.resample(frame) if resampler else ():
            samples = each.to_ndarray().reshape(-1)
            yield start + num_resampled / RATE, samples
            num_resampled += len(samples)

    for known, frame in frames:
        expected = start + num_samples / rate
        second = expected if known is None else known
        this_form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if this_form != form or abs(second - expected) > TOLERANCE:
            yield from resampled(None)
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            form, start, num_samples, rate, num_resampled = this_form, second, 0, frame.sample_rate, 0
        num_samples += frame.samples
        frame.pts = None  # the resampler would fill gaps of its own
        yield from resampled(frame)
    yield from resampled(None)


def _sizes(num_samples: int) -> Iterator[int]:
    """A number of samples, in blocks; none for a negative one."""
    for done in range(0, num_samples, BLOCK):
        yield min(BLOCK, num_samples - done)
