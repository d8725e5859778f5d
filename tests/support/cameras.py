"""A camera on the network that fails in every way: it answers each connection with the next thing on its list.

HTTP with a transport stream and no length, as cheap encoders send it; or RTSP with the same stream in RTP, over TCP or UDP.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence

from tests.support.films import slowly

HTTP_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\n\r\n"
SDP = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track1\r\n"
TS_PACKET, PACKETS_EACH = 188, 7  # of an RTP packet

REFUSE = None  # an answer: the connection is closed at once
STALL = b"stall"  # an answer's last part: the connection stays open, and nothing more comes


class Camera:
    """url: of the stream. num_connections: that it has answered."""

    def __init__(self, answers: Sequence[bytes | None], scheme: str, udp: bool, seconds: float) -> None:
        self.answers, self.scheme, self.udp, self.seconds = answers, scheme, udp, seconds
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"{scheme}://viewer:s3cret@127.0.0.1:{self.server.getsockname()[1]}/live"
        self.num_connections = 0
        self.closing = threading.Event()
        self.stalled: list[socket.socket] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        for answer in self.answers:
            try:
                connection, _ = self.server.accept()
            except OSError:  # closed
                return
            self.num_connections += 1
            with contextlib.suppress(OSError, ValueError):
                self._answer(connection, answer)
            if answer is None or not answer.endswith(STALL):
                connection.close()
        self.server.close()  # whoever comes after the last answer is refused

    def _answer(self, connection: socket.socket, answer: bytes | None) -> None:
        if answer is None:
            return
        if answer.endswith(STALL):
            self.stalled.append(connection)
        data = answer.removesuffix(STALL)
        if self.scheme == "rtsp":
            _play_rtsp(connection, data, self.udp, self.seconds)
            return
        connection.recv(4096)
        connection.sendall(HTTP_HEAD)
        slowly(connection.sendall, data, self.seconds)


@contextlib.contextmanager
def serving_camera(*answers: bytes | None, scheme: str = "http", udp: bool = False, seconds: float = 0.0) -> Iterator[Camera]:
    """A camera that gives these answers, one a connection, and then is gone. An answer is a transport stream, or anything. udp:
    by RTSP, it has no other transport. seconds: that an answer takes."""
    camera = Camera(answers, scheme, udp, seconds)
    camera.thread.start()
    try:
        yield camera
    finally:
        with contextlib.suppress(OSError):
            camera.server.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        camera.server.close()
        camera.thread.join(10)
        for connection in camera.stalled:
            connection.close()


def _play_rtsp(connection: socket.socket, data: bytes, udp: bool, seconds: float) -> None:
    """OPTIONS, DESCRIBE, SETUP and PLAY, as far as FFmpeg asks; then the stream in RTP packets."""
    buffer, port = b"", 0
    while True:
        while b"\r\n\r\n" not in buffer:
            if not (part := connection.recv(4096)):
                return
            buffer += part
        request, _, buffer = buffer.partition(b"\r\n\r\n")
        method, number = request.split()[0], request.lower().partition(b"cseq:")[2].split()[0]
        is_refused = method == b"SETUP" and udp and b"TCP" in request
        status = b"461 Unsupported Transport" if is_refused else b"200 OK"
        head = b"RTSP/1.0 " + status + b"\r\nCSeq: " + number + b"\r\nSession: 1\r\n"
        if method == b"DESCRIBE":
            head += b"Content-Type: application/sdp\r\nContent-Length: %d\r\n\r\n" % len(SDP) + SDP
        elif is_refused:
            head += b"\r\n"
        elif method == b"SETUP":
            port = int(request.partition(b"client_port=")[2].partition(b"-")[0]) if udp else 0
            transport = b";client_port=%d-%d" % (port, port + 1) if udp else b"/TCP;interleaved=0-1"
            head += b"Transport: RTP/AVP" + transport + b";unicast\r\n\r\n"
        else:
            head += b"\r\n"
        connection.sendall(head)
        if method == b"PLAY":
            break
    size, start = TS_PACKET * PACKETS_EACH, time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for index in range(0, len(data), size):
            time.sleep(max(0.0, start + seconds * index / len(data) - time.monotonic()))
            payload, sequence = data[index : index + size], index // size
            rtp = struct.pack(">BBHII", 0x80, 33, sequence % 65536, sequence * 3000 % 2**32, 1) + payload
            if udp:
                datagrams.sendto(rtp, ("127.0.0.1", port))
            else:
                connection.sendall(struct.pack(">cBH", b"$", 0, len(rtp)) + rtp)
