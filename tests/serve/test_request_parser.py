"""Requests that cost more to parse than to send are refused; others are not."""

import http.cookies
import socket

import h11
import pytest

from svlm_jax.serve.http.access import Access
from svlm_jax.serve.http.request_parser import PARSE_BYTES, RequestParser
from tests.support import HANG
from tests.support.serving import serving_script

HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def parsed(data: bytes) -> tuple[list[type], bytes]:
    """Types of the events of a request, and its body."""
    parser, events, body = RequestParser(), [], b""
    while data and parser.is_ready:
        size = parser.part_size
        parser.receive_data(data[:size])
        data = data[size:]
        while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            events.append(type(event))
            body += event.data if isinstance(event, h11.Data) else b""
    return events, body


COSTLY = {
    "fields": (HEAD + b"a:\r\n" * 129 + b"\r\n", "more than 128 header fields"),
    "lines without end": (HEAD + b"a:\r\n" * 50_000, "more than 128 lines"),
    "one field": (HEAD + b"a: " + b"b" * 50_000, "too long"),
    "an address": (b"GET /?" + b"a&" * 3000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", "an address of more than 4096 bytes"),
    "chunks": (CHUNKED + b"1\r\na\r\n" * 50_000, "more than 512 tiny chunks"),
    "chunks after large ones": (CHUNKED + b"1000\r\n" + b"a" * 4096 + b"\r\n" + b"1\r\na\r\n" * 600, "tiny chunks"),
    "two lengths": (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "two lengths"),
    "lengths that differ": (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde", "onflicting"),
}


@pytest.mark.parametrize(("data", "why"), COSTLY.values(), ids=COSTLY.keys())
def test_a_costly_request_is_refused(data, why):
    """Else a few hundred kilobytes keep the event loop busy for seconds, before any token."""
    with pytest.raises(h11.RemoteProtocolError, match=why):
        parsed(data)


def test_ordinary_requests_are_read():
    image = b"\n" * 100_000  # lines of a body are none of the head
    many = b"".join(b"400\r\n" + b"a" * 1024 + b"\r\n" for _ in range(100))
    assert parsed(HEAD + b"a: b\r\n" * 100 + b"Content-Length: 100000\r\n\r\n" + image)[1] == image
    assert parsed(CHUNKED + many + b"0\r\n\r\n")[1] == b"a" * 102_400
    events, _ = parsed(HEAD + b"\r\n" + HEAD + b"\r\n")
    assert events == [h11.Request, h11.EndOfMessage]  # the second waits for its turn


def test_a_body_of_known_length_is_parsed_at_once():
    """Else an image of megabytes is thousands of steps."""
    parser = RequestParser()
    parser.receive_data(HEAD + b"Content-Length: 1000000\r\n\r\n")
    assert parser.part_size == PARSE_BYTES and isinstance(parser.next_event(), h11.Request) and parser.part_size == 1_000_000


def answers(server, data: bytes) -> list[bytes]:
    """Statuses of what is answered until the connection is closed."""
    with socket.create_connection(server.address, timeout=HANG) as raw:
        raw.sendall(data)
        received = b""
        try:
            while part := raw.recv(65536):
                received += part
        except ConnectionResetError:  # closed while more was on its way
            pass
    return [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]


def test_the_server_answers_each_request_of_a_connection_and_refuses_costly_ones(monkeypatch):
    def get(fields: bytes = b"", path: bytes = b"/health/live") -> bytes:
        return b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + fields + b"\r\n"

    # the library's way to take off quotes is quadratic in some versions of Python: a field of 15 kB takes seconds
    monkeypatch.setattr(http.cookies, "_unquote", lambda text: pytest.fail("a cookie was unquoted"))
    with serving_script(lambda stream, chunk: (), access=Access(token="a token of its own")) as server:
        close = b"Connection: close\r\n"
        assert answers(server, get() * 20 + get(close)) == [b"200"] * 21
        assert answers(server, get(close + b'Cookie: svlm_token="' + b"\\" * 8000 + b'"\r\n', b"/metrics")) == [b"401"]
        assert answers(server, get() + get(b"a:\r\n" * 1000)) == [b"200", b"400"]
        assert answers(server, b"POST / HTTP/1.1\r\n" + CHUNKED[17:] + b"1\r\na\r\n" * 5000)[-1] == b"400"
        assert server.hub.metrics.value("svlm_refused_total", "bad_request") == 2
