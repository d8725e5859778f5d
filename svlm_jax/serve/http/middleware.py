"""ASGI middleware: security headers on every response, and a rate limit per client address.

Owns the headers. Wraps Starlette from outside, so that Starlette's own responses (404, 405, 500) have the headers too. Knows no
stream.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from svlm_jax.serve.http.connections import Connections
from svlm_jax.serve.http.routes import HttpError, answered

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
RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
RESPONSE_KINDS = ("http", "websocket.http")  # message types: response to a request, and to a handshake that is refused

NOT_FOUND = b"not found\n"
PLAIN = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(NOT_FOUND)).encode())]

Send = Callable[[Any], Awaitable[None]]


def protect(application: Any, connections: Connections) -> Any:
    """The ASGI application with headers on every response, and 429 for an address that sends too many requests."""

    from starlette.requests import HTTPConnection

    async def protected(scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await application(scope, receive, send)
            return
        accepted = False  # a close before the handshake is a refusal, after it the end of a socket

        async def send_with_headers(message: Any) -> None:
            nonlocal accepted
            accepted = accepted or message["type"] == "websocket.accept"
            if message["type"] == "websocket.close" and not accepted:
                # uvicorn's own answer to a refused handshake has no headers
                message = {"type": "websocket.http.response.start", "status": 403, "headers": PLAIN}
                await send_with_headers(message)
                await send_with_headers({"type": "websocket.http.response.body", "body": NOT_FOUND})
                return
            if message["type"] in [f"{kind}.response.start" for kind in RESPONSE_KINDS]:
                headers = list(message.get("headers", []))
                names = {name.lower() for name, _ in headers}
                message = {**message, "headers": [*headers, *(pair for pair in RAW_HEADERS if pair[0] not in names)]}
            await send(message)

        if connections.allow_request((scope.get("client") or ("",))[0]):
            await application(scope, receive, send_with_headers)
            return
        connections.metrics.count("svlm_refused_total", label="rate_limit")
        error = HttpError(429, "too many requests from your address; come back later", code="rate_limit", retry_after=1)
        response = answered(HTTPConnection(scope), error)
        response.headers["Connection"] = "close"
        await response(scope, receive, send_with_headers)

    return protected
