"""The page without a server: its files, the events that a server would send, and what the page does with them.

The socket of such a page is `SOCKET`, which keeps what the page sends. Fixtures are in tests/serve/conftest.py.
"""

import http.server
import json

from svlm_jax.serve.http.middleware import HEADERS
from tests.support.browser import Tab

SOCKET = """window.sockets = []; window.sent = [];
window.WebSocket = class { constructor() { this.readyState = 1; window.sockets.push(this); }
  send(data) { window.sent.push(typeof data === "string" ? JSON.parse(data) : { type: "image" }); }
  close(event = { reason: "" }) { this.readyState = 3; this.onclose?.(event); } };
window.spoken = []; speechSynthesis.speak = (words) => window.spoken.push(words.text);"""
SERVER = {
    "cache_kinds": ["system", "sink", "window", "user", "vision", "reply"],
    "sources": ["film.mp4"],
    "allow_addresses": False,
    "chunk_seconds": 1,
    "camera": {"fps": 4, "max_bytes": 250_000, "width": 160, "height": 120},
    "max_question_chars": 300,
    "default_query": "Say what you see",
    "model": "touchline",
    "is_game_model": True,
    "settings": [["temperature", "0"]],
}
SETTINGS = {
    "query": "Say what you see",
    "mode": "streaming",
    "vision_window": 16,
    "text_rounds": 16,
    "sink": 512,
    "text_window": None,
    "fps": 2,
    "temperature": 0.9,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.05,
    "silence": None,
    "min_gap": 0,
    "max_talk": None,
    "max_new_tokens": 20,
    "alert": None,
}
JOINED = {
    "type": "svlm.stream.joined",
    "stream": "abcdefgh",
    "title": "match 1",
    "num_viewers": 1,
    "seconds": 0,
    "end_reason": "",
    "is_game": True,
    "source": "match",
    "is_owner": True,
    "missed": [],
    "is_truncated": False,
    "last_chunk": None,
    "settings": SETTINGS,
}
QUESTION = {"kind": "answer", "question": "Who scored?"}
STARTED = {"type": "svlm.stream.started", "stream": "abcdefgh", "key": "k"}
ENDED = {"type": "svlm.stream.ended", "stream": "abcdefgh", "reason": "stopped by its viewer"}


def session(kind: str = "session.created", server: dict | None = None, **svlm) -> dict:
    fields = {**SETTINGS, "subscribe": [], "server": {**SERVER, **(server or {})}, **svlm}
    return {"type": kind, "session": {"type": "realtime", "id": "sess_1", "svlm": fields}}


class Files(http.server.SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


def send(tab: Tab, **event) -> None:
    tab.run(f"window.sockets.at(-1).onmessage({{ data: {json.dumps(json.dumps(event))} }})")


def chunk(
    tab: Tab, number: int, text: str = "", *, question: str = "", answer: str = "", factor: float = 2.0, **fields
) -> None:
    retained = fields.pop("retained", 100)
    kind = "answer" if answer else "commentary" if text else "silent"
    entry = {"number": number, "start": float(number), "end": number + 1.0, "kind": kind, "text": text}
    entry |= {"question": question, "answer": answer, "note": ""}
    measurements = {"latency_seconds": 0.1, "realtime_factor": factor, "stage_ms": {"vision": 1, "prefill": 2, "decode": 3}}
    cache = {"retained": [[0, 10, None], [4, retained - 10, float(number)]], "evicted": []}
    counts = {"dropped_total": 0, "used_slots": retained, "capacity": 2048}
    send(tab, type="svlm.chunk.done", stream="abcdefgh", cache=cache, **entry, **measurements, **counts, **fields)


def response(tab: Tab, number: int, step: str, *, status: str = "completed", delta: str = "", metadata=None, **svlm) -> None:
    """A step of the reply to a chunk: "created", "delta" or "done"."""
    name = f"resp_{number}"
    if step == "delta":
        send(tab, type="response.output_text.delta", response_id=name, delta=delta)
        return
    place = {"stream": "abcdefgh", "number": number, "start": float(number), "end": number + 1.0, "kind": "commentary"}
    body = {"id": name, "status": status, "output": [], "metadata": metadata, "svlm": {**place, **svlm}}
    send(tab, type=f"response.{step}", response=body)


def sent(tab: Tab, kind: str) -> list[dict]:
    """Events of a type that the page has sent."""
    return tab.run(f"window.sent.filter((event) => event.type === {json.dumps(kind)})")


def wait_sent(tab: Tab, kind: str, count: int = 1) -> dict:
    tab.wait(f"window.sent.filter((event) => event.type === {json.dumps(kind)}).length >= {count}")
    return sent(tab, kind)[count - 1]


def lines(tab: Tab, selector: str = "") -> list[str]:
    return tab.run(f"[...document.querySelectorAll('#log li{selector} p')].map((item) => item.textContent)")


def words(tab: Tab, selector: str) -> str:
    return tab.run(f"document.querySelector({json.dumps(selector)}).textContent")


def visible(tab: Tab, selector: str) -> bool:
    return tab.run(f"document.querySelector({json.dumps(selector)}).getClientRects().length > 0")


def alert(tab: Tab, state: bool, probability: float, start: float, **fields) -> None:
    span = {"start": start, "end": start + 1, "text": "Red."}
    event = {"stream": "abcdefgh", "name": "Reds have the ball", "state": state, "probability": probability}
    send(tab, type="svlm.alert", **event, **span, **fields)


def point(tab: Tab, second: float, start: float = 0, end: float | None = None) -> list[str]:
    """Move the pointer to a second of the timeline; what it says there: [time, words]."""
    last = "Math.max(60, Number(document.querySelector('#timeline').getAttribute('aria-valuemax')))"
    box = "document.querySelector('#timeline').getBoundingClientRect()"
    x = f"{box}.left + {second - start} / ({last if end is None else end} - {start}) * {box}.width"
    event = f"new PointerEvent('pointermove', {{ clientX: {x}, clientY: {box}.top + 5 }})"
    tab.run(f"document.querySelector('#timeline').dispatchEvent({event})")
    return [words(tab, "#tip time"), words(tab, "#tip p")]


def press(tab: Tab, key: str) -> None:
    tab.run("document.querySelector('#timeline').focus()")
    tab.run(f"document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {{ key: {json.dumps(key)}, bubbles: true }}))")


def ask(tab: Tab, question: str) -> None:
    tab.run(f"document.querySelector('#question').value = {json.dumps(question)}")
    tab.run("document.querySelector('#ask').requestSubmit()")


def choose(tab: Tab, selector: str, value: object) -> None:
    """A value in a control, as a person would set it."""
    control = f"document.querySelector({json.dumps(selector)})"
    tab.run(f"{control}.value = {json.dumps(value)}; {control}.dispatchEvent(new Event('change', {{ bubbles: true }}))")


def refuse(tab: Tab, event: dict, code: str, message: str) -> None:
    error = {"type": "invalid_request_error", "code": code, "message": message, "param": "", "event_id": event["event_id"]}
    send(tab, type="error", error=error)
