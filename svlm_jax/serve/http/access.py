"""Who may connect: the token, the Host that a request names, the Origin of the page behind it, and sockets per address.

Owns these rules and the count of sockets per address; the token is never written anywhere. A page of another site must not
reach a server on this machine: its Origin differs, and if it points a name of its own at this machine (DNS rebinding), the Host
does.
"""

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from svlm_jax.errors import InputError
from svlm_jax.serve.http.connections import address_group

COOKIE = "svlm_token"
KEY_PROTOCOL = "openai-insecure-api-key."  # of a WebSocket
MIN_TOKEN_CHARS = 12
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Access:
    """Rules of one server."""

    def __init__(self, *, token: str = "", loopback: bool = True, origins: Iterable[str] = ()) -> None:
        """Args:
        token: the secret that every client must send; "" lets everybody in.
        loopback: whether the server is bound to this machine only; requests for any other Host are then refused.
        origins: further pages that may open sockets, and hosts that requests may name ("https://name" of a proxy).
        """
        self.token, self.loopback = token, loopback
        self.origins = {origin.rstrip("/").lower() for origin in origins}
        self.hosts = LOOPBACK | {urlsplit(origin).hostname or "" for origin in self.origins}
        self.sockets: Counter[str] = Counter()  # by `address_group` of the client

    @property
    def cookie(self) -> str:
        """The value a browser stores in place of the token: a hash, so that a stolen cookie does not give the token away."""
        return hashlib.sha256(b"svlm-jax cookie\0" + self.token.encode()).hexdigest()

    def allows_host(self, header: str) -> bool:
        """Whether a Host header names this server."""
        # other addresses are protected by the token; behind them any name may be right
        return not self.loopback or _hostname(header) in self.hosts

    def allows_origin(self, header: str | None, host: str) -> bool:
        """Whether a page of that Origin may open a socket to that Host. None: the client is no browser."""
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

    def is_secure(self, scheme: str, headers: Mapping[str, str]) -> bool:
        """Whether the browser speaks TLS: to this server, or to a proxy that says so or was named by --origin."""
        forwarded_proto = headers.get("x-forwarded-proto", "").split(",")[0].strip().lower()
        forwarded = re.search(r"\bproto=\"?https\b", headers.get("forwarded", ""), re.IGNORECASE)
        url = f"https://{headers.get('host', '').lower()}"
        return scheme in ("https", "wss") or forwarded_proto in ("https", "wss") or forwarded is not None or url in self.origins

    def has_token(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        """Whether a request carries the token: as "Authorization: Bearer" in UTF-8, as the cookie, as ?token=, or as a browser
        with OpenAI's client sends it, which cannot set header fields: in the name of a subprotocol."""
        if not self.token:
            return True
        # every candidate is compared, also after a match: the time of the answer depends on no secret
        matches = [_equal(candidate, _bytes(self.token)) for candidate in _candidates(headers, query)]
        matches += [_equal(_bytes(cookie), self.cookie.encode()) for cookie in _cookies(headers)]
        return any(matches)

    def has_credentials(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        """Whether a request carries a token or a cookie at all, right or wrong: then it may be a guess."""
        return bool(_candidates(headers, query) or _cookies(headers))

    def add_socket(self, address: str, max_sockets: int) -> bool:
        """Count one more socket of an address; False, and nothing counted, if it has `max_sockets` already."""
        group = address_group(address)
        if self.sockets[group] >= max_sockets:
            return False
        self.sockets[group] += 1
        return True

    def remove_socket(self, address: str) -> None:
        """Undo `add_socket`."""
        group = address_group(address)
        self.sockets[group] -= 1
        if self.sockets[group] <= 0:
            del self.sockets[group]


def check_token(token: str) -> str:
    """A token that can be sent and cannot be guessed.

    Raises:
        InputError: it is short, or has characters that header fields or address bars do not keep.
    """
    remedy = "generate one: openssl rand -base64 24"
    if len(token) < MIN_TOKEN_CHARS:
        expected = f"{MIN_TOKEN_CHARS} or more, so that nobody guesses it"
        raise InputError("--token", f"{len(token)} characters", expected, remedy)
    if not token.isprintable() or " " in token:
        raise InputError("--token", "blanks or control characters", "letters, digits and signs", remedy)
    return token


def _hostname(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _candidates(headers: Mapping[str, str], query: Mapping[str, str]) -> list[bytes]:
    """Tokens that a request carries, as bytes. ASGI servers decode header fields as Latin-1, whatever their encoding is;
    encoding them again gives the bytes that were sent."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    candidates = [bearer.strip(" \t").encode("latin-1", "replace")] if scheme.lower() == "bearer" else []
    names = [name.strip() for name in headers.get("sec-websocket-protocol", "").split(",")]
    candidates += [_bytes(name.removeprefix(KEY_PROTOCOL)) for name in names if name.startswith(KEY_PROTOCOL)]
    return candidates + ([_bytes(query["token"])] if "token" in query else [])


def _cookies(headers: Mapping[str, str]) -> list[str]:
    """Values of this server's cookie. It is never quoted; the standard library, which takes off quotes, may need minutes for
    the backslashes in one field (Python before 3.11.10 and 3.12.6)."""
    pairs = (pair.partition("=") for pair in headers.get("cookie", "").split(";"))
    return [value.strip() for name, _, value in pairs if name.strip() == COOKIE]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _equal(candidate: bytes, secret: bytes) -> bool:
    """Comparison in constant time: how long it takes does not say how much of a guess was right."""
    return hmac.compare_digest(candidate, secret)
