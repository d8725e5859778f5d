"""Clients of the live page for benchmarks: viewers that count what they receive, and streams for them. Units: seconds,
bytes."""

import asyncio
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from svlm_jax.errors import InputError


class Watcher:
    """One client: the numbers of the captions that it received, and when."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.receive_times: dict[int, float] = {}
        self.latencies: list[float] = []
        self.num_frames = self.num_bytes = self.dropped_chunks = 0
        self.first_number, self.stream, self.error = 0, "", ""

    async def watch(self, url: str, stream: str, deadline: float) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed

        try:
            async with connect(url, max_size=None) as socket:
                await socket.send(json.dumps({"type": "join", "stream": stream}))
                while (left := deadline - time.monotonic()) > 0:
                    with suppress(TimeoutError):
                        self._record(await asyncio.wait_for(socket.recv(), left))
        except (ConnectionClosed, OSError) as error:
            self.error = str(error) or type(error).__name__

    def _record(self, data: Any) -> None:
        self.num_bytes += len(data)
        if isinstance(data, bytes):
            self.num_frames += 1
            return
        message = json.loads(data)
        if message["type"] == "joined":
            self.stream, missed = message["stream"], message["missed"]
            self.first_number = missed[-1]["number"] + 1 if missed else 0
        if message["type"] in ("caption", "dropped"):
            self.numbers.append(message["number"])
            self.receive_times[message["number"]] = time.monotonic()
            self.dropped_chunks += message.get("chunks", 0)
            self.latencies += [message["latency_seconds"]] if "latency_seconds" in message else []

    @property
    def is_complete(self) -> bool:
        """Whether it received every caption from its first to its last."""
        expected = list(range(self.first_number, self.first_number + len(self.numbers)))
        return not self.error and bool(self.numbers) and self.numbers == expected


async def start_streams(url: str, count: int) -> tuple[list[str], list[Any]]:
    """Start generated matches; their names, and the sockets that own them."""
    from websockets.asyncio.client import connect

    names, owners = [], []
    for seed in range(count):
        owners.append(await connect(url, max_size=None))
        await owners[-1].send(json.dumps({"type": "start", "source": "match", "seed": 1_000_000 + seed}))
        while True:
            data = await asyncio.wait_for(owners[-1].recv(), 30)
            if isinstance(data, str) and (message := json.loads(data))["type"] in ("started", "error"):
                if message["type"] == "error":
                    raise InputError("svlm serve", message["error"], "a stream", "correct the server")
                names.append(message["stream"])
                break
        await owners[-1].send(json.dumps({"type": "leave"}))
    return names, owners


def resident_bytes(process: int) -> int:
    """Resident memory of a process (Linux; 0 elsewhere)."""
    path = Path(f"/proc/{process}/status")
    if not path.is_file():
        return 0
    return next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if line.startswith("VmRSS"))
