"""What of HTTP and WebSockets happens below the application: uvicorn's protocols with deadlines, and with bounds on what a peer
can make the server do or keep between two messages.

Owns the hooks into uvicorn, nothing else: `connections` decides. Imported late, for uvicorn is an extra.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from svlm_jax.serve.allowance import Allowance
from svlm_jax.serve.connections import Connections

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Http
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol as Socket
else:
    Http = Socket = object  # `protocols` puts uvicorn's behind them

ABORT = "svlm.abort"  # in the scope of a socket: drops its connection
SLICE = 2048  # bytes of a socket that are looked at before what they hold has been heard
FRAGMENTS = 128  # frames of one message


class Requests(Http):
    """A connection that has to become a whole request in time, and to take its answer in time."""

    shared: Connections
    answer: Mapping[str, str]  # headers

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.shared.enter(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.shared.exit(self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body:
            self.shared.answers(self.transport)

    def on_response_complete(self) -> None:
        self.shared.asks(self.transport)  # before requests that wait behind this one are handled
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        import h11

        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is under way
            self.transport.abort()
            return
        fields = {"content-type": "text/plain; charset=utf-8", "connection": "close", **self.answer}
        body = (msg + "\n").encode()
        pairs = [*fields.items(), ("content-length", str(len(body)))]
        for event in (h11.Response(status_code=400, headers=pairs, reason=b"Bad Request"), h11.Data(data=body)):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        self.transport.close()


class Sockets(Socket):
    """A WebSocket of which no more is parsed than is heard, and which cannot keep the server busy with pings."""

    shared: Connections
    answer: Mapping[str, str]

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        rate = self.shared.limits.controls_a_second
        self.backlog, self.controls = bytearray(), Allowance(rate, 10 * rate, self.shared.timer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.shared.exit(self.transport)
        super().connection_lost(exc)

    def handle_connect(self, event: Any) -> None:
        accept = self.conn.accept

        def accepted(request: Any) -> Any:
            response = accept(request)
            if response.status_code != 101:  # no handshake: an answer that no application gives
                response.headers.update(self.answer)
            return response

        self.conn.accept = accepted
        super().handle_connect(event)
        if hasattr(self, "scope"):
            self.scope["extensions"][ABORT] = self.transport.abort  # type: ignore[typeddict-unknown-key]

    def start_keepalive(self) -> None:
        self.shared.stays(self.transport)  # it has been accepted
        super().start_keepalive()

    def data_received(self, data: bytes) -> None:
        self.backlog += data
        self._parse()

    def _parse(self) -> None:
        while self.backlog and not self.read_paused and not self.transport.is_closing():
            part = bytes(self.backlog[:SLICE]) if self.handshake_initiated else bytes(self.backlog)
            del self.backlog[: len(part)]
            super().data_received(part)

    async def receive(self) -> Any:
        message = await super().receive()
        self._parse()
        return message

    async def send(self, message: Any) -> None:
        await super().send(message)
        self._parse()  # a socket that is being closed is read again, for the other side's goodbye

    def handle_ping(self) -> None:
        if self._controlled():
            super().handle_ping()

    def handle_pong(self, event: Any) -> None:
        if self._controlled():
            super().handle_pong(event)

    def _controlled(self) -> bool:
        """Whether one more ping or pong is heard: each costs a frame, and a ping an answer that waits for its reader."""
        if self.transport.is_closing():
            return False
        if not self.controls.take():
            self._drop("pings")
            return False
        return True

    def handle_cont(self, event: Any) -> None:
        if len(self.frames) >= FRAGMENTS:
            self._drop("garbage")
        else:
            super().handle_cont(event)

    def _drop(self, why: str) -> None:
        if not self.transport.is_closing():
            self.shared.metrics.count("svlm_refused_total", label=why)
            self.transport.abort()


def protocols(connections: Connections, headers: Mapping[str, str]) -> tuple[type[Http], type[Socket]]:
    """Classes for uvicorn's `http` and `ws`.

    Args:
        headers: for answers that no application gives.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    both = {"shared": connections, "answer": headers}
    return type("OurRequests", (Requests, H11Protocol), both), type("OurSockets", (Sockets, WebSocketsSansIOProtocol), both)
