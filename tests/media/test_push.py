"""Frames that a program pushes: what is sampled of stamps that are even, jump, stall, repeat or come too fast."""

import itertools
import threading
import warnings

import numpy as np
import pytest

from svlm_jax.errors import InputError
from svlm_jax.media.chunks import Timing
from svlm_jax.media.player import Player
from svlm_jax.media.push import PushSource
from svlm_jax.media.sources import open_source
from tests.media.test_video import refused
from tests.support import HANG
from tests.support.films import BLUE, GREEN, RED, colours, plain


def pushed(*stamped, timing=Timing(), arrivals=None, **options):  # noqa: B008
    """(letters of all samples, notes) of (colour, second) pairs, all pushed before any is read; arrivals: by the host's clock,
    the stamps unless others are named."""
    source = PushSource("camera", timing, max_frames=options.pop("max_frames", 10_000), **options)
    for number, (colour, second) in enumerate(stamped):
        source.clock = lambda number=number, second=second: second if arrivals is None else arrivals[number]
        assert source.push(plain(colour), second)
    source.finish()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chunks = list(source)
    notes = [chunk.note for chunk in chunks if chunk.note and "ends" not in chunk.note]
    return colours(np.concatenate([chunk.frames for chunk in chunks])), notes + [str(warning.message) for warning in caught]


def evenly(step, colour, start, end):
    return [(colour, start + step * number) for number in range(round((end - start) / step))]


@pytest.mark.parametrize("origin", [0, 1.7e9, -5])
@pytest.mark.parametrize("step", [0.5, 0.1, 1 / 30, 0.004])
def test_samples_are_the_newest_frames_up_to_their_second(step, origin):
    """Else: a client's rate or the origin of its clock changes what the model sees."""
    frames = evenly(step, RED, origin, origin + 2) + evenly(step, GREEN, origin + 2, origin + 4)
    assert pushed(*frames) == ("RRRRGGGG", [])


def test_it_reads_as_a_live_source_does():
    source = PushSource("camera", Timing(start=60))
    for colour, second in evenly(0.5, RED, 0, 2):
        source.push(plain(colour), second)
    source.finish("unplugged")
    assert source.live and source.endless and source.total is None
    assert [(chunk.number, chunk.start, chunk.end, chunk.note) for chunk in source] == [(0, 60, 61, ""), (1, 61, 62, "")]
    assert source.ending == "unplugged" and open_source(PushSource("camera")).live


def test_a_stall_leaves_the_last_frame_standing():
    """Time that passed is no jump: a chunk must not be named by an earlier second than the wall's."""
    frames = [*evenly(0.5, RED, 0, 2), *evenly(0.5, GREEN, 32, 34)]
    assert pushed(*frames) == ("R" * 64 + "GGGG", [])


@pytest.mark.parametrize("origin, direction", [(90000, "forward by 89998.500 s"), (-90000, "back by 90001.500 s")])
def test_stamps_that_jump_are_joined_to_what_went_before(origin, direction):
    """Else: hours of a frozen picture are made up, or all that follows is left out."""
    frames = [*evenly(0.5, RED, 0, 2), *evenly(0.5, GREEN, origin, origin + 2)]
    samples, notes = pushed(*frames, arrivals=[0.5 * number for number in range(8)])
    assert samples == "RRRRGGGG"
    assert notes == [f"its time stamps jump {direction}: what follows is joined to what went before"]


def test_disorder_is_no_jump_and_repeated_stamps_take_no_room():
    assert pushed((RED, 0), (GREEN, 0.5), (BLUE, 0.45), (BLUE, 1.0)) == ("RGBB", [])
    source = PushSource("camera", max_frames=3)
    for _ in range(1000):
        source.push(plain(RED), 5.0)
    assert len(source.waiting) <= 3 and not source.num_dropped


@pytest.mark.parametrize("step", [0, -0.01], ids=["constant", "back little by little"])
def test_stamps_that_stand_still_are_refused_and_those_that_go_on_again_are_taken(step):
    """A client that stamps every frame with 0: all of them are at one second, and its stream would wait for ever."""
    source = PushSource("camera", max_frames=1000, clock=itertools.count().__next__)
    for number in range(10):
        source.push(plain(RED), 5 + step * number)
    with pytest.raises(InputError, match=r"second: got no later one for 1[0-9] s, expected the time of each frame"):
        for number in range(10, 15):
            source.push(plain(RED), 5 + step * number)
    assert source.push(plain(RED), 6.0) and source.push(plain(RED), 6.5)


def test_frames_that_come_slower_than_their_stamps_say_are_taken():
    """A rendered film, or one of a fast camera: its stamps are its clock, however long each frame takes."""
    samples, notes = pushed(*evenly(0.004, RED, 0, 1), arrivals=[5.0 * number for number in range(250)])
    assert samples == "RR" and not notes


@pytest.mark.parametrize("difference", [3, 8, 40, 86400])
def test_clients_whose_two_clocks_take_turns_add_no_seconds(difference):
    """Parts of a playlist that each count from elsewhere, sent as fast as they show."""
    frames = [(RED, number / 4 + difference * (number // 4 % 2)) for number in range(160)]
    samples, notes = pushed(*frames, arrivals=[number / 4 for number in range(160)])
    assert 80 <= len(samples) <= 82 + 2 * (difference if difference < 10 else 0)
    assert len(notes) >= 20  # of a chunk with two jumps both are in one


def test_stamps_that_come_too_fast_are_bounded_and_the_drops_are_noted():
    """Else: a client that sends faster than it is read takes all memory, or frames are missing without a word."""
    samples, notes = pushed(*evenly(0.5, RED, 0, 4), *evenly(0.5, GREEN, 4, 8), max_frames=4)
    assert samples == "G" * 16  # what was dropped at the start has no earlier frame to stand for it
    assert notes == ["12 frames dropped before it: more than 4 waited to be read"]


def test_a_drop_after_the_start_leaves_the_frame_before_it_standing():
    source = PushSource("camera", max_frames=2)
    source.push(plain(RED), 0)
    frames = source.frames()
    first = [next(frames)]
    for colour, second in [*evenly(0.5, BLUE, 0.5, 2), *evenly(0.5, GREEN, 2, 3)]:
        source.push(plain(colour), second)
    source.finish()
    assert colours(np.stack(first + list(frames))) == "RRRRGG" and source.notes[0][0] == 2.0


def test_a_sample_is_read_as_soon_as_a_frame_is_on_time_for_it():
    """Else: a camera of as many frames a second as the model takes is one frame late."""
    source = PushSource("camera")
    source.push(plain(RED), 7.0)
    frames = source.frames()
    assert colours(next(frames)[None]) == "R"
    source.push(plain(GREEN), 7.5)
    assert colours(next(frames)[None]) == "G"


def test_a_player_drops_what_comes_too_late_and_ends_with_the_source():
    source, lost = PushSource("camera", Timing(fps=1)), []
    with Player(source, lambda chunk: None, max_delay=1, on_dropped=lost.extend) as player:
        for number in range(6):
            source.push(plain(RED), float(number))
        source.finish()
        player.start()
        player.thread.join(HANG)
        assert not player.thread.is_alive()
        assert [player.poll()[0].number for _ in range(1)] == [5] and [chunk.number for chunk in lost] == [0, 1, 2, 3, 4]
    assert not source.push(plain(RED), 9.0)


def test_a_duration_or_a_silence_ends_it():
    assert pushed(*evenly(0.5, RED, 0, 9), timing=Timing(duration=2)) == ("RRRR", [])
    source = PushSource("camera", max_silence=0.05)
    source.push(plain(RED), 0.0)
    assert len(list(source)) == 1 and source.ending == "no frame came for 0.05 s"
    assert not source.push(plain(RED), 1.0)


def test_frames_without_stamps_go_by_the_time_of_the_call():
    time = [100.0]
    source = PushSource("camera", clock=lambda: time[0])
    for colour in (RED, RED, GREEN, GREEN):
        source.push(plain(colour))
        time[0] += 0.5
    source.finish()
    assert colours(np.concatenate([chunk.frames for chunk in source])) == "RRGG"


def test_threads_may_push_while_another_reads():
    source, chunks = PushSource("camera", max_frames=10_000), []
    reader = threading.Thread(target=lambda: chunks.extend(source))
    reader.start()
    for second in range(50):
        pusher = threading.Thread(target=source.push, args=(plain(RED), float(second)))
        pusher.start()
        pusher.join(HANG)
    source.finish()
    reader.join(HANG)
    assert not reader.is_alive() and len(chunks) == 50


def test_a_frame_is_copied():
    """Else: a camera library that writes into the same array again changes what was sampled."""
    source, frame = PushSource("camera"), plain(RED)
    source.push(frame, 0.0)
    frame[:] = 0
    source.finish()
    assert colours(next(iter(source)).frames) == "RR"


def test_a_wrong_frame_is_one_line_to_who_pushes_it():
    source = PushSource("camera")
    source.push(plain(RED), 0.0)
    refused(lambda: source.push(plain((1, 2, 3, 4)), 1.0), "frame: got uint8 [48, 64, 4]", "uint8 [H, W, 3]")
    refused(lambda: source.push(plain(RED).astype(np.float32), 1.0), "float32")
    refused(lambda: source.push(plain(RED, (32, 32)), 1.0), "32x32 px", "64x48 px")
    for second in (float("nan"), float("inf"), 1e13, "1"):
        refused(lambda second=second: source.push(plain(RED), second), "second: got", "a number of seconds")  # pyright: ignore
    refused(lambda: PushSource("camera", max_frames=0), "max_frames: got 0")
    refused(lambda: PushSource("camera", Timing(fps=0)), "fps: got 0")


def test_a_reader_that_leaves_ends_it():
    """Else: a thread waits for ever, and a client pushes frames that nobody watches."""
    source = PushSource("camera", Timing(fps=1))
    source.push(plain(RED), 0.0)
    with Player(source, lambda chunk: None) as player:
        next(iter(player))
    player.thread.join(HANG)
    assert not player.thread.is_alive() and not source.push(plain(RED), 1.0)
