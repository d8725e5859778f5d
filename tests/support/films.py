"""Small films as they are in the world, made in a test's folder, and what is to be seen in them."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import HANG

av = pytest.importorskip("av")

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
NAMES = {(1, 0, 0): "R", (0, 1, 0): "G", (0, 0, 1): "B", (1, 1, 1): "W", (0, 0, 0): "k"}


def plain(colour: tuple[int, ...], size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """A picture of one colour, uint8 [H, W, 3 or 4]; size: width and height."""
    return np.full((size[1], size[0], len(colour)), colour, np.uint8)


def film(
    path: Path, pictures: Sequence[np.ndarray], fps: Any = 5, codec: str = "libx264", pix: str = "yuv420p", **more: Any
) -> Path:
    """Encode pictures. more: `options` of the codec, `form` and `form_options` of the container, `shift`: seconds added to
    every time stamp."""
    shift = more.get("shift", 0)
    with av.open(str(path), "w", format=more.get("form"), options=more.get("form_options", {})) as container:
        stream = container.add_stream(codec, rate=fps, options=more.get("options", {}))
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pix
        stream.metadata.update(more.get("metadata", {}))
        for frame in (*pictures, None):
            if frame is not None:
                kind = "rgba" if frame.shape[2] == 4 else "rgb24"
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=kind).reformat(format=pix)
            for packet in stream.encode(frame):
                step = round(shift / packet.time_base)
                packet.pts, packet.dts = packet.pts + step, packet.dts + step
                container.mux(packet)
    return path


def recording(
    folder: Path, *parts: tuple[tuple[int, ...], float, float], fps: int = 10, form: str = "mpegts", **more: Any
) -> bytes:
    """Recordings one behind the other, as `cat` makes them; a part is (colour, seconds, where its clock starts)."""
    data = b""
    for colour, seconds, shift in parts:
        pictures = [plain(colour)] * round(seconds * fps)
        data += film(folder / "part", pictures, fps, form=form, shift=shift, options={"g": "5"}, **more).read_bytes()
    (folder / "part").unlink()
    return data


def colours(frames: np.ndarray) -> str:
    """A letter for each frame: R, G, B, W or k (black)."""
    return "".join(NAMES.get((int(r > 100), int(g > 100), int(b > 100)), "?") for r, g, b in frames.mean((1, 2)))


def damage(path: Path, *numbers: int) -> Path:
    """Zero these packets, as a bad sector does."""
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for number in numbers:
        offset, size = packets[number]
        data[offset : offset + size] = bytes(size)
    path.write_bytes(data)
    return path


def turned(path: Path, matrix: tuple[float, ...]) -> Path:
    """Write (a b c d) of a display matrix into an mp4's track header."""
    data = bytearray(path.read_bytes())
    offset = data.find(b"tkhd")
    offset += 8 + (20 if data[offset + 4] == 0 else 32) + 16
    a, b, c, d = (round(value * 65536) for value in matrix)
    data[offset : offset + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def slowly(send: Callable[[bytes], object], data: bytes, seconds: float, size: int = 188 * 7) -> None:
    """Call `send` for all bytes, `size` at a time and spread over so many seconds; at once for 0."""
    size, start = size if seconds else max(len(data), 1), time.monotonic()
    for offset in range(0, len(data), size):
        time.sleep(max(0.0, start + seconds * offset / len(data) - time.monotonic()))
        send(data[offset : offset + size])


@contextlib.contextmanager
def camera(data: bytes, head: bytes = b"", seconds: float = 0.0) -> Iterator[int]:
    """The port of something that sends these bytes to one who asks, after `head` and spread over so many seconds, and then
    closes the connection."""

    def send() -> None:
        with contextlib.suppress(OSError):
            connection, _ = server.accept()
            with connection:
                if head:
                    connection.recv(4096)
                connection.sendall(head)
                slowly(connection.sendall, data, seconds)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # wakes `accept`
            server.close()
            thread.join(HANG)
