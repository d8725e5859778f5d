"""Connections of clients that may not be known yet: how many may be open, and how long each may take for its current step.

Owns the open connections, in all and per address, and their deadlines. When there is no room for a new one, the oldest that is
still waiting for a request is closed for it: half-open connections lock nobody out. Knows no HTTP; runs in the event loop only.
Units: seconds.
"""

import ipaddress
import os
import time
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.rate_limit import RateLimit, Timer

CLOSE_TIMEOUT = 10.0  # for a peer to read what was sent before its connection was closed
ACCEPT_BATCH = 16  # connections that the event loop accepts at once, before any of them can be refused
RESERVED_FILES = 16  # for sources, the page and the event loop
MIN_CONNECTIONS = 8  # with fewer a server is of no use


class Connection:
    """deadline: when it is closed unless its state changes before. is_idle: no complete request came since the last
    response."""

    def __init__(self, transport: Any, address: str, deadline: float) -> None:
        self.transport, self.address, self.deadline = transport, address, deadline
        self.is_idle, self.is_closing = True, False


class Connections:
    """All connections of a server. Each waits for a request (from its first byte, or from the last response on), waits for its
    response to be read, or has become the socket of a viewer."""

    def __init__(self, limits: Limits, metrics: Metrics, *, timer: Timer = time.monotonic) -> None:
        self.limits, self.metrics, self.timer = limits, metrics, timer
        self.max_connections = limits.max_connections  # lower where the system has too few open files
        self.open: dict[Any, Connection] = {}  # by transport, oldest first
        self.by_address: dict[str, dict[Any, Connection]] = {}
        self.request_limits: dict[str, RateLimit] = {}

    def add(self, transport: Any) -> bool:
        """Count a new connection. When there is no room, an idle one is closed for it, or else the new one."""
        address = address_group((transport.get_extra_info("peername") or ("",))[0])
        siblings = self.by_address.get(address, {})
        if len(siblings) >= self.limits.max_connections_per_address:
            candidates = siblings
        elif len(self.open) >= self.max_connections:
            candidates = max(self.by_address.values(), key=len)  # the address with the most connections
        else:
            candidates = None
        if candidates is not None:
            oldest = next((connection for connection in candidates.values() if connection.is_idle), None)
            self.metrics.count("svlm_refused_total", label="max_connections")
            if oldest is None:
                transport.abort()
                return False
            self.abort(oldest)
        connection = Connection(transport, address, self.timer() + self.limits.request_timeout)
        self.open[transport] = connection
        self.by_address.setdefault(address, {})[transport] = connection
        return True

    def remove(self, transport: Any) -> None:
        """Forget a connection that is closed."""
        connection = self.open.pop(transport, None)
        if connection is not None:
            siblings = self.by_address[connection.address]
            del siblings[transport]
            if not siblings:
                del self.by_address[connection.address]

    def abort(self, connection: Connection) -> None:
        """Close a connection at once, with all that waits to be sent."""
        self.remove(connection.transport)
        connection.transport.abort()

    def expect_request(self, transport: Any) -> None:
        """A connection waits for its next request."""
        self._set_deadline(transport, self.limits.request_timeout, is_idle=True)

    def expect_response(self, transport: Any) -> None:
        """A complete request came; the client has to read the response in time."""
        self._set_deadline(transport, self.limits.response_timeout, is_idle=False)

    def renew(self, transport: Any) -> None:
        """A response goes on: the client has read what was sent so far, and has as long again for the next part. Or a handler
        waits for a large body: it has as long to arrive."""
        if (connection := self.open.get(transport)) is not None:
            self._set_deadline(transport, self.limits.response_timeout, is_idle=connection.is_idle)

    def keep_open(self, transport: Any) -> None:
        """The connection is the socket of a viewer, which has limits of its own (`viewer`)."""
        self._set_deadline(transport, float("inf"), is_idle=False)

    def _set_deadline(self, transport: Any, seconds: float, *, is_idle: bool) -> None:
        if (connection := self.open.get(transport)) is not None:
            connection.is_idle, connection.deadline = is_idle, self.timer() + seconds

    def close_overdue(self) -> None:
        """Close connections past their deadline; to be called every second or so."""
        now = self.timer()
        for connection in list(self.open.values()):
            # asyncio waits for ever for a closing peer that reads nothing
            if connection.transport.is_closing() and not connection.is_closing:
                connection.is_closing, connection.deadline = True, min(connection.deadline, now + CLOSE_TIMEOUT)
            if now >= connection.deadline:
                if not connection.is_closing:
                    self.metrics.count("svlm_refused_total", label="timeout")
                self.abort(connection)
        for address in [address for address, limit in self.request_limits.items() if limit.is_full]:
            del self.request_limits[address]

    def allow_request(self, address: str) -> bool:
        """Whether an address may make one more request now."""
        rate = self.limits.max_viewers_per_address  # a second; the burst lets every viewer load the page's files at once
        limit = RateLimit(rate, 64 + 8 * rate, self.timer)
        return self.request_limits.setdefault(address_group(address), limit).allow()


def address_group(address: str) -> str:
    """The key under which a client address is counted. A subscriber of IPv6 has a whole /64: all of it counts as one."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)


def available_connections(limits: Limits, used_files: int | None = None) -> int:
    """Connections for which the system has open files. Raises the limit of open files as far as this process may.

    Args:
        used_files: open files of this process; None counts them.

    Raises:
        InputError: there are hardly any.
    """
    try:
        import resource
    except ImportError:  # Windows: no such limit
        return limits.max_connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used_files = count_open_files() if used_files is None else used_files
    other_files = used_files + ACCEPT_BATCH + RESERVED_FILES
    required = limits.max_connections + other_files
    if soft != resource.RLIM_INFINITY and soft < required:
        soft = required if hard == resource.RLIM_INFINITY else min(required, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return limits.max_connections
    if soft - other_files < MIN_CONNECTIONS:
        expected = f"{other_files + MIN_CONNECTIONS} or more"
        raise InputError("open files", f"a limit of {soft}", expected, "raise it: ulimit -n")
    return min(limits.max_connections, soft - other_files)


def count_open_files() -> int:
    """Open files of this process; a guess where the system does not say."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 64
