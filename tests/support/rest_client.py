"""A client of the REST sessions with nothing but the standard library, as curl would be used, and a server for it."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from svlm_jax.serve.http.access import Access
from svlm_jax.serve.limits import Limits
from svlm_jax.stream.sequence import Chunk
from tests.support import HANG
from tests.support.fake_engine import Script
from tests.support.serving import ServerThread, serving_script

SESSIONS = "/v1/streaming/sessions"
LIMITS = Limits(max_image_bytes=40_000, camera_timeout=HANG, unwatched_timeout=HANG, joins_per_second=1000.0)


def commentary(stream: str, chunk: Chunk) -> list[str]:
    """Words in every other chunk of a second, and an answer to a question."""
    if chunk.question:
        return ["About ", chunk.question]
    return [f"Second {chunk.start:g}."] if chunk.start % 2 else [""]


@contextmanager
def rest_server(
    script: Script = commentary, *, limits: Limits = LIMITS, access: Access | None = None, replica: str = ""
) -> Iterator[ServerThread]:
    """A server without a model, with two streams at a time."""
    with serving_script(script, limits=limits, access=access, replica=replica) as server:
        yield server


class RestClient:
    """Of one server. `key` is that of the session created last."""

    def __init__(self, http_url: str, **headers: str) -> None:
        parts = urlsplit(http_url)
        self.address, self.headers, self.key = (parts.hostname, parts.port), headers, ""

    @contextmanager
    def open(self, method: str, path: str, body: Any = None, **headers: str) -> Iterator[http.client.HTTPResponse]:
        """A response whose body is not read yet. body: bytes, or what is sent as JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(*self.address, timeout=HANG)
        try:
            connection.request(method, path, data, {**self.headers, "X-Session-Key": self.key, **headers})
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a response."""
        with self.open(method, path, body, **headers) as response:
            return response.status, json.loads(response.read())

    def create(self, **fields: Any) -> str:
        """The id of a new session."""
        status, session = self.call("POST", SESSIONS, fields)
        assert status == 201, session
        self.key = session["key"]
        return session["id"]

    def frame(self, name: str, image: bytes, query: str = "") -> dict[str, Any]:
        status, result = self.call("POST", f"{SESSIONS}/{name}/frame{query}", image)
        assert status == 200, result
        return result

    def chunk(self, name: str, image: bytes, index: int, frames: int = 2) -> list[dict[str, Any]]:
        """Push the frames of a chunk of a second, with stamps. The replies."""
        results = [self.frame(name, image, f"?timestamp={1000 + index + frame / frames}") for frame in range(frames)]
        return [reply for result in results for reply in result["replies"]]

    @contextmanager
    def events(self, path: str, **headers: str) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
        """(id, event) of server-sent events, once the server says that the subscription has begun."""
        with self.open("GET", path, **headers) as response:
            assert response.status == 200, response.read()
            assert response.headers["Content-Type"].startswith("text/event-stream")
            assert response.readline() == b":\n"
            yield _events(response)


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    fields: dict[str, str] = {}
    for line in response:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "data":
            event = json.loads(value)
            assert fields["event"] == event["type"]
            yield fields.get("id", ""), event
            fields = {}
        elif name in ("id", "event"):
            fields[name] = value
