"""Agreement between the processes of a run over jax's coordination service, and whether an error means that a process is lost.

Values go from host to host: no device is waited for and no program runs. Knows nothing of training.
"""

import itertools
import json
import re
import threading
from typing import Any

import jax

POLL_SECONDS = 5.0  # between two checks whether a waiting channel was closed
_channel_counts: dict[str, itertools.count] = {}
# Messages of jax, Gloo, NCCL and the coordination service when the other side has ended.
_PEER_LOST = re.compile(
    r"Gloo .*(closed|reset|refused|time ?out|timed out)|connection (closed|reset) by (remote )?peer|NCCL .*(remote|peer|abort)"
    r"|remote process exited|heartbeat|coordination service|barrier .*(failed|error|time ?out|timed out)|socket closed"
    r"|another task died|(task|process) .*(unhealthy|died|disconnect)|failed to connect to all addresses",
    re.IGNORECASE | re.DOTALL,
)


class PeerLost(RuntimeError):
    """Another process of the run has ended, or cannot be reached.

    Args:
        doing: what this process did when it noticed.
        error: what jax or a library raised.
    """

    def __init__(self, doing: str, error: BaseException) -> None:
        while error.__cause__ is not None:
            error = error.__cause__
        cause = " ".join(str(error).split())[:120]
        super().__init__(
            f"another process of this run ended or cannot be reached ({doing}: {cause}); its own output says why; "
            "start all again, and the run resumes from its newest complete checkpoint"
        )


class ChannelClosed(RuntimeError):
    """A channel was closed while it waited."""


class Channel:
    """A sequence of all-gathers between processes. The n-th of one process meets the n-th of every other, so all processes
    create the channels of a name in the same order, and gather in the same order."""

    def __init__(self, name: str) -> None:
        # A name may be used again, by the next prefetcher for example: a counter keeps their keys apart.
        self.name = f"svlm/{name}/{next(_channel_counts.setdefault(name, itertools.count()))}"
        self.count, self._closed = 0, threading.Event()

    def all_gather(self, value: Any) -> list[Any]:
        """The values (JSON) of all processes, by process index. Returns when all have sent theirs.

        Raises:
            PeerLost: a process has ended.
            ChannelClosed: `close` was called meanwhile.
        """
        if jax.process_count() == 1:
            return [value]
        from jax._src import distributed  # no public name; Orbax uses the same

        client: Any = distributed.global_state.client
        key, previous_key = f"{self.name}/{self.count}", f"{self.name}/{self.count - 1}"
        self.count += 1
        try:
            client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
            if jax.process_index() == 0:  # reads all and sends the list: every process reading all would be quadratic
                values = [json.loads(self._read(client, f"{key}/{process}")) for process in range(jax.process_count())]
                client.key_value_set(f"{key}/all", json.dumps(values))
                if self.count > 1:  # all have read the previous list, since they have sent their value of this one
                    client.key_value_delete(f"{previous_key}/")
                return values
            return json.loads(self._read(client, f"{key}/all"))
        except ChannelClosed:
            raise
        except RuntimeError as error:  # JaxRuntimeError is one
            raise PeerLost("waiting for its answer", error) from error

    def _read(self, client: Any, key: str) -> str:
        while True:
            try:
                return client.blocking_key_value_get(key, int(POLL_SECONDS * 1000))
            except RuntimeError as error:
                if self._closed.is_set():
                    raise ChannelClosed from None
                # A slow process is waited for without end: heartbeats and the watchdog end a run that hangs.
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    def close(self) -> None:
        """Stop waiting (called from another thread)."""
        self._closed.set()


def is_peer_lost(error: BaseException) -> bool:
    """Whether an error, or a cause of it, means that another process is lost."""
    cause: BaseException | None = error
    while cause is not None:
        # The operating system's errors are this machine's, whatever words a file name has in it.
        if isinstance(cause, PeerLost) or (not isinstance(cause, OSError) and _PEER_LOST.search(str(cause))):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
