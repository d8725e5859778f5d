"""Routes of the server, and the one check that stands before each: Host, Origin, token, and whether new work is taken.

Owns what a refusal looks like: a line of text, or below /v1/ a JSON object of the form that OpenAI's API has. A module that
offers routes returns a list of them, and `Site` puts the check before every one, so that none can be forgotten. Starlette is
imported inside functions: the package works without it. Units: bytes.
"""

import asyncio
import json
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from svlm_jax.errors import InputError
from svlm_jax.serve.http.access import Access
from svlm_jax.serve.json_fields import Fields, code_of, decode_json
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.metrics import Metrics

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

API_PREFIX = "/v1/"
RENEW_EXTENSION = "svlm.renew"  # key in the ASGI scope of a request: a function that starts the deadline of its response anew
REFUSED = "svlm_refused_total"
# OpenAI's `type` of an error, by status; clients choose their exception by the status
ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass(frozen=True)
class HttpRoute:
    """A path and what answers it.

    needs_token: False for what is public. starts_work: it is refused while the server drains.
    """

    path: str
    handler: "Callable[[Request], Awaitable[Response]]"
    methods: tuple[str, ...] = ("GET",)
    needs_token: bool = True
    starts_work: bool = False


@dataclass(frozen=True)
class SocketRoute:
    """A path and the handler of its sockets, called once the check has passed and before a socket is accepted."""

    path: str
    handler: "Callable[[WebSocket], Awaitable[None]]"


class Refusal(NamedTuple):
    """reason: label of `svlm_refused_total`."""

    status: int
    line: str
    reason: str


class HttpError(Exception):
    """A request that a handler below /v1/ answers with an error. An `InputError` is answered with 400 without it.

    status: of HTTP. message: one line for the client. param: the field that is wrong. code: a word for programs. retry_after:
    seconds after which the same request may succeed.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: float = 0
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after


class Gate:
    """The check before every route."""

    def __init__(self, access: Access, limits: Limits, metrics: Metrics, is_draining: Callable[[], bool]) -> None:
        """is_draining: whether no new work is taken, because the server is about to stop."""
        self.access, self.limits, self.metrics, self.is_draining = access, limits, metrics, is_draining

    async def check(
        self, connection: "HTTPConnection", *, needs_token: bool = True, starts_work: bool = False
    ) -> Refusal | None:
        """Why a request or a handshake is refused; None: it is not. A wrong token is answered late, to slow down guessing."""
        access, headers = self.access, connection.headers
        if not access.allows_host(headers.get("host", "")):
            return Refusal(421, "Host: expected localhost; name others with --origin", "host")
        if not access.allows_origin(headers.get("origin"), headers.get("host", "")):
            return Refusal(403, "Origin: a page of another site; name it with --origin", "origin")
        if needs_token and not access.has_token(headers, connection.query_params):
            if access.has_credentials(headers, connection.query_params):
                await asyncio.sleep(self.limits.wrong_token_delay)
            return Refusal(401, "token: expected the one that the server was started with", "token")
        if starts_work and self.is_draining():
            return Refusal(503, "the server is about to stop and takes nothing new; try another", "draining")
        return None

    def count(self, refusal: Refusal) -> None:
        self.metrics.count(REFUSED, label=refusal.reason)

    def http(self, route: HttpRoute) -> Any:
        """The Starlette route of an HTTP route, with the check before it and errors told as they should be."""
        from starlette.routing import Route

        async def endpoint(request: "Request") -> "Response":
            refusal = await self.check(request, needs_token=route.needs_token, starts_work=route.starts_work)
            if refusal is not None:
                self.count(refusal)
                return refused(request, refusal)
            try:
                return await route.handler(request)
            except HttpError as error:
                return api_error(error)
            except InputError as error:
                return api_error(HttpError(400, str(error), param=error.field, code=code_of(error)))
            except Exception as error:  # a bug of the server ends one request, as it ends one socket
                traceback.print_exception(error)
                self.metrics.count(REFUSED, label="internal_error")
                return answered(request, HttpError(500, "internal error of the server", code="internal_error"))

        return Route(route.path, endpoint, methods=list(route.methods))

    def socket(self, route: SocketRoute) -> Any:
        """The Starlette route of a socket route, with the check before it."""
        from starlette.routing import WebSocketRoute

        async def endpoint(socket: "WebSocket") -> None:
            if (refusal := await self.check(socket)) is not None:
                await self.deny(socket, refusal)
            else:
                await route.handler(socket)

        return WebSocketRoute(route.path, endpoint)

    async def deny(self, socket: "WebSocket", refusal: Refusal) -> None:
        """Answer a handshake with a refusal."""
        self.count(refusal)
        await socket.send_denial_response(refused(socket, refusal))


def refused(connection: "HTTPConnection", refusal: Refusal) -> "Response":
    """The response to a request or a handshake that is refused."""
    retry_after = 5.0 if refusal.status == 503 else 0.0
    return answered(connection, HttpError(refusal.status, refusal.line, code=refusal.reason, retry_after=retry_after))


def answered(connection: "HTTPConnection", error: HttpError) -> "Response":
    """An error as the path says: below /v1/ as OpenAI's clients read it, elsewhere as a line."""
    if connection.scope["path"].startswith(API_PREFIX):
        return api_error(error)
    return respond(error.message + "\n", "text/plain", error.status)


async def unrouted(request: "Request", error: Exception) -> "Response":
    """The response to a path or a method that no route has. error: Starlette's, which knows the methods of the path."""
    status, headers = getattr(error, "status_code", 404), getattr(error, "headers", None)
    if status == 405:
        response = answered(
            request, HttpError(405, f"method: expected {(headers or {}).get('Allow')}", code="method_not_allowed")
        )
    else:
        response = answered(request, HttpError(404, "not found: nothing is at this path", code="not_found"))
    response.headers.update(headers or {})
    return response


async def expects_socket(request: "Request") -> "Response":
    """The response to a plain request for the path of sockets."""
    raise HttpError(426, "this path is for WebSockets: connect to ws://, or wss:// behind TLS", code="upgrade_required")


def respond(body: bytes | str, media: str, status: int = 200, headers: Mapping[str, str] | None = None) -> "Response":
    from starlette.responses import Response

    return Response(body, status, headers, media_type=media)


def respond_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> "Response":
    return respond(json.dumps(value) + "\n", "application/json", status, headers)


def api_error(error: HttpError) -> "Response":
    """An error as OpenAI's clients read it."""
    kind = ERROR_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    fields = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    headers = {"Retry-After": f"{error.retry_after:.0f}"} if error.retry_after else None
    return respond_json({"error": fields}, error.status, headers)


def body_length(request: "Request", default: int) -> int:
    """Bytes of a body as its request says; `default` where it does not."""
    length = request.headers.get("content-length", "")  # the parser has checked that it is digits
    return int(length[:20]) if length else default


async def read_body(request: "Request", max_bytes: int) -> bytes:
    """The body of a request, refused as soon as it is too large.

    Raises:
        HttpError: 413, it is too large; 400, the client has closed the connection.
    """
    from starlette.requests import ClientDisconnect

    too_large = HttpError(413, f"body: expected at most {max_bytes} bytes; send less", code="too_large")
    if body_length(request, 0) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > max_bytes:
                raise too_large
    except ClientDisconnect:
        raise HttpError(400, "body: the connection was closed before its end") from None
    return bytes(body)


async def read_json(request: "Request", max_bytes: int) -> dict[str, Any]:
    """The body of a request as a JSON object; of an empty one an empty one.

    Raises:
        HttpError: as `read_body`.
        json_fields.RequestError: it is no JSON object, or one of too many values.
    """
    try:
        text = (await read_body(request, max_bytes)).decode()
    except UnicodeDecodeError:
        raise HttpError(400, "body: got no UTF-8, expected JSON in UTF-8; encode it", code="invalid_value") from None
    return Fields(decode_json(text)).value if text.strip() else {}


def renew_deadline(request: "Request") -> None:
    """Start the deadline of a response anew (`Limits.response_timeout`): of one that is written over a long time, after every
    part that the client has read."""
    request.scope.get("extensions", {}).get(RENEW_EXTENSION, lambda: None)()
