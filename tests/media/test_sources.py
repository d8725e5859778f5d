"""Where frames come from, in chunks: files, folders, cameras and connections, and what odd ones say."""

import contextlib
import http.server
import os
import socket
import threading
import warnings
from functools import partial

import numpy as np
import pytest
from PIL import Image

from svlm_jax.errors import InputError
from svlm_jax.media.chunks import Timing
from svlm_jax.media.sources import SCHEMES, FileSource, FolderSource, open_source, scheme_of
from svlm_jax.media.stream_source import StreamSource
from svlm_jax.media.video import sample_video, write_video
from tests.media.test_video import frame_numbers, grey, refused, write_stamped, write_tone
from tests.support import HANG


def chunks(source):
    with source:
        return list(source)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """3 s at 10 fps, frame k of level 8 + 8k."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, grey(30), 10)
    return path


def test_chunks_of_a_file_are_its_samples(film):
    source = open_source(film, fps=2)
    assert isinstance(source, FileSource) and source.total == 3 and not source.live
    got = chunks(source)
    assert [(c.number, c.start, c.end, c.note) for c in got] == [(0, 0, 1, ""), (1, 1, 2, ""), (2, 2, 3, "")]
    samples = np.stack([frame for _, frame in sample_video(film, 2)])
    np.testing.assert_array_equal(np.concatenate([c.frames for c in got]), samples)


def test_a_start_and_a_duration_name_the_seconds_of_the_video(film):
    source = open_source(film, fps=4, start=1.5, duration=1)
    assert source.total == 1
    (chunk,) = chunks(source)
    assert (chunk.number, chunk.start, chunk.end) == (0, 1.5, 2.5) and len(chunk.frames) == 4
    assert frame_numbers(chunk.frames) == [15, 17, 20, 22]


def test_long_chunks_hold_all_their_frames(film):
    got = chunks(open_source(film, fps=2, chunk_seconds=2))
    assert [len(c.frames) for c in got] == [4, 4] and [c.end for c in got] == [2, 4]
    assert got[1].note == "ends 1 s early: its last frame stands for the missing 2"


@pytest.mark.parametrize(
    ("options", "ends", "frames"),
    [
        ({"first_chunk_seconds": 2}, [2, 3], [4, 2]),
        ({"first_chunk_seconds": 3}, [3], [6]),
        ({"first_chunk_seconds": 5}, [5], [10]),
        ({"first_chunk_seconds": 1, "chunk_seconds": 2}, [1, 3], [2, 4]),
        ({"first_chunk_seconds": 1.5, "start": 0.5}, [2, 3], [3, 2]),
        ({"first_chunk_seconds": 2, "duration": 1.5}, [2], [4]),
    ],
)
def test_a_first_chunk_may_have_a_length_of_its_own(film, options, ends, frames):
    """Else a model that is trained on a longer beginning never sees one."""
    source = open_source(film, fps=2, **options)
    got = chunks(source)
    assert ([c.end for c in got], [len(c.frames) for c in got]) == (ends, frames)
    assert source.total == len(got) and [source.chunks_until(c.end) for c in got] == [c.number + 1 for c in got]
    assert [c.start for c in got] == [options.get("start", 0), *ends[:-1]]
    samples = round(2 * min(3 - options.get("start", 0), options.get("duration", 3)))
    assert bool(got[-1].note) == (sum(frames) > samples)


def test_an_open_source_has_the_first_chunk_that_is_asked_for(film):
    source = FileSource(film, Timing(first_chunk_seconds=2))
    assert open_source(source, first_chunk_seconds=2) is source
    refused(lambda: open_source(source), "source", "first chunk of 2 s", "one of 1 s")
    refused(lambda: open_source(film, first_chunk_seconds=0.25), "chunk_seconds", "a whole number of frames")


def test_a_video_that_ends_inside_a_chunk_is_filled_up_and_says_so(tmp_path):
    write_video(tmp_path / "v.mp4", grey(14), 10)
    source = open_source(tmp_path / "v.mp4", fps=4)
    assert source.total == 2
    first, last = chunks(source)
    assert first.note == "" and last.note == "ends 0.5 s early: its last frame stands for the missing 2"
    assert frame_numbers(last.frames) == [10, 12, 12, 12]


def test_one_frame_is_one_chunk(tmp_path):
    write_video(tmp_path / "v.mp4", grey(1), 10)
    (chunk,) = chunks(open_source(tmp_path / "v.mp4"))
    assert frame_numbers(chunk.frames) == [0, 0] and "early" in chunk.note


def test_frames_of_a_varying_rate_are_those_on_screen(tmp_path):
    write_stamped(tmp_path / "v.mkv", grey(5), [0, 100, 1400, 1500, 2900])
    got = chunks(open_source(tmp_path / "v.mkv", fps=2))
    assert frame_numbers(np.concatenate([c.frames for c in got])[:6]) == [0, 1, 1, 3, 3, 3]


def test_4k_and_odd_sizes_come_as_they_are(tmp_path):
    write_video(tmp_path / "v.mp4", np.zeros((2, 2160, 3840, 3), np.uint8), 2)
    (chunk,) = chunks(open_source(tmp_path / "v.mp4"))
    assert chunk.frames.shape == (2, 2160, 3840, 3)
    for number in range(2):
        Image.new("RGB", (101, 53)).save(tmp_path / f"{number}.png")
    (odd,) = chunks(open_source(tmp_path))
    assert odd.frames.shape == (2, 53, 101, 3)


def test_a_file_that_breaks_off_is_watched_to_there(film, tmp_path):
    write_stamped(tmp_path / "v.ts", grey(30), [100 * k for k in range(30)], options={"g": "5", "tune": "zerolatency"})
    data = (tmp_path / "v.ts").read_bytes()
    (tmp_path / "torn.ts").write_bytes(data[: len(data) // 2])
    got = chunks(open_source(tmp_path / "torn.ts"))
    assert 1 <= len(got) <= 2 and len(got[-1].frames) == 2


def test_what_is_no_video_is_one_line(tmp_path):
    write_tone(tmp_path / "song.mp4")
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "empty").mkdir()
    refused(lambda: open_source(tmp_path / "song.mp4"), "song.mp4", "no video stream")
    refused(lambda: chunks(open_source(tmp_path / "text.mp4")), "text.mp4", "a readable video")
    refused(lambda: open_source(tmp_path / "none.mp4"), "none.mp4", "no such file")
    refused(lambda: open_source(tmp_path / "empty"), "no images")
    refused(lambda: open_source(tmp_path, fps=0), "fps", "a number above 0")
    refused(lambda: chunks(open_source(tmp_path / "song.mp4", start=-1)), "start")


def test_less_than_a_frame_and_a_chunk_that_is_none_are_one_line(film):
    """They were a traceback, and a source that collected frames for ever."""
    for source in (film, film.parent):
        if source == film.parent:
            Image.new("RGB", (32, 32)).save(film.parent / "0.png")
        refused(
            lambda source=source: open_source(source, duration=0.1), "0.1 s, which is shorter than one frame", "0.5 s or more"
        )
        assert len(chunks(open_source(source, duration=0.5))) == 1
    for seconds in (0, -1, 0.25, 0.75, float("nan"), float("inf")):
        refused(lambda seconds=seconds: open_source(film, chunk_seconds=seconds), "chunk_seconds", "a whole number of frames")
    refused(lambda: open_source(film, fps=1e9), "fps: got 1e+09", "at most 1000")


def test_a_start_that_no_video_has_is_one_line(film):
    """It overflowed in C, or a game was played for hours without a word."""
    for start in (1e300, float("inf"), float("nan"), 1e12):
        refused(lambda start=start: open_source(film, start=start), "start: got", "at most 1e+09")


def test_a_scheme_that_is_handed_in_opens_its_names_and_no_file_of_that_name(film, tmp_path, monkeypatch):
    """Else: the library knows what only those above it should, or a file called match:5 cannot be watched."""
    opened, schemes = [], {**SCHEMES, "match": lambda name, timing: opened.append((name, timing))}
    assert open_source("match:5", fps=4, start=2, schemes=schemes) is None and opened == [("match:5", Timing(4, 1.0, 2, None))]
    refused(lambda: open_source("match:5"), "match:5", "no such file")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "match:5").symlink_to(film)
    assert len(chunks(open_source("match:5", schemes=schemes))) == 3 and len(opened) == 1
    names = (0, "12", "0001", "rtsp://x/1", "match:5", "match:6", "10:30.mp4")
    assert [scheme_of(name, schemes) for name in names] == ["webcam", "webcam", "file", "url", "file", "match", "file"]


def test_an_open_source_is_taken_as_it_is_or_refused(film):
    """Else: frames of one rate are laid out in time as those of another."""
    source = open_source(film, fps=4)
    assert open_source(source, fps=4) is source
    refused(lambda: open_source(source), "source: got video", "at 4 fps in chunks of 1 s, expected 2 fps")
    refused(lambda: open_source(source, fps=4, start=1), "start: got 1 s for an open source")
    refused(lambda: open_source(source, fps=4, duration=1), "duration: got 1 s for an open source")


# --- folders ---


@pytest.fixture
def folder(tmp_path):
    for number in (10, 9, 2, 1, 0, 11):
        Image.fromarray(grey(12)[number]).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    return tmp_path


def test_frames_of_a_folder_come_in_natural_order(folder):
    source = open_source(folder, fps=2)
    assert isinstance(source, FolderSource) and source.total == 3
    assert frame_numbers(np.concatenate([c.frames for c in chunks(source)])) == [0, 1, 2, 9, 10, 11]
    (chunk,) = chunks(open_source(folder, fps=2, start=1, duration=1))
    assert frame_numbers(chunk.frames) == [2, 9] and chunk.start == 1


def test_a_folder_that_is_not_all_of_one_kind_is_one_line(folder):
    refused(lambda: open_source(folder, start=3), "start", "less than 3 s")
    Image.new("RGB", (50, 50)).save(folder / "frame12.png")
    refused(lambda: chunks(open_source(folder)), "frame12.png", "50x50", "96x64")


@pytest.mark.parametrize(
    "broken, shown", [((9,), [0, 1, 2, 2, 10, 11]), ((0, 1), [2, 2, 2, 9, 10, 11]), ((11,), [0, 1, 2, 9, 10, 10])]
)
def test_a_picture_that_cannot_be_read_costs_itself_and_is_told(folder, broken, shown):
    """One of a thousand ended the watching: those after it keep their seconds."""
    for number in broken:
        path = folder / f"frame{number}.png"
        path.write_bytes(path.read_bytes()[:50])
    with warnings.catch_warnings(record=True) as caught:  # of what is told after the last chunk
        warnings.simplefilter("always")
        got = chunks(open_source(folder))
    assert frame_numbers(np.concatenate([c.frames for c in got])) == shown
    notes = [c.note for c in got if c.note] + [str(each.message) for each in caught]
    assert len(notes) == len(broken) and all("left out" in note for note in notes)
    assert all(f"frame{number}.png" in note for number, note in zip(broken, notes, strict=True))
    for path in folder.glob("*.png"):
        path.write_bytes(b"")
    refused(lambda: chunks(open_source(folder)), "frame0.png", "an empty file")


def test_digits_of_any_script_in_names_of_frames_are_no_error(tmp_path):
    for name in ("²5", "٣", "10", "x²", "2"):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    assert [path.stem for path in FolderSource(tmp_path, Timing()).files] == ["2", "٣", "10", "x²", "²5"]


def test_a_name_that_is_a_pattern_elsewhere_is_one_file(film, tmp_path, monkeypatch):
    """FFmpeg takes %d in the name of a picture for the numbers of others."""
    monkeypatch.chdir(tmp_path)
    for name, level in (("i%d.png", 8), ("i1.png", 200), ("a*.png", 8), ("a1.png", 200)):
        Image.new("RGB", (32, 32), (level,) * 3).save(name)
    for name in ("i%d.png", "a*.png"):
        assert frame_numbers(np.concatenate([c.frames for c in chunks(open_source(name))])) == [0, 0]
    for name in ("a%04d.mp4", "pipe:0", "concat:a|b", "data:video", "-x.mp4", "#1?.mp4", " 😀\n.mp4", os.fsdecode(b"\xe9.mp4")):
        os.symlink(film, name)
        with open_source(name) as source:
            assert len(chunks(source)) == 3 and source.name.encode()  # a terminal can print it


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {}\n"]
)
def test_a_playlist_opens_no_address_and_says_what_to_do(tmp_path, text):
    """A file that somebody sent would have the machine ask servers inside its network."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "v.mp4").write_text(text.format(f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"))
        refused(lambda: chunks(open_source(tmp_path / "v.mp4")), "a playlist", "the address of the playlist")
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


# --- cameras and connections ---


@contextlib.contextmanager
def serving(directory):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(directory))
    handler.log_message = lambda *_: None  # pyright: ignore
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:  # a test that fails must not keep pytest from ending
            server.shutdown()
            thread.join()


def test_a_file_over_http_is_watched_like_a_file(film, capfd):
    with serving(film.parent) as url:
        source = open_source(f"{url}/film.mp4", start=1)
        assert isinstance(source, StreamSource) and not source.live and source.total == 2
        got = chunks(source)
    assert [(c.start, c.end) for c in got] == [(1, 2), (2, 3)]
    assert frame_numbers(np.concatenate([c.frames for c in got])) == [10, 15, 20, 25]


def live(path, port: list[int], ready: threading.Event):
    """A camera: MPEG-TS without a length over a plain connection, which is then cut."""
    data = path.read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port.append(server.getsockname()[1])
        ready.set()
        connection, _ = server.accept()
        with connection:
            connection.sendall(data)


def test_a_live_source_ends_when_the_camera_goes_away_and_says_so(tmp_path):
    write_stamped(tmp_path / "v.ts", grey(26), [100 * k for k in range(26)], options={"g": "5", "tune": "zerolatency"})
    port: list[int] = []
    ready = threading.Event()
    camera = threading.Thread(target=live, args=(tmp_path / "v.ts", port, ready))
    camera.start()
    assert ready.wait(HANG)
    source = open_source(f"tcp://127.0.0.1:{port[0]}", fps=4, start=60)
    assert source.live and source.total is None
    got = chunks(source)
    camera.join()
    assert [c.start for c in got] == [60, 61, 62] and got[-1].note.startswith("ends 0.25 s early")
    assert frame_numbers(np.concatenate([c.frames for c in got])) == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 25]
    assert source.ending


def test_a_camera_or_a_host_that_is_not_there_is_one_line():
    refused(lambda: open_source("63"), "webcam 63", "a source that opens")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    refused(lambda: open_source(f"tcp://127.0.0.1:{port}"), f"tcp://127.0.0.1:{port}", "a source that opens")
    with pytest.raises(InputError):
        open_source("no-such-protocol://x")
