"""Connections before anything is known of them: how many there may be, and how long each may take for what it is at.

Owns the count of open connections, in all and of an address, and their deadlines. Where there is no room for a new one, the
oldest that has not asked for anything makes it: half-open connections lock nobody out. Knows no HTTP; everything here runs in
the event loop. Units: seconds.
"""

import ipaddress
import os
import time
from typing import Any

from svlm_jax.errors import InputError
from svlm_jax.serve.allowance import Allowance, Timer
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.metrics import Metrics

CLOSING = 10.0  # seconds that a peer has to take what was sent to it before its connection was closed
ACCEPTED = 16  # connections that the event loop takes at once, before any of them can be refused
RESERVED = 16  # open files for sources, the page and the event loop
FEWEST = 8  # connections with which a server is of use


class Connection:
    """One of them. `due`: when it is dropped, as things stand; asking: it has not asked for anything, or not again."""

    def __init__(self, transport: Any, address: str, due: float) -> None:
        self.transport, self.address, self.due = transport, address, due
        self.asking, self.closing = True, False


class Connections:
    """All of a server. A connection is asking (from its first byte, or the last answer), answered, or a socket that stays."""

    def __init__(self, limits: Limits, metrics: Metrics, *, timer: Timer = time.monotonic) -> None:
        self.limits, self.metrics, self.timer = limits, metrics, timer
        self.most = limits.connections  # `room` may say less
        self.open: dict[Any, Connection] = {}  # by transport, oldest first
        self.by_address: dict[str, dict[Any, Connection]] = {}
        self.requests: dict[str, Allowance] = {}

    def enter(self, transport: Any) -> bool:
        """Count a connection in. Without room it is dropped, unless another one can go."""
        address = group((transport.get_extra_info("peername") or ("",))[0])
        beside = self.by_address.get(address, {})
        if len(beside) >= self.limits.connections_an_address:
            crowd = beside
        elif len(self.open) >= self.most:
            crowd = max(self.by_address.values(), key=len)
        else:
            crowd = None
        if crowd is not None:
            oldest = next((one for one in crowd.values() if one.asking), None)
            self.metrics.count("svlm_refused_total", label="connections")
            if oldest is None:
                transport.abort()
                return False
            self.drop(oldest)
        one = Connection(transport, address, self.timer() + self.limits.request)
        self.open[transport] = one
        self.by_address.setdefault(address, {})[transport] = one
        return True

    def exit(self, transport: Any) -> None:
        """It is gone."""
        one = self.open.pop(transport, None)
        if one is not None:
            beside = self.by_address[one.address]
            del beside[transport]
            if not beside:
                del self.by_address[one.address]

    def drop(self, one: Connection) -> None:
        """Let go of a connection at once, with all that waits in it."""
        self.exit(one.transport)
        one.transport.abort()

    def asks(self, transport: Any) -> None:
        """A new request is waited for."""
        self._is_at(transport, True, self.limits.request)

    def answers(self, transport: Any) -> None:
        """A whole request is there; the answer has to be taken in time."""
        self._is_at(transport, False, self.limits.answer)

    def stays(self, transport: Any) -> None:
        """It is a socket of a viewer, who is looked after elsewhere."""
        self._is_at(transport, False, float("inf"))

    def _is_at(self, transport: Any, asking: bool, seconds: float) -> None:
        if (one := self.open.get(transport)) is not None:
            one.asking, one.due = asking, self.timer() + seconds

    def sweep(self) -> None:
        """Drop those that are overdue; to be called every second or so."""
        now = self.timer()
        for one in list(self.open.values()):
            if one.transport.is_closing() and not one.closing:  # it may wait for ever for a peer that takes nothing
                one.closing, one.due = True, min(one.due, now + CLOSING)
            if now >= one.due:
                if not one.closing:
                    self.metrics.count("svlm_refused_total", label="late")
                self.drop(one)
        for address in [address for address, allowance in self.requests.items() if allowance.full]:
            del self.requests[address]

    def may_ask(self, address: str) -> bool:
        """Whether an address may make one more request now."""
        rate = self.limits.sockets_an_address
        made = Allowance(rate, 64 + 8 * rate, self.timer)
        return self.requests.setdefault(group(address), made).take()


def group(address: str) -> str:
    """What counts as one address: of IPv6 the network of a subscriber (/64), for one has all of it."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv6Address):
        if known.ipv4_mapped is not None:
            return str(known.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(known) >> 64 << 64, 64)))
    return str(known)


def room(limits: Limits, used: int | None = None) -> int:
    """Connections that the system has open files for: its limit is raised as far as this process may.

    Args:
        used: open files of this process, counted if not given.

    Raises:
        InputError: hardly any.
    """
    try:
        import resource
    except ImportError:  # Windows: no such limit
        return limits.connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = open_files() if used is None else used
    beside = used + ACCEPTED + RESERVED
    need = limits.connections + beside
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return limits.connections
    if soft - beside < FEWEST:
        raise InputError("open files", f"a limit of {soft}", f"{beside + FEWEST} or more", "raise it: ulimit -n")
    return min(limits.connections, soft - beside)


def open_files() -> int:
    """Of this process; a guess where the system does not say."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 64
