"""Which frames a question is asked about: the newest is always among them, and none is from after the question."""

import struct

import numpy as np
import pytest

from svlm_jax.errors import InputError
from svlm_jax.eval.commentator import Job
from svlm_jax.eval.frames import end_within, prefix, recent
from svlm_jax.eval.job_video import probe_videos
from svlm_jax.media.container import declared_length
from svlm_jax.media.video import write_video
from tests.support.films import GREEN, RED, colours, film, plain

SECONDS = 20


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Frame k, half a second of it, is grey of the brightness 6 k."""
    path = tmp_path_factory.mktemp("frames") / "v.mp4"
    write_video(path, (np.full((32, 32, 3), 6 * k, np.uint8) for k in range(2 * SECONDS)), 2)
    return path


def numbers(frames):
    return np.rint(frames.pixels.mean(axis=(1, 2, 3)) / 6).astype(int).tolist()


def test_a_short_prefix_is_taken_at_its_rate(clip):
    frames = prefix(clip, 3, max_frames=64)
    assert (numbers(frames), frames.fps, frames.start) == ([0, 1, 2, 3, 4, 5], 2.0, 0.0)


def test_a_long_prefix_is_thinned_from_its_first_frame_to_its_newest(clip):
    # 0 .. 9.95 s in four steps: 0, 3.3, 6.6, 9.95 s
    assert numbers(prefix(clip, 10, max_frames=4)) == [0, 6, 13, 19]
    assert numbers(prefix(clip, 10, max_frames=1)) == [19]


def test_a_question_after_the_end_is_asked_about_the_end(clip):
    assert numbers(prefix(clip, SECONDS + 30, max_frames=3)) == [0, 19, 39]
    assert numbers(recent(clip, SECONDS + 30, frames=2)) == [38, 39]


def test_recent_frames_are_the_newest_before_the_question(clip):
    frames = recent(clip, 7, frames=4)
    assert (numbers(frames), frames.start) == ([10, 11, 12, 13], 5.0)
    assert numbers(recent(clip, 1, frames=4)) == [0, 1]


def test_no_frames_are_refused(clip):
    with pytest.raises(InputError, match="frames: got 0"):
        prefix(clip, 3, max_frames=0)


def test_a_header_that_says_too_little_hides_no_second(tmp_path):
    """A recorder that was restarted: a question about second 4 was asked about the first second alone."""
    path = film(tmp_path / "v.mkv", [plain(RED)] * 5 + [plain(GREEN)] * 20, 5)
    data = bytearray(path.read_bytes())
    tag = data.find(b"00:00:05")
    data[tag : tag + 8], place = b"00:00:01", data.find(b"\x44\x89\x88") + 3
    data[place : place + 8] = struct.pack(">d", 1000.0)  # milliseconds
    path.write_bytes(data)
    assert declared_length(path) == 1
    assert colours(prefix(path, 4.0, max_frames=100).pixels) == "RRGGGGGG"
    assert probe_videos([Job("v", path, 0, 4)])[str(path)].error is None
    assert end_within(path, 60.0) == pytest.approx(5.0, abs=0.5)
