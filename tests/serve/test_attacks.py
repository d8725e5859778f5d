"""What clients can do to the live page before and after they are accepted; other viewers must not notice.

Deadlines are parameters of the tests, so that nothing depends on the speed of the machine.
"""

import errno
import io
import socket
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from benchmarks.serve_wire import PING, TEXT, frame, scan_bomb
from svlm_jax.errors import InputError
from svlm_jax.serve.http import connections
from svlm_jax.serve.http.access import Access
from svlm_jax.serve.http.connections import Connections, address_group, available_connections
from svlm_jax.serve.http.protocols import PARSE_BYTES
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.sources import images
from svlm_jax.serve.sources.images import Box, decode_image
from tests.support import HANG, wait_until
from tests.support.serving import ServerThread, compiled, film, server, serving, serving_script  # noqa: F401

BOX = Box(168, 112)
HALF = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: "
UPGRADE = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"


# images


def encoded(form: str, size: tuple[int, int] = (160, 120), mode: str = "RGB", **options) -> bytes:
    levels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(levels).convert(mode).save(out, form, **options)
    return out.getvalue()


def segment(marker: int, body: bytes = b"") -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def moving(form: str) -> bytes:
    more = [Image.new("RGB", (32, 32), (100 * n, 0, 0)) for n in range(3)]
    out = io.BytesIO()
    more[0].save(out, form, save_all=True, append_images=more[1:])
    return out.getvalue()


PNG_HEAD = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
HUGE_PNG = PNG_HEAD[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)) + chunk(b"IEND", b"")
LARGE_CANVAS = struct.pack("<4sI", b"VP8X", 10) + bytes(4) + b"\xff\x3f\x00\xff\x3f\x00"
EXIF = Image.Exif()
EXIF[0x010E] = "a picture " * 50
COSTLY = {
    "20,000 scans": (scan_bomb()[:240_000] + b"\xff\xd9", "more than 20 scans"),
    "21 scans": (scan_bomb(21, 64, 64), "more than 20 scans"),
    "arithmetic coding": (scan_bomb(1, 64, 64).replace(b"\xff\xc2", b"\xff\xc9"), "a rare kind"),
    "lossless": (scan_bomb(1, 64, 64).replace(b"\xff\xc2", b"\xff\xc3"), "a rare kind"),
    "two frames": (scan_bomb(1, 64, 64)[:-2] + scan_bomb(1, 9, 9)[2:], "a rare kind"),
    "many comments": (b"\xff\xd8" + segment(0xFE) * 50_000 + encoded("JPEG")[2:], "segments"),
    "nothing but fill": (b"\xff\xd8" + b"\xff" * 200_000, "no marker"),
    "nothing but restarts": (b"\xff\xd8" + b"\xff\xd0" * 100_000 + b"\xff\xd9", "segments"),
    "fill in a scan": (scan_bomb(1, 64, 64)[:-2] + b"\xff" * 200_000, "ends early"),
    "no height": (scan_bomb(1, 64, 0), "ends early|no marker|segment|0 px|x0"),
    "a scan without a frame": (b"\xff\xd8" + segment(0xDA, bytes(6)) * 9 + b"\xff\xd9", "before the frame"),
    "a length beyond the end": (b"\xff\xd8\xff\xdb\xff\xff\x00", "damaged"),
    "large JPEG": (encoded("JPEG", (2100, 1000), quality=1), "at most 2073600 px"),
    "large PNG": (HUGE_PNG, "30000x30000 px"),
    "many chunks": (PNG_HEAD + chunk(b"tEXt", b"") * 10_000, "chunks"),
    "moving PNG": (moving("PNG"), "an animation"),
    "moving WebP": (moving("WEBP"), "an animation"),
    "moving GIF": (moving("GIF"), "another format"),
    "large canvas": (encoded("WEBP")[:12] + LARGE_CANVAS + encoded("WEBP")[12:], "two sizes"),
    "empty WebP": (b"RIFF\x04\x00\x00\x00WEBP", "no image"),
    "nothing": (b"", "nothing"),
    "a JPEG's first bytes": (b"\xff\xd8", "ends early"),
    "a PNG's first bytes": (PNG_HEAD[:8], "ends early"),
}


@pytest.mark.parametrize(("data", "wrong"), COSTLY.values(), ids=COSTLY.keys())
def test_a_costly_image_is_refused_before_a_pixel_is_decoded(data, wrong, monkeypatch):
    """Else one image of 249 kB keeps a core busy for seconds and other viewers lose captions."""
    monkeypatch.setattr(images.Image, "open", lambda *_, **__: pytest.fail("it reached the decoder"))
    with pytest.raises(InputError, match=wrong):
        decode_image(data, Limits(), BOX)


ORDINARY = {
    "baseline": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "with restarts": ("JPEG", {"restart_marker_blocks": 1}),
    "grey": ("JPEG", {"mode": "L"}),
    "CMYK": ("JPEG", {"mode": "CMYK"}),
    "full colour, comment, EXIF": ("JPEG", {"subsampling": 0, "comment": b"c" * 500, "exif": EXIF}),
    "several pictures (MPO)": ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]}),
    "PNG": ("PNG", {}),
    "PNG, palette": ("PNG", {"mode": "P"}),
    "PNG, alpha": ("PNG", {"mode": "RGBA"}),
    "WebP": ("WEBP", {}),
    "WebP, lossless": ("WEBP", {"lossless": True}),
    "WebP, alpha, EXIF": ("WEBP", {"mode": "RGBA", "exif": EXIF}),
}


@pytest.mark.parametrize(("form", "options"), ORDINARY.values(), ids=ORDINARY.keys())
def test_an_ordinary_image_keeps_its_pixels(form, options):
    """Removing segments before decoding must not change a pixel, or cameras look wrong."""
    data = encoded(form, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, Limits(), Box(160, 120)), expected)


# connections


class Transport:
    """A transport without a connection."""

    def __init__(self, address: str = "192.0.2.1") -> None:
        self.address, self.closing, self.aborted = address, False, False

    def get_extra_info(self, name: str):
        return (self.address, 1)

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = self.aborted = True


class Now:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.second = 100.0

    def __call__(self) -> float:
        return self.second


def clocked_connections(**limits: int) -> tuple[Connections, Now]:
    clock = Now()
    return Connections(Limits(**{"request_timeout": 10, "response_timeout": 60, **limits}), Metrics(), timer=clock), clock


def test_a_connection_has_a_deadline_for_all_it_does():
    """Else half requests, a byte a second, and answers that nobody takes use up the open files of the server."""
    connections_, now = clocked_connections()
    half, requested, socket_, unread = (Transport() for _ in range(4))
    for transport in (half, requested, socket_, unread):
        assert connections_.add(transport)
    connections_.expect_response(requested)
    connections_.keep_open(socket_)
    connections_.expect_response(unread)
    unread.closing = True  # its response waits in the kernel
    now.second += 9.9
    connections_.close_overdue()
    assert not half.aborted
    now.second += 0.2
    connections_.close_overdue()
    assert half.aborted and not requested.aborted and connections_.metrics.value("svlm_refused_total", "timeout") == 1
    now.second += 10
    connections_.close_overdue()
    assert unread.aborted and not requested.aborted
    now.second += 1000
    connections_.close_overdue()
    assert requested.aborted and not socket_.aborted and list(connections_.open) == [socket_]
    connections_.remove(socket_)
    assert not connections_.open and not connections_.by_address


def test_half_open_connections_make_room_for_others():
    """Else whoever opens enough of them locks everybody behind the same proxy out."""
    connections_, _ = clocked_connections(max_viewers_per_address=1)
    max_connections = connections_.limits.max_connections_per_address
    crowd = [Transport() for _ in range(max_connections)]
    assert all(connections_.add(transport) for transport in crowd)
    connections_.keep_open(crowd[0])
    assert connections_.add(Transport()) and crowd[1].aborted and not crowd[0].aborted and not crowd[2].aborted
    for transport in crowd[2:]:
        connections_.keep_open(transport)
    last = next(connection for connection in connections_.open.values() if connection.is_idle)
    connections_.keep_open(last.transport)
    late = Transport()
    assert (
        not connections_.add(late) and late.aborted and connections_.metrics.value("svlm_refused_total", "max_connections") == 2
    )
    assert connections_.add(Transport("192.0.2.2"))


def test_a_full_server_closes_connections_of_the_largest_crowd():
    connections_, _ = clocked_connections()
    connections_.max_connections = 5
    crowd, single = [Transport("192.0.2.9") for _ in range(4)], Transport()
    for transport in (single, *crowd):
        connections_.add(transport)
    assert connections_.add(Transport("192.0.2.3")) and crowd[0].aborted and not single.aborted


@pytest.mark.parametrize(
    ("address", "other", "is_same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),  # a subscriber has all of a /64
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("testclient", "testclient", True),
    ],
)
def test_what_counts_as_one_address(address, other, is_same):
    assert (address_group(address) == address_group(other)) == is_same


def test_the_limit_of_open_files_is_raised_or_reported(monkeypatch):
    """Else the server accepts more than it has files for, and writes gigabytes about it."""
    import resource

    rlimit = {"limit": (256, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: rlimit["limit"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: rlimit.update(limit=limit))
    assert (
        available_connections(Limits(), used_files=50) == 400
        and rlimit["limit"][0] == 400 + 50 + connections.ACCEPT_BATCH + connections.RESERVED_FILES
    )
    rlimit["limit"] = (200, 200)
    assert available_connections(Limits(), used_files=50) == 200 - 50 - connections.ACCEPT_BATCH - connections.RESERVED_FILES
    rlimit["limit"] = (80, 80)
    with pytest.raises(InputError, match="ulimit -n"):
        available_connections(Limits(), used_files=50)


def test_a_server_with_few_open_files_says_how_many_connections_it_takes(monkeypatch, capsys):
    """Else nobody knows why the ninth viewer does not get in."""
    monkeypatch.setattr("svlm_jax.serve.server.available_connections", lambda limits: 9)
    with serving_script(lambda stream, chunk: ()) as server:
        assert server.server.site.connections.max_connections == 9
    assert "few open files: 9 connections at a time; raise ulimit -n" in capsys.readouterr().err


def test_sockets_of_a_subscriber_count_together():
    """Else whoever has a /64 of IPv6 addresses, as every home does, has no limit."""
    access = Access()
    assert access.add_socket("2001:db8::1", 2) and access.add_socket("2001:db8::2", 2)
    assert not access.add_socket("2001:db8::3", 2) and access.add_socket("2001:db8:0:1::1", 2)
    access.remove_socket("2001:db8::2")
    assert access.add_socket("2001:db8::3", 2)


def test_a_server_without_open_files_logs_one_line(server, capsys):
    for _ in range(1000):
        context = {
            "message": "socket.accept() out of system resource",
            "exception": OSError(errno.EMFILE, "Too many open files"),
        }
        server.server._on_loop_error(None, context)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["connections wait: Too many open files; raise ulimit -n"]


def opened(server: ServerThread, data: bytes, path: str = "") -> socket.socket:
    raw = socket.create_connection(server.address, timeout=HANG)
    raw.sendall(data)
    return raw


def upgraded(server: ServerThread) -> socket.socket:
    head = f"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    raw = opened(server, head.encode())
    assert raw.recv(12) == b"HTTP/1.1 101"
    return raw


def dropped(raw: socket.socket, data: bytes = b"") -> bool:
    """Whether the server closes the connection; meanwhile these bytes are sent every 0.1 s."""
    raw.settimeout(0.1)
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline:
        try:
            raw.sendall(data)
            if not raw.recv(65536):
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


def advance(server: ServerThread, seconds: float) -> None:
    """Set the clock by which connections are closed forward."""
    connections = server.server.site.connections
    ahead = connections.timer() - time.monotonic() + seconds
    connections.timer = lambda: time.monotonic() + ahead


def test_an_unfinished_request_is_dropped_and_others_are_served(compiled, film):
    limits = Limits(max_viewers_per_address=8)
    with serving(compiled, film, limits=limits) as server, server.viewer() as viewer:
        viewer.receive("session.created")
        upgrade = f"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}".encode()
        post = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
        idle = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        raws = [opened(server, (HALF, upgrade, b"")[n % 3]) for n in range(100)]
        slow = [(opened(server, start), drip) for start, drip in ((HALF, b"a"), (post, b"b"), (idle, b""), (idle, b"G"))]
        assert server.get("/health")[0] == 200 and server.metric("svlm_connections") <= limits.max_connections_per_address
        for raw, drip in slow:
            raw.sendall(drip)  # it takes nothing off the wait
        advance(server, limits.request_timeout)
        assert all(dropped(raw) for raw in raws) and all(dropped(raw, drip) for raw, drip in slow)
        assert server.metric('svlm_refused_total{reason="max_connections"}') > 0
        assert server.metric('svlm_refused_total{reason="timeout"}') > 0
        assert server.metric("svlm_viewers") == 1
        for raw in (*raws, *(raw for raw, _ in slow)):
            raw.close()


def test_a_socket_without_messages_and_one_without_pongs_are_closed(compiled, film):
    with serving(compiled, film, limits=Limits(first_message_timeout=0.3)) as server, server.viewer(()) as silent:
        assert silent.close_reason() == (1008, "no message for 0.3 s")
    with serving(compiled, film, limits=Limits(ping_interval=0.2)) as server:
        raw = upgraded(server)
        raw.sendall(frame(TEXT, b'{"type": "svlm.stream.leave"}'))
        assert dropped(raw)
        raw.close()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (frame(PING, b"x") * 2000, "control_frames"),
        (frame(10, b"x") * 2000, "control_frames"),  # pongs without a ping
        (frame(TEXT, b'"', last=False) + frame(0, last=False) * 2000, "fragments"),
    ],
    ids=["pings", "pongs", "a message without end"],
)
def test_costly_frames_without_content_close_a_socket(server, data, reason):
    name = f'svlm_refused_total{{reason="{reason}"}}'
    before = server.hub.metrics.value("svlm_refused_total", reason)
    raw = upgraded(server)
    raw.sendall(data)
    assert dropped(raw) and server.metric(name) == before + 1
    raw.close()


def test_messages_wait_in_the_client_not_in_the_server(server):
    """Else small messages become large objects, and memory grows with what anybody cares to send."""
    raw = upgraded(server)
    message = frame(TEXT, b'{"type": "svlm.stream.leave"}')
    raw.sendall(message * 2000)
    protocols = [protocol for protocol in list(server.server.uvicorn.server_state.connections) if hasattr(protocol, "unparsed")]
    wait_until(lambda: any(protocol.unparsed for protocol in protocols))
    assert all(protocol.queue.qsize() <= PARSE_BYTES // len(message) + 2 for protocol in protocols)
    raw.close()
