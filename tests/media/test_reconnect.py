"""Cameras that die and return: what is watched, what is missing, and that every missing second is told. No test waits for real
time: the clock stands still but for the waits between two attempts."""

import gc
import itertools
import random
import tracemalloc
import weakref

import numpy as np
import pytest

from svlm_jax.errors import InputError
from svlm_jax.media import stream_source
from svlm_jax.media.chunks import Outage, Source, Timing
from svlm_jax.media.reconnect import Reconnect, ReconnectingSource
from svlm_jax.media.sources import open_source
from tests.support.cameras import REFUSE, STALL, serving_camera
from tests.support.films import BLUE, GREEN, RED, colours, film, plain

DAY, WRAP = 86400.0, 2**33 / 90000
NEVER_GIVE_UP = Reconnect(seconds=float("inf"))


class Clock:
    """Stands still but for `sleep`."""

    def __init__(self) -> None:
        self.now, self.delays = 1000.0, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.delays.append(seconds)
        self.now += seconds


def opened(camera, policy=NEVER_GIVE_UP, **options) -> tuple[ReconnectingSource, Clock, list[Outage]]:
    source, clock, outages = open_source(camera.url, reconnect=policy, **options), Clock(), []
    assert isinstance(source, ReconnectingSource) and source.live
    source.clock, source.sleep, source.draw, source.on_outage = clock, clock.sleep, lambda: 0.0, outages.append
    source.lost_at = clock()
    return source, clock, outages


def part(folder, colour, *, shift=0.0, size=(64, 48), codec="libx264", seconds=2) -> bytes:
    pictures, options = [plain(colour, size)] * (10 * seconds), {"g": "5"}
    return film(folder / "part", pictures, 10, codec, form="mpegts", shift=shift, options=options).read_bytes()


def letters(chunks) -> str:
    """What is in the middle of each frame: at the sides there may be bars."""
    return colours(np.concatenate([chunk.frames for chunk in chunks])[:, 20:28, 28:36])


def test_a_camera_that_dies_and_returns_twenty_times_is_watched_on_and_every_gap_is_told(tmp_path):
    """It jumps its clock, changes its size and its codec, sends garbage, refuses: captions go on, and no second is invented."""
    shifts, sizes = (0.0, DAY, 5.0, WRAP - 1), ((64, 48), (128, 96), (48, 64), (96, 32))
    codecs = ("libx264", "mpeg2video")
    films = [
        part(tmp_path, (RED, GREEN, BLUE)[k % 3], shift=shifts[k % 4], size=sizes[k % 4], codec=codecs[k % 2])
        for k in range(12)
    ]
    returns = [films[k % 12] for k in range(21)]
    noise = random.Random(1).randbytes(20_000)
    garbage = {3: noise, 7: REFUSE, 11: films[0][:188] + noise, 15: b"<html>404</html>"}
    answers = [[garbage[k], film] if k in garbage else [film] for k, film in enumerate(returns)]
    with serving_camera(*itertools.chain(*answers)) as camera:
        source, clock, outages = opened(camera)
        with source:
            chunks = list(itertools.islice(source, 42))
    assert camera.num_connections == 25
    assert letters(chunks) == "".join(4 * "RGB"[k % 12 % 3] for k in range(21))
    assert {chunk.frames.shape for chunk in chunks} == {(2, 48, 64, 3)}
    lost, back = outages[::2], outages[1::2]
    assert len(back) == 20 and all(outage.end is None for outage in lost)
    # every second is in a chunk or in a gap that was told, and the gaps are as long as the clock of the host says
    spans = sorted([(c.start, c.end) for c in chunks] + [(o.start, o.end) for o in back])
    assert spans[0][0] == 0 and all(end == start for (_, end), (start, _) in itertools.pairwise(spans))
    assert sum(o.chunks for o in back) == sum(clock.delays)  # and a chunk is one second
    assert [chunk.start == chunk.number for chunk in chunks] == [True] * 42
    notes = [chunk.note for chunk in chunks if "the source was away for" in chunk.note]
    assert len(notes) == 20 and "the source was away for 2.0 s before it: no video from 5 s to 7 s" in notes[1]
    assert not any("s3cret" in text for text in [source.name, source.ending, *(o.reason for o in lost), *notes])


def test_the_waits_are_those_that_are_stated(tmp_path):
    """1, 2, 4 ... 30 s, each shortened by up to half; else a camera that is being replaced is asked a thousand times."""
    policy = Reconnect()
    assert [policy.delay(failures, 0.0) for failures in range(8)] == [1, 2, 4, 8, 16, 30, 30, 30]
    assert policy.delay(10**9, 0.0) == 30 and policy.delay(3, 1.0) == 4
    with serving_camera(part(tmp_path, RED), *[REFUSE] * 7) as camera:
        source, clock, outages = opened(camera, Reconnect(seconds=100.0))
        with source:
            assert len(list(source)) == 2
    assert clock.delays == [1, 2, 4, 8, 16, 30, 30, 9]  # the last attempt is at the end of the time
    assert source.ending.startswith("the source has ended; not back in 100 s (") and "s3cret" not in source.ending
    assert [outage.end for outage in outages] == [None] and source.is_lost


def test_after_a_good_connection_the_next_loss_is_tried_at_once(tmp_path):
    """Else a camera that lost its network for an hour yesterday is tried every 30 s today."""
    with serving_camera(*[part(tmp_path, RED, seconds=12), *[REFUSE] * 4] * 2, part(tmp_path, RED)) as camera:
        source, clock, _ = opened(camera)
        now = clock.now

        def ticking() -> float:
            clock.now += 0.1  # every packet takes as long to come as it shows
            return clock.now

        source.clock = ticking
        with source:
            chunks = list(itertools.islice(source, 26))
    assert [round(delay) for delay in clock.delays] == [1, 2, 4, 8, 16] * 2
    assert abs(chunks[-1].end - (clock.now - now)) < 4  # the seconds of the video are those of the host, after both outages


def test_what_was_seen_before_a_loss_does_not_wait_for_the_return(tmp_path):
    """A goal in the last half second before the cable is pulled is told at once, and not when the camera is back."""
    data = film(tmp_path / "v", [plain(RED)] * 25, 10, form="mpegts").read_bytes()
    with serving_camera(data, part(tmp_path, GREEN)) as camera:
        source, clock, _ = opened(camera)
        with source:
            chunks = list(itertools.islice(source, 3))
    assert not clock.delays  # nothing was waited for yet
    assert chunks[-1].note == "ends 0.5 s early: its last frame stands for the missing 1"


def test_a_connection_that_stalls_is_lost_from_its_last_frame_on(tmp_path, monkeypatch):
    """A camera whose power fails closes no connection."""
    monkeypatch.setattr(stream_source, "READ_TIMEOUT", 2.0)
    with serving_camera(part(tmp_path, RED, seconds=8) + STALL, part(tmp_path, GREEN)) as camera:
        source, _, outages = opened(camera)
        with source:
            chunks = list(itertools.islice(source, 10))
    assert letters(chunks) == "R" * 16 + "GGGG" and [chunk.start for chunk in chunks] == [*range(8), 9, 10]
    assert "nothing came for 2 s" in outages[0].reason
    assert outages[1].seconds == 1.0 and outages[1].attempts == 1


def test_a_camera_that_is_not_there_at_the_start_is_waited_for_where_that_is_asked(tmp_path):
    with serving_camera(REFUSE, REFUSE, part(tmp_path, BLUE)) as camera:
        with pytest.raises(InputError):  # a mistyped address is an error at once
            open_source(camera.url, reconnect=NEVER_GIVE_UP)
        source, clock, outages = opened(camera, NEVER_GIVE_UP._replace(must_open=False))
        with source:
            chunks = list(itertools.islice(source, 2))
    assert letters(chunks) == "BBBB" and [chunk.start for chunk in chunks] == [0, 1]  # its first frame is second 0
    assert [(outage.start, outage.end, outage.chunks) for outage in outages] == [(0, None, 0), (0, 0, 0)]
    assert outages[1].seconds == sum(clock.delays) == 1.0


def test_seconds_to_watch_are_seconds_of_the_clock(tmp_path):
    """--duration 3600 ends after an hour, however often the camera was away."""
    with serving_camera(*[part(tmp_path, RED)] * 9) as camera:
        source, clock, outages = opened(camera, duration=20.0)
        with source:
            chunks = list(source)
    assert clock.delays == [1, 2, 4, 8] and [chunk.start for chunk in chunks] == [0, 1, 3, 4, 7, 8, 13, 14]
    assert chunks[-1].end == 15 and len(outages) == 7


def test_without_reconnecting_a_loss_is_the_end(tmp_path):
    with (
        serving_camera(part(tmp_path, RED), part(tmp_path, GREEN)) as camera,
        open_source(camera.url, reconnect=Reconnect(seconds=0.0)) as source,
    ):
        assert len(list(source)) == 2 and source.ending == "the source has ended"


def test_rtsp_reconnects_as_http_does(tmp_path):
    with serving_camera(part(tmp_path, RED), part(tmp_path, GREEN, shift=DAY, size=(128, 96)), scheme="rtsp") as camera:
        source, _, outages = opened(camera)
        with source:
            chunks = list(itertools.islice(source, 4))
    assert letters(chunks)[:2] == "RR" and letters(chunks)[-2:] == "GG" and len(outages) == 2
    assert {chunk.frames.shape for chunk in chunks} == {(2, 48, 64, 3)}


def test_a_camera_that_has_udp_alone_is_watched(tmp_path, monkeypatch):
    """TCP is asked for first; a camera that refuses it must not be lost for that."""
    monkeypatch.setattr(stream_source, "READ_TIMEOUT", 2.0)
    with (
        serving_camera(part(tmp_path, RED, seconds=8) + STALL, scheme="rtsp", udp=True) as camera,
        open_source(camera.url) as source,
    ):
        chunks = list(source)
    assert set(letters(chunks)) == {"R"}


def test_a_size_that_changes_within_a_connection_is_not_stretched(tmp_path):
    """A phone that is turned: people must not become wide."""
    data = part(tmp_path, RED) + part(tmp_path, GREEN, size=(48, 64), shift=2)
    with serving_camera(data) as camera, open_source(camera.url) as source:
        chunks = list(source)
    last = chunks[-1].frames[-1]
    assert last.shape == (48, 64, 3) and (last[..., 1] > 60).any(axis=0).sum() == 36


class Flaky(stream_source.StreamSource):
    """A connection that gives two frames and breaks, with its address in the error."""

    num_closed = 0

    def __init__(self, timing: Timing, image: np.ndarray) -> None:
        Source.__init__(self, "camera", timing)
        self.live, self.image, self.size, self.first_arrival = True, image, None, None

    @property
    def last_arrival(self) -> None:
        return None

    def frames(self):
        yield self.image
        yield self.image
        raise RuntimeError("broken at rtsp://viewer:s3cret@camera")

    def close(self) -> None:
        Flaky.num_closed += 1


def test_a_thousand_returns_leave_nothing_behind():
    """A camera over a bad radio link reconnects every minute for months."""
    image, clock, reasons = plain(RED), Clock(), set()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    options = {"clock": clock, "sleep": sleep, "draw": lambda: 0.7, "reason": "not there"}
    source = ReconnectingSource("camera", Timing(), lambda timing: Flaky(timing, image), NEVER_GIVE_UP, **options)
    source.on_outage = lambda outage: reasons.add(outage.reason)
    chunks = iter(source)
    for _ in range(100):
        next(chunks)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(1000):
        last = next(chunks)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 50_000 and Flaky.num_closed == 1099 and not source.notes
    assert reasons == {"", "not there", "RuntimeError"}
    # rounding to whole chunks does not add up: the last one is named by the second of the host's clock
    first_delay, seconds_shown = NEVER_GIVE_UP.delay(0, 0.7), 1099
    assert abs(last.start - (clock.now - 1000 - first_delay + seconds_shown)) <= 0.5


def test_what_ffmpeg_holds_for_a_connection_is_free_when_it_is_lost(tmp_path):
    """Decoders are large, and the collector of cycles, which does not know how large, comes by when it likes."""
    with serving_camera(*[part(tmp_path, RED)] * 3) as camera:
        source, *_ = opened(camera)
        with source:
            chunks = iter(source)
            next(chunks)
            assert source.inner is not None
            parts = [weakref.ref(source.inner), weakref.ref(source.inner.reader)]
            gc.disable()
            try:
                list(itertools.islice(chunks, 2))
                assert [part() for part in parts] == [None, None]
            finally:
                gc.enable()


def test_what_happens_within_a_connection_is_told_while_it_lasts(tmp_path):
    """Not when it is lost, hours later."""
    data = part(tmp_path, RED, seconds=3) + part(tmp_path, GREEN, shift=DAY, seconds=4)
    with serving_camera(data) as camera:
        source, _, _ = opened(camera)
        with source:
            chunks = list(itertools.islice(source, 6))
    assert [second for second, chunk in enumerate(chunks) if "what follows is joined" in chunk.note] == [3]
