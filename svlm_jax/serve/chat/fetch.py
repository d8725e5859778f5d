"""Images and videos from the web, for requests that name a URL: never from this machine or its network.

A server that fetches what strangers name can be made to read what only it can reach (server-side request forgery). So the host
is resolved once, every address that it has must be public, and the connection goes to the address that was checked; redirects
are checked in the same way. Blocks: for threads that may wait. Units: bytes, seconds.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from threading import Timer
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from svlm_jax.errors import InputError, shortened
from svlm_jax.media.paths import masked

MAX_URL_CHARS = 2000
MAX_REDIRECTS = 3
PART_BYTES = 64 * 1024
REDIRECTS = (301, 302, 303, 307, 308)
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # the last 32 bits are an IPv4 address

Resolver = Callable[[str, int], list[str]]  # (host, port) -> its addresses


class Target(NamedTuple):
    """Where one request goes. address: checked; host: as the URL names it; path: with the query."""

    is_secure: bool
    host: str
    address: str
    port: int
    path: str


class MediaFetcher:
    """Fetches what a URL of http or https names. Threads may share it."""

    def __init__(
        self,
        *,
        max_bytes: int,
        timeout: float,
        hosts: Iterable[str] = (),
        resolve: Resolver | None = None,
    ) -> None:
        """Args:
        max_bytes, timeout: of one file, redirects included.
        hosts: that may have private addresses: named by the operator.
        resolve: how names become addresses; by default as the system does it.
        """
        self.max_bytes, self.timeout, self.resolve = max_bytes, timeout, resolve or _resolve
        self.hosts = frozenset(host.lower() for host in hosts)

    def fetch(self, url: str, field: str) -> bytes:
        """The bytes at a URL.

        Raises:
            InputError: under the name `field`: no URL that may be fetched, or it does not answer, or too much or too slowly.
        """
        deadline = time.monotonic() + self.timeout
        try:
            for _ in range(MAX_REDIRECTS + 1):
                content, location = self._request(self._target(url, field), deadline, field)
                if not location:
                    return content
                url = urljoin(url, location)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, InputError):
                raise
            late = time.monotonic() >= deadline
            got = f"no answer within {self.timeout:g} s" if late else f"no answer ({type(error).__name__})"
            raise InputError(field, got, "a URL that answers", "check it, or send the file as a data: URI") from None
        raise InputError(field, f"more than {MAX_REDIRECTS} redirects", "fewer", "name the last address")

    def _target(self, url: str, field: str) -> Target:
        expected = "an http or https URL of a public host, without a password"
        remedy = "send the file as a data: URI"
        try:
            if len(url) > MAX_URL_CHARS or not url.isascii() or not url.isprintable() or " " in url:
                raise ValueError
            parts: SplitResult = urlsplit(url)
            host, port = parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme]
            if not host or "@" in parts.netloc:
                raise ValueError
        except (ValueError, KeyError):
            raise InputError(field, shortened(masked(url), 80), expected, remedy) from None
        try:
            addresses = self.resolve(host, port)
        except (OSError, UnicodeError):  # the latter: a label of 64 letters, or of none
            addresses = []  # no such name: told as a private one is
        if not addresses or (host not in self.hosts and not all(is_public(address) for address in addresses)):
            # the same line whatever is there: it must not tell what the server's network looks like
            raise InputError(field, f"{shortened(host, 60)}, no public host", expected, remedy)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Target(parts.scheme == "https", host, addresses[0], port, path)

    def _request(self, target: Target, deadline: float, field: str) -> tuple[bytes, str]:
        """(content, "") or (b"", where it has gone)."""
        connection = _Connection(target, max(0.01, deadline - time.monotonic()))
        # A peer that sends a byte now and then meets every timeout of a read. This one is of the whole.
        alarm = Timer(max(0.01, deadline - time.monotonic()), connection.abort)
        alarm.daemon = True
        alarm.start()
        try:
            connection.request("GET", target.path, headers={"Accept-Encoding": "identity", "User-Agent": "svlm"})
            with connection.getresponse() as response:
                if response.status in REDIRECTS and (location := response.headers.get("Location")):
                    return b"", location
                if response.status != 200:
                    raise InputError(field, f"status {response.status}", "200", "check the URL")
                too_large = InputError(field, f"more than {self.max_bytes} bytes", "fewer", "send a smaller file")
                if (response.length or 0) > self.max_bytes:
                    raise too_large
                content = bytearray()
                while part := response.read1(PART_BYTES):
                    content += part
                    if len(content) > self.max_bytes:
                        raise too_large
                if response.length or time.monotonic() >= deadline:  # closed before the end: by its server, or by the alarm
                    raise http.client.IncompleteRead(b"")
                return bytes(content), ""
        finally:
            alarm.cancel()
            connection.close()


class _Connection(http.client.HTTPConnection):
    """To the address that was checked; the name is for the Host field and the certificate."""

    def __init__(self, target: Target, timeout: float) -> None:
        super().__init__(target.host, target.port, timeout=timeout)
        self.target = target
        self.raw: socket.socket | None = None  # `sock` is given away once a response has begun
        if target.is_secure:
            self.default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        self.sock = self.raw = socket.create_connection((self.target.address, self.target.port), self.timeout)
        if self.target.is_secure:
            context, name = ssl.create_default_context(), self.target.host
            self.sock = self.raw = context.wrap_socket(self.sock, server_hostname=name, do_handshake_on_connect=False)
            self.sock.do_handshake()

    def abort(self) -> None:
        """End every read of another thread."""
        if self.raw is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.raw, socket.SHUT_RDWR)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, and of one host there: nothing of this machine, its networks, or
    in an IPv6 address that stands for such an IPv4 address."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64 or int(ip) >> 32 == 0:  # the latter: "IPv4-compatible", deprecated
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


def _resolve(host: str, port: int) -> list[str]:
    return list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
