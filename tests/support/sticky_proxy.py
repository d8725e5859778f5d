"""A proxy in front of several servers, with the rules of launch/deploy/nginx.conf: what names a stream goes to the replica with
which the name begins, all else to one that is ready. Passes bytes on, sockets included; closes each connection after its
response."""

import re
import socket
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from tests.support import HANG

Address = tuple[str, int]
NAMED = (
    re.compile(r"^/(?:v1/streaming/sessions|streams)/([a-z0-9-]+)-[a-z0-9]{8}(?:[/.?]|$)"),
    re.compile(r"[?&]stream=([a-z0-9-]+)-[a-z0-9]{8}(?:&|$)"),
)


class StickyProxy:
    """`served`: names of the replicas that got requests, in order."""

    def __init__(self, replicas: Mapping[str, Address]) -> None:
        self.replicas, self.served = dict(replicas), []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.http = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def serve_forever(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client = self.listener.accept()[0]
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := client.recv(65536)):
                    return
                head += data
            first, _, rest = head.partition(b"\r\n")
            name = self._choose(first.split()[1].decode())
            self.served.append(name)
            if b"upgrade: websocket" not in rest.lower():  # one request a connection: each is sent where it belongs
                rest = re.sub(rb"(?i)^connection:.*\r\n", b"", rest, flags=re.MULTILINE)
                rest = b"Connection: close\r\n" + rest
            with socket.create_connection(self.replicas[name]) as server:
                server.sendall(first + b"\r\n" + rest)
                back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                back.start()
                _copy(client, server)
                back.join()

    def _choose(self, path: str) -> str:
        for pattern in NAMED:
            if (match := pattern.search(path)) and match[1] in self.replicas:
                return match[1]
        return next((name for name, address in self.replicas.items() if _is_ready(address)), next(iter(self.replicas)))


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _is_ready(address: Address) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address[0]}:{address[1]}/health/ready", timeout=HANG) as response:
            return response.status == 200
    except OSError:  # HTTPError too
        return False


@contextmanager
def proxied(replicas: Mapping[str, Address]) -> Iterator[StickyProxy]:
    proxy = StickyProxy(replicas)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield proxy
    finally:
        # a close alone does not wake a thread that accepts
        with suppress(OSError):
            proxy.listener.shutdown(socket.SHUT_RDWR)
        proxy.listener.close()
        thread.join()
