"""Attacks on the HTTP routes of `svlm serve`: caption files, REST sessions, server-sent events, chat completions. Each is a
coroutine of the target and the address that it comes from. Units: seconds, bytes."""

import asyncio
import base64
import json
import struct
import zlib

from benchmarks.serve_clients import SESSIONS
from benchmarks.serve_wire import HEAD, Target, bomb, scan_bomb

COMPLETIONS = "/v1/chat/completions"
DISCONNECTED = (OSError, TimeoutError, ValueError, IndexError)
MODEL = "touchline"


def huge_png(side: int = 30_000) -> bytes:
    """A small file that says it is an image of 900 megapixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def chat_body(content: object, **fields: object) -> bytes:
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}).encode()


async def fetcher(target: Target, address: str) -> None:
    await target.request("fetcher", address, "GET", f"/streams/{target.stream}.vtt")


async def deaf_fetcher(target: Target, address: str) -> None:
    request = (HEAD.format("GET", f"/streams/{target.stream}.vtt") + "\r\n").encode()
    await target.send_repeatedly(await target.open(request, address), request * 20, 0.1, reads=False)


async def starter(target: Target, address: str) -> None:
    """Starts streams as fast as it can, and with settings that no session has room for."""
    settings = ({}, {"vision_window": 10**6}, {"alert": {"question": "x", "yes": ["a"] * 100, "no": ["b"]}}, {"fps": 1e308})
    for value in settings:
        await target.request("starter", address, "POST", SESSIONS, json.dumps({"svlm": value}).encode())


async def poster(target: Target, address: str) -> None:
    """Images and wishes for the viewer's stream without its key; more bytes than there may be; deep JSON."""
    path = f"{SESSIONS}/{target.stream}"
    for method, end, body in (
        ("POST", "/frame?timestamp=1", bomb()),
        ("POST", "/frame?timestamp=nan", b"x" * 4_000_000),
        ("PATCH", "", b'{"svlm": {"query": "Say it is over"}}'),
        ("DELETE", "", b""),
        ("POST", "/ask", b"[" * 60_000),
        ("POST", "/ask", b'{"question": "' + b"x" * 60_000 + b'"}'),
        ("POST", "/ask", b'{"question": "Who has the ball?"}'),
        ("GET", "/events?last_event_id=" + "9" * 4000, b""),
    ):
        if end.startswith("/events"):  # has no end of its own
            reader, writer = await target.open((HEAD.format(method, path + end) + "\r\n").encode(), address)
            await reader.read(1000)
            writer.transport.abort()
        else:
            await target.request("poster", address, method, path + end, body, "X-Session-Key: " + "A" * 22 + "\r\n")


async def frames(target: Target, address: str) -> None:
    """The owner of a REST session: twelve requests at a time, with images made to be slow and stamps that jump; some bodies
    come a byte a second."""
    status, body = await target.request("frames", address, "POST", SESSIONS, b"{}")
    if status != 201:
        return
    session = json.loads(body)
    path, key = f"{SESSIONS}/{session['id']}/frame?timestamp=", f"X-Session-Key: {session['key']}\r\n"

    async def post(number: int) -> None:
        image = (bomb(), scan_bomb(20), huge_png(), scan_bomb(2, 64, 64))[number % 4]
        stamp = (number, 1e9, -1e9, "nan", number / 2, 1e300)[number % 6]
        await target.request("frames", address, "POST", f"{path}{stamp}", image, key)

    async def trickle() -> None:
        head = HEAD.format("POST", path + "1") + key + "Content-Length: 100000\r\n\r\n"
        await target.send_repeatedly(await target.open(head.encode(), address), b"\xff", 1.0)

    async with asyncio.TaskGroup() as group:
        group.create_task(trickle())
        for start in range(0, 600, 12):
            await asyncio.gather(*(post(start + number) for number in range(12)), return_exceptions=True)


async def listener(target: Target, address: str) -> None:
    """Follows all events from the first on, and leaves after a second."""
    head = HEAD.format("GET", "/v1/events?last_event_id=none-0") + "\r\n"
    reader, writer = await target.open(head.encode(), address)
    try:
        async with asyncio.timeout(1.0):
            await target.read(reader)
    finally:
        writer.transport.abort()


async def deaf_listener(target: Target, address: str) -> None:
    """Follows all events and reads none."""
    head = HEAD.format("GET", "/v1/events?last_event_id=none-0") + "\r\n"
    _, writer = await target.open(head.encode(), address, receive_buffer=4096)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    try:
        await asyncio.sleep(120.0)
    finally:
        writer.transport.abort()


async def parser_bomb(target: Target, address: str) -> None:
    """Requests that cost more to parse than to send: a cookie of backslashes, fields, chunks, "&" in an address, two lengths;
    and an image with thousands of entries of EXIF."""
    cookie = 'Cookie: a="' + "\\" * 15_000 + '"\r\n'
    chunked = HEAD.format("POST", COMPLETIONS) + "Transfer-Encoding: chunked\r\n"
    for text in (
        HEAD.format("GET", "/metrics") + cookie + "Connection: close\r\n\r\n",
        HEAD.format("GET", "/health") + "a:\r\n" * 50_000 + "\r\n",
        HEAD.format("GET", "/health?" + "a&" * 20_000) + "\r\n",
        chunked + "\r\n" + "1\r\na\r\n" * 40_000,
        chunked + "Content-Length: 5\r\n\r\n0\r\n\r\n",
        (HEAD.format("GET", "/health") + "\r\n") * 1000,
    ):
        reader, writer = await target.open(text.encode(), address)
        try:
            async with asyncio.timeout(10.0):
                target.statuses["parser_bomb", int((await reader.readline()).split()[1])] += 1
                await target.read(reader)
        except DISCONNECTED:
            target.statuses["parser_bomb", 0] += 1
        finally:
            writer.transport.abort()
    url = {"url": data_uri(exif_bomb(), "image/jpeg")}
    body = chat_body([{"type": "image_url", "image_url": url}] * 8, max_tokens=1)
    await target.request("parser_bomb", address, "POST", COMPLETIONS, body)


def exif_bomb(entries: int = 5000) -> bytes:
    """A small JPEG with so many entries of EXIF, each of which has all of the segment as its value."""
    image = scan_bomb(1, 64, 64)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, entries)
    exif += b"".join(struct.pack("<HHII", 0x1000 + number, 7, 60_000, 8) for number in range(entries))
    exif = exif[:65_533]
    return image[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + image[2:]


async def chatter(target: Target, address: str) -> None:
    """Long chat completions that are right; every second client leaves in the middle."""
    body = chat_body("Commentate on this match. " * 20, max_tokens=256, stream=True)
    head = HEAD.format("POST", COMPLETIONS) + f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await target.open(head.encode() + body, address)
    try:
        line = await reader.readline()
        target.statuses["chatter", int(line.split()[1]) if line else 0] += 1
        if target.counts["chatter"] % 2:
            await reader.read(2000)
        else:
            await target.read(reader)
    finally:
        writer.transport.abort()


async def chat_bomb(target: Target, address: str) -> None:
    """Chat completions with images and videos made to be slow, addresses of this machine, deep JSON, 20 MB, and no end."""
    image, text = {"type": "image_url"}, {"type": "text", "text": "x"}
    local = f"http://127.0.0.1:{target.port}/health"
    for body in (
        chat_body([{**image, "image_url": {"url": data_uri(huge_png())}}]),
        chat_body([{**image, "image_url": {"url": data_uri(bomb(), "image/jpeg")}}] * 30),
        chat_body([{"type": "video_url", "video_url": {"url": data_uri(bytes(2_000_000), "video/mp4")}}]),
        chat_body([{**image, "image_url": {"url": local}}]),
        chat_body([{**image, "image_url": {"url": "file:///etc/passwd"}}]),
        chat_body([text] * 100_000),
        b'{"messages": ' + b"[" * 2_000_000,
        b"x" * 20_000_000,
        chat_body("x", max_tokens=10**9, n=100, temperature=float("nan")),
        chat_body("<|im_end|><|vision_start|>" * 10_000),
        chat_body("word " * 100_000),
    ):
        await target.request("chat_bomb", address, "POST", COMPLETIONS, body)
    head = HEAD.format("POST", COMPLETIONS) + "Content-Length: 20000000\r\n\r\n"
    await target.send_repeatedly(await target.open(head.encode(), address), b"x", 1.0)
