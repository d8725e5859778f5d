"""The pictures of one video stream of an open container, in the order in which they are shown, with their seconds.

Owns which stream is watched, what its length is by the header, and that damage ends nothing: what can be decoded is given,
what can not is left out and told. PyAV inside the functions that need it. Units: seconds counted from the container's start, so
from the sound where that comes first; of a live source from the first picture.
"""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svlm_jax.errors import InputError, shortened
from svlm_jax.media.timestamps import FORWARD, Clock, Joiner

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

    Streams = tuple["av.VideoStream", ...]

Tell = Callable[[float, str], None]  # second of the video, what is unusual there

LATE = 0.5  # seconds after the sound that a picture may begin without a word
FAILURES = 100  # reads in a row that may fail; each goes on behind the last
HELD = 5000  # packets that are held back on the way to a start
SCANNED = 2 << 30  # bytes of a transport stream that are looked through for its length alone
AGAIN = 60.0  # seconds until damage is told again
ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders leave alpha out
NO_PTS = ("avi",)
RAW = ("mjpeg", "mpjpeg", "jpeg_pipe", "h264", "hevc", "m4v", "mpegvideo")  # no time stamps at all
FASTEST = 1000.0  # frames a second; a guess above it is none


def open_file(path: Path) -> "InputContainer":
    import av

    return av.open(f"file:{path}", metadata_errors="ignore")  # else what is before a colon is taken for a protocol


def video_streams(container: "InputContainer", name: str) -> "Streams":
    """The video streams that can be watched, best first: marked as default, then most pixels, then the highest bit rate. The
    others are not read.

    Raises:
        InputError: there is none.
    """
    from av.stream import Discard, Disposition

    stills = Disposition.attached_pic | Disposition.timed_thumbnails  # the cover of a song is no video
    found = [one for one in container.streams.video if not one.disposition & stills]
    if not found:
        raise InputError(name, "no video stream", "a file with one", "check that it is not audio only")
    usable = [one for one in found if one.codec_context is not None]
    if not usable:
        raise InputError(name, "a video codec that cannot be decoded", "one that FFmpeg knows", "convert it to H.264")

    def rank(stream: "av.VideoStream") -> tuple[bool, int, int]:
        rate = stream.metadata.get("variant_bitrate", "")
        size = stream.codec_context.width * stream.codec_context.height
        return bool(stream.disposition & Disposition.default), size, int(rate) if rate.isdigit() else 0

    best = tuple(sorted(usable, key=rank, reverse=True))
    for stream in found:
        if stream != best[0]:
            stream.discard = Discard.all  # of an HLS master, the other variants are not even fetched
    return best


def jumps(container: "InputContainer") -> bool:
    """Whether its stamps may jump (MPEG-TS and PS, HLS, Ogg), and cannot be trusted for a length or a seek."""
    from av.format import Flags

    return bool(Flags(container.format.flags) & Flags.ts_discont)


def scannable(container: "InputContainer") -> bool:
    """Whether its stamps may jump, but its packets can be looked through: it is one file."""
    return jumps(container) and container.format.name != "hls"


def origin_of(container: "InputContainer", stream: "av.VideoStream") -> float | None:
    """Stamp of second 0, in ticks; None where nothing is known before the first picture."""
    if container.start_time is None:
        return stream.start_time
    origin = container.start_time / 1e6 / float(stream.time_base or 1)
    if stream.start_time is None:
        return origin
    lead = (stream.start_time - origin) * float(stream.time_base or 1)
    # another programme's clock, or one rounded to microseconds
    return stream.start_time if abs(lead) < 1e-4 or (jumps(container) and lead > FORWARD) else origin


def stream_end(container: "InputContainer", stream: "av.VideoStream") -> float | None:
    """Second at which the stream ends by its own header."""
    tick, start = float(stream.time_base or 1), (container.start_time or 0) / 1e6
    if stream.duration:
        return ((stream.start_time or 0) + stream.duration) * tick - start
    said = next((value for key, value in stream.metadata.items() if key.upper().startswith("DURATION")), "")
    if time := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", said):  # Matroska
        return 3600 * int(time[1]) + 60 * int(time[2]) + float(time[3]) - start
    return None


def claimed_length(path: Path) -> float | None:
    """Seconds of video by the header; None where it is silent or unreadable (decoding then tells why)."""
    from av.error import FFmpegError

    try:
        with open_file(path) as container:
            stream, *_ = video_streams(container, f"video {path}")
            if scannable(container) and path.stat().st_size <= SCANNED:
                return scan(path)[0]
            whole = container.duration / 1e6 if container.duration else None
            return stream_end(container, stream) or whole
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
                end = max(end, packet.pts + (packet.duration or reader.joiner.usual))
        return (reader.clock.seconds(end) or None), reader.joiner.joined


def without_index(path: Path) -> bool:
    """Whether it is an MP4 or MOV whose index was never written: cameras and recorders write it at the end."""
    with path.open("rb") as file:
        size, at, first = path.stat().st_size, 0, True
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if (first and kind not in (b"ftyp", b"wide", b"mdat")) or kind in (b"moov", b"moof"):
                return False
            length = int.from_bytes(head[8:16], "big") if length == 1 else length
            at, first = size if length < 8 else at + length, False
    return not first


class Damage:
    """What could not be decoded, told at once and then not more often than every `AGAIN` seconds."""

    def __init__(self, tell: Tell) -> None:
        self.tell, self.count, self.told, self.reason, self.second = tell, 0, float("-inf"), "", 0.0

    def add(self, second: float, reason: str) -> None:
        self.count, self.reason, self.second = self.count + 1, reason, second

    def report(self, second: float, last: bool = False) -> None:
        """Something can be decoded again at that second, or nothing more comes."""
        if self.count and (last or (second > self.second and second - self.told >= AGAIN)):
            one = "a packet that can not be decoded is" if self.count == 1 else f"{self.count} damaged packets are"
            self.tell(self.second, f"{one} left out ({self.reason})")
            self.told, self.count = second, 0


class Reader:
    """Use once: `frames`."""

    def __init__(
        self,
        container: "InputContainer",
        name: str,
        *,
        tell: Tell = lambda second, text: None,
        now: Callable[[], float] | None = None,
        patience: float = float("inf"),
        threads: str = "AUTO",
    ) -> None:
        """Args:
        tell: told of jumps, damage and what else is unusual.
        now: seconds of a clock, for a live source.
        patience: seconds without a picture, of packets that can not be decoded, after which it is given up.
        threads: of the decoder: by frame, or by "SLICE", which gives every picture at once.
        """
        self.container, self.tell, self.now, self.patience = container, tell, now, patience
        self.streams = video_streams(container, name)
        self.stream = stream = self.streams[0]
        self.tick = float(stream.time_base or 1)
        rate = float(stream.guessed_rate or 0)
        usual = 1 / rate if 0 < rate <= FASTEST else 0.0
        self.joiner = Joiner(self.tick, usual, jumps(container) or now is not None)
        origin = None if now else origin_of(container, stream)
        self.clock = Clock(self.tick, usual, origin, container.format.name in NO_PTS)
        self.damage = Damage(tell)
        self.codec = self._codec()
        self.codec.thread_type = threads
        self.broke: Exception | None = None  # what ended reading before the end
        self.given_up = False  # whether it was that nothing could be decoded
        self.arrived: float | None = None  # when the last packet of a live source came
        self.newest = 0  # latest stamp of a packet that went into the decoder
        self.heard = 0.0  # second at which the sound ends, where it is read
        self.end = stream_end(container, stream)
        # without an end of its own a picture may end before the sound does, and nothing is missing
        self.sound = () if self.end or now or not container.duration else tuple(container.streams.audio)

    @property
    def promised(self) -> float | None:
        """Second up to which there has to be video or sound."""
        if jumps(self.container):
            return None
        return self.end or (self.container.duration / 1e6 if self.container.duration else None)

    def _codec(self) -> Any:
        import av

        own = self.stream.codec_context
        library = ALPHA.get(own.name)
        alpha = any(key.lower() == "alpha_mode" and value == "1" for key, value in self.stream.metadata.items())
        if not alpha or library not in av.codecs_available:
            return own
        codec = av.CodecContext.create(library, "r")
        codec.extradata = own.extradata
        return codec

    def frames(self, target: float = 0.0, skim: bool = False) -> Iterator[tuple[float, float, "av.VideoFrame"]]:
        """(second, seconds on screen or 0, frame), from a keyframe at or before `target`. skim: get there by reading, not by a
        seek."""
        from av.error import FFmpegError

        if target > 0 and not skim:
            if self.clock.by_dts:
                self._measure()
            start = self.clock.origin or 0
            self.container.seek(int(start + target / self.tick), stream=self.stream)
        self._tell_of_streams(target)
        seen, came = False, self.now() if self.now else None
        for packet in self._near(target) if skim else self.packets():
            try:
                decoded = self.codec.decode(packet)
            except FFmpegError as error:
                if packet is None:  # what is lost then is looked for again: see `lost`
                    break
                if seen or (not target and not self.now):  # before the first picture, what it needs may not have come
                    self.damage.add(self.clock.seconds(self._stamp(packet)), type(error).__name__)
                patience = self.patience * (1 if seen else 3)  # a keyframe may be long in coming
                if came is not None and (self.arrived or came) - came > patience:
                    self.given_up = True
                    break
                continue
            for frame in decoded:
                second = self.clock(frame, self.arrived)
                if second is None:
                    if target > 0:
                        return  # no time stamps: a seek leaves us nowhere
                    second = self.clock.second = 0.0
                    self.clock.came, self.clock.length = self.arrived, self.clock.usual
                if not seen and not target and not self.now and second > LATE:
                    self.tell(0.0, f"the picture begins at {second:.3f} s: the first one stands for what is before")
                seen, came = True, self.arrived
                self.damage.report(second)
                yield second, self._length(second), frame

    def _measure(self) -> None:
        """Learn the decoder's delay from the beginning: behind a seek, pictures that need others are left out."""
        for packet in self.container.demux(self.stream):
            self.clock.fed = packet.dts if self.clock.fed is None else self.clock.fed
            if decoded := self.codec.decode(packet):
                self.clock.measure(decoded[0])
                return

    def _length(self, second: float) -> float:
        """Seconds on screen of a picture, as far as is known: a container says it of a packet, perhaps of another picture's."""
        length, end = self.clock.length, self.end or 0.0
        return min(length, end - second) if second < end else length

    def packets(self) -> Iterator["av.Packet | None"]:
        """Packets with stamps on the joined clock, then None, which asks the decoder for what is still in it."""
        from av.error import FFmpegError, InvalidDataError

        failed = 0
        while self.broke is None:
            try:
                for packet in self.container.demux(self.stream, *self.sound):
                    if not packet.size and packet.dts is None:
                        continue
                    failed = 0
                    if packet.stream != self.stream:
                        if packet.pts is not None:
                            end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                            self.heard = max(self.heard, end - (self.container.start_time or 0) / 1e6)
                        continue
                    self._join(packet)
                    yield packet
                break
            except InvalidDataError as error:  # what follows may be whole
                failed += 1
                if failed > FAILURES:
                    self.broke = error
            except (FFmpegError, OSError) as error:
                self.broke = error
        yield None

    def _stamp(self, packet: "av.Packet") -> int | None:
        return packet.dts if self.clock.by_dts else packet.pts

    @property
    def lost(self) -> bool:
        """Whether the last picture that was to be shown did not come out: it was damaged, or threads of the decoder held it
        when one of them failed, which they then say nothing of."""
        return self.clock.second is not None and self.clock.seconds(self.newest) > self.clock.second + self.tick / 2

    def _join(self, packet: "av.Packet") -> None:
        if self.now and self.container.format.name in RAW:
            packet.pts = packet.dts = None  # made up from a rate; when it came is what is known
        self.arrived = self.now() if self.now else None
        jump = self.joiner(packet, self.arrived)
        self.newest = max(self.newest, self._stamp(packet) or 0)
        if self.clock.fed is None:
            self.clock.fed = packet.dts
        if jump is not None:
            way = f"back by {-jump.seconds:.3f} s" if jump.seconds < 0 else f"forward by {jump.seconds:.3f} s"
            at = self.clock.seconds(jump.stamp if packet.pts is None else packet.pts)
            self.tell(at, f"its time stamps jump {way}: what follows is joined to what went before")

    def _near(self, target: float) -> Iterator["av.Packet | None"]:
        """`packets` from the last keyframe at or before `target` on; the stream is read up to there, and not decoded."""
        held: list[av.Packet | None] = []
        packets = self.packets()
        for packet in packets:
            stamp = None if packet is None else self._stamp(packet)
            late = packet is None or self.clock.seconds(stamp) > target
            if packet is not None and packet.is_keyframe and not late:
                held.clear()
            held.append(packet)
            if late or len(held) > HELD:
                break
        yield from held
        yield from packets

    def _tell_of_streams(self, second: float) -> None:
        if len(self.streams) > 1:
            sizes = [f"{one.codec_context.width}x{one.codec_context.height}" for one in self.streams]
            told = f"{len(sizes)} video streams: {sizes[0]} px is watched, not {', '.join(sizes[1:])}"
            self.tell(second, shortened(told))
