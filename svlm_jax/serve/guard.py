"""Around the application: the headers that every answer carries, and requests of an address that come too fast.

Owns the headers. Sits outside Starlette, so that its own answers (404, 405, 500) carry them too. Knows no stream.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from svlm_jax.serve.connections import Connections

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
RAW = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
KINDS = ("http", "websocket.http")  # of answers: to a request, to a socket that is refused

Send = Callable[[Any], Awaitable[None]]


def guarded(application: Any, connections: Connections) -> Any:
    """The ASGI application with headers on every answer, and 429 for an address that asks too often."""

    async def outside(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await application(scope, receive, send)
            return
        accepted = False

        async def tell(message: Any) -> None:
            nonlocal accepted
            accepted = accepted or message["type"] == "websocket.accept"
            if message["type"] == "websocket.close" and not accepted:
                await _answer(tell, "websocket.http", 403, b"nothing here\n")
                return
            if message["type"] in [f"{kind}.response.start" for kind in KINDS]:
                given = list(message.get("headers", []))
                names = {name.lower() for name, _ in given}
                message = {**message, "headers": [*given, *(pair for pair in RAW if pair[0] not in names)]}
            await send(message)

        if connections.may_ask((scope.get("client") or ("",))[0]):
            await application(scope, receive, tell)
            return
        connections.metrics.count("svlm_refused_total", label="requests")
        kind = KINDS[scope["type"] == "websocket"]
        await _answer(tell, kind, 429, b"too many requests of your address; come back later\n", (b"connection", b"close"))

    return outside


async def _answer(tell: Send, kind: str, status: int, body: bytes, *more: tuple[bytes, bytes]) -> None:
    length = (b"content-length", str(len(body)).encode())
    headers = [(b"content-type", b"text/plain; charset=utf-8"), length, *more]
    await tell({"type": f"{kind}.response.start", "status": status, "headers": headers})
    await tell({"type": f"{kind}.response.body", "body": body})
