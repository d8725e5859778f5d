"""Claims about svlm_jax.media.video_bytes: a video that somebody sent is read from its bytes alone, and costs no more than the
bounds."""

import io

import av
import numpy as np
import pytest

from svlm_jax.errors import InputError
from svlm_jax.media.video import read_video, write_video
from svlm_jax.media.video_bytes import VideoBounds, read_video_bytes

FRAMES = [np.full((32, 48, 3), 10 * number, np.uint8) for number in range(23)]


def encoded(name, codec, pixels="yuv420p", frames=FRAMES, size=(48, 32)):
    file = io.BytesIO()
    with av.open(file, "w", format=name) as container:
        stream = container.add_stream(codec, rate=10)
        (stream.width, stream.height), stream.pix_fmt = size, pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, FRAMES, 10)
    return path


def refusal(data, **bounds):
    with pytest.raises(InputError) as error:
        read_video_bytes(data, bounds=VideoBounds(**bounds))
    assert len(str(error.value)) < 300
    return str(error.value)


@pytest.mark.parametrize("fps", [2.0, 4.0])
def test_the_frames_are_those_of_the_file(film, fps):
    """Else a video is seen otherwise over HTTP than from a folder."""
    video = read_video_bytes(film.read_bytes(), fps=fps)
    np.testing.assert_array_equal(video.frames, read_video(film, fps=fps)[0])
    assert video.fps == fps


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("matroska", "mpeg4", "yuv420p"), ("mpegts", "mpeg4", "yuv420p"), ("avi", "mpeg4", "yuv420p"), ("gif", "gif", "rgb8")],
)
def test_usual_containers_are_known_by_their_bytes(tmp_path, name, codec, pixels):
    data = encoded(name, codec, pixels)
    (tmp_path / f"film.{name}").write_bytes(data)
    np.testing.assert_array_equal(read_video_bytes(data).frames, read_video(tmp_path / f"film.{name}")[0])


def test_a_long_video_is_seen_to_its_end_in_fewer_frames(film):
    video = read_video_bytes(film.read_bytes(), bounds=VideoBounds(max_frames=3))
    assert len(video.frames) == 3 and video.fps == pytest.approx(3 / 2.3)
    levels = video.frames.mean(axis=(1, 2, 3))
    assert levels[0] < 20 and levels[2] > 120


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"<?xml version='1.0'?><MPD></MPD>",
        b"v=0\nm=video 5004 RTP/AVP 96\n",
        b"\x00" * 1000,
        b"\x00\x00\x00\x18ftypisom" + b"\xff" * 1000,
        b"\x1a\x45\xdf\xa3" + b"#EXTM3U\n/etc/passwd\n" * 20,
    ],
)
def test_what_names_other_files_and_what_is_no_video_is_refused(data):
    """Else a request reads a file of the server, or has it connect somewhere."""
    assert refusal(data).startswith("video: got ")


def test_what_costs_more_than_the_bounds_is_refused(film):
    data = film.read_bytes()
    assert refusal(data, max_seconds=2.0) == "video: got 2 s, expected at most 2 s; send a part of it"
    assert "48x32 px, expected at most 1000 px" in refusal(data, max_frame_pixels=1000)
    assert "frames of 48x32 px, expected at most 4000 px in all" in refusal(data, max_pixels=4000)
    assert "more than 1e-09 s to decode" in refusal(data, timeout=1e-9)


def test_a_video_that_breaks_off_is_seen_as_far_as_it_goes():
    data = encoded("matroska", "mpeg4", frames=[*FRAMES, *FRAMES])
    assert 1 <= len(read_video_bytes(data[: len(data) // 2]).frames) <= 10
    assert refusal(data[:100]).startswith("video: got ")
