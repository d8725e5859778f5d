"""Seconds of files whose time stamps are not what they should be, and what is left out of damaged ones: nothing is lost
without a word, and nothing is made up."""

import itertools
import warnings
from fractions import Fraction

import numpy as np
import pytest

from svlm_jax.errors import InputError
from svlm_jax.media.container import declared_length
from svlm_jax.media.sources import open_source
from svlm_jax.media.video import read_video, write_video
from tests.media.test_sources import serving
from tests.media.test_video import grey, refused
from tests.support.films import BLUE, GREEN, RED, av, camera, colours, damage, film, plain, recording


def watch(path, **clock):
    """(a letter a frame, the warnings) of a file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames, _, _ = read_video(path, **clock)
    return colours(frames), [str(note.message) for note in caught]


# --- clocks that begin anew, and jump ---


@pytest.mark.parametrize("form", ["mpegts", "mpeg"])
@pytest.mark.parametrize("starts", [(0, 0, 0), (0, 86400, 8), (50, 10, 3600)], ids=["cat", "a day", "back and on"])
def test_recordings_one_behind_the_other_are_watched_one_after_the_other(tmp_path, form, starts):
    """Downloaded HLS segments and recorders that split: the second would be lost, or hours of it made up."""
    parts = [(colour, 3, at) for colour, at in zip((RED, GREEN, BLUE), starts, strict=True)]
    codec, fps = ("libx264", 10) if form == "mpegts" else ("mpeg2video", 25)
    (tmp_path / "v").write_bytes(recording(tmp_path, *parts, form=form, codec=codec, fps=fps))
    letters, notes = watch(tmp_path / "v")
    assert letters == "R" * 6 + "G" * 6 + "B" * 6
    assert len(notes) == 2 and all("what follows is joined" in note for note in notes)
    assert declared_length(tmp_path / "v") == pytest.approx(9, abs=0.01)
    with open_source(tmp_path / "v") as source:
        chunks = list(source)
    assert source.total == len(chunks) == 9
    assert [bool(chunk.note) for chunk in chunks] == [False, False, False, True, False, False, True, False, False]


@pytest.mark.parametrize("frames", [15, 40], ids=["one group", "several"])
def test_matroska_recordings_one_behind_the_other_are_one_film(tmp_path, frames):
    """FFmpeg makes up their decoding times, and behind the joint wrongly: each B-frame looked like a jump."""
    data = [film(tmp_path / "part.mkv", [plain(colour)] * frames, 5).read_bytes() for colour in (RED, GREEN)]
    (tmp_path / "v.mkv").write_bytes(b"".join(data))
    letters, notes = watch(tmp_path / "v.mkv", fps=5)
    assert letters == "R" * frames + "G" * frames and len(notes) == 1 and "what follows is joined" in notes[0]


@pytest.mark.parametrize(
    "start, letters", [(0.5, "RRRRR" + "G" * 6 + "B" * 6), (3, "G" * 6 + "B" * 6), (5.5, "G" + "B" * 6), (8, "BB")]
)
def test_a_start_in_joined_recordings_is_a_second_of_the_joined_clock(tmp_path, start, letters):
    """A seek by time stamps lands in whichever recording holds that stamp."""
    (tmp_path / "v.ts").write_bytes(recording(tmp_path, (RED, 3, 0), (GREEN, 3, 86400), (BLUE, 3, 1)))
    assert watch(tmp_path / "v.ts", start=start)[0] == letters
    with pytest.raises(InputError, match="less than 9 s"):
        read_video(tmp_path / "v.ts", start=9)


def test_a_start_in_a_plain_transport_stream_is_still_a_seek(tmp_path, monkeypatch):
    """Hours of a recording need not be read to watch its end."""
    from svlm_jax.media.container import Reader

    film(tmp_path / "v.ts", [plain(RED)] * 40 + [plain(GREEN)] * 40, 10, form="mpegts", options={"g": "5"})
    monkeypatch.setattr(Reader, "_near", lambda *_: pytest.fail("read up to the start"))
    assert watch(tmp_path / "v.ts", start=6)[0] == "GGGG"


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_slide_may_stand_for_long_in_a_file_that_says_so(tmp_path, suffix):
    stamps = [0, 30_000, 75_000, 75_100]
    with av.open(str(tmp_path / f"v.{suffix}"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for colour, stamp in zip((RED, GREEN, BLUE, BLUE), stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(plain(colour), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert watch(tmp_path / f"v.{suffix}", fps=0.2) == ("R" * 6 + "G" * 9 + "B", [])


@pytest.mark.parametrize("suffix, form", [("mp4", None), ("mkv", None), ("ts", "mpegts")])
def test_a_picture_a_minute_is_a_film(tmp_path, suffix, form):
    film(tmp_path / f"v.{suffix}", [plain(colour) for colour in (RED, GREEN, BLUE)], Fraction(1, 60), form=form)
    assert watch(tmp_path / f"v.{suffix}", fps=0.1) == ("R" * 6 + "G" * 6 + "B" * 6, [])
    assert watch(tmp_path / f"v.{suffix}", fps=0.1, start=100)[0] == "GG" + "B" * 6


@pytest.mark.parametrize("shift", [40, 95_000, 2**33 / 90000 - 2], ids=["late", "a day", "wraps"])
def test_a_clock_that_starts_anywhere_counts_from_the_first_picture(tmp_path, shift):
    film(tmp_path / "v.ts", [plain(RED)] * 40 + [plain(GREEN)] * 40, 10, form="mpegts", shift=shift, options={"g": "5"})
    assert watch(tmp_path / "v.ts") == ("R" * 8 + "G" * 8, [])
    assert watch(tmp_path / "v.ts", start=5)[0] == "G" * 6


# --- no presentation times ---


@pytest.mark.parametrize(
    "name, codec, form", [("v.avi", "libx264", None), ("v.avi", "mpeg4", None), ("v.h264", "libx264", "h264")]
)
@pytest.mark.parametrize("start", [0, 1.5, 2.3])
def test_pictures_of_a_film_without_presentation_times_come_once_each_in_order(tmp_path, name, codec, form, start):
    """B-frames in AVI: by the times they are given with, some stand for 0.3 s and most are never seen."""
    options = {"bf": "3", "qp": "8"} if codec == "libx264" else {"bf": "2", "qmin": "1", "qmax": "2", "g": "10"}
    path = film(tmp_path / name, list(grey(30)), 10, codec, options=options, form=form)
    frames, _, _ = read_video(path, fps=10, start=start)
    levels = (frames.mean((1, 2, 3)) - 8) / 8
    np.testing.assert_allclose(levels, np.arange(round(start * 10), 30), atol=0.4)


# --- the picture later than the sound ---


def with_sound(path, colours, at, sound=8.0, form=None):
    """A picture a second from `at` on, and silence of that many seconds from 0 on."""
    with av.open(str(path), "w", format=form) as container:
        video = container.add_stream("libx264", rate=1)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=8000, layout="mono")
        for start in range(0, round(sound * 8000), 1024):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 8000, start
            container.mux(audio.encode(silence))
        container.mux(audio.encode())
        for number, colour in enumerate(colours):
            frame = av.VideoFrame.from_ndarray(plain(colour), format="rgb24")
            frame.pts, frame.time_base = number + at, Fraction(1, 1)
            container.mux(video.encode(frame))
        container.mux(video.encode())
    return path


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
@pytest.mark.parametrize("start", [0, 2, 5])
def test_seconds_are_those_a_player_shows_where_the_picture_comes_late(tmp_path, suffix, start):
    """Counted from the first picture, all captions would be 4 s early."""
    path = with_sound(tmp_path / f"v.{suffix}", [RED, RED, GREEN, GREEN], 4)
    letters, notes = watch(path, fps=4, start=start)
    assert 6 <= start + letters.index("G") / 4 <= 6.25  # AAC may begin an eighth of a second before 0
    assert letters.strip("R").strip("G") == "" and 7.5 <= start + len(letters) / 4 <= 8.25
    assert len(notes) == (start == 0)
    with open_source(path, start=start) as source:
        assert next(chunk.start for chunk in source if "G" in colours(chunk.frames)) == 6


# --- damage ---


@pytest.mark.parametrize("name, codec", [("v.mp4", "libx264"), ("v.mp4", "mpeg4"), ("v.avi", "mjpeg"), ("v.mov", "libx265")])
@pytest.mark.parametrize("numbers", [(22,), (10, 11, 12, 37), (44,)], ids=["middle", "several", "last"])
def test_a_damaged_packet_costs_its_picture_and_no_other(tmp_path, name, codec, numbers):
    """One bad sector must not end hours of a recording; the last packet too, with decoders that run in many threads."""
    options = {"g": "5"} | ({"x265-params": "keyint=5:log-level=none"} if codec == "libx265" else {})
    pictures = [plain(colour) for colour in (RED, GREEN, BLUE) for _ in range(15)]
    pix = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    letters, notes = watch(damage(film(tmp_path / name, pictures, 5, codec, pix, options=options), *numbers))
    assert letters[:17] == ("R" * 6 + "G" * 6 + "B" * 6)[:17]
    assert 1 <= len(notes) <= 2 and all("left out (InvalidDataError)" in note for note in notes)
    with open_source(tmp_path / name) as source, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        all_notes = [chunk.note for chunk in source] + [str(note.message) for note in caught]
    assert 1 <= sum("left out" in note for note in all_notes) <= 2


def test_one_picture_that_is_whole_is_watched(tmp_path):
    """Decoding threads gave it up with those that follow it, and the file was called unreadable."""
    path = damage(film(tmp_path / "v.mp4", [plain(RED)] * 30, 5), *range(1, 30))
    letters, notes = watch(path)
    assert letters[:1] == "R" and set(letters) == {"R"}
    assert len(notes) == 1 and "damaged packets are left out" in notes[0]


def test_damage_all_along_is_told_once_a_minute_and_not_once_a_packet(tmp_path):
    path = film(tmp_path / "v.avi", [plain(RED)] * 150, 1, "mjpeg", "yuvj420p")
    letters, notes = watch(damage(path, *range(1, 150, 2)))
    assert set(letters) == {"R"} and 2 <= len(notes) <= 4
    assert sum(int(note.split(" s: ")[1].split()[0]) if "damaged packets" in note else 1 for note in notes) == 75


def test_decoding_threads_lose_nothing_behind_damage_near_the_end(tmp_path, monkeypatch):
    """FFmpeg's threads give up what they hold when one fails at the end, and say nothing; how many, goes by the processors."""
    from svlm_jax.media.container import Reader

    codec = Reader._codec

    def eight(self):
        codec_context = codec(self)
        codec_context.thread_count = 8
        return codec_context

    monkeypatch.setattr(Reader, "_codec", eight)
    path = damage(film(tmp_path / "v.mp4", list(grey(30)), 10, options={"g": "1", "qp": "8"}), 27)
    with pytest.warns(UserWarning, match="left out") as caught:
        frames, _, _ = read_video(path, fps=10)
    levels = np.round((frames.mean((1, 2, 3)) - 8) / 8).astype(int).tolist()
    assert len(caught) == 1 and len(levels) == 30 and {28, 29} <= set(levels)


# --- lengths ---


@pytest.mark.parametrize("tag", [b"DURATION", b"DURABLE_"], ids=["of the stream", "of the file alone"])
def test_a_matroska_file_that_is_cut_off_says_so(tmp_path, tag):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(24)]
    path = film(tmp_path / "v.mkv", pictures, 2, options={"g": "4"})
    path.write_bytes(path.read_bytes().replace(b"DURATION", tag)[: path.stat().st_size // 3])
    with pytest.warns(UserWarning, match=r"ends at [0-9.]+ s but its header says 12.000 s: cut short") as caught:
        frames, _, _ = read_video(path)
    assert len(caught) == 1 and 4 <= len(frames) <= 12 and declared_length(path) == 12


def test_a_picture_that_ends_before_the_sound_is_not_cut_short(tmp_path):
    path = with_sound(tmp_path / "v.mkv", [RED] * 4, 0)
    data = path.read_bytes().replace(b"DURATION", b"DURABLE_")
    path.write_bytes(data)
    letters, notes = watch(path, fps=1)
    assert letters in ("RRRR", "RRRRR") and not notes  # AAC may begin before 0


@pytest.mark.parametrize("form, options", [("webm", {"live": "1"}), ("mp4", {"movflags": "frag_keyframe+empty_moov"})])
def test_a_live_recording_without_a_length_is_watched_to_its_end(tmp_path, form, options):
    codec = "libvpx-vp9" if form == "webm" else "libx264"
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot write {codec}")
    path = tmp_path / f"v.{form}"
    with av.open(str(path), "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=5, options={"g": "5"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for colour in [RED] * 10 + [GREEN] * 10:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plain(colour), format="rgb24")))
        container.mux(stream.encode())
    assert watch(path) == ("RRRRGGGG", [])
    assert watch(path, start=2.5)[0] == "GGG"
    with open_source(path) as source:
        assert len(list(source)) == 4 and not source.endless


def test_an_mp4_whose_index_was_never_written_is_said_so(tmp_path):
    path = film(tmp_path / "v.mp4", [plain(RED)] * 20)
    path.write_bytes(path.read_bytes()[: path.read_bytes().rfind(b"moov") - 4])
    refused(lambda: read_video(path), "an MP4 without its index", "repair it")


# --- several streams ---


def several(path, *streams):
    """Video streams of (colour, size, fps, marked as default), 3 s each."""
    from av.stream import Disposition

    with av.open(str(path), "w") as container:
        encoders = []
        for colour, size, fps, marked in streams:
            stream = container.add_stream("libx264", rate=fps)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.disposition = Disposition.default if marked else Disposition(0)
            encoders.append((stream, plain(colour, size), 3 * fps))
        for stream, picture, count in encoders:
            for frame in (*[picture] * count, None):
                frame = None if frame is None else av.VideoFrame.from_ndarray(frame, format="rgb24")
                container.mux(stream.encode(frame))
    return path


@pytest.mark.parametrize("suffix, marked", [("mkv", True), ("mkv", False), ("mp4", True)])
def test_the_film_is_the_stream_that_players_take(tmp_path, suffix, marked):
    """Marked as default, or else with the most pixels: the first is often a preview."""
    first, second = (RED, (32, 32), 1, False), (GREEN, (160, 120), 5, marked)
    for number, pair in enumerate(((first, second), (second, first))):
        letters, notes = watch(several(tmp_path / f"{number}.{suffix}", *pair))
        assert letters == "GGGGGG"
        assert len(notes) == 1 and "2 video streams: 160x120 px is watched, not 32x32" in notes[0]


def test_a_stream_marked_as_default_goes_before_a_larger_one(tmp_path):
    path = several(tmp_path / "v.mkv", (RED, (160, 120), 5, False), (GREEN, (32, 32), 5, True))
    assert watch(path)[0] == "GGGGGG"


def hls(folder, name, colour, size, count=4):
    with av.open(str(folder / f"{name}.m3u8"), "w", format="hls", options={"hls_time": "1", "hls_list_size": "0"}) as container:
        stream = container.add_stream("libx264", rate=5, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for _ in range(5 * count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plain(colour, size), format="rgb24")))
        container.mux(stream.encode())
    return f"#EXT-X-STREAM-INF:BANDWIDTH={size[0] * 1000},RESOLUTION={size[0]}x{size[1]}\n{name}.m3u8\n"


def test_of_hls_variants_the_largest_is_watched_and_the_others_are_told(tmp_path):
    """The first in a master playlist is often the one for phones."""
    master = (
        hls(tmp_path, "low", RED, (64, 48)) + hls(tmp_path, "high", GREEN, (160, 120)) + hls(tmp_path, "mid", BLUE, (96, 64))
    )
    (tmp_path / "master.m3u8").write_text("#EXTM3U\n" + master)
    letters, notes = watch(tmp_path / "master.m3u8", fps=1)
    assert letters == "GGGG" and len(notes) == 1 and "3 video streams: 160x120 px is watched" in notes[0]
    with serving(tmp_path) as url, open_source(f"{url}/master.m3u8", fps=1) as source:
        chunks = list(source)
        assert source.total == len(chunks) == 4 and not source.live
        assert "".join(colours(chunk.frames) for chunk in chunks) == "GGGG" and "3 video streams" in chunks[0].note


def test_a_playlist_whose_last_segment_is_gone_says_where_it_ends(tmp_path):
    hls(tmp_path, "a", RED, (64, 48))
    (tmp_path / "a3.ts").unlink()
    with serving(tmp_path) as url, open_source(f"{url}/a.m3u8") as source:
        assert len(list(source)) == 3 and source.ending == "its picture ends at 3.0 s of 4.0 s"


def test_an_hls_playlist_with_a_discontinuity_is_one_film(tmp_path):
    """Advertisements: each part has a clock of its own."""
    hls(tmp_path, "a", RED, (64, 48), 3)
    hls(tmp_path, "b", GREEN, (64, 48), 3)
    parts = [(tmp_path / f"{name}.m3u8").read_text().split("#EXT-X-ENDLIST")[0] for name in "ab"]
    second = parts[1][parts[1].index("#EXTINF") :]
    (tmp_path / "v.m3u8").write_text(f"{parts[0]}#EXT-X-DISCONTINUITY\n{second}#EXT-X-ENDLIST\n")
    letters, notes = watch(tmp_path / "v.m3u8")
    assert letters == "R" * 6 + "G" * 6 and len(notes) == 1 and "joined" in notes[0]
    assert watch(tmp_path / "v.m3u8", start=4)[0] == "GGGG"


# --- films that stream ---


def test_a_film_that_we_write_plays_over_http_without_ranges(tmp_path):
    """The index stands in front; else a server without ranges cannot play it."""
    write_video(tmp_path / "v.mp4", grey(30), 10)
    data = (tmp_path / "v.mp4").read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")
    head = f"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    with camera(data, head) as port, open_source(f"http://127.0.0.1:{port}/v.mp4") as source:
        assert len(list(itertools.islice(source, 9))) == 3


def test_an_mp4_with_its_index_at_the_end_says_what_to_do_where_there_are_no_ranges(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (96, 128, 3), dtype=np.uint8) for _ in range(30)]
    data = film(tmp_path / "v.mp4", pictures, options={"qp": "10"}).read_bytes()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    with camera(data, head) as port, pytest.raises(InputError, match="faststart"):
        list(open_source(f"http://127.0.0.1:{port}/v.mp4"))
