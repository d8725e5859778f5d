"""Live clocks as cameras have them, packet by packet and without pictures: the seconds watched are those that passed, and every
jump is told."""

import itertools

import pytest

from svlm_jax.media.timestamps import Joiner, Standstill

TICKS, FPS = 90_000, 10
DAY, WRAP = 86_400, 2**33 / TICKS


def packets(*parts):
    """(stamp in ticks, arrival) of packets that come 1 / FPS s apart; a part is (seconds, where its clock starts)."""
    stamps = [round((start + k / FPS) * TICKS) for seconds, start in parts for k in range(round(seconds * FPS))]
    return [(stamp, 1000 + number / FPS) for number, stamp in enumerate(stamps)]


def watched(packets, *, frame_seconds=1 / FPS):
    """(seconds from the first packet to the end of the last, jumps that were told)."""
    joiner = Joiner(1 / TICKS, frame_seconds, can_jump=True)
    jumps, newest = 0, -(10**18)
    for stamp, arrival in packets:
        jumps += joiner.join(stamp, 0, arrival) is not None
        newest = max(newest, stamp + joiner.offset)  # a frame that comes back takes the place of the last one
    return (newest - packets[0][0]) / TICKS + 1 / FPS, jumps


def alternating(difference, parts=50):
    """Two clocks that take turns every second, as where advertisements are inserted."""
    return packets(*((1, number + difference * (number % 2)) for number in range(parts)))


@pytest.mark.parametrize(
    "starts, jumps",
    [
        ((0, DAY), 1),
        ((DAY, 0), 1),
        ((100, 60 + 6), 1),
        ((0, 76 * 60), 1),
        ((WRAP - 6, -6 + 1e-9), 1),
        ((0,) * 21, 20),
        ((0, 56 * 365.25 * DAY), 1),
        ((2**31 / TICKS - 6, 2**31 / TICKS), 0),
        ((2**32 / TICKS - 6, -6 + 1e-9), 1),
    ],
    ids=["+1 day", "-1 day", "-40 s", "+76 min", "33 bits", "20 restarts", "1970 to 2026", "31 bits", "32 bits"],
)
def test_seconds_watched_are_seconds_that_passed_and_each_jump_is_told(starts, jumps):
    seconds, told = watched(packets(*((6, start) for start in starts)))
    assert seconds == pytest.approx(6 * len(starts), abs=0.01) and told == jumps


@pytest.mark.parametrize("difference", [0.05, 0.5, 0.9, 1.5, 3, 8, 9.9, 11, 40, DAY])
def test_two_clocks_that_take_turns_do_not_add_up(difference):
    """Each way alone looks like a pause of the camera and a restart; 25 pairs would make up 200 s. The first may be a pause."""
    seconds, told = watched(alternating(difference))
    first = difference if difference < 10 else 0
    assert 49 <= seconds <= 51 + first
    assert told == 49 - (first > 0) or difference < 1  # below that it is jitter, and repaid


@pytest.mark.parametrize("amplitude", [0.04, 0.15, 0.3, 0.45])
def test_jitter_neither_adds_seconds_nor_takes_them(amplitude):
    pattern = itertools.cycle([0, amplitude, -amplitude, amplitude / 3])
    jittered = [(round(stamp + next(pattern) * TICKS), arrival) for stamp, arrival in packets((120, 100))]
    seconds, told = watched(jittered)
    assert seconds == pytest.approx(120, abs=1.5) and told <= 2


@pytest.mark.parametrize("step", [-0.5, -2.0])
def test_a_clock_that_is_set_back_a_little_now_and_then_loses_nothing(step):
    """NTP on a camera."""
    seconds, told = watched(packets(*((10, number * (10 + step)) for number in range(6))))
    assert seconds == pytest.approx(60, abs=0.01) and told == 5


def test_a_pause_after_a_jump_is_still_time_that_passed():
    before = packets((5, 100), (5, 0))
    after = [(stamp, arrival + 30) for stamp, arrival in packets((5, 25))]
    seconds, told = watched([*before, *after])
    assert seconds == pytest.approx(35, abs=0.01) and told == 1


@pytest.mark.parametrize("interval", [5, 20])
def test_a_picture_every_few_seconds_is_no_jump_where_they_come_at_once(interval):
    """A slide show from a server that sends it as fast as it can: a restart of its clock must not press it together."""
    stamps = [number * interval * TICKS for number in (0, 1, 2, 3, 0, 1, 2, 3)]
    seconds, told = watched([(stamp, 1000.0) for stamp in stamps], frame_seconds=interval)
    assert seconds == pytest.approx(7 * interval + 1 / FPS, abs=0.01) and told == 1


def test_a_guess_of_hours_a_frame_makes_no_hours():
    """FFmpeg guesses the frame rate from stamps, whatever they are."""
    stamps = [number * 2_654_435_761 % 2**33 for number in range(100)]
    seconds, told = watched([(stamp, number / FPS) for number, stamp in enumerate(stamps)], frame_seconds=3000.0)
    assert told >= 98 and seconds < 20


@pytest.mark.parametrize("rate, still", [(0, True), (1e-4, True), (-1, True), (0.5, False), (1.01, False)])
def test_stamps_that_stand_still_are_known(rate, still):
    """Else the pictures of a camera whose clock was never set are all at second 0, and nothing is watched."""
    standstill = Standstill(1 / TICKS)
    lacking = [standstill(round(number / FPS * rate * TICKS), number / FPS) for number in range(101)]
    assert bool(sum(lacking)) == still
    if still:
        assert sum(lacking) == pytest.approx(10 * (1 - max(rate, 0)), abs=0.01)


def test_one_late_packet_is_no_standstill():
    standstill = Standstill(1 / TICKS)
    assert not any(standstill(round(number * 0.04 * TICKS), number * 20.0) for number in range(5))
