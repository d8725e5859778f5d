"""Time stamps as they occur in the world, as one clock that only goes forward.

Owns what happens to stamps that restart, jump, are missing or come in the wrong order. Packets are looked at first, in the
order of decoding (`Joiner`), then frames, in the order of showing (`FrameClock`). Does not know files. Units: ticks of the
stream's time base, unless seconds are named.
"""

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import av

BACK = 0.1  # seconds that stamps may go back and still be one recording (FFmpeg's rule)
FORWARD = 10.0  # seconds that they may go forward where a jump can be something else than time (FFmpeg's rule)
DISORDER = 1.0  # seconds by which frames may come in the wrong order and are still on the same clock
REORDERED = 17  # frames that a decoder may delay, at most
DEFAULT_FRAME_SECONDS = 0.04  # where no frame rate is known
MAX_FRAME_SECONDS = 120.0  # a longer one is a guess from stamps that mean nothing
AGREES = 2.0  # seconds by which a gap between live stamps may exceed the time that passed
AGREES_AFTER_JUMP = 1.0  # where stamps have jumped before: two clocks that take turns must not add up
STILL_SHARE = 0.1  # of the time that passed: live stamps that go on by less of it tell no time
STILL_PACKETS = 5  # that must have come meanwhile


class Jump(NamedTuple):
    """stamp: its position on the joined clock. seconds: how far the stamps jumped; below 0: back."""

    stamp: int
    seconds: float

    def note(self) -> str:
        """What a user reads of it."""
        direction = f"back by {-self.seconds:.3f} s" if self.seconds < 0 else f"forward by {self.seconds:.3f} s"
        return f"its time stamps jump {direction}: what follows is joined to what went before"


class Joiner:
    """Joins what follows a jump of the stamps to what went before, as FFmpeg does: the next packet starts when the last is
    over.

    Back is always a jump: a recording after another, a camera that restarted. Forward is time that passed with one frame on
    screen (a slide, an edit list), unless it is more than `FORWARD` in a stream where that is not expected, and, live, the
    packet did not take as long to arrive. Live stamps that have jumped once are trusted no further than packets take to arrive,
    or than the last two were apart.
    """

    def __init__(self, tick: float, frame_seconds: float, can_jump: bool, by_keyframes: bool = False) -> None:
        """Args:
        tick: seconds.
        frame_seconds: of a frame, or 0: not known.
        can_jump: forward, without time passing (MPEG-TS, live).
        by_keyframes: the container has no decoding times (Matroska). Those that FFmpeg makes up are wrong behind a joint, but
            a keyframe is shown after all that was decoded before it.
        """
        self.tick, self.can_jump, self.by_keyframes = tick, can_jump, by_keyframes
        frame_seconds = frame_seconds if frame_seconds <= MAX_FRAME_SECONDS else 0.0
        self.frame_ticks = max(round((frame_seconds or DEFAULT_FRAME_SECONDS) / tick), 1)
        self.forward = max(FORWARD, 2 * frame_seconds)  # a frame a minute is no jump a minute
        self.spacing = frame_seconds  # between the last two packets of one clock
        self.max_reorder = max(DISORDER / tick, REORDERED * self.frame_ticks)  # ticks between decoding and showing a frame
        self.last: int | None = None  # stamp before it was joined, as are all that are compared
        self.last_arrival: float | None = None
        self.offset = 0  # ticks from a stamp to the joined clock
        self.length = 0  # ticks of the last packet
        self.num_jumps = 0
        self.unconfirmed = 0.0  # seconds that live stamps went forward beyond the time that passed

    def another(self) -> "Joiner":
        """Of another track with the same ticks, from its beginning."""
        joiner = copy(self)
        joiner.last, joiner.offset, joiner.length, joiner.num_jumps = None, 0, 0, 0
        return joiner

    def join(self, stamp: int, length: int = 0, arrival: float | None = None) -> Jump | None:
        """Advance to a stamp, whose position on the joined clock is then stamp + `offset`; the jump before it, if there is one.

        Args:
            length: ticks until the next one is due, or 0: not known.
            arrival: when a live one came, in seconds of the host's clock.
        """
        jump = None
        if self.last is not None:
            gap = (stamp - self.last) * self.tick
            passed = arrival - self.last_arrival if arrival is not None and self.last_arrival is not None else None
            if gap < -BACK or self._is_unexpected(gap, passed):
                jump = self._jump(stamp, gap)
            else:
                excess = 0.0 if passed is None else gap - max(passed, self.length * self.tick)
                self.unconfirmed = min(self.unconfirmed + max(excess, 0.0), DISORDER)
                self.spacing = gap
        spacing = round(self.spacing / self.tick)  # frames may come faster than the rate that is known
        self.length = length or (min(self.frame_ticks, spacing) if spacing > 0 else self.frame_ticks)
        self.last, self.last_arrival = stamp, arrival
        return jump

    def _jump(self, stamp: int, gap: float) -> Jump | None:
        """Join here. A little back that takes back what no time had confirmed is jitter, and none: else each would add up."""
        repaid = min(-gap, self.unconfirmed) if -DISORDER < gap < 0 else 0.0
        self.unconfirmed -= repaid
        if -gap - repaid < BACK and gap < 0:
            return None
        assert self.last is not None
        self.offset += self.last + self.length - stamp - round(repaid / self.tick)
        self.num_jumps += 1
        return Jump(stamp + self.offset, gap)

    def _is_unexpected(self, gap: float, passed: float | None) -> bool:
        """Whether stamps that go forward by so many seconds do so without as much time."""
        if not self.can_jump:
            return False
        if passed is None:
            return gap > self.forward
        if self.num_jumps:
            return gap > passed + AGREES_AFTER_JUMP and gap > min(2 * self.spacing, self.forward)
        # a gap that took as long to arrive is time that passed, however long
        return gap > passed + AGREES and gap > self.forward

    def __call__(self, packet: "av.Packet", arrival: float | None = None) -> Jump | None:
        """`join` of a packet's decoding time; moves its stamps to the joined clock."""
        stamp, jump = packet.dts, None
        if self.by_keyframes:
            jump = self._join_keyframe(packet)
            packet.dts = None if stamp is None else stamp + self.offset
        elif stamp is not None:
            jump = self.join(stamp, packet.duration or 0, arrival)
            if self.can_jump and packet.pts is not None and abs(packet.pts - stamp) > self.max_reorder:
                packet.pts = None  # from the other side of a jump, or damaged: the frame then follows the last one
            packet.dts = stamp + self.offset
        # without a decoding time (Matroska starts so where there are B-frames) there is nothing to compare: presentation times
        # alone go forward and back
        packet.pts = None if packet.pts is None else packet.pts + self.offset
        return jump

    def _join_keyframe(self, packet: "av.Packet") -> Jump | None:
        stamp, jump = packet.pts, None
        if stamp is None:
            return None
        if packet.is_keyframe and self.last is not None and stamp < self.last - BACK / self.tick:
            jump = self._jump(stamp, (stamp - self.last) * self.tick)
            self.last = stamp
        if self.last is None or stamp >= self.last:
            self.last, self.length = stamp, packet.duration or self.frame_ticks
        return jump


class TrackJoiner:
    """Joins the tracks of a file at the same places: of recordings one behind the other, sound and picture stay together,
    however much longer one of them is."""

    def __init__(self, new_joiner: Callable[[], Joiner]) -> None:
        """new_joiner: called for each track; all have the same ticks."""
        self.new_joiner, self.newest = new_joiner, 0
        self.joiners: dict[int, Joiner] = {}  # by index of their tracks
        self.picture: int | None = None  # index of its track
        self.num_jumps = 0

    def __call__(self, packet: "av.Packet") -> Jump | None:
        """`Joiner` of the packet's track, from which other tracks follow: a jump is told once."""
        track = packet.stream.index
        joiner = self.joiners.get(track) or self.joiners.setdefault(track, self.new_joiner())
        self.picture = track if packet.stream.type == "video" else self.picture
        self._follow(joiner, packet.dts)
        jump = joiner(packet)
        if jump is None:
            return None
        # of the picture, FFmpeg holds the last packet back until the next one begins
        parts = {index: 2 if index == self.picture else 1 for index in self.joiners if index != track}
        others = ((self.joiners[index], count) for index, count in parts.items())
        ends = (other.last + other.offset + count * other.length for other, count in others if other.last is not None)
        end = max(ends, default=jump.stamp)
        if (behind := end - jump.stamp) > 0:  # the others go on for longer
            joiner.offset += behind
            packet.dts = None if packet.dts is None else packet.dts + behind
            packet.pts = None if packet.pts is None else packet.pts + behind
        self.newest, self.num_jumps = joiner.offset, self.num_jumps + 1
        return Jump(max(jump.stamp, end), jump.seconds)

    def _follow(self, joiner: Joiner, stamp: int | None) -> None:
        """Take a packet to be behind the joint that another track has come to, where it fits there and not before it: the last
        packets of a track may come after the first ones of another."""
        if stamp is None or joiner.last is None or joiner.offset == self.newest:
            return
        last = joiner.last + joiner.offset - self.newest  # as if it had been behind the joint
        fits_before, fits_behind = (-BACK <= (stamp - each) * joiner.tick <= joiner.forward for each in (joiner.last, last))
        if fits_behind and not fits_before:
            joiner.last, joiner.offset = last, self.newest


class Standstill:
    """Whether the stamps of a live source stand still while its packets come: a camera whose clock was never set."""

    def __init__(self, tick: float) -> None:
        self.tick, self.count = tick, 0
        self.since: tuple[int, float] | None = None  # stamp and arrival

    def __call__(self, stamp: int, arrival: float) -> float:
        """Seconds that the stamps lack where they stand still, else 0. stamp: on the joined clock."""
        self.since, self.count = self.since or (stamp, arrival), self.count + 1
        passed, advanced = arrival - self.since[1], max(0.0, (stamp - self.since[0]) * self.tick)
        if passed < FORWARD:
            return 0.0
        is_still = self.count > STILL_PACKETS and advanced < STILL_SHARE * passed
        self.since, self.count = (stamp, arrival), 0
        return passed - advanced if is_still else 0.0


class FrameClock:
    """Seconds at which frames come on screen, in the order in which they are shown.

    `by_dts`: the container has no presentation times (AVI), so that the frames of a stream with B-frames come with the times of
    others. Their order is right nevertheless, and the decoding times count, less the delay of the decoder. Elsewhere a frame
    that comes too late takes the position of the last one.
    """

    def __init__(self, tick: float, frame_seconds: float, origin: float | None, by_dts: bool) -> None:
        """origin: stamp of second 0; None: of the first frame."""
        self.tick, self.frame_seconds, self.origin, self.by_dts = tick, frame_seconds, origin, by_dts
        self.first_dts: int | None = None  # of the packets that went into the decoder
        self.delay: float | None = None if by_dts else 0.0  # of frames behind their stamps
        self.second: float | None = None
        self.length = 0.0  # seconds on screen of the last frame
        self.arrival: float | None = None  # of the last frame

    def __call__(self, frame: "av.VideoFrame", arrival: float | None = None) -> float | None:
        """The frame's second; None for the first one if it has no time. arrival: when a live frame came, in seconds of the
        host's clock, which counts if the frame has no stamp."""
        if self.second is None and self.by_dts and self.delay is None:
            self.measure(frame)
        second = self._seconds_of(frame.dts if self.by_dts else frame.pts)
        if second is not None and self.second is not None and second < self.second:
            if self.first_dts is None and self.second - second > DISORDER:  # `Joiner` saw no decoding times: join here
                self.delay = (self.delay or 0.0) - (self.second + self.length - second) / self.tick
                second = self.second + self.length
            second = max(second, self.second)
        if second is None and self.second is not None:
            second = self.second + (self.length if arrival is None or self.arrival is None else arrival - self.arrival)
        if second is not None:
            self.second, self.arrival = second, arrival
            self.length = (frame.duration or 0) * self.tick or self.frame_seconds
        return second

    def measure(self, first: "av.VideoFrame") -> None:
        """Learn the delay of the decoder from the stream's first frame."""
        self.delay = 0.0 if first.dts is None or self.first_dts is None else float(first.dts - self.first_dts)

    def lag(self, seconds: float) -> None:
        """So much time has passed of which the stamps say nothing: the newest frame stood for it."""
        if self.second is not None:
            self.second += seconds

    def seconds(self, stamp: float | None) -> float:
        """Second of a packet's stamp on the joined clock, 0 where that is not known."""
        return 0.0 if stamp is None or self.origin is None else (stamp - self.origin) * self.tick

    def _seconds_of(self, stamp: int | None) -> float | None:
        if stamp is None:
            return None
        on_screen = stamp - (self.delay or 0.0)
        if self.origin is None:
            self.origin = on_screen - (self.second or 0.0) / self.tick
        return (on_screen - self.origin) * self.tick
