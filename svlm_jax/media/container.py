"""The frames of one video stream of an open container, in the order in which they are shown, with their seconds.

Owns which stream is watched, what its length is by the header, and that damage ends nothing: what can be decoded is given, what
can not is left out and noted. PyAV inside the functions that need it. Units: seconds counted from the container's start, so
from the sound where that comes first; of a live source from the first frame.
"""

import errno
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svlm_jax.errors import InputError, shortened
from svlm_jax.media.mp4 import cut_fragment
from svlm_jax.media.timestamps import FORWARD, FrameClock, Joiner, Standstill, TrackJoiner

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

    Streams = tuple["av.VideoStream", ...]

OnNote = Callable[[float, str], None]  # second of the video, what is unusual at it

LATE = 0.5  # seconds after the sound at which the first frame may come without a note
FAILURES = 100  # reads in a row that may fail; each continues after the last
MAX_SKIPPED = 5000  # packets that are kept on the way to a start
MAX_SCAN_BYTES = 2 << 30  # of a transport stream that is read through for its length alone
NOTE_INTERVAL = 60.0  # seconds between two notes of damage
ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders leave alpha out
NO_PTS = ("avi",)
RAW = ("mjpeg", "mpjpeg", "jpeg_pipe", "h264", "hevc", "m4v", "mpegvideo")  # no time stamps at all
MAX_FPS = 1000.0  # a guess above it is none
STILL_CODECS = ("mjpeg", "png", "bmp", "webp")  # of the thumbnails that cameras put beside a film


def open_file(path: Path) -> "InputContainer":
    """Raises:
    FFmpegError: no container that FFmpeg knows, or one with nothing in it.
    """
    import av
    from av.error import InvalidDataError

    # else what is before a colon is taken for a protocol, and %d in the name of a picture for the numbers of others
    address = f"file:{path}"
    if (end := cut_fragment(path)) is not None:
        address = f"subfile,,start,0,end,{end},,:{address}"
    container = av.open(address, options={"pattern_type": "none"}, metadata_errors="ignore")
    if not container.streams:
        container.close()
        raise InvalidDataError(errno.EINVAL, "nothing in it", str(path))
    return container


def video_streams(container: "InputContainer", name: str) -> "Streams":
    """The video streams that can be watched, best first: of more than one picture, marked as default, then most pixels, then
    the highest bit rate. The others are not read.

    Raises:
        InputError: there is none.
    """
    from av.stream import Discard, Disposition

    stills = Disposition.attached_pic | Disposition.timed_thumbnails  # the cover of a song is no video
    streams = [stream for stream in container.streams.video if not stream.disposition & stills]
    if not streams:
        raise InputError(name, "no video stream", "a file with one", "check that it is not audio only")
    usable = [stream for stream in streams if stream.codec_context is not None]
    if not usable:
        raise InputError(name, "a video codec that cannot be decoded", "one that FFmpeg knows", "convert it to H.264")

    def rank(stream: "av.VideoStream") -> tuple[bool, bool, int, int]:
        rate = stream.metadata.get("variant_bitrate", "")
        size = stream.codec_context.width * stream.codec_context.height
        is_still = stream.frames == 1 and stream.codec_context.name in STILL_CODECS
        return not is_still, bool(stream.disposition & Disposition.default), size, int(rate) if rate.isdigit() else 0

    best = tuple(sorted(usable, key=rank, reverse=True))
    for stream in streams:
        if stream != best[0]:
            stream.discard = Discard.all  # of an HLS master, the other variants are not even fetched
    return best


def can_jump(container: "InputContainer") -> bool:
    """Whether its stamps may jump (MPEG-TS and PS, HLS, Ogg), and cannot be trusted for a length or a seek."""
    from av.format import Flags

    return bool(Flags(container.format.flags) & Flags.ts_discont)


def can_seek(container: "InputContainer") -> bool:
    """Whether a seek lands where the stamps say. In streams without an index of their own (raw H.264, MJPEG, animations) the
    stamps are counted from wherever reading begins, and in MPEG-PS those of the first pictures are guessed."""
    from av.format import Flags

    flags = Flags(container.format.flags)
    is_raw = flags & Flags.no_timestamps or (flags & Flags.generic_index and not can_jump(container))
    return not is_raw and container.format.name not in ("mpeg", "hls")


def is_scannable(container: "InputContainer") -> bool:
    """Whether its stamps may jump, but its packets can be looked through: it is one file."""
    return can_jump(container) and container.format.name != "hls"


def joined_audio(container: "InputContainer", stream: "av.VideoStream") -> "tuple[av.AudioStream, ...]":
    """The tracks of sound that are joined where the picture is: who reads one of them reads all, or joints would differ."""
    return tuple(audio for audio in container.streams.audio if audio.time_base == stream.time_base)


def origin_of(container: "InputContainer", stream: "av.VideoStream") -> float | None:
    """Stamp of second 0, in ticks; None where nothing is known before the first frame."""
    if container.start_time is None:
        return stream.start_time
    origin = container.start_time / 1e6 / float(stream.time_base or 1)
    if stream.start_time is None:
        return origin
    lead = (stream.start_time - origin) * float(stream.time_base or 1)
    # another programme's clock, or one rounded to microseconds
    return stream.start_time if abs(lead) < 1e-4 or (can_jump(container) and lead > FORWARD) else origin


def stream_end(container: "InputContainer", stream: "av.VideoStream") -> float | None:
    """Second at which the stream ends by its own header."""
    tick, start = float(stream.time_base or 1), (container.start_time or 0) / 1e6
    if stream.duration:
        return ((stream.start_time or 0) + stream.duration) * tick - start
    duration = next((value for key, value in stream.metadata.items() if key.upper().startswith("DURATION")), "")
    if match := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", duration):  # Matroska
        return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3]) - start
    return None


def declared_length(path: Path) -> float | None:
    """Seconds of video by the header; None where it is silent or unreadable (decoding then says why)."""
    from av.error import FFmpegError

    try:
        with open_file(path) as container:
            stream, *_ = video_streams(container, f"video {path}")
            if is_scannable(container) and path.stat().st_size <= MAX_SCAN_BYTES:
                return scan(path)[0]
            container_length = container.duration / 1e6 if container.duration else None
            return stream_end(container, stream) or container_length
    except FFmpegError:
        return None


def scan(path: Path) -> tuple[float | None, int]:
    """(seconds of video, jumps of its stamps), by looking through all packets without decoding any."""
    return _scan(path, path.stat().st_size, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _scan(path: Path, *_: int) -> tuple[float | None, int]:
    with open_file(path) as container:
        reader, end = Reader(container, f"video {path}"), 0.0
        for packet in reader.packets():
            if packet is not None and packet.pts is not None:
                end = max(end, packet.pts + (packet.duration or reader.joiner.frame_ticks))
        return (reader.clock.seconds(end) or None), reader.tracks.num_jumps


class Damage:
    """What could not be decoded, noted at once and then not more often than every `NOTE_INTERVAL` seconds."""

    def __init__(self, on_note: OnNote, subject: str = "packet") -> None:
        self.on_note, self.subject, self.count, self.reason, self.second = on_note, subject, 0, "", 0.0
        self.noted_at = float("-inf")  # second of the last note

    def add(self, second: float, reason: str) -> None:
        self.count, self.reason, self.second = self.count + 1, reason, second

    def report(self, second: float, is_last: bool = False) -> None:
        """Something can be decoded again at that second, or nothing more comes."""
        if self.count and (is_last or (second > self.second and second - self.noted_at >= NOTE_INTERVAL)):
            subject = f"{self.count} damaged {self.subject}s are"
            if self.count == 1:
                subject = f"a {self.subject} that can not be decoded is"
            self.on_note(self.second, f"{subject} left out ({self.reason})")
            self.noted_at, self.count = second, 0


class Reader:
    """Use once: `frames`."""

    def __init__(
        self,
        container: "InputContainer",
        name: str,
        *,
        on_note: OnNote = lambda second, text: None,
        now: Callable[[], float] | None = None,
        patience: float = float("inf"),
        threads: str = "AUTO",
    ) -> None:
        """Args:
        on_note: called for jumps, damage and what else is unusual.
        now: seconds of a clock, for a live source.
        patience: seconds without a frame, of packets that can not be decoded, after which it is given up.
        threads: of the decoder: by frame, or by "SLICE", which gives every frame at once.
        """
        self.container, self.on_note, self.now, self.patience = container, on_note, now, patience
        self.streams = video_streams(container, name)
        self.stream = stream = self.streams[0]
        self.tick = float(stream.time_base or 1)
        rate = float(stream.guessed_rate or 0)
        frame_seconds = 1 / rate if 0 < rate <= MAX_FPS else 0.0
        by_keyframes = now is None and container.format.name.startswith("matroska")
        self.joiner = Joiner(self.tick, frame_seconds, can_jump(container) or now is not None, by_keyframes)
        self.tracks = TrackJoiner(self.joiner.another)  # of a file
        origin = None if now else origin_of(container, stream)
        self.clock = FrameClock(self.tick, frame_seconds, origin, container.format.name in NO_PTS)
        self.standstill = Standstill(self.tick)
        self.has_stamps = not (now and container.format.name in RAW)  # else the arrival is what is known
        self.damage = Damage(on_note)
        self.codec = self._codec()
        self.codec.thread_type = threads
        self.read_error: Exception | None = None  # what ended reading before the end
        self.gave_up = ""  # why no more is read of a live source
        self.arrival: float | None = None  # of the last packet of a live source
        self.newest_stamp = 0  # of the packets that went into the decoder
        self.audio_end = 0.0  # second, where the sound is read
        self.end = stream_end(container, stream)
        # without an end of its own the video may end before the sound does, and nothing is missing
        self.audio = () if self.end or now or not container.duration else tuple(container.streams.audio)
        self.audio = joined_audio(container, stream) if not now and is_scannable(container) else self.audio

    @property
    def declared_end(self) -> float | None:
        """Second up to which the header says that there is video or sound."""
        if can_jump(self.container):
            return None
        return self.end or (self.container.duration / 1e6 if self.container.duration else None)

    def _codec(self) -> Any:
        import av

        default = self.stream.codec_context
        library = ALPHA.get(default.name)
        has_alpha = any(key.lower() == "alpha_mode" and value == "1" for key, value in self.stream.metadata.items())
        if not has_alpha or library not in av.codecs_available:
            return default
        codec = av.CodecContext.create(library, "r")
        codec.extradata = default.extradata
        return codec

    def frames(self, target: float = 0.0, skim: bool = False) -> Iterator[tuple[float, float, "av.VideoFrame"]]:
        """(second, seconds on screen or 0, frame), from a keyframe at or before `target`. skim: get to it by reading, not by a
        seek."""
        if target > 0 and not skim:
            if self.clock.by_dts:
                self._measure()
            start = self.clock.origin or 0
            self.container.seek(int(start + target / self.tick), stream=self.stream)
        self._note_streams(target)
        started, is_near = False, skim and self.clock.origin is not None  # else only frames that are decoded have seconds
        for frame in self._decode(self._near(target) if is_near else self.packets(), target):
            second = self.clock(frame, self.arrival)
            if second is None:
                if target > 0 and not skim:
                    return  # no time stamps: after a seek nobody knows the second
                second = self.clock.second = 0.0
                self.clock.arrival, self.clock.length = self.arrival, self.clock.frame_seconds
            if not started and not target and not self.now and second > LATE:
                self.on_note(0.0, f"the picture begins at {second:.3f} s: the first one stands for what is before")
            started = True
            self.damage.report(second)
            yield second, self._length(second), frame

    def _decode(self, packets: Iterator["av.Packet | None"], target: float) -> Iterator["av.VideoFrame"]:
        """The frames of packets; those that can not be decoded go to `damage`."""
        from av.error import FFmpegError

        started, last_arrival = False, self.now() if self.now else None
        for packet in packets:
            try:
                decoded = self.codec.decode(packet)
            except FFmpegError as error:
                if packet is None:  # what is lost then is looked for again: see `lost_last`
                    return
                if started or (not target and not self.now):  # before the first frame, what it needs may not have come
                    self.damage.add(self.clock.seconds(self._stamp(packet)), type(error).__name__)
                patience = self.patience * (1 if started else 3)  # a keyframe may be long in coming
                if last_arrival is not None and (self.arrival or last_arrival) - last_arrival > patience:
                    self.gave_up = f"nothing could be decoded for {self.patience:g} s"
                    return
                continue
            for frame in decoded:
                started, last_arrival = True, self.arrival
                yield frame

    def _measure(self) -> None:
        """Learn the decoder's delay from the beginning: after a seek, frames that need earlier ones are left out."""
        for packet in self.container.demux(self.stream):
            self.clock.first_dts = packet.dts if self.clock.first_dts is None else self.clock.first_dts
            if decoded := self.codec.decode(packet):
                self.clock.measure(decoded[0])
                return

    def _length(self, second: float) -> float:
        """Seconds on screen of a frame, as far as is known: a container says it of a packet, perhaps of another frame's."""
        length, end = self.clock.length, self.end or 0.0
        return min(length, end - second) if second < end else length

    def packets(self) -> Iterator["av.Packet | None"]:
        """Packets with stamps on the joined clock, then None, which asks the decoder for what is still in it."""
        from av.error import FFmpegError, InvalidDataError

        failures = 0
        while self.read_error is None:
            try:
                # sound that goes on tells that the picture of a camera has stopped
                streams = () if self.now else (self.stream, *self.audio)
                for packet in self.container.demux(*streams):
                    if not packet.size and packet.dts is None:
                        continue
                    failures = 0
                    if packet.stream == self.stream:
                        self._join(packet)
                        yield packet
                    elif self.now:
                        self._wait_for_picture(self.now())
                    elif is_scannable(self.container):
                        if (jump := self.tracks(packet)) is not None:
                            self.on_note(self.clock.seconds(jump.stamp), jump.note())
                    elif packet.pts is not None:
                        end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                        self.audio_end = max(self.audio_end, end - (self.container.start_time or 0) / 1e6)
                    if self.gave_up:
                        break
                break
            except InvalidDataError as error:  # what follows may be readable
                failures += 1
                if failures > FAILURES:
                    self.read_error = error
            except (FFmpegError, OSError) as error:
                self.read_error = error.with_traceback(None)  # whose frames refer to this reader, and it to FFmpeg's memory
        yield None

    def _stamp(self, packet: "av.Packet") -> int | None:
        return packet.dts if self.clock.by_dts else packet.pts

    @property
    def lost_last(self) -> bool:
        """Whether the last frame did not come out of the decoder: it was damaged, or threads of the decoder had it when one of
        them failed, which they then say nothing of."""
        return self.clock.second is not None and self.clock.seconds(self.newest_stamp) > self.clock.second + self.tick / 2

    def _join(self, packet: "av.Packet") -> None:
        if not self.has_stamps:
            packet.pts = packet.dts = None
        self.arrival = self.now() if self.now else None
        jump = self.joiner(packet, self.arrival) if self.now else self.tracks(packet)
        self.newest_stamp = max(self.newest_stamp, self._stamp(packet) or 0)
        if self.clock.first_dts is None:
            self.clock.first_dts = packet.dts
        if jump is not None:
            self.on_note(self.clock.seconds(jump.stamp if packet.pts is None else packet.pts), jump.note())
        if self.arrival is not None and packet.dts is not None and (lag := self.standstill(packet.dts, self.arrival)):
            self.has_stamps, packet.pts, packet.dts = False, None, None
            self.clock.lag(lag)
            text = f"its time stamps stand still for {lag:.1f} s: from here its pictures count when they come"
            self.on_note(self.clock.second or 0.0, text)

    def _wait_for_picture(self, now: float) -> None:
        """Something else has come from a live source."""
        self.arrival = now if self.arrival is None else self.arrival
        if now - self.arrival > self.patience:
            self.gave_up = f"no picture came for {self.patience:g} s, though other data did"

    def _near(self, target: float) -> Iterator["av.Packet | None"]:
        """`packets` from the last keyframe at or before `target` on; the stream is read up to there, and not decoded."""
        since_keyframe: list[av.Packet | None] = []
        packets = self.packets()
        for packet in packets:
            stamp = None if packet is None else self._stamp(packet)
            is_past = packet is None or self.clock.seconds(stamp) > target
            if packet is not None and packet.is_keyframe and not is_past:
                since_keyframe.clear()
            since_keyframe.append(packet)
            if is_past or len(since_keyframe) > MAX_SKIPPED:
                break
        yield from since_keyframe
        yield from packets

    def _note_streams(self, second: float) -> None:
        if len(self.streams) > 1:
            contexts = [stream.codec_context for stream in self.streams]
            sizes = [f"{context.width}x{context.height}" for context in contexts]
            text = f"{len(sizes)} video streams: {sizes[0]} px is watched, not {', '.join(sizes[1:])}"
            self.on_note(second, shortened(text))
