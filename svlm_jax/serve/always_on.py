"""Listed sources that play from the start of the server to its end, whether or not anybody watches.

Owns when one of them is started again. A camera that is lost is opened again by its source (`media.reconnect`), and its stream
goes on; here a stream that has ended, for whatever reason, begins anew. Runs in the event loop. Units: seconds.
"""

import asyncio
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from svlm_jax.errors import InputError
from svlm_jax.media.reconnect import Reconnect
from svlm_jax.serve.hub import Hub
from svlm_jax.serve.sources.catalog import StreamSource

POLL_INTERVAL = 0.5  # between two looks at whether a stream still runs
STEADY = 60.0  # that a stream has run, after which its end is no failure


class AlwaysOnSources:
    """`run` keeps the sources of these indices of the catalog's list playing, until it is cancelled."""

    def __init__(
        self,
        hub: Hub,
        indices: Sequence[int],
        *,
        policy: Reconnect = Reconnect(),  # noqa: B008 (immutable)
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """policy: how long to wait before a stream is started again; the waits are those of a source."""
        self.hub, self.indices, self.policy, self.sleep = hub, indices, policy, sleep

    async def run(self) -> None:
        await asyncio.gather(*(self._keep(index) for index in self.indices))

    async def _keep(self, index: int) -> None:
        title, _ = self.hub.catalog.listed[index]
        failures = 0
        while True:
            started = time.monotonic()
            reason = await self._play(index)
            if self.hub.is_draining:
                return  # no new streams are taken
            failures = 0 if time.monotonic() - started > STEADY else failures + 1
            delay = self.policy.delay(max(0, failures - 1), secrets.randbelow(1000) / 1000)
            print(f"{title}: {reason}; started again in {delay:.0f} s", file=sys.stderr, flush=True)
            await self.sleep(delay)

    async def _play(self, index: int) -> str:
        """Start a stream and wait for its end; why it has ended."""
        settings = replace(self.hub.defaults, seed=secrets.randbits(32))
        try:
            broadcast = await self.hub.start(StreamSource("listed", index=index, is_always_on=True), settings)
        except InputError as error:
            return str(error)
        broadcast.is_always_on = True
        while broadcast.is_running:
            await self.sleep(POLL_INTERVAL)
        return broadcast.end_reason
