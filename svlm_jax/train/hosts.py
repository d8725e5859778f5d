"""What the processes of a run agree on, over jax's coordination service: host to host, so that no device is waited for and no
program runs. And how a process that is gone is told from a disk that is full."""

import itertools
import json
import re
import threading
from typing import Any

import jax

POLL_SECONDS = 5.0  # between two looks whether a wait is over
_numbers: dict[str, itertools.count] = {}
# What jax, Gloo, NCCL and the coordination service say when the other side is gone.
_GONE = re.compile(
    r"Gloo .*(closed|reset|refused|time ?out|timed out)|connection (closed|reset) by (remote )?peer|NCCL .*(remote|peer|abort)"
    r"|remote process exited|heartbeat|coordination service|barrier .*(failed|error|time ?out|timed out)|socket closed"
    r"|another task died|(task|process) .*(unhealthy|died|disconnect)|failed to connect to all addresses",
    re.IGNORECASE | re.DOTALL,
)


class PeerLost(RuntimeError):
    """Another process of the run has ended, or can not be reached."""

    def __init__(self, doing: str, error: BaseException) -> None:
        while error.__cause__ is not None:
            error = error.__cause__
        cause = " ".join(str(error).split())[:120]
        super().__init__(
            f"another process of this run ended or can not be reached ({doing}: {cause}); its own output says why; "
            "start all again, and the run goes on from its newest whole checkpoint"
        )


class Channel:
    """A line of agreements: the n-th `gather` of all processes is one. Processes make the channels of a name in one order."""

    def __init__(self, name: str) -> None:
        self.name = f"svlm/{name}/{next(_numbers.setdefault(name, itertools.count()))}"
        self.number, self.closed = 0, threading.Event()

    def gather(self, value: Any) -> list[Any]:
        """The values (JSON) of all processes, by their number. Returns when all have given theirs.

        Raises:
            PeerLost: one is gone.
            Closed: `close` was called meanwhile.
        """
        if jax.process_count() == 1:
            return [value]
        from jax._src import distributed  # no public name; Orbax asks it the same way

        client: Any = distributed.global_state.client
        here, before = (f"{self.name}/{self.number - past}" for past in (0, 1))
        self.number += 1
        try:
            client.key_value_set(f"{here}/{jax.process_index()}", json.dumps(value))
            if jax.process_index() == 0:  # asks all, and tells all: each asking all would be quadratic
                values = [json.loads(self._read(client, f"{here}/{one}")) for one in range(jax.process_count())]
                client.key_value_set(f"{here}/all", json.dumps(values))
                if self.number > 1:  # all have read the one before, since they have written this one
                    client.key_value_delete(f"{before}/")
                return values
            return json.loads(self._read(client, f"{here}/all"))
        except RuntimeError as error:  # JaxRuntimeError is one
            if isinstance(error, Closed):
                raise
            raise PeerLost("waiting for its answer", error) from error

    def _read(self, client: Any, key: str) -> str:
        while True:
            try:
                return client.blocking_key_value_get(key, int(POLL_SECONDS * 1000))
            except RuntimeError as error:
                if self.closed.is_set():
                    raise Closed from None
                if "DEADLINE_EXCEEDED" not in str(error):  # a slow process is waited for; the watchdog has the last word
                    raise

    def close(self) -> None:
        """Wait for nobody any more (from another thread)."""
        self.closed.set()


class Closed(RuntimeError):
    """A channel was closed while it waited."""


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, PeerLost) or (not isinstance(one, OSError) and _GONE.search(str(one))):
            return True
        one = one.__cause__ or one.__context__
    return False
