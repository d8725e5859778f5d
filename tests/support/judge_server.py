"""A server on loopback that speaks OpenAI's chat protocol and misbehaves as real ones do.

`respond(body, times)` decides what comes: a text, or one of the faults below. `body` is the request, `times` how often the same
one has come before. The texts of a judge's prompt are found by their tags: `candidates(body)`.
"""

import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

KEY = "sk-secret-of-the-tests"
MODEL = "judge-model"


class Fault(NamedTuple):
    """What comes instead of a text. seconds: after which it comes. cut: the connection ends in the middle of the body, or, with
    an empty one, before the first byte."""

    status: int = 200
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    cut: bool = False


Answer = str | Fault
Respond = Callable[[dict[str, Any], int], Answer]
Decode = Callable[[str, bytes], dict[str, Any]]  # of a request: its content type and its body


def completion(text: str | None, model: str = f"{MODEL}-2026-11-28", **message: Any) -> str:
    """A body as servers send it."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text, **message}}
    return json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": model, "choices": [choice]})


def failure(
    status: int, message: str = "no", code: str | None = None, param: str | None = None, retry_after: str = ""
) -> Fault:
    body = json.dumps({"error": {"message": message, "type": "x", "code": code, "param": param}})
    return Fault(status, body, (("Retry-After", retry_after),) if retry_after else ())


RATE_LIMITED = failure(429, "slow down", "rate_limit_exceeded", retry_after="0.01")
RATE_LIMITED_WITHOUT_TIME = failure(429, "slow down", "rate_limit_exceeded")
BROKEN = failure(500, "our fault", retry_after="0.01")
CUT = Fault(body=completion("A"), cut=True)
HUNG_UP = Fault(cut=True)
GARBAGE = Fault(body='{"choices": [{"mess')
WEB_PAGE = Fault(body="<html>not here</html>")
REFUSAL = Fault(body=completion(None, refusal="I cannot help with that."))
EMPTY = ""
VERY_LONG = "This is a hard one. " * 5000
NO_TEMPERATURE = failure(400, "Unsupported value: 'temperature' does not support 0.0.", "unsupported_value", "temperature")


def slow(text: str, seconds: float) -> Fault:
    return Fault(body=completion(text), seconds=seconds)


def prompt_text(body: dict[str, Any]) -> str:
    """All the words of a request, those beside pictures too."""
    contents = [message["content"] for message in body["messages"]]
    return "\n".join(c if isinstance(c, str) else "\n".join(part.get("text", "") for part in c) for c in contents)


def candidates(body: dict[str, Any]) -> tuple[str, str]:
    """What the judge reads as A and as B."""
    first, second = (
        re.search(rf"<candidate_{name}>\n(.*?)\n</candidate_{name}>", prompt_text(body), re.DOTALL) for name in "ab"
    )
    assert first and second
    return first[1], second[1]


def prefers(words: str) -> Respond:
    """A judge that votes for the candidate with these words; "tie" where that is not one of them."""

    def respond(body: dict[str, Any], _: int) -> str:
        a, b = (words in text for text in candidates(body))
        return "tie" if a == b else "A" if a else "B"

    return respond


class _Http(ThreadingHTTPServer):
    request_queue_size = 64  # with 5, one of eight clients that connect at once would wait for a second
    daemon_threads = True


class JudgeServer:
    """What it was asked, in order: `requests`. `headers` of each, by names in small letters."""

    def __init__(self, respond: Respond, decode: Decode = lambda _, body: json.loads(body)) -> None:
        self.respond, self.decode = respond, decode
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._times: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.released = threading.Event()  # set at the end: what is slow need not be waited for
        self._http = _Http(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer, decode = self.answer, self.decode

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer(self, decode(self.headers["Content-Type"], body))

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        text = json.dumps(body, sort_keys=True)
        with self._lock:
            times = self._times[text]
            self._times[text] += 1
            self.requests.append(body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        answer = self.respond(body, times)
        fault = answer if isinstance(answer, Fault) else Fault(body=completion(answer))
        if fault.seconds:
            self.released.wait(fault.seconds)
        try:
            _send(handler, fault)
        except OSError:  # the client has gone, as a killed one does
            handler.close_connection = True


def _send(handler: BaseHTTPRequestHandler, fault: Fault) -> None:
    content = fault.body.encode()
    if content or not fault.cut:
        handler.send_response(fault.status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(content))), *fault.headers):
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2] if fault.cut else content)
    if fault.cut:
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True


@contextmanager
def judge_server(respond: Respond | Answer, **options: Any) -> Iterator[JudgeServer]:
    """A running server; an answer stands for a judge that always gives it. options: `decode`."""
    server = JudgeServer(respond if callable(respond) else lambda body, times: respond, **options)
    thread = threading.Thread(target=server._http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server._http.shutdown()
        server._http.server_close()
        thread.join()
