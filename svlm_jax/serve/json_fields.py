"""JSON that a client sent, read field by field: what is wrong with it is one line under the path of the field.

Owns the checks that every request needs, over a socket or over HTTP: how large and deep JSON may be, the type of a value, its
bounds, fields that nobody knows. Knows no message.
"""

import binascii
import json
from typing import Any

from svlm_jax.errors import InputError, shortened

MAX_BRACKETS = 2000  # and as many commas: a megabyte of "[[[[" or "{},{}," would become a hundred times as much memory
MAX_EVENT_ID = 512  # characters
LARGEST_INTEGER = 2**53 - 1  # what a JavaScript number holds exactly


class RequestError(InputError):
    """Why JSON is refused. code: for programs; OpenAI's own where it has one. event_id: of the event of a client that it is
    about, where that has one."""

    event_id = ""

    def __init__(self, field: str, got: object, expected: str, remedy: str, *, code: str = "invalid_value") -> None:
        super().__init__(field, got, expected, remedy)
        self.code = code


def code_of(error: InputError) -> str:
    """The code of any refusal; one that is about no field of a message says that it cannot be done now."""
    return getattr(error, "code", "refused")


def decode_json(text: str, max_values: int = MAX_BRACKETS) -> Any:
    """The value of a text.

    Args:
        max_values: brackets and commas that it may have; those inside texts count too.

    Raises:
        RequestError: no JSON, or JSON of more values than any request has.
    """
    if max(text.count("["), text.count("{"), text.count(",")) > max_values:
        got, remedy = f"more than {max_values} values", "send less at a time"
        raise RequestError("message", got, "fewer", remedy, code="invalid_event")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # ValueError: also a number of more than 4300 digits
        raise RequestError("message", "no JSON", "a JSON object", "correct its syntax", code="invalid_event") from None


def decode_base64(text: str, path: str, max_bytes: int, *, code: str = "invalid_value") -> bytes:
    """The bytes of base64. They are counted before any is decoded.

    Raises:
        RequestError: too many bytes, no base64.
    """
    if len(text) > (max_bytes + 2) // 3 * 4:
        raise RequestError(path, f"{len(text) * 3 // 4} bytes", f"at most {max_bytes}", "send a smaller file", code=code)
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # also of characters that are no ASCII
        raise RequestError(path, "no base64", "a file in base64", "encode it again", code=code) from None


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are no JSON


class Fields:
    """A JSON object. Each method takes one field; `close` refuses those that were not taken."""

    def __init__(self, value: Any, path: str = "") -> None:
        """Args:
        path: of the object in the message; "" for the message itself.

        Raises:
            RequestError: no object.
        """
        if not isinstance(value, dict):
            raise RequestError(path or "message", _short(value), "a JSON object", "put its fields into braces")
        self.value, self.path, self.names_read = value, path, set[str]()

    def path_of(self, name: str) -> str:
        """The path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def error(self, name: str, expected: str, remedy: str, *, code: str = "invalid_value") -> RequestError:
        """The error of a field's value."""
        return RequestError(self.path_of(name), _short(self.value.get(name)), expected, remedy, code=code)

    def has(self, name: str) -> bool:
        return name in self.value

    def take(self, name: str, default: Any = None) -> Any:
        """A value as it is."""
        self.names_read.add(name)
        return self.value.get(name, default)

    def require(self, *names: str) -> None:
        """Raises:
        RequestError: one of these fields is missing.
        """
        for name in names:
            if name not in self.value:
                code = "missing_required_parameter"
                raise RequestError(self.path_of(name), "nothing", "a value", "send it", code=code)

    def text(self, name: str, default: str = "", *, max_chars: int = MAX_EVENT_ID) -> str:
        """One line of text."""
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(name, "text", "put it into quotes")
        if len(value) > max_chars:
            raise RequestError(self.path_of(name), f"{len(value)} characters", f"at most {max_chars}", "shorten it")
        if not value.isprintable():  # halves of surrogate pairs too, which no socket can send back
            raise RequestError(self.path_of(name), "control characters", "one line of text", "remove them")
        return value

    def texts(self, name: str, *, max_items: int, max_chars: int = MAX_EVENT_ID) -> tuple[str, ...]:
        """A list of lines of text; () if there is none."""
        items = self.items(name, max_items=max_items)
        return tuple(Fields({name: item}, self.path).text(name, max_chars=max_chars) for item in items)

    def choice(self, name: str, known: tuple[str, ...], default: str = "") -> str:
        """One of some words."""
        value = self.text(name, default)
        if name in self.value and value not in known:
            raise self.error(name, f"one of {', '.join(known)}", "choose one of them")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """`default` if it is missing or null."""
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, "true or false", "send one of them")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float | None:
        """A finite number within bounds; `default` if it is missing or null."""
        value = self.take(name)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:  # of whole numbers that no float holds, of 1e999 and of NaN too
            raise self.error(name, f"a number, {low:g} to {high:g}", "correct it")
        return float(value)

    def integer(self, name: str, low: int, high: int = LARGEST_INTEGER, default: int | None = None) -> int | None:
        """A whole number within bounds; `default` if it is missing or null."""
        value = self.take(name)
        if value is None:
            return default
        if type(value) is not int or not low <= value <= high:  # not isinstance: True is an int
            top = "or more" if high >= LARGEST_INTEGER else f"to {high}"
            raise self.error(name, f"a whole number, {low} {top}", "correct it")
        return value

    def items(self, name: str, *, max_items: int) -> list[Any]:
        """The items of a list; [] if it is missing or null."""
        value = self.take(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > max_items:
            raise self.error(name, f"a list of at most {max_items}", "correct it")
        return value

    def object(self, name: str) -> "Fields | None":
        """An object inside this one; None if it is missing or null."""
        value = self.take(name)
        return None if value is None else Fields(value, self.path_of(name))

    def close(self, *ignored: str, known: tuple[str, ...] = ()) -> None:
        """All fields are read.

        Args:
            ignored: those that may be there and mean nothing here.
            known: those to name where another one is refused; by default all that were asked for.

        Raises:
            RequestError: there are others.
        """
        for name in self.value:
            if name not in self.names_read and name not in ignored:
                names = known or sorted(self.names_read)
                expected = f"one of {', '.join(names)}" if names else "no fields"
                field = self.path_of(shortened(name, 40))
                raise RequestError(field, "a field that is not known", expected, "leave it out", code="unknown_parameter")


def _short(value: Any) -> str:
    """A client's value, short enough to be part of a line."""
    kinds = {dict: "an object", list: "a list", type(None): "null"}
    if type(value) in kinds:
        return kinds[type(value)]
    return shortened(json.dumps(value, ensure_ascii=False), 40)
