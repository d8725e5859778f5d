"""The server process: binds a port, runs the site with uvicorn, and stops on a signal: from then on it takes no new
streams, lets those that run go on for a while, and sends a last message to the viewers.

Owns uvicorn's configuration and how the server starts and stops. uvicorn is an extra, imported inside `Server`.
"""

import asyncio
import errno
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.serve.http.connections import ACCEPT_BATCH, available_connections
from svlm_jax.serve.http.middleware import HEADERS
from svlm_jax.serve.http.protocols import protocols
from svlm_jax.serve.rate_limit import RateLimit
from svlm_jax.serve.site import Site

SEND_BUFFER = 256 * 1024  # bytes that the kernel stores for a socket whose client does not read
ACCEPT_QUEUE = 128  # connections that wait in the kernel
OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Binding comes before loading a model, so that a port in use is reported at once.

    Raises:
        InputError: it cannot be bound.
    """
    if not 0 <= port < 65536:
        raise InputError("--port", port, "0 to 65535", "choose another")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError("--host", f"{host} ({error.strerror})", "an address of this machine", "use 127.0.0.1") from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # accepted sockets inherit it
    try:
        bound.bind(address)
        bound.listen(ACCEPT_QUEUE)
    except OSError as error:
        bound.close()
        raise InputError("--port", f"{port} ({error.strerror})", "a free port", "choose another, or 0 for any") from None
    return bound


class Server:
    """A site on a bound socket. `run` returns when `stop` is called, from any thread, or at SIGINT and SIGTERM."""

    def __init__(self, site: Site, bound: socket.socket, *, drain_seconds: float = 0) -> None:
        """Args:
            drain_seconds: that streams may go on after `drain`, or after a first signal.

        Raises:
            InputError: the system has too few open files for it.
        """
        import uvicorn

        self.site, self.bound, self.stopping = site, bound, False
        self.drain_seconds, self.drain_end = drain_seconds, float("inf")
        self.log_limit = RateLimit(1 / 60, 1)
        limits, available = site.hub.limits, available_connections(site.hub.limits)
        site.connections.max_connections = available
        if available < limits.max_connections:
            print(f"few open files: {available} connections at a time; raise ulimit -n", file=sys.stderr, flush=True)
        http, websocket = protocols(site.connections, HEADERS)
        config = uvicorn.Config(
            site.application(),
            http=http,
            ws=websocket,
            ws_ping_interval=limits.ping_interval,
            ws_ping_timeout=limits.ping_interval,
            backlog=ACCEPT_BATCH,
            ws_max_size=limits.max_message_bytes,
            ws_per_message_deflate=False,  # costs memory for each socket, and JPEG does not get smaller
            log_level="critical",
            log_config=None,
            access_log=False,  # it would show tokens
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
            lifespan="on",
        )
        self.uvicorn = uvicorn.Server(config)

    @property
    def url(self) -> str:
        """http://HOST:PORT/"""
        host, port = self.bound.getsockname()[:2]
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def stop(self) -> None:
        """Stop now."""
        self.stopping = True

    def drain(self) -> None:
        """Take no new streams, and stop once none runs or `drain_seconds` are over. From any thread."""
        self.site.hub.is_draining = True
        self.drain_end = time.monotonic() + self.drain_seconds

    @property
    def is_drained(self) -> bool:
        return self.site.hub.is_draining and (time.monotonic() >= self.drain_end or not self.site.hub.is_busy)

    async def run(self, *, handle_signals: bool = False) -> None:
        """Serve until stopped; viewers get a last message first."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_loop_error)
        async with AsyncExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM) if handle_signals else ():
                loop.add_signal_handler(number, self._on_signal, number)
                stack.callback(loop.remove_signal_handler, number)
            self.uvicorn.capture_signals = _no_signals
            shutdown = asyncio.create_task(self._wait_for_stop())
            stack.callback(shutdown.cancel)
            await self.uvicorn.serve(sockets=[self.bound])

    def _on_signal(self, number: int) -> None:
        name, is_draining = signal.Signals(number).name, self.site.hub.is_draining
        if self.drain_seconds and not is_draining and number == signal.SIGTERM:
            print(f"{name}: no new streams; stopping within {self.drain_seconds:g} s", file=sys.stderr, flush=True)
            self.drain()
            return
        print(f"{name}: stopping", file=sys.stderr, flush=True)
        self.uvicorn.force_exit = self.stopping  # at the next signal: do not wait for open sockets
        self.stop()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Without open files asyncio reports every waiting connection again and again: counted here, and logged once a
        minute."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in OUT_OF_RESOURCES:
            loop.default_exception_handler(context)
            return
        self.site.hub.metrics.count("svlm_refused_total", label="open_files")
        if self.log_limit.allow():
            print(f"connections wait: {error.strerror}; raise ulimit -n", file=sys.stderr, flush=True)

    async def _wait_for_stop(self) -> None:
        while not self.uvicorn.started and not self.stopping:
            await asyncio.sleep(0.01)
        if not self.stopping:
            # uvicorn's `backlog` is both the kernel's queue and the number that asyncio accepts at once, before any of them can
            # be refused. The second must be small; the first is set again here.
            self.bound.listen(ACCEPT_QUEUE)
        while not self.stopping and not self.uvicorn.should_exit and not self.is_drained:
            await asyncio.sleep(0.05)
        self.site.hub.close("the server is stopping")
        await asyncio.sleep(0.2)  # for the close frames to go out
        self.uvicorn.should_exit = True


@contextmanager
def _no_signals() -> Iterator[None]:
    """Replaces uvicorn's handler, which ends the process by the signal: a server that was stopped exits with 0."""
    yield
