"""Bytes of HTTP and WebSockets as an attacker writes them: half a request, frames without end, images made to be slow. Knows no
attack. Units: seconds, bytes."""

import asyncio
import json
import socket
import struct
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from benchmarks.serve_clients import REALTIME

HEAD = "{} {} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
UPGRADE = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
KEY = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
JOIN, LEAVE = "svlm.stream.join", "svlm.stream.leave"

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def frame(kind: int, data: bytes = b"", *, last: bool = True) -> bytes:
    """A WebSocket frame of a client, masked with zeros."""
    if len(data) < 126:
        size = bytes([0x80 | len(data)])
    elif len(data) < 65536:
        size = bytes([0xFE]) + struct.pack(">H", len(data))
    else:
        size = bytes([0xFF]) + struct.pack(">Q", len(data))
    return bytes([kind | (0x80 if last else 0)]) + size + bytes(4) + data


def message(kind: str, **fields: Any) -> bytes:
    """An event of a client as a frame."""
    return frame(TEXT, json.dumps({"type": kind, **fields}).encode())


def scan_bomb(scans: int = 20_400, width: int = 1920, height: int = 1080) -> bytes:
    """A progressive JPEG whose every scan changes no block: 13 bytes that cost a pass over the whole image."""

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    tables = segment(0xDB, bytes([0, *[1] * 64]))
    tables += segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0]))
    tables += segment(0xC4, bytes([0x00, 1, *[0] * 15, 0])) + segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0]))
    scan = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + b"\x7f\xff\x00"
    return b"\xff\xd8" + tables + scan * scans + b"\xff\xd9"


def bomb() -> bytes:
    """As many scans as fit into a message with some room."""
    return scan_bomb()[:240_000] + b"\xff\xd9"


class Target:
    """A server under attack, and the stream of its viewer. deadline: when attacks end. counts: how often each attack started;
    statuses: (attack, HTTP status) of answers."""

    def __init__(self, url: str, stream: str, deadline: float = float("inf")) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname, parts.port
        self.stream, self.deadline = stream, deadline
        self.counts: Counter[str] = Counter()
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.lifetimes: list[float] = []  # of half-open connections

    async def open(self, data: bytes, address: str = "", receive_buffer: int = 0) -> Connection:
        """A connection on which this was sent. address: of the client."""
        raw = socket.socket()
        if receive_buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if address:
            raw.bind((address, 0))
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, (self.host, self.port))
        reader, writer = await asyncio.open_connection(sock=raw)
        writer.write(data)
        return reader, writer

    async def socket(self, address: str = "", receive_buffer: int = 0) -> Connection:
        """A WebSocket.

        Raises:
            ValueError: it is refused.
        """
        data = (HEAD.format("GET", REALTIME) + UPGRADE + KEY).encode()
        reader, writer = await self.open(data, address, receive_buffer)
        if b" 101 " not in await reader.readuntil(b"\r\n\r\n"):
            writer.transport.abort()
            raise ValueError("refused")
        return reader, writer

    async def request(
        self, attack: str, address: str, method: str, path: str, body: bytes = b"", headers: str = ""
    ) -> tuple[int, bytes]:
        """Status and body of a response."""
        head = HEAD.format(method, path) + f"Connection: close\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        reader, writer = await self.open(head.encode() + body, address)
        data = b""
        try:
            while part := await reader.read(65536):
                data += part
        except OSError:  # an answer that does not wait for the whole body, and then a reset
            pass
        finally:
            writer.transport.abort()
        head, _, rest = data.partition(b"\r\n\r\n")
        status = int(head.split()[1]) if head else 0
        self.statuses[attack, status] += 1
        return status, rest

    async def read(self, reader: asyncio.StreamReader) -> None:
        while await reader.read(65536):
            pass

    async def send_repeatedly(self, connection: Connection, data: bytes, interval: float, *, reads: bool = True) -> None:
        """Send the same data until the server disconnects."""
        reader, writer = connection
        reading = asyncio.create_task(self.read(reader)) if reads else None
        try:
            while not writer.is_closing() and (reading is None or not reading.done()):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(interval)
        finally:
            if reading is not None:
                reading.cancel()
            writer.transport.abort()

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.deadline
