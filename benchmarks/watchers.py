"""Clients of the live page for benchmarks: viewers that count what they get, streams for them. Units: seconds, bytes."""

import asyncio
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from svlm_jax.errors import InputError


class Watcher:
    """One client: the numbers of the captions it got, and when."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.came: dict[int, float] = {}
        self.latencies: list[float] = []
        self.pictures = self.bytes = self.lost = 0
        self.begun, self.stream, self.error = 0, "", ""

    async def watch(self, url: str, stream: str, until: float) -> None:
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed

        try:
            async with connect(url, max_size=None) as socket:
                await socket.send(json.dumps({"type": "join", "stream": stream}))
                while (left := until - time.monotonic()) > 0:
                    with suppress(TimeoutError):
                        self._heard(await asyncio.wait_for(socket.recv(), left))
        except (ConnectionClosed, OSError) as error:
            self.error = str(error) or type(error).__name__

    def _heard(self, message: Any) -> None:
        self.bytes += len(message)
        if isinstance(message, bytes):
            self.pictures += 1
            return
        told = json.loads(message)
        if told["type"] == "joined":
            self.stream, missed = told["stream"], told["missed"]
            self.begun = missed[-1]["number"] + 1 if missed else 0
        if told["type"] in ("caption", "dropped"):
            self.numbers.append(told["number"])
            self.came[told["number"]] = time.monotonic()
            self.lost += told.get("chunks", 0)
            self.latencies += [told["latency"]] if "latency" in told else []

    @property
    def whole(self) -> bool:
        """Whether it got every caption from its first to its last."""
        expected = list(range(self.begun, self.begun + len(self.numbers)))
        return not self.error and bool(self.numbers) and self.numbers == expected


async def streams(url: str, count: int) -> tuple[list[str], list[Any]]:
    """Start that many matches; their names, and the sockets that own them."""
    from websockets.asyncio.client import connect

    names, owners = [], []
    for seed in range(count):
        owners.append(await connect(url, max_size=None))
        await owners[-1].send(json.dumps({"type": "start", "source": "match", "seed": 1_000_000 + seed}))
        while True:
            told = await asyncio.wait_for(owners[-1].recv(), 30)
            if isinstance(told, str) and (message := json.loads(told))["type"] in ("started", "error"):
                if message["type"] == "error":
                    raise InputError("svlm serve", message["error"], "a stream", "mend the server")
                names.append(message["stream"])
                break
        await owners[-1].send(json.dumps({"type": "leave"}))
    return names, owners


def resident(process: int) -> int:
    """Bytes of memory of a process (Linux; 0 elsewhere)."""
    path = Path(f"/proc/{process}/status")
    if not path.is_file():
        return 0
    return next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if line.startswith("VmRSS"))
