"""Which frame is on screen when, and what bad video files say."""

import re
import warnings
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from svlm_jax.errors import InputError
from svlm_jax.media.image import load_image
from svlm_jax.media.video import read_video, sample_video, write_video
from tests.support.films import film

av = pytest.importorskip("av")

STEP = 8  # grey levels between neighbouring frames: far more than the codec's error


def grey(count, height=64, width=96):
    """Frame k is a flat picture of level 8 + 8k, uint8 [F, H, W, 3]."""
    levels = 8 + STEP * np.arange(count)
    assert levels.max() <= 248
    return np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (count, height, width, 3)).copy()


def frame_numbers(frames):
    """Which frame of `grey` each of these is."""
    middle = frames[:, frames.shape[1] // 2, frames.shape[2] // 2].astype(float).mean(axis=1)
    numbers = (middle - 8) / STEP
    assert np.abs(numbers - numbers.round()).max() < 0.4
    return numbers.round().astype(int).tolist()


def write_stamped(path, frames, stamps, codec="libx264", rate=30, options=None, rotation=None):
    """Frames with time stamps in milliseconds of our choosing."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for frame, stamp in zip(frames, stamps, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_tone(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return path


def refused(call, *parts):
    """The call raises one InputError whose single line holds these parts."""
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and "expected" in message and "; " in message
    for part in parts:
        assert part in message, message


# --- sampling ---


def test_two_frames_a_second_are_the_ones_on_screen_at_each_half_second(tmp_path):
    write_video(tmp_path / "v.mp4", grey(30), 10)
    frames, times, fps = read_video(tmp_path / "v.mp4")
    assert frames.shape == (6, 64, 96, 3) and frames.dtype == np.uint8 and fps == 2.0
    assert times.dtype == np.float64 and times.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert frame_numbers(frames) == [0, 5, 10, 15, 20, 25]


def test_a_sample_between_two_frames_shows_the_earlier_one(tmp_path):
    write_video(tmp_path / "v.mp4", grey(12), 4)
    frames, times, _ = read_video(tmp_path / "v.mp4", fps=3, start=0.2, duration=1)
    assert times.tolist() == [0.2, 0.2 + 1 / 3, 0.2 + 2 / 3]
    assert frame_numbers(frames) == [0, 2, 3]


def test_a_rate_above_the_file_rate_repeats_frames(tmp_path):
    write_video(tmp_path / "v.mp4", grey(4), 2)
    frames, _, _ = read_video(tmp_path / "v.mp4", fps=4)
    assert frame_numbers(frames) == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate_goes_by_time_stamps(tmp_path, suffix):
    stamps = [0, 40, 80, 900, 1600, 1640, 1680, 2900, 3000]
    path = write_stamped(tmp_path / f"v.{suffix}", grey(9), stamps)
    frames, times, _ = read_video(path, fps=2, duration=3.4)
    want = [max(k for k, stamp in enumerate(stamps) if stamp <= 1000 * t) for t in times[:6]]
    assert frame_numbers(frames)[:6] == want == [0, 2, 3, 3, 6, 6]


def test_matroska_millisecond_stamps_do_not_shift_a_sample_by_a_frame(tmp_path):
    path = write_stamped(tmp_path / "v.mkv", grey(12), [round(1000 * k / 3) for k in range(12)], rate=3)
    frames, _, _ = read_video(path, fps=3)
    assert frame_numbers(frames) == list(range(12))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi", "h264"])
@pytest.mark.parametrize("start", [0.0, 1.3, 1.9, 2.5])
def test_seeking_gives_the_same_frames_as_decoding_from_the_start(tmp_path, suffix, start):
    path = tmp_path / f"v.{suffix}"
    codec = "mpeg4" if suffix == "avi" else "libx264"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"g": "7"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for frame in grey(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    frames, times, _ = read_video(path, fps=10, start=start, duration=0.3)
    first = round(start * 10)
    assert frame_numbers(frames) == [first, first + 1, first + 2]
    np.testing.assert_allclose(times, start + np.arange(3) / 10)


@pytest.mark.parametrize(
    "name, codec, form",
    [("v.m2v", "mpeg2video", "mpeg2video"), ("v", "mjpeg", "mjpeg"), ("v", "apng", "apng"), ("v.mpg", "mpeg2video", None)],
)
@pytest.mark.parametrize("start", [0.04, 0.56, 1.16])
def test_a_start_in_a_stream_without_an_index_is_counted_from_its_beginning(tmp_path, name, codec, form, start):
    """Their stamps count from wherever reading begins: a seek to 0.56 s showed the pictures of 1.12 s."""
    pix, options = {"mjpeg": "yuvj420p", "apng": "rgb24"}.get(codec, "yuv420p"), {"qmin": "1", "qmax": "1", "g": "7"}
    options |= {"bf": "2"} if codec == "mpeg2video" else {}
    path = film(tmp_path / name, list(grey(30)), 25, codec, pix, form=form, options=options)
    first = round(start * 25)
    assert frame_numbers(read_video(path, fps=25, start=start)[0]) == list(range(first, 30))
    refused(lambda: read_video(path, start=1.2), "start: got 1.2 s", "less than 1.2 s")


def test_seeking_does_not_decode_from_zero(tmp_path, monkeypatch):
    from svlm_jax.media import video

    path = tmp_path / "v.mp4"
    write_stamped(path, grey(30), [100 * k for k in range(30)], rate=10, options={"g": "5"})
    decoded = []
    inner = video._from_keyframe

    def counting(*args):
        for item in inner(*args):
            decoded.append(item[0])
            yield item

    monkeypatch.setattr(video, "_from_keyframe", counting)
    frames, _, _ = read_video(path, fps=2, start=2.2, duration=0.5)
    assert frame_numbers(frames) == [22]
    assert min(decoded) >= 1.5


def test_a_seek_that_lands_after_the_start_is_repeated_further_back(tmp_path, monkeypatch):
    from svlm_jax.media import video

    path, targets = tmp_path / "v.mp4", []
    write_video(path, grey(30), 10)
    inner = video._from_keyframe

    def late(path, target, on_note):
        targets.append(target)
        return (item for item in inner(path, 0.0, on_note) if item[0] > target or target == 0)

    monkeypatch.setattr(video, "_from_keyframe", late)
    frames, _, _ = read_video(path, fps=2, start=2.0, duration=1)
    assert frame_numbers(frames) == [20, 25] and targets == [2.0, 0.0]


def test_time_counts_from_the_first_frame_when_the_stream_starts_late(tmp_path):
    path = write_stamped(tmp_path / "v.ts", grey(10), [3000 + 100 * k for k in range(10)], rate=10)
    frames, times, _ = read_video(path, fps=5)
    assert frame_numbers(frames) == [0, 2, 4, 6, 8] and times[0] == 0
    frames, _, _ = read_video(path, fps=5, start=0.5)
    assert frame_numbers(frames)[0] == 5


@pytest.mark.parametrize("rotation, turns", [(90, 1), (-90, 3), (180, 2)])
def test_rotated_video_comes_out_upright(tmp_path, rotation, turns):
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a rotation")
    corner = np.zeros((2, 64, 96, 3), np.uint8)
    corner[:, :32, :48] = 255  # upper left
    path = write_stamped(tmp_path / "v.mp4", corner, [0, 500], rotation=rotation)
    frames, _, _ = read_video(path, duration=0.5)
    want = np.rot90(corner[0], turns)
    assert frames[0].shape == want.shape and frames[0].flags.c_contiguous
    assert np.abs(frames[0].astype(int) - want).mean() < 5


def test_sample_video_gives_the_frames_of_read_video_one_by_one(tmp_path):
    write_video(tmp_path / "v.mp4", grey(10), 5)
    frames, times, _ = read_video(tmp_path / "v.mp4")
    stream = list(sample_video(tmp_path / "v.mp4"))
    assert [time for time, _ in stream] == times.tolist()
    np.testing.assert_array_equal(np.stack([image for _, image in stream]), frames)


# --- bad videos ---


def test_wrong_clocks_are_refused(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, grey(4), 2)
    for fps in (0, -1, float("nan"), float("inf")):
        refused(lambda fps=fps: read_video(path, fps=fps), f"fps: got {fps}", "2 fps is usual")
    refused(lambda: read_video(path, duration=0), "duration: got 0", "above 0")
    refused(lambda: read_video(path, start=-1), "start: got -1", "count from the beginning")
    refused(lambda: read_video(path, start=2), "start: got 2 s", "less than 2 s", "an earlier start")
    refused(lambda: read_video(path, start=500), "start: got 500 s", "less than 2 s", "an earlier start")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"], ids=["length in the header", "length unknown"])
def test_a_video_with_too_many_frames_is_refused_and_not_thinned(tmp_path, suffix):
    path = write_stamped(tmp_path / f"v.{suffix}", grey(30), [100 * k for k in range(30)], rate=10)
    parts = ("more than max_frames=5", "at most 2.5 s at 2 fps", "shorter duration, lower fps")
    refused(lambda: read_video(path, max_frames=5), *parts)
    refused(lambda: read_video(path, max_frames=5, duration=2.6), *parts)
    assert len(read_video(path, max_frames=5, duration=2.5)[0]) == 5
    assert len(read_video(path, max_frames=6)[0]) == 6
    assert len(read_video(path, max_frames=5, start=0.5, duration=9)[0]) == 5


def test_files_that_are_no_video_are_refused_in_one_line(tmp_path):
    empty, text = tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.touch()
    text.write_bytes(b"this is no video" * 100)
    again = "copy or convert it again"
    refused(lambda: read_video(empty), "empty.mp4", "an empty file", "download it again")
    refused(lambda: read_video(text), "text.mp4", "InvalidDataError", again)
    refused(lambda: read_video(text, start=3), "text.mp4", "InvalidDataError", again)
    refused(lambda: read_video(tmp_path / "none.mp4"), "none.mp4", "no such file", "check the path")
    refused(lambda: read_video(tmp_path), "a directory", "name one file")
    refused(lambda: read_video(write_tone(tmp_path / "a.wav")), "no video stream", "audio only")


def test_the_cover_picture_of_a_song_is_no_video(tmp_path):
    from av.stream import Disposition

    if "libmp3lame" not in av.codecs_available:
        pytest.skip("this PyAV cannot write mp3")
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame", rate=44100, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt, cover.disposition = 64, 64, "yuvj420p", Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux([*cover.encode(picture), *cover.encode()])
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        tone.sample_rate = 44100
        container.mux([*sound.encode(tone), *sound.encode()])
    refused(lambda: read_video(path), "song.mp3", "no video stream", "audio only")


def test_a_header_without_frames_is_refused(tmp_path):
    path = write_stamped(tmp_path / "v.mkv", grey(30), [100 * k for k in range(30)])
    path.write_bytes(path.read_bytes()[:700])
    refused(lambda: read_video(path), "v.mkv", "a readable video", "convert it again")


def test_a_video_that_is_damaged_in_the_middle_is_watched_to_its_end_with_one_warning(tmp_path):
    path = tmp_path / "v.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), dtype=np.uint8)
    write_video(path, frames, 10)
    every_frame, whole_times, _ = read_video(path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    path.write_bytes(data)
    with pytest.warns(UserWarning) as caught:
        got, times, _ = read_video(path)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "\n" not in message and "left out (InvalidDataError)" in message
    second = re.search(r"v\.mp4: at ([0-9.]+) s", message)
    assert second and 0.5 < float(second[1]) < 3
    np.testing.assert_array_equal(times, whole_times)
    np.testing.assert_array_equal(got[0], every_frame[0])


def test_a_file_cut_short_of_its_header_gives_its_frames_and_one_warning(tmp_path):
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for frame in np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.warns(UserWarning, match=r"v\.mp4: (ends|decoding stopped) at [0-9.]+ s") as caught:
        frames, _, _ = read_video(path)
    assert len(caught) == 1 and 1 <= len(frames) < 8


def test_a_whole_video_gives_no_warning(tmp_path):
    write_video(tmp_path / "v.mp4", grey(10), 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_video(tmp_path / "v.mp4")


# --- writing ---


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk here that is always full")
def test_a_film_for_which_the_disk_has_no_room_is_told_by_its_own_name(tmp_path, monkeypatch):
    """Else: "file file:/films/match_3.mp4.partial", which nobody has named."""
    path = tmp_path / "v.mp4"
    monkeypatch.setattr("svlm_jax.media.video.atomic_write", lambda path: nullcontext(Path("/dev/full")))
    refused(lambda: write_video(path, grey(4), 2), str(path), "cannot be written (no space left", "choose another")
    assert not path.exists()


def test_written_frames_are_read_back_and_no_partial_file_stays(tmp_path):
    write_video(tmp_path / "v.mp4", grey(8), 2.0)
    frames, _, _ = read_video(tmp_path / "v.mp4")
    assert frame_numbers(frames) == list(range(8))
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.mp4"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"old")

    class Interrupted(Exception):
        pass

    def interrupt(*args, **kwargs):
        raise Interrupted

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", interrupt, raising=True)
    with pytest.raises(Interrupted):
        write_video(path, grey(2), 2)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_frames_that_cannot_be_written_are_refused(tmp_path):
    path = tmp_path / "v.mp4"
    refused(lambda: write_video(path, grey(2, height=63), 2), "96x63", "even sides", "crop or pad")
    refused(lambda: write_video(path, grey(2).astype(np.float32), 2), "float32", "uint8 [H, W, 3]", "as_frames")
    refused(lambda: write_video(path, grey(2)[:0], 2), "none", "F >= 1")
    refused(lambda: write_video(path, grey(2), 0), "fps: got 0", "above 0")
    refused(lambda: write_video(tmp_path / "v.mkv", grey(2), 2), ".mp4", "rename it")
    refused(lambda: write_video(tmp_path / "no" / "v.mp4", grey(2), 2), "existing folder", "make the folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content, kind",
    [
        ("<!DOCTYPE html><title>Sign in</title>", "a web page"),
        ("version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
    ],
)
def test_what_was_downloaded_in_the_place_of_a_video_is_named(tmp_path, content, kind):
    (tmp_path / "v.mp4").write_text(content + 600 * " ")
    refused(lambda: read_video(tmp_path / "v.mp4"), "v.mp4: got " + kind, "a readable video", "download the file itself")
    refused(lambda: load_image(tmp_path / "v.mp4"), "v.mp4: got " + kind, "a readable image", "download the file itself")
