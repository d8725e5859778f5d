"""What a client may say, checked field by field. A mistake is an InputError of one line that can be sent back.

Owns the forms of messages; knows no stream. Text messages are JSON objects with a "type"; binary ones are a camera's pictures.
"""

import json
import re
from typing import Any

from svlm_jax.errors import InputError, shortened
from svlm_jax.serve.limits import Limits

LARGEST_SEED = 9_999_999
SOURCES = ("match", "listed", "webcam", "address")
NAME = re.compile(r"[a-z0-9]{8}")  # of a stream
KEY = re.compile(r"[A-Za-z0-9_-]{0,64}")  # of the one who started it
NEEDED = {"join": ("stream",), "ask": ("question",)}
FORMS: dict[str, dict[str, type]] = {  # type -> its fields; those not NEEDED may be left out
    "start": {"source": str, "seed": int, "number": int, "address": str, "query": str},
    "join": {"stream": str, "after": int, "key": str},
    "leave": {},
    "ask": {"question": str},
    "stop": {"key": str},
}


def parse(text: str, limits: Limits) -> dict[str, Any]:
    """A text message as {"type": ..., fields}.

    Raises:
        InputError: no JSON object, another type, an unknown field, a wrong type of field, or one out of its bounds.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError("message", "no JSON", "a JSON object", 'send {"type": "join", "stream": ...}') from None
    if not isinstance(message, dict):
        raise InputError("message", type(message).__name__, "a JSON object", "put it into braces")
    form = FORMS.get(message["type"]) if isinstance(message.get("type"), str) else None
    if form is None:
        raise InputError("type", _short(message.get("type")), f"one of {', '.join(FORMS)}", "name one of them")
    if missing := [name for name in NEEDED.get(message["type"], ()) if name not in message]:
        raise InputError(missing[0], "nothing", "a value", "send it")
    for name, value in message.items():
        if name == "type":
            continue
        if name not in form:
            raise InputError(_short(name), "a field", f"one of {', '.join(form) or 'no fields'}", "leave it out")
        if type(value) is not form[name]:
            expected = {"str": "text", "int": "a whole number"}[form[name].__name__]
            raise InputError(name, _short(value), expected, "mend the message")
        _check(name, value, limits)
    return message


def _check(name: str, value: Any, limits: Limits) -> None:
    longest = {"question": limits.question_chars, "query": limits.question_chars, "address": limits.address_chars}
    if name in longest and len(value) > longest[name]:
        raise InputError(name, f"{len(value)} characters", f"at most {longest[name]}", "shorten it")
    if name == "question" and not value.strip():
        raise InputError(name, "nothing", "a question", "write one")
    if name in longest and not all(one.isprintable() for one in value):
        raise InputError(name, "control characters", "one line of text", "remove them")
    if name == "seed" and not 0 <= value <= LARGEST_SEED:
        raise InputError(name, _short(value), f"0 to {LARGEST_SEED}", "choose another")
    if name == "number" and not 0 <= value < 10_000:
        raise InputError(name, _short(value), "the number of a listed source", "choose one of the list")
    if name == "after" and not -1 <= value < 2**53:
        raise InputError(name, _short(value), "-1 or the number of a caption", "send the last one that came")
    if name == "source" and value not in SOURCES:
        raise InputError(name, _short(value), f"one of {', '.join(SOURCES)}", "choose one of them")
    if name == "stream" and not NAME.fullmatch(value):
        raise InputError(name, _short(value), "the name of a stream", "choose one of the list")
    if name == "key" and not KEY.fullmatch(value):
        raise InputError(name, "another form", "the key that came with the start", "send it as it came")


def _short(value: object) -> str:
    """A client's value as it may stand in a line."""
    return shortened(repr(value), 40)
