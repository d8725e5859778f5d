"""What is delivered of files, folders, cameras and streams, and what is said when something is odd about them."""

import http.server
import itertools
import os
import threading
import time
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from svlm_jax.data import live
from svlm_jax.data.live import Feed
from svlm_jax.data.source import Clock, Source, open_source
from svlm_jax.data.video import write_video
from tests.test_video import grey, refused, shown, write_stamped, write_tone

av = pytest.importorskip("av")

MANY = 20  # chunks; no clip here has as many, so a clock that went wrong fails at once


def chunks(opened):
    with opened:
        found = list(itertools.islice(opened, MANY))
    assert len(found) < MANY
    return found


def levels(found):
    return [shown(chunk.frames) for chunk in found]


def clip(path, frames, stamps):
    """A live clip: keyframes often, no frame held back; as .ts it has no header in front."""
    return write_stamped(path, frames, stamps, options={"g": "5", "tune": "zerolatency"})


def every(count, milliseconds=100, start=0):
    return [start + milliseconds * k for k in range(count)]


# --- files ---


def test_a_file_comes_in_chunks_of_its_clock(tmp_path):
    write_video(tmp_path / "v.mp4", grey(30), 10)
    opened = open_source(tmp_path / "v.mp4", fps=4)
    assert (opened.live, opened.total, opened.height, opened.width) == (False, 3, 64, 96)
    assert opened.description == f"{tmp_path / 'v.mp4'}: 96x64 px, 10 fps, h264, 3.0 s"
    found = chunks(opened)
    assert [(c.number, c.start, c.end, c.note) for c in found] == [(0, 0, 1, ""), (1, 1, 2, ""), (2, 2, 3, "")]
    assert levels(found) == [[0, 2, 5, 7], [10, 12, 15, 17], [20, 22, 25, 27]]
    assert found[0].frames.dtype == np.uint8 and opened.ending == "v.mp4 ends at 3.0 s"


def test_a_start_counts_in_the_clock_but_not_in_the_numbers(tmp_path):
    write_video(tmp_path / "v.mp4", grey(30), 10)
    opened = open_source(tmp_path / "v.mp4", start=1.5, duration=1)
    assert opened.total == 1
    (chunk,) = chunks(opened)
    assert chunk[:3] == (0, 1.5, 2.5) and shown(chunk.frames) == [15, 20] and chunk.note == ""
    assert opened.ending == "the 1 s asked for are over"


def test_a_chunk_may_last_longer_than_a_second(tmp_path):
    write_video(tmp_path / "v.mp4", grey(30), 10)
    found = chunks(open_source(tmp_path / "v.mp4", fps=1, chunk_seconds=2))
    assert [(c.start, c.end) for c in found] == [(0, 2), (2, 4)] and levels(found) == [[0, 10], [20, 20]]


@pytest.mark.parametrize("count, want, times", [(26, [20, 22, 25, 25], "once"), (21, [20, 20, 20, 20], "3 times")])
def test_a_video_that_ends_inside_a_chunk_repeats_its_last_frame_and_says_so(tmp_path, count, want, times):
    write_video(tmp_path / "v.mp4", grey(count), 10)
    opened = open_source(tmp_path / "v.mp4", fps=4)
    found = chunks(opened)
    assert levels(found)[2] == want and len(found) == opened.total == 3
    assert found[2].note == f"v.mp4 ends at {count / 10:.1f} s: the last frame is repeated {times}"
    assert found[2].end == 3.0 and found[0].note == found[1].note == ""


def test_a_video_of_one_frame_is_one_chunk(tmp_path):
    write_video(tmp_path / "v.mp4", grey(1), 10)
    (chunk,) = chunks(open_source(tmp_path / "v.mp4"))
    assert shown(chunk.frames) == [0, 0] and "the last frame is repeated once" in chunk.note


def test_a_variable_frame_rate_goes_by_the_time_stamps(tmp_path):
    stamps = [0, 40, 80, 900, 1600, 1640, 1680, 2900, 3000]
    path = write_stamped(tmp_path / "v.mkv", grey(9), stamps)
    assert levels(chunks(open_source(path, duration=3))) == [[0, 2], [3, 3], [6, 6]]


@pytest.mark.parametrize("height, width", [(96, 64), (50, 46), (2160, 3840)], ids=["portrait", "odd", "4K"])
def test_any_size_comes_as_it_is(tmp_path, height, width):
    write_video(tmp_path / "v.mp4", grey(2, height, width), 2)
    opened = open_source(tmp_path / "v.mp4")
    (chunk,) = chunks(opened)
    assert chunk.frames.shape == (2, height, width, 3) and (opened.height, opened.width) == (height, width)


def test_rotated_video_is_upright_in_size_and_picture(tmp_path):
    corner = np.zeros((2, 64, 96, 3), np.uint8)
    corner[:, :32, :48] = 255
    path = write_stamped(tmp_path / "v.mp4", corner, [0, 500], rotation=90)
    opened = open_source(path, duration=1)
    (chunk,) = chunks(opened)
    assert (opened.height, opened.width) == (96, 64)
    assert np.abs(chunk.frames[0].astype(int) - np.rot90(corner[0])).mean() < 5


def test_a_file_that_breaks_off_gives_what_is_before_and_says_why(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), dtype=np.uint8), 10)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)
    opened = open_source(path, fps=4)
    with pytest.warns(UserWarning, match="decoding stopped at .* s: InvalidDataError") as caught:
        found = chunks(opened)
    assert len(caught) == 1 and 1 <= len(found) < opened.total == 4
    assert "v.mp4 breaks off before" in opened.ending and "of 4.0 s (InvalidDataError (" in opened.ending
    assert all(len(chunk.frames) == 4 for chunk in found)
    if found[-1].note:
        assert found[-1].note.startswith(opened.ending)


def test_a_file_shorter_than_its_header_says_both(tmp_path):
    path = tmp_path / "v.mkv"
    write_stamped(path, np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), dtype=np.uint8), every(40), rate=10)
    path.write_bytes(path.read_bytes()[: os.path.getsize(path) // 2])
    opened = open_source(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libav may or may not call the cut an error
        found = chunks(opened)
    assert 0 < len(found) < opened.total
    assert any(word in opened.ending for word in ("breaks off before", "though its header says 4"))


def test_bad_input_is_refused_in_one_line_when_it_is_opened(tmp_path):
    write_video(tmp_path / "v.mp4", grey(4), 2)
    (tmp_path / "text.mp4").write_bytes(b"this is no video" * 100)
    (tmp_path / "empty").mkdir()
    refused(lambda: open_source(tmp_path / "none.mp4"), "none.mp4", "no such file")
    refused(lambda: open_source(tmp_path / "text.mp4"), "text.mp4", "InvalidDataError")
    refused(lambda: open_source(write_tone(tmp_path / "a.wav")), "a.wav", "no video stream", "audio only")
    refused(lambda: open_source(tmp_path / "v.mp4", start=9), "start: got 9 s", "less than 2 s")
    refused(lambda: open_source(tmp_path / "empty"), "empty", "0 files, none of them a picture", ".png")


@pytest.mark.parametrize("fps, seconds", [(1, 1), (3, 1), (2, 0.25), (2.5, 1), (2, 0), (2, float("nan")), (2, float("inf"))])
def test_chunks_without_an_even_number_of_frames_are_refused(tmp_path, fps, seconds):
    write_video(tmp_path / "v.mp4", grey(4), 2)
    refused(lambda: open_source(tmp_path / "v.mp4", fps=fps, chunk_seconds=seconds), "an even number", "2, 4 and 8 fps")


def test_wrong_clocks_are_refused(tmp_path):
    refused(lambda: open_source(tmp_path, fps=0), "fps: got 0", "above 0")
    refused(lambda: open_source(tmp_path, start=-1), "start: got -1", "0 or more")
    refused(lambda: open_source(tmp_path, duration=0), "duration: got 0", "above 0")


# --- folders ---


def folder(path, numbers, height=64, width=96):
    path.mkdir(exist_ok=True)
    for number in numbers:
        Image.fromarray(grey(30, height, width)[number]).save(path / f"frame{number}.png")
    return path


def test_a_folder_is_read_in_natural_order(tmp_path):
    path = folder(tmp_path / "f", [0, 1, 2, 10, 11, 9])
    (path / "notes.txt").write_text("no picture")
    (path / ".hidden.png").write_text("no picture either")
    opened = open_source(path)
    assert opened.total == 3 and "6 pictures at 2 fps, 1 other files left out, 3.0 s" in opened.description
    found = chunks(opened)
    assert levels(found) == [[0, 1], [2, 9], [10, 11]] and [c.note for c in found] == ["", "", ""]


def test_a_folder_has_a_start_a_duration_and_an_end(tmp_path):
    path = folder(tmp_path / "f", range(10))
    opened = open_source(path, fps=4, start=0.5, duration=1)
    assert opened.total == 1 and levels(chunks(opened)) == [[2, 3, 4, 5]]
    (first, last) = chunks(open_source(path, fps=4, start=0.75))
    assert shown(last.frames) == [7, 8, 9, 9] and last.note == "f ends at 2.5 s: the last frame is repeated once"
    assert (first.start, last.end) == (0.75, 2.75)
    refused(lambda: open_source(path, start=5), "start: got 5 s", "less than 5 s")


def test_a_picture_of_another_size_is_scaled_and_that_is_said(tmp_path):
    path = folder(tmp_path / "f", [0, 1, 2])
    folder(path, [3], height=96, width=64)
    first, second = chunks(open_source(path))
    assert second.frames.shape == (2, 64, 96, 3) and shown(second.frames) == [2, 3]
    assert second.note == "pictures of 64x96 px are scaled to the first one's 96x64 px" and not first.note


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    path = folder(tmp_path / "f", [0, 1, 2, 3])
    (path / "frame2.png").write_bytes(b"no picture")
    with open_source(path) as opened:
        found = iter(opened)
        assert shown(next(found).frames) == [0, 1]
        refused(lambda: next(found), "frame2.png", "a readable image")


# --- cameras ---


def test_a_missing_camera_is_one_line_that_names_those_there():
    for name in (63, "63", "/dev/video63"):
        refused(lambda name=name: open_source(name), "camera 63: got ", "a camera that opens (here: ", "plugged in")


@pytest.mark.parametrize(
    "platform, index, want",
    [
        ("linux", 2, ("/dev/video2", "v4l2", {})),
        ("darwin", 0, ("0", "avfoundation", {"framerate": "30"})),
        ("win32", 1, ("video=Second", "dshow", {})),
    ],
)
def test_each_system_has_its_camera_driver(monkeypatch, platform, index, want):
    asked = []

    def opening(address, **options):
        asked.append((address, options["format"], options["options"]))
        raise av.error.OSError(16, "Device or resource busy")

    named = [("Sound", "audio"), ("First", "video"), ("Second", "video")]
    devices = [SimpleNamespace(name=name, media_types=[kind]) for name, kind in named]
    monkeypatch.setattr(live, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(av, "open", opening)
    monkeypatch.setattr(av, "enumerate_input_devices", lambda driver: devices, raising=False)
    refused(lambda: open_source(index), f"camera {index}", "Device or resource busy")
    assert asked == [want]
    monkeypatch.setattr(live, "sys", SimpleNamespace(platform="plan9"))
    refused(lambda: open_source(0), "the system plan9", "linux or darwin or win32")


class Shaken:
    """A container whose packets pass through our hands on their way, and which knows no length."""

    duration = None

    def __init__(self, path, hands):
        self.inner, self.hands, self.closed = av.open(str(path)), hands, False
        self.packets = hands(self.inner.demux())
        self.streams = self.inner.streams

    def demux(self):
        yield from self.packets

    def close(self):
        self.closed = True
        self.inner.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@contextmanager
def shaken(path, hands, fps=2.0, **options):
    container = Shaken(path, hands)
    feed = Feed(container, "camera", **options)
    with Source(feed.samples(fps), Clock(fps, start=feed.start), "camera", feed=feed) as opened:
        yield opened
    assert container.closed


def test_a_camera_gives_chunks_by_its_time_stamps(tmp_path):
    with shaken(clip(tmp_path / "v.ts", grey(20), every(20, start=5000)), lambda packets: packets) as opened:
        assert opened.live and opened.total is None and opened.description == "camera: 96x64 px, live"
        found = list(opened)
    assert levels(found) == [[0, 5], [10, 15]] and [c.note for c in found] == ["", ""]
    assert opened.ending == "camera ended at 1.9 s and is not opened again"


def test_a_camera_that_disappears_is_said(tmp_path):
    def unplugged(packets):
        yield from itertools.islice(packets, 16)
        raise av.error.OSError(19, "No such device")

    with shaken(clip(tmp_path / "v.ts", grey(20), every(20)), unplugged) as opened:
        found = list(opened)
    assert levels(found) == [[0, 5], [10, 15]]
    assert opened.ending == "camera broke off (OSError (No such device)) at 1.5 s and is not opened again"
    with shaken(tmp_path / "v.ts", unplugged, fps=4.0) as opened:
        found = list(opened)
    assert levels(found)[1] == [10, 12, 15, 15] and found[1].note == f"{opened.ending}: the last frame is repeated once"


def test_the_clock_of_a_camera_begins_where_idleness_ends_and_may_go_on_from_a_restart(tmp_path):
    taken = []

    def counted(packets):
        for packet in packets:
            taken.append(packet)
            if len(taken) == 13:
                opened.idle = False
            yield packet

    with shaken(clip(tmp_path / "v.ts", grey(30), every(30)), counted, start=60.0) as opened:
        opened.idle = True
        found = list(opened)
    assert [c[:3] for c in found] == [(0, 60, 61), (1, 61, 62)] and found[0].note == ""
    first = shown(found[0].frames)[0]
    assert 10 <= first <= 13 and levels(found) == [[first, first + 5], [first + 10, first + 15]]


def test_a_camera_without_a_frame_yet_is_asked_again(tmp_path):
    path = clip(tmp_path / "v.ts", grey(20), every(20))

    class Shy(Shaken):
        def demux(self):
            for number, packet in enumerate(self.packets):
                yield packet
                if number % 4 == 0:
                    raise av.error.BlockingIOError(11, "Resource temporarily unavailable")

    feed = Feed(Shy(path, lambda packets: packets), "camera")
    with Source(feed.samples(2.0), Clock(), "camera", feed=feed) as opened:
        assert levels(list(opened)) == [[0, 5], [10, 15]]


def test_a_camera_that_never_has_a_frame_is_given_up(tmp_path, monkeypatch):
    class Mute(Shaken):
        def demux(self):
            raise av.error.BlockingIOError(11, "Resource temporarily unavailable")
            yield

    monkeypatch.setattr(live, "TIMEOUT", 0.1)
    container = Mute(clip(tmp_path / "v.ts", grey(20), every(20)), lambda packets: packets)
    refused(lambda: Feed(container, "camera 0"), "camera 0: got no picture", "gave no picture for 0.1 s")


def test_damaged_packets_are_left_out_and_counted(tmp_path):
    def damaged(packets):
        for number, packet in enumerate(packets):
            if 11 <= number < 14:
                broken = av.Packet(b"\0\0\0\1\x65" + bytes(40))
                broken.stream, broken.pts, broken.time_base = packet.stream, packet.pts, packet.time_base
                yield broken
            else:
                yield packet

    with shaken(clip(tmp_path / "v.ts", grey(30), every(30)), damaged) as opened:
        found = list(opened)
    assert len(found) == 3 and levels(found)[0] == [0, 5] and levels(found)[2] == [20, 25]
    assert [c.note for c in found] == ["", "3 damaged packets were left out", ""]


def test_a_picture_that_stands_still_is_said(tmp_path):
    stamps = [*every(6), *every(19, start=4100)]
    with shaken(clip(tmp_path / "v.ts", grey(25), stamps), lambda packets: packets) as opened:
        found = list(opened)
    assert levels(found)[:5] == [[0, 5], [5, 5], [5, 5], [5, 5], [5, 10]]
    note = "the picture stood still from 0.5 s to 4.1 s because no frame came"
    assert [c.note for c in found] == [note] * 5 + [""]


@pytest.mark.parametrize("later, said", [(0, "-1.9 s"), (7_200_000, "+7198.1 s")], ids=["begin again", "leap"])
def test_time_stamps_that_jump_do_not_move_the_clock(tmp_path, later, said):
    (tmp_path / "v.ts").write_bytes(
        clip(tmp_path / "a.ts", grey(20), every(20)).read_bytes()
        + clip(tmp_path / "b.ts", grey(20), every(20, start=later)).read_bytes()
    )
    with shaken(tmp_path / "v.ts", lambda packets: packets) as opened:
        found = list(itertools.islice(opened, MANY))
    assert levels(found) == [[0, 5], [10, 15], [0, 5], [10, 15]] and [c.start for c in found] == [0, 1, 2, 3]
    assert [bool(c.note) for c in found] == [False, False, True, False]
    assert found[2].note == f"the time stamps jumped by {said}, which is left out of the clock"


def test_without_time_stamps_frames_count_from_their_arrival(tmp_path, monkeypatch):
    def unstamped(packets):
        for packet in packets:
            packet.pts = packet.dts = None
            now[0] += 0.25
            yield packet

    now = [0.0]
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    with shaken(clip(tmp_path / "v.ts", grey(10), every(10)), unstamped) as opened:
        assert levels(list(opened))[:2] == [[0, 2], [4, 6]]


def test_sound_that_goes_on_does_not_hide_that_the_pictures_stopped(tmp_path, monkeypatch):
    now = [0.0]

    def blind(packets):
        yield from itertools.islice(packets, 11)
        for _ in range(1000):
            now[0] += 0.1
            yield SimpleNamespace(stream=SimpleNamespace(index=7))
        raise AssertionError("still listening")

    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    with shaken(clip(tmp_path / "v.ts", grey(20), every(20)), blind) as opened:
        found = list(opened)
    assert levels(found)[0] == [0, 5] and "camera gave no picture for 10 s" in opened.ending


def test_a_change_of_size_in_a_stream_is_scaled_and_said(tmp_path):
    (tmp_path / "v.ts").write_bytes(
        clip(tmp_path / "a.ts", grey(10), every(10)).read_bytes()
        + clip(tmp_path / "b.ts", grey(10, 96, 128), every(10, start=1000)).read_bytes()
    )
    with shaken(tmp_path / "v.ts", lambda packets: packets) as opened:
        found = list(opened)
    assert levels(found) == [[0, 5], [0, 5]] and found[1].frames.shape == (2, 64, 96, 3)
    assert found[1].note == "pictures of 128x96 px are scaled to the first one's 96x64 px"


# --- the network ---


@pytest.fixture
def serve():
    """serve(pieces, length=...) -> URL that answers with them; an Event among the pieces is waited for."""
    servers = []

    def start(*pieces, length=None):
        class Answer(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                if self.path.startswith("/none"):
                    return self.send_error(404)
                self.send_response(200)
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                for piece in pieces:
                    if isinstance(piece, threading.Event):
                        piece.wait(30)
                    else:
                        self.wfile.write(piece)
                        self.wfile.flush()

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        servers.append((server, thread))
        return f"http://viewer:secret@127.0.0.1:{server.server_port}/cam?key=secret"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_stream_without_a_length_is_live_and_its_password_is_not_shown(tmp_path, serve):
    data = clip(tmp_path / "v.ts", grey(28), every(28)).read_bytes()
    opened = open_source(serve(data[:9400], data[9400:]), start=30)
    assert opened.live and opened.total is None
    found = chunks(opened)
    assert levels(found) == [[0, 5], [10, 15], [20, 25]] and [c.start for c in found] == [30, 31, 32]
    assert "and is not opened again" in opened.ending
    for text in (opened.name, opened.description, opened.ending, *(chunk.note for chunk in found)):
        assert "secret" not in text and "viewer" not in text
    assert opened.description.startswith("http://127.0.0.1:") and opened.description.endswith(
        "/cam: 96x64 px, 10 fps, h264, live"
    )


def test_a_stream_with_a_length_is_played_like_a_file(tmp_path, serve):
    data = write_stamped(tmp_path / "v.mkv", grey(30), every(30), rate=10).read_bytes()
    opened = open_source(serve(data, length=len(data)))
    assert not opened.live and opened.total == 3
    opened.idle = True  # only live sources throw frames away
    assert levels(chunks(opened)) == [[0, 5], [10, 15], [20, 25]]
    assert opened.ending.endswith("ended at 3.9 s") or opened.ending.endswith("ended at 2.9 s")


def test_a_network_that_falls_silent_ends_the_stream_with_a_reason(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(live, "TIMEOUT", 0.3)
    data, silence = clip(tmp_path / "v.ts", grey(28), every(28)).read_bytes(), threading.Event()
    opened = open_source(serve(data[: len(data) // 2 // 188 * 188], silence))
    found = chunks(opened)
    silence.set()
    assert levels(found)[0] == [0, 5] and "broke off (nothing came for 0.3 s)" in opened.ending


def test_a_server_that_sends_all_at_once_is_read_at_the_pace_of_the_clock(tmp_path, serve, monkeypatch):
    naps = []
    clock = SimpleNamespace(monotonic=lambda: sum(naps), sleep=naps.append)
    monkeypatch.setattr(live, "time", clock)
    monkeypatch.setattr(live, "LEAD", 1.0)
    found = chunks(open_source(serve(clip(tmp_path / "v.ts", grey(28), every(28)).read_bytes())))
    assert len(found) == 3 and sum(naps) == pytest.approx(2.7 - 1.0, abs=2 * live.NAP)


def test_what_cannot_be_opened_is_refused_in_one_line(tmp_path, serve):
    url = serve(b"this is no video" * 100, length=1600)
    refused(lambda: open_source(url), "/cam: got InvalidDataError", "a stream that opens")
    refused(lambda: open_source(url.replace("/cam", "/none")), "/none: got HTTPNotFoundError (Server returned 404 Not Found)")
    refused(lambda: open_source("http://u:secret@127.0.0.1:9/x"), "http://127.0.0.1:9/x: got ConnectionRefusedError")
    refused(lambda: open_source("rtsp://127.0.0.1:9/x"), "rtsp://127.0.0.1:9/x: got ConnectionRefusedError")
    refused(lambda: open_source("nonsense://x"), "nonsense://x: got ProtocolNotFoundError")
    sound = write_tone(tmp_path / "a.wav").read_bytes()
    refused(lambda: open_source(serve(sound, length=len(sound))), "no video stream", "audio only")


def test_a_start_in_a_stream_that_cannot_be_sought_is_decoded_or_refused(tmp_path, serve):
    data = write_stamped(tmp_path / "v.mkv", grey(30), every(30), rate=10).read_bytes()
    refused(lambda: open_source(serve(data, length=len(data)), start=9), "start: got 9 s")


def test_a_named_pipe_is_a_live_stream(tmp_path):
    data, pipe = clip(tmp_path / "v.ts", grey(20), every(20)).read_bytes(), tmp_path / "pipe.ts"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(data,))
    writer.start()
    opened = open_source(pipe)
    assert opened.live and levels(chunks(opened)) == [[0, 5], [10, 15]]
    writer.join()


def test_a_closed_source_gives_nothing_more_and_holds_no_file(tmp_path):
    write_video(tmp_path / "v.mp4", grey(30), 10)
    opened = open_source(tmp_path / "v.mp4")
    assert next(iter(opened)).number == 0
    opened.close()
    assert not list(opened)
    held = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert str(tmp_path / "v.mp4") not in held
