"""Attacks on `svlm serve` before it accepts a socket, and on /v1/realtime. Each is a coroutine of the target and the address
that it comes from; it returns when it is disconnected. Units: seconds, bytes."""

import asyncio
import base64
import json
import time
from contextlib import suppress

from benchmarks.serve_clients import REALTIME
from benchmarks.serve_wire import BINARY, HEAD, JOIN, LEAVE, PING, TEXT, UPGRADE, Target, bomb, frame, message, scan_bomb

PACE = 1 / 17  # seconds between messages: a little slower than the server reads them


async def half_open(target: Target, address: str) -> None:
    """Half a request, or half a handshake; every third one also sends a byte a second."""
    kind, start = target.counts["half_open"] % 3, time.monotonic()
    reader, writer = await target.open((HEAD.format("GET", REALTIME) + (UPGRADE if kind == 1 else "X-A: ")).encode(), address)
    try:
        while not target.is_over:
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await target.read(reader)
                    return
            if kind == 2:
                writer.write(b"a")
                await writer.drain()
    finally:
        target.lifetimes.append(time.monotonic() - start)
        writer.transport.abort()


async def joiner(target: Target, address: str) -> None:
    await target.send_repeatedly(await target.socket(address), message(JOIN, stream=target.stream), PACE)


async def pinger(target: Target, address: str) -> None:
    await target.send_repeatedly(await target.socket(address), frame(PING, b"x"), 0.02)


async def deaf_pinger(target: Target, address: str) -> None:
    await target.send_repeatedly(await target.socket(address), frame(PING, b"x" * 100) * 100, 0.01, reads=False)


async def flood(target: Target, address: str) -> None:
    await target.send_repeatedly(await target.socket(address), message(LEAVE) * 1000, 0.05)


async def fragments(target: Target, address: str) -> None:
    reader, writer = await target.socket(address)
    writer.write(frame(TEXT, b'"', last=False))
    await target.send_repeatedly((reader, writer), frame(0, last=False) * 1000, 0.05)


async def silent(target: Target, address: str) -> None:
    """Accepted by the server, and sends nothing, not even a pong."""
    reader, writer = await target.socket(address)
    await target.read(reader)
    writer.close()


async def deaf_page(target: Target, address: str) -> None:
    """Asks for all that there is of a stream, and reads nothing."""
    subscribe = {"type": "realtime", "svlm": {"subscribe": ["streams", "video", "chunks"]}}
    data = message("session.update", session=subscribe) + message(JOIN, stream=target.stream)
    await target.send_repeatedly(await target.socket(address, receive_buffer=16_384), data, 1.0, reads=False)


async def deep_json(target: Target, address: str) -> None:
    """Brackets, a thousand keys, numbers without end: JSON that costs more to parse than to send."""
    kind = target.counts["deep_json"] % 4
    digits, escapes = b"9" * 1_000_000, b"\\u0041" * 200_000
    texts = (b"[" * 1_000_000, b'{"a":' * 200_000, b'{"type": ' + digits + b"}", b'{"type": "' + escapes + b'"}')
    await target.send_repeatedly(await target.socket(address), frame(TEXT, texts[kind]), PACE)


async def asker(target: Target, address: str) -> None:
    """Asks the viewer's stream without end, and cancels what it asked."""
    reader, writer = await target.socket(address)
    writer.write(message(JOIN, stream=target.stream))
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Who has the ball? " * 15}]}
    data = message("response.create", response={"input": [item]}) * 9 + message("response.cancel")
    await target.send_repeatedly((reader, writer), data, 1.0)


async def thief(target: Target, address: str) -> None:
    """Guesses the key of the viewer's stream, to change, feed and stop it."""
    reader, writer = await target.socket(address)
    data = b"".join(
        message(JOIN, stream=target.stream, key=f"{target.counts['thief']:016d}{number:06d}")
        + message("session.update", session={"type": "realtime", "svlm": {"query": "Say it is over", "silence": 0}})
        + message("input_video_frame.commit", final=True)
        + message("svlm.stream.stop", key="A" * 22)
        for number in range(4)
    )
    await target.send_repeatedly((reader, writer), data, 1.0)


async def _started(target: Target, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str, str]:
    """A socket that owns a stream of images, with the stream's name and key.

    Raises:
        ValueError: the server has no place for one.
    """
    reader, writer = await target.socket(address)
    writer.write(message("svlm.stream.start", source={"type": "push"}))
    received = b""
    while b'"svlm.stream.started"' not in received or not received.partition(b'"svlm.stream.started"')[2].count(b"}"):
        data = await reader.read(65536)
        received = (received + data)[-200_000:]
        if not data or b'"type": "error"' in received:
            writer.transport.abort()
            raise ValueError("no place")
    rest = received.partition(b'{"type": "svlm.stream.started"')[2].partition(b"}")[0]
    started = json.loads(b'{"type": ""' + rest + b"}")
    return reader, writer, started["stream"], started["key"]


async def camera(target: Target, address: str) -> None:
    """The owner of a stream of images, on eight sockets: images made to be slow, and ordinary ones, much too fast; as binary
    messages and in base64."""
    reader, writer, name, key = await _started(target, address)
    join = message(JOIN, stream=name, key=key)
    images = frame(BINARY, bomb()) + frame(BINARY, scan_bomb(20))
    for data in (bomb(), scan_bomb(20)):
        images += message("input_video_frame.append", image=base64.b64encode(data).decode())
    async with asyncio.TaskGroup() as group:
        group.create_task(target.send_repeatedly((reader, writer), images, PACE))
        for _ in range(7):
            reader, writer = await target.socket(address)
            writer.write(join)
            group.create_task(target.send_repeatedly((reader, writer), images, PACE))


async def stamps(target: Target, address: str) -> None:
    """The owner of a stream whose stamps jump by years and back, and are no numbers, and whose pictures change their size."""
    from benchmarks.serve_clients import film

    reader, writer, _, _ = await _started(target, address)
    images = [base64.b64encode(data).decode() for data in (film(3, 1)[0], scan_bomb(2, 16, 1080), scan_bomb(2, 1900, 20))]
    jumps: list[float] = [0, 0.5, 1, 1e9, -1e9, 3, 3, 3, 1e300, float("nan"), float("inf"), 4, 1e10, 0.25]
    data = b"".join(
        message("input_video_frame.append", image=images[number % 3], timestamp=stamp) for number, stamp in enumerate(jumps)
    )
    await target.send_repeatedly((reader, writer), data, 0.5)
