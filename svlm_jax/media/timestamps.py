"""Time stamps as they are in the world, as one clock that only goes forward.

Owns what is done about stamps that begin anew, jump, are missing or stand in the wrong order. Packets are looked at first, in
the order of decoding (`Joiner`), then pictures, in the order of showing (`Clock`). Does not know files. Units: ticks of the
stream's time base, unless seconds are said.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import av

BACK = 0.1  # seconds that stamps may go back and still be one recording (FFmpeg's rule)
FORWARD = 10.0  # seconds that they may go forward where a jump can be something else than time (FFmpeg's rule)
DISORDER = 1.0  # seconds by which pictures may come in the wrong order, and are still on the same clock
REORDERED = 17  # pictures that a decoder may hold back, at the most
USUAL = 0.04  # seconds a picture, where nothing is known
AGREES = 2.0  # seconds by which a gap between live stamps may exceed the time that passed


class Jump(NamedTuple):
    """stamp: where it is, on the joined clock. seconds: how far the stamps jumped; below 0: back."""

    stamp: int
    seconds: float


class Joiner:
    """Joins what follows a jump of the stamps to what went before, as FFmpeg does: the next packet comes when the last is over.

    Back is always a jump: a recording after another, a camera that began anew. Forward is time that passed with one picture on
    screen (a slide, an edit list), unless it is more than `FORWARD` in a stream of which that is not to be expected, and, live,
    the packet did not take as long to come.
    """

    def __init__(self, tick: float, usual: float, jumps: bool) -> None:
        """tick: seconds. usual: seconds a picture, or 0. jumps: whether stamps can jump forward (MPEG-TS, live)."""
        self.tick, self.usual, self.jumps = tick, max(round((usual or USUAL) / tick), 1), jumps
        self.forward = max(FORWARD, 2 * usual)  # a picture a minute is no jump a minute
        self.reorder = max(DISORDER / tick, REORDERED * self.usual)  # ticks between decoding and showing a picture
        self.last: int | None = None
        self.came: float | None = None
        self.offset, self.length, self.joined = 0, 0, 0

    def __call__(self, packet: "av.Packet", now: float | None = None) -> Jump | None:
        """Put the packet's stamps on the joined clock; the jump before it, if there is one. now: when a live packet came."""
        stamp, jump = packet.dts, None
        if stamp is None:  # as Matroska begins where there are B-frames; presentation times alone go forward and back
            packet.pts = None if packet.pts is None else packet.pts + self.offset
            return None
        if self.last is not None:
            gap = (stamp - self.last) * self.tick
            passed = now - self.came if now is not None and self.came is not None else None
            if gap < -BACK or (self.jumps and gap > self.forward and (passed is None or gap > passed + AGREES)):
                self.offset += self.last + self.length - stamp
                self.joined += 1
                jump = Jump(stamp + self.offset, gap)
        self.last, self.came, self.length = stamp, now, packet.duration or self.usual
        if self.jumps and packet.pts is not None and abs(packet.pts - stamp) > self.reorder:
            packet.pts = None  # of the other side of a jump, or damaged: the picture then follows the last one
        packet.dts = stamp + self.offset
        packet.pts = None if packet.pts is None else packet.pts + self.offset
        return jump


class Clock:
    """Seconds at which pictures come on screen, in the order in which they are shown. `by_dts`: the container has no
    presentation times (AVI), so that the pictures of a stream with B-frames come with times of others; their order is right
    nevertheless, and the decoding times count, less the delay of the decoder. Elsewhere a picture that comes too late takes the
    last one's place.
    """

    def __init__(self, tick: float, usual: float, origin: float | None, by_dts: bool) -> None:
        """origin: stamp of second 0; None: of the first picture."""
        self.tick, self.usual, self.origin, self.by_dts = tick, usual, origin, by_dts
        self.fed: int | None = None  # decoding time of the first packet
        self.delay: float | None = None if by_dts else 0.0  # of pictures behind their stamps
        self.second: float | None = None
        self.length = 0.0  # seconds on screen of the last picture
        self.came: float | None = None

    def __call__(self, frame: "av.VideoFrame", now: float | None = None) -> float | None:
        """The picture's second; None for the first one if it has no time. now: when a live picture came, which counts if it has
        no stamp."""
        if self.second is None and self.by_dts and self.delay is None:
            self.measure(frame)
        second = self._stamped(frame.dts if self.by_dts else frame.pts)
        if second is not None and self.second is not None and second < self.second:
            if self.fed is None and self.second - second > DISORDER:  # no decoding times, by which `Joiner` goes
                self.delay = (self.delay or 0.0) - (self.second + self.length - second) / self.tick
                second = self.second + self.length
            second = max(second, self.second)
        if second is None and self.second is not None:
            second = self.second + (self.length if now is None or self.came is None else now - self.came)
        if second is not None:
            self.second, self.came = second, now
            self.length = (frame.duration or 0) * self.tick or self.usual
        return second

    def measure(self, first: "av.VideoFrame") -> None:
        """Learn the delay of the decoder from the stream's first picture."""
        self.delay = 0.0 if first.dts is None or self.fed is None else float(first.dts - self.fed)

    def seconds(self, stamp: float | None) -> float:
        """Second of a packet's stamp on the joined clock, 0 where that is not known."""
        return 0.0 if stamp is None or self.origin is None else (stamp - self.origin) * self.tick

    def _stamped(self, stamp: int | None) -> float | None:
        if stamp is None:
            return None
        shown = stamp - (self.delay or 0.0)
        if self.origin is None:
            self.origin = shown - (self.second or 0.0) / self.tick
        return (shown - self.origin) * self.tick
