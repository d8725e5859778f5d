"""Who may come in: a token, the host that was asked for, the page that asks, and sockets an address.

Owns nothing but these rules; the token is never written anywhere. A page of another site must not reach a server on this
machine: its Origin is not ours, and where it has made its own name lead here (DNS rebinding), the Host is not.
"""

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

COOKIE = "svlm_token"
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Access:
    """Rules of one server."""

    def __init__(self, *, token: str = "", loopback: bool = True, origins: Iterable[str] = ()) -> None:
        """Args:
        token: what everybody has to know; "" lets everybody in.
        loopback: whether the server is bound to this machine only; then no other Host is answered.
        origins: more pages that may open sockets, and hosts that may be asked for ("https://name" of a proxy).
        """
        self.token, self.loopback = token, loopback
        self.origins = {origin.rstrip("/").lower() for origin in origins}
        self.hosts = LOOPBACK | {urlsplit(origin).hostname or "" for origin in self.origins}
        self.sockets: Counter[str] = Counter()

    @property
    def cookie(self) -> str:
        """What a browser keeps in place of the token."""
        return hashlib.sha256(b"svlm-jax cookie\0" + self.token.encode()).hexdigest()

    def host(self, header: str) -> bool:
        """Whether a Host header names this server."""
        return not self.loopback or _hostname(header) in self.hosts

    def origin(self, header: str | None, host: str) -> bool:
        """Whether a page of that Origin (None: no browser) may open a socket to that Host."""
        if header is None:
            return True
        origin = header.lower()
        return origin in self.origins or (
            urlsplit(origin).scheme in ("http", "https") and urlsplit(origin).netloc == host.lower()
        )

    def known(self, headers: Mapping[str, str], cookies: Mapping[str, str], query: Mapping[str, str]) -> bool:
        """Whether a request carries the token: "Authorization: Bearer", the cookie, or ?token=."""
        if not self.token:
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [bearer.strip()] if scheme.lower() == "bearer" else []
        given += [query["token"]] if "token" in query else []
        right = [_equal(one, self.token) for one in given] + [_equal(cookies.get(COOKIE, ""), self.cookie)]
        return any(right)

    def enter(self, address: str, most: int) -> bool:
        """Count a socket of an address in, unless it has as many as it may."""
        if self.sockets[address] >= most:
            return False
        self.sockets[address] += 1
        return True

    def exit(self, address: str) -> None:
        """Count it out."""
        self.sockets[address] -= 1
        if self.sockets[address] <= 0:
            del self.sockets[address]


def _hostname(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _equal(given: str, right: str) -> bool:
    """In a time that tells nothing."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode())
