"""Which frames a question is asked about: the newest is always among them, and none is from after the question."""

import numpy as np
import pytest

from svlm_jax.errors import InputError
from svlm_jax.eval.frames import prefix, recent
from svlm_jax.media.video import write_video

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
