"""Who may come in: a token, the host that was asked for, the page that asks, and sockets an address.

Owns nothing but these rules; the token is never written anywhere. A page of another site must not reach a server on this
machine: its Origin is not ours, and where it has made its own name lead here (DNS rebinding), the Host is not.
"""

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from svlm_jax.errors import InputError

COOKIE = "svlm_token"
SHORTEST = 12  # characters of a token
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
        if origin in self.origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:  # "http://["
            return False
        return parts.scheme in ("http", "https") and parts.netloc == host.lower()

    def secure(self, scheme: str, headers: Mapping[str, str]) -> bool:
        """Whether a browser has come over TLS: to us, or to a proxy in front that says so or was named by --origin."""
        said = headers.get("x-forwarded-proto", "").split(",")[0].strip().lower()
        forwarded = re.search(r"\bproto=\"?https\b", headers.get("forwarded", ""), re.IGNORECASE)
        named = f"https://{headers.get('host', '').lower()}"
        return scheme in ("https", "wss") or said in ("https", "wss") or forwarded is not None or named in self.origins

    def known(self, headers: Mapping[str, str], cookies: Mapping[str, str], query: Mapping[str, str]) -> bool:
        """Whether a request carries the token: "Authorization: Bearer" in UTF-8, the cookie, or ?token=."""
        if not self.token:
            return True
        right = [_equal(one, _bytes(self.token)) for one in _given(headers, query)]
        return any([*right, _equal(_bytes(cookies.get(COOKIE, "")), self.cookie.encode())])

    def named(self, headers: Mapping[str, str], cookies: Mapping[str, str], query: Mapping[str, str]) -> bool:
        """Whether a request carries anything in place of the token: a guess."""
        return bool(_given(headers, query)) or COOKIE in cookies

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


def check_token(token: str) -> str:
    """A token that can be sent, and not be guessed.

    Raises:
        InputError: it is short, or has characters that no header field and no address bar keeps.
    """
    remedy = "make one: openssl rand -base64 24"
    if len(token) < SHORTEST:
        raise InputError("--token", f"{len(token)} characters", f"{SHORTEST} or more, so that nobody guesses it", remedy)
    if not token.isprintable() or " " in token:
        raise InputError("--token", "blanks or control characters", "letters, digits and signs", remedy)
    return token


def _hostname(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _given(headers: Mapping[str, str], query: Mapping[str, str]) -> list[bytes]:
    """Tokens as they came. A server has header fields as Latin-1, whatever they are: their bytes count."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = [bearer.strip(" \t").encode("latin-1", "replace")] if scheme.lower() == "bearer" else []
    return given + ([_bytes(query["token"])] if "token" in query else [])


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _equal(given: bytes, right: bytes) -> bool:
    """In a time that tells nothing."""
    return hmac.compare_digest(given, right)
