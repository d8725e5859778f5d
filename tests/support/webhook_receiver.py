"""A receiver of webhooks on loopback that fails as real ones do. `respond(number)` is asked at each request, counted from 0."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tests.support import HANG

HUNG_UP = 0  # in place of a status: the connection is closed without an answer
Respond = Callable[[int], int]


class Received(NamedTuple):
    path: str
    headers: dict[str, str]  # names in small letters
    body: bytes
    connection: int  # port of the sender: the same for requests over one connection

    @property
    def event(self) -> dict[str, Any]:
        return json.loads(self.body)


class Receiver:
    """`received`: the requests in order, also those that were answered with a failure. `accepted`: their events, once."""

    def __init__(self, respond: Respond, retry_after: str = "") -> None:
        self.received: list[Received] = []
        self.accepted: list[dict[str, Any]] = []
        self.changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                with receiver.changed:
                    number = len(receiver.received)
                    receiver.received.append(Received(self.path, headers, body, self.client_address[1]))
                    receiver.changed.notify_all()
                status = respond(number)
                with receiver.changed:
                    if 200 <= status < 300:
                        receiver.accepted.append(json.loads(body))
                    receiver.changed.notify_all()
                if status != HUNG_UP:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    if retry_after:
                        self.send_header("Retry-After", retry_after)
                    self.end_headers()
                else:
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/services/T0/secret-path?key=secret-key"

    def wait(self, condition: Callable[[], bool], seconds: float = HANG) -> None:
        """Until a condition on what came holds."""
        with self.changed:
            assert self.changed.wait_for(condition, seconds), self.received


@contextmanager
def receiving(respond: Respond = lambda number: 204, retry_after: str = "") -> Iterator[Receiver]:
    receiver = Receiver(respond, retry_after)
    thread = threading.Thread(target=receiver.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.http.shutdown()
        receiver.http.server_close()
        thread.join()
