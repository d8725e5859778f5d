"""HTTP and WebSockets below the application: uvicorn's protocols with deadlines, and with bounds on what a peer can make the
server compute or store between two messages.

Owns the hooks into uvicorn and nothing else: `connections` decides. uvicorn is an extra, so it is imported in `protocols`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from svlm_jax.serve.http.connections import Connections
from svlm_jax.serve.http.routes import RENEW_EXTENSION
from svlm_jax.serve.rate_limit import RateLimit

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as HttpBase
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol as WebSocketBase

    from svlm_jax.serve.http.request_parser import RequestParser
else:
    HttpBase = WebSocketBase = object  # `protocols` adds uvicorn's classes as second bases

ABORT_EXTENSION = "svlm.abort"  # key in the ASGI scope of a socket: a function that closes its connection at once
SEND_EXTENSION = "svlm.send"  # another: a coroutine function that sends several text messages in one write
PARSE_BYTES = 2048  # of a socket that are parsed before the messages in them are consumed
MAX_FRAGMENTS = 128  # frames of one message


class HttpProtocol(HttpBase):
    """A connection whose requests must arrive, and whose responses must be read, before a deadline.

    uvicorn parses all bytes that arrived, up to 256 kB. Here they wait in `unparsed`, and are parsed as far as that is cheap.
    """

    open_connections: Connections  # not `connections`: uvicorn has an attribute of that name
    error_headers: Mapping[str, str]
    new_parser: "type[RequestParser]"
    conn: "RequestParser"

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.conn, self.unparsed = self.new_parser(), bytearray()
        self.open_connections.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.remove(self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.unparsed += data
        self._parse()

    def _parse(self) -> None:
        """Parse to the end of a request: what follows it waits for its response. A socket is another protocol's."""
        while self.unparsed and self.conn.is_ready:
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return
            part = bytes(self.unparsed[: self.conn.part_size])
            del self.unparsed[: len(part)]
            super().data_received(part)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            extensions: Any = self.cycle.scope.setdefault("extensions", {})
            extensions[RENEW_EXTENSION] = partial(self.open_connections.renew, self.transport)
            if not self.cycle.more_body:
                self.open_connections.expect_response(self.transport)

    def on_response_complete(self) -> None:
        # before super: it goes on with the next pipelined request, which sets a deadline of its own
        self.open_connections.expect_request(self.transport)
        super().on_response_complete()
        self._parse()

    def send_400_response(self, msg: str) -> None:
        import h11

        self.open_connections.metrics.count("svlm_refused_total", label="bad_request")
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # in the middle of another response
            self.transport.abort()
            return
        fields = {"content-type": "text/plain; charset=utf-8", "connection": "close", **self.error_headers}
        body = ((self.conn.refusal or msg) + "\n").encode()
        pairs = [*fields.items(), ("content-length", str(len(body)))]
        for event in (h11.Response(status_code=400, headers=pairs, reason=b"Bad Request"), h11.Data(data=body)):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        self.transport.close()


class WebSocketProtocol(WebSocketBase):
    """A WebSocket that is parsed no faster than its messages are consumed, and that pings cannot keep busy.

    uvicorn parses all bytes that arrived and queues the messages: many small ones become objects far larger than their bytes.
    Here the bytes wait in `unparsed`, and behind it in the kernel and in the client.
    """

    open_connections: Connections  # not `connections`: uvicorn has an attribute of that name
    error_headers: Mapping[str, str]

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        rate = self.open_connections.limits.control_frames_per_second
        self.unparsed, self.control_limit = bytearray(), RateLimit(rate, 10 * rate, self.open_connections.timer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_connections.remove(self.transport)
        super().connection_lost(exc)

    def handle_connect(self, event: Any) -> None:
        accept = self.conn.accept

        def accept_with_headers(request: Any) -> Any:
            response = accept(request)
            if response.status_code != 101:  # no handshake: the library answers, and no middleware sees it
                response.headers.update(self.error_headers)
            return response

        self.conn.accept = accept_with_headers
        super().handle_connect(event)
        if hasattr(self, "scope"):
            own = {ABORT_EXTENSION: self.transport.abort, SEND_EXTENSION: self.send_texts}
            self.scope["extensions"].update(own)  # type: ignore[typeddict-item]

    def start_keepalive(self) -> None:
        self.open_connections.keep_open(self.transport)  # uvicorn calls this once the handshake is accepted
        super().start_keepalive()

    def data_received(self, data: bytes) -> None:
        self.unparsed += data
        self._parse()

    def _parse(self) -> None:
        while self.unparsed and not self.read_paused and not self.transport.is_closing():
            # a handshake is parsed in one go: it has limits of its own
            part = bytes(self.unparsed[:PARSE_BYTES]) if self.handshake_initiated else bytes(self.unparsed)
            del self.unparsed[: len(part)]
            super().data_received(part)

    async def receive(self) -> Any:
        message = await super().receive()
        self._parse()
        return message

    async def send(self, message: Any) -> None:
        await super().send(message)
        self._parse()  # a socket that is being closed is read again, for the peer's close frame

    async def send_texts(self, texts: Sequence[str]) -> None:
        """Send several messages in one write: each write is a system call that wakes the client, and the first words of a reply
        are five messages to each of those who watch.

        Raises:
            OSError: the socket is closed, or is being closed.
        """
        await self.writable.wait()
        if self.disconnected or self.close_sent:
            raise ConnectionResetError("the socket is closed")
        for text in texts:
            self.conn.send_text(text.encode())
        self.transport.write(b"".join(self.conn.data_to_send()))
        self._parse()

    def handle_ping(self) -> None:
        if self._allow_control_frame():
            super().handle_ping()

    def handle_pong(self, event: Any) -> None:
        if self._allow_control_frame():
            super().handle_pong(event)

    def _allow_control_frame(self) -> bool:
        """Whether one more ping or pong is handled: each costs a frame, and a ping an answer that waits for its reader."""
        if self.transport.is_closing():
            return False
        if not self.control_limit.allow():
            self._abort("control_frames")
            return False
        return True

    def handle_cont(self, event: Any) -> None:
        if len(self.frames) >= MAX_FRAGMENTS:
            self._abort("fragments")
        else:
            super().handle_cont(event)

    def _abort(self, reason: str) -> None:
        if not self.transport.is_closing():
            self.open_connections.metrics.count("svlm_refused_total", label=reason)
            self.transport.abort()


def protocols(connections: Connections, error_headers: Mapping[str, str]) -> tuple[type[HttpBase], type[WebSocketBase]]:
    """Classes for uvicorn's `http` and `ws`.

    Args:
        error_headers: for responses that come from uvicorn or the WebSocket library and not from the application.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    from svlm_jax.serve.http.request_parser import RequestParser

    fields = {"open_connections": connections, "error_headers": error_headers}
    return (
        type("BoundedHttp", (HttpProtocol, H11Protocol), {**fields, "new_parser": RequestParser}),
        type("BoundedWebSocket", (WebSocketProtocol, WebSocketsSansIOProtocol), fields),
    )
