"""Live sources as they are in the world: clocks that restart and jump, damage, connections that end, and passwords."""

import gc
import itertools
import socket
import warnings

import numpy as np
import pytest

from svlm_jax.errors import InputError
from svlm_jax.media import stream_source
from svlm_jax.media.sources import open_source
from svlm_jax.media.stream_source import StreamSource
from tests.support.films import BLUE, GREEN, RED, av, camera, colours, film, plain, recording

DAY, WRAP = 86400.0, 2**33 / 90000


def watched(data, *, fps=2, each=0.1, head=b"", scheme="tcp", max_chunks=200, **more):
    """(chunks, source) of a live source; its packets come `each` seconds apart by our clock, at once by the wall's."""
    with camera(data, head) as port:
        source = open_source(f"{scheme}://127.0.0.1:{port}/live", fps=fps, **more)
        assert isinstance(source, StreamSource) and source.live
        ticks = itertools.count()
        source.clock = lambda: next(ticks) * each
        with source:
            return list(itertools.islice(source, max_chunks)), source


def notes_of(chunks):
    return [chunk.note for chunk in chunks if chunk.note]


@pytest.mark.parametrize(
    "starts, direction",
    [
        ((0, DAY), "forward by"),
        ((DAY, 0), "jump"),
        ((100, 60), "back by"),
        ((0, 76 * 60), "forward by"),
        ((83 * 60, 0), "jump"),
    ],
    ids=["a day on", "a day back", "back 40 s", "76 minutes on", "83 minutes back"],
)
def test_a_live_clock_that_jumps_goes_on_from_the_last_picture(tmp_path, starts, direction):
    """Else hours of a frozen picture are made up, or nothing is said until the clock comes by again."""
    data = recording(tmp_path, (RED, 4, starts[0]), (GREEN, 4, starts[1]))
    chunks, _ = watched(data)
    assert [chunk.start for chunk in chunks] == list(range(8))
    assert colours(np.concatenate([chunk.frames for chunk in chunks])) == "R" * 8 + "G" * 8
    (note,) = notes_of(chunks)
    assert direction in note and "what follows is joined" in note
    assert [chunk.number for chunk in chunks if chunk.note] == [4]


def test_a_live_clock_that_wraps_at_33_bits_is_no_jump(tmp_path):
    """A transport stream does so every 26.5 hours."""
    pictures = [plain(RED)] * 40 + [plain(GREEN)] * 40
    data = film(tmp_path / "v.ts", pictures, 10, form="mpegts", shift=WRAP - 4, options={"g": "5"}).read_bytes()
    chunks, _ = watched(data)
    assert colours(np.concatenate([chunk.frames for chunk in chunks])) == "R" * 8 + "G" * 8 and not notes_of(chunks)


def test_a_camera_that_restarts_twenty_times_is_watched_for_all_it_showed(tmp_path):
    data = recording(tmp_path, *((colour, 2, 0) for colour in (RED, GREEN) * 10))
    chunks, _ = watched(data)
    assert len(chunks) == 40 and len(notes_of(chunks)) == 19
    assert colours(np.concatenate([chunk.frames for chunk in chunks])) == ("RRRRGGGG") * 10


@pytest.mark.parametrize("gap, each", [(5, 0.1), (30, 30.0)], ids=["short", "confirmed by when it came"])
def test_a_camera_that_stalls_leaves_its_picture_standing(tmp_path, gap, each):
    """Time that passed is no jump: a chunk must not be named by an earlier second than the wall's."""
    data = recording(tmp_path, (RED, 2, 0), (GREEN, 2, 2 + gap))
    chunks, _ = watched(data, each=each)
    assert len(chunks) == 4 + gap and not notes_of(chunks)
    assert colours(np.concatenate([chunk.frames for chunk in chunks])) == "R" * 2 * (2 + gap) + "GGGG"


def test_a_jump_that_when_it_came_does_not_confirm_is_no_time(tmp_path):
    data = recording(tmp_path, (RED, 2, 0), (GREEN, 2, 32))
    chunks, _ = watched(data, each=0.1)
    assert len(chunks) == 4 and len(notes_of(chunks)) == 1


class Restamped:
    """A container whose packets have other stamps: FFmpeg writes none that stand still."""

    def __init__(self, container, stamp):
        self.container, self.stamp = container, stamp

    def __getattr__(self, name):
        return getattr(self.container, name)

    def demux(self, *streams):
        for number, packet in enumerate(self.container.demux(*streams)):
            if packet.dts is not None:
                packet.pts = packet.dts = self.stamp(number, packet.dts)
            yield packet


@pytest.mark.parametrize(
    "stamp",
    [lambda number, _: 9000, lambda number, _: 9000 + number, lambda number, _: 10**9 - 9000 * number],
    ids=["constant", "a tick a picture", "backwards"],
)
def test_a_camera_whose_clock_was_never_set_goes_by_when_its_pictures_come(tmp_path, stamp):
    """All of them are at one second by their stamps: nothing would be watched, for ever and without a word."""
    pictures = [plain(RED)] * 150 + [plain(GREEN)] * 100
    data = film(tmp_path / "v.ts", pictures, 10, form="mpegts", options={"g": "50", "bf": "0"}).read_bytes()
    with camera(data) as port, open_source(f"tcp://127.0.0.1:{port}/live") as source:
        assert isinstance(source, StreamSource)
        ticks = itertools.count()
        source.clock = lambda: next(ticks) * 0.1
        setattr(source.reader, "container", Restamped(source.container, stamp))  # noqa: B010 (of another type)
        chunks = list(source)
    assert 25 <= len(chunks) <= 26 and [chunk.start for chunk in chunks] == list(range(len(chunks)))
    assert 18 <= colours(np.concatenate([chunk.frames for chunk in chunks])).count("G") <= 22
    assert any("its time stamps stand still" in note for note in notes_of(chunks))


def test_a_picture_that_stops_while_the_sound_goes_on_is_lost(tmp_path):
    """The connection lives, so no timeout of it would ever say that nobody sees anything."""
    with av.open(str(tmp_path / "v.ts"), "w", format="mpegts") as container:
        video = container.add_stream("libx264", rate=10, options={"g": "5", "bf": "0"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=8000, layout="mono")
        for _ in range(30):
            container.mux(video.encode(av.VideoFrame.from_ndarray(plain(RED), format="rgb24")))
        container.mux(video.encode())
        for start in range(0, 40 * 8000, 1024):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 8000, start
            container.mux(audio.encode(silence))
    chunks, source = watched((tmp_path / "v.ts").read_bytes())
    assert colours(np.concatenate([chunk.frames for chunk in chunks])) == "R" * 6
    assert source.ending == "no picture came for 10 s, though other data did"


def test_live_damage_is_left_out_and_told_once(tmp_path):
    """A camera over a bad radio link is watched on, and its viewers are not told of every packet."""
    data = bytearray(recording(tmp_path, (RED, 4, 0), (GREEN, 4, 4)))
    for offset in range(len(data) // 3, len(data) // 2, 188):
        data[offset + 4 : offset + 188] = bytes(184)  # the payload alone
    chunks, source = watched(bytes(data))
    assert 7 <= len(chunks) <= 8 and colours(chunks[-1].frames) == "GG"
    assert source.ending == "the source has ended"


def test_damage_alone_is_given_up_after_a_while(tmp_path):
    """Packets of which none can be decoded must not look like a quiet scene for ever."""
    with camera(recording(tmp_path, (RED, 30, 0))) as port, open_source(f"tcp://127.0.0.1:{port}/live") as source:
        assert isinstance(source, StreamSource)
        ticks, reader = itertools.count(), source.reader
        source.clock = lambda: next(ticks) / 10

        class Broken:
            def __init__(self, codec):
                self.codec, self.count = codec, 0

            def decode(self, packet):
                self.count += packet is not None
                if self.count > 50:
                    raise av.error.InvalidDataError(1, "broken")
                return self.codec.decode(packet)

        reader.codec = Broken(reader.codec)
        with pytest.warns(UserWarning, match="damaged packets are left out"):
            chunks = list(source)
    assert len(chunks) == 5 and source.ending == "nothing could be decoded for 10 s"


def test_an_http_source_that_simply_ends_has_ended_and_loses_no_picture(tmp_path):
    """`broke off: Input/output error` is no way to say that a programme is over."""
    pictures = [plain(RED)] * 28 + [plain(GREEN)] * 2
    data = film(tmp_path / "v.ts", pictures, 10, form="mpegts", options={"g": "5", "bf": "2"}).read_bytes()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\n\r\n"
    chunks, source = watched(data, fps=10, head=head, scheme="http")
    assert source.ending == "the source has ended"
    assert len(chunks) == 3 and colours(chunks[-1].frames) == "R" * 8 + "GG" and not notes_of(chunks)


def test_a_recording_that_a_server_cuts_short_is_told_and_is_no_camera(tmp_path):
    """A transport stream has no length of its own, but its file has: none of it need be dropped, and the rest is missing."""
    data = recording(tmp_path, (RED, 4, 0))
    head = f"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\nContent-Length: {2 * len(data)}\r\n\r\n".encode()
    with camera(data, head) as port, open_source(f"http://127.0.0.1:{port}/v.ts") as source:
        chunks = list(source)
    assert len(chunks) == 4 and not source.live and source.total is None
    assert source.ending == "the source broke off: Input/output error"


def test_a_camera_that_states_a_length_without_end_is_a_camera(tmp_path):
    head = f"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\nContent-Length: {2**31 - 1}\r\n\r\n".encode()
    chunks, source = watched(recording(tmp_path, (RED, 2, 0)), head=head, scheme="http")
    assert len(chunks) == 2 and source.live


def test_a_host_that_nobody_knows_is_said_so(monkeypatch):
    """`Input/output error` is what FFmpeg says of a mistyped name."""

    def unknown(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(InputError, match="got a host that is not known"):
        open_source("http://camera.invalid/live?token=s3cret")


def test_a_connection_that_is_cut_in_mid_packet_gives_the_pictures_before(tmp_path):
    data = recording(tmp_path, (RED, 3, 0))
    chunks, _ = watched(data[: len(data) - 188 - 90], fps=10)
    assert sum(len(chunk.frames) for chunk in chunks) == 30 and set(colours(chunks[-1].frames)) == {"R"}


def test_a_camera_that_sends_pictures_without_time_stamps_goes_by_when_they_come(tmp_path):
    """MJPEG: FFmpeg makes up 25 a second, and a camera of 5 would be watched five times too slowly."""
    data = film(
        tmp_path / "v.mjpeg", [plain(RED)] * 15 + [plain(GREEN)] * 15, 25, "mjpeg", "yuvj420p", form="mjpeg"
    ).read_bytes()
    chunks, _ = watched(data, each=0.2)
    assert len(chunks) == 6 and "".join(colours(chunk.frames) for chunk in chunks) == "R" * 6 + "G" * 6


SECRETS = [
    "rtsp://viewer:s3cret@127.0.0.1:9/cam",
    "rtsp://viewer:s3c/s3cret@127.0.0.1:9/cam",
    "rtsp://viewer:a@s3cret@127.0.0.1:9/cam",
    "http://127.0.0.1:9/live.m3u8?token=s3cret",
    "http://127.0.0.1:9/live.m3u8?channel=1&X-Amz-Signature=s3cret#t=s3cret",
    "http://127.0.0.1:9/live.m3u8?s3cret",
    "rtsp://127.0.0.1:9/user=admin&password=s3cret&channel=1.sdp",
    "rtmp://127.0.0.1:9/app;pw=s3cret",
    "nosuch://viewer:s3cret@127.0.0.1:9/cam",
    "rtsp:/viewer:s3cret@127.0.0.1:9/cam",
    "viewer:s3cret@127.0.0.1/cam",
]


@pytest.mark.parametrize("address", SECRETS)
def test_no_message_holds_the_password_of_an_address(address):
    """Lines of stderr go into logs and bug reports."""
    with pytest.raises(InputError) as error:
        open_source(address)
    message = str(error.value)
    assert "s3cret" not in message and "***" in message and "\n" not in message and len(message) < 300


def test_neither_name_nor_ending_nor_notes_hold_the_password(tmp_path):
    data = recording(tmp_path, (RED, 2, 0), (BLUE, 2, 0))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\n\r\n"
    with camera(data, head) as port, open_source(f"http://viewer:s3cret@127.0.0.1:{port}/v?key=s3cret") as source:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            chunks = list(source)
        texts = [source.name, source.ending, *notes_of(chunks), *(str(warning.message) for warning in caught)]
    assert len(chunks) == 4 and source.ending and not any("s3cret" in warning for warning in texts)
    assert source.name == f"http://***@127.0.0.1:{port}/v?key=***"


@pytest.mark.parametrize("scheme", ["rtsp", "http", "tcp"])
def test_a_host_that_never_answers_is_said_so(monkeypatch, scheme):
    """`Immediate exit requested` says nothing to a user."""
    monkeypatch.setattr(stream_source, "OPEN_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(InputError, match=r"no answer in 0\.3 s"):
        open_source(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/cam")


def test_the_pictures_of_a_camera_are_free_when_they_have_been_looked_at(tmp_path):
    """PyAV's frame refers to itself once its side data was asked for: eight cameras of 1080p would take 5 GB between two visits
    of the collector."""

    def frames() -> int:
        return sum(isinstance(item, av.VideoFrame) for item in gc.get_objects())

    data = recording(tmp_path, (RED, 6, 0))
    with camera(data) as port, open_source(f"tcp://127.0.0.1:{port}/live", fps=10) as source:
        gc.collect()
        gc.disable()
        try:
            before, count = frames(), len(list(source.frames()))
            assert count == 60 and frames() - before < 5
        finally:
            gc.enable()
