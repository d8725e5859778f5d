"""Messages of the page's socket. Those of clients are checked field by field; a fault is an InputError of one line for the
client.

Owns the types of messages and the fields of those that clients send; knows no stream. A text message is a JSON object with a
"type"; a binary one is an image of a camera from a client, a frame of the video to a client. docs/serve.md lists all fields.
"""

import json
import re
from typing import Any, Literal

from svlm_jax.errors import InputError, shortened
from svlm_jax.serve.limits import Limits

MAX_SEED = 9_999_999
MAX_SOURCE_INDEX = 9_999
SOURCES = ("match", "listed", "camera", "address")
STREAM_NAME = re.compile(r"[a-z0-9]{8}")
OWNER_KEY = re.compile(r"[A-Za-z0-9_-]{0,64}")
REQUIRED_FIELDS = {"join": ("stream",), "ask": ("question",)}
CLIENT_MESSAGES: dict[str, dict[str, type]] = {  # type -> field -> its JSON type
    "start": {"source": str, "seed": int, "index": int, "address": str, "query": str},
    "join": {"stream": str, "after": int, "key": str},
    "leave": {},
    "ask": {"question": str},
    "stop": {"key": str},
}
ServerMessage = Literal[
    "hello", "streams", "started", "joined", "caption", "dropped", "question_queued", "question_refused", "ended", "error"
]


def encode(kind: ServerMessage, **fields: Any) -> str:
    """A message to a client."""
    return json.dumps({"type": kind, **fields})


def parse(text: str, limits: Limits) -> dict[str, Any]:
    """A client's text message as {"type": ..., fields}.

    Raises:
        InputError: no JSON object, an unknown type or field, a missing field, a wrong JSON type, a value out of bounds.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: "[[[[..."
        raise InputError("message", "no JSON", "a JSON object", 'send {"type": "join", "stream": ...}') from None
    if not isinstance(message, dict):
        raise InputError("message", type(message).__name__, "a JSON object", "put it into braces")
    fields = CLIENT_MESSAGES.get(message["type"]) if isinstance(message.get("type"), str) else None
    if fields is None:
        raise InputError("type", _short(message.get("type")), f"one of {', '.join(CLIENT_MESSAGES)}", "name one of them")
    if missing := [name for name in REQUIRED_FIELDS.get(message["type"], ()) if name not in message]:
        raise InputError(missing[0], "nothing", "a value", "send it")
    for name, value in message.items():
        if name == "type":
            continue
        if name not in fields:
            raise InputError(_short(name), "a field", f"one of {', '.join(fields) or 'no fields'}", "leave it out")
        if type(value) is not fields[name]:  # not isinstance: True is an int
            expected = {"str": "text", "int": "a whole number"}[fields[name].__name__]
            raise InputError(name, _short(value), expected, "correct the message")
        _check(name, value, limits)
    return message


def _check(name: str, value: Any, limits: Limits) -> None:
    max_chars = {"question": limits.max_question_chars, "query": limits.max_question_chars, "address": limits.max_address_chars}
    if name in max_chars and len(value) > max_chars[name]:
        raise InputError(name, f"{len(value)} characters", f"at most {max_chars[name]}", "shorten it")
    if name == "question" and not value.strip():
        raise InputError(name, "nothing", "a question", "write one")
    if name in max_chars and not all(char.isprintable() for char in value):
        raise InputError(name, "control characters", "one line of text", "remove them")
    if name == "seed" and not 0 <= value <= MAX_SEED:
        raise InputError(name, _short(value), f"0 to {MAX_SEED}", "choose another")
    if name == "index" and not 0 <= value <= MAX_SOURCE_INDEX:
        raise InputError(name, _short(value), "the index of a listed source", "choose one of the list")
    if name == "after" and not -1 <= value < 2**53:  # what a JavaScript number holds exactly
        raise InputError(name, _short(value), "-1 or the number of a caption", "send that of the last caption received")
    if name == "source" and value not in SOURCES:
        raise InputError(name, _short(value), f"one of {', '.join(SOURCES)}", "choose one of them")
    if name == "stream" and not STREAM_NAME.fullmatch(value):
        raise InputError(name, _short(value), "the name of a stream", "choose one of the list")
    if name == "key" and not OWNER_KEY.fullmatch(value):
        raise InputError(name, "another form", "the key of the `started` message", "send it as received")


def _short(value: object) -> str:
    """A client's value, short enough to be part of a line."""
    return shortened(repr(value), 40)
