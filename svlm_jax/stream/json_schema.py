"""A part of JSON Schema, enough for flat records and lists: what a model's JSON is checked with. Host side.

Keywords: type, properties, required, additionalProperties (true or false), items, enum, const, minimum, maximum, minLength,
maxLength, minItems, maxItems; title, description and $schema say nothing. A schema with others is refused, so a check never
passes what it has not looked at.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from svlm_jax.errors import InputError

MAX_DEPTH = 8
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "integer": (int,), "number": (int, float),
    "null": (type(None),),
}  # fmt: skip
_BOUNDS = ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")
_KEYWORDS = {"type", "properties", "required", "additionalProperties", "items", "enum", "const", *_BOUNDS}
_KEYWORDS |= {"title", "description", "$schema"}


def check_schema(schema: Any, path: str = "schema", depth: int = 0) -> None:
    """Refuse what is no schema of these keywords.

    Raises:
        InputError: in a line that says where.
    """

    def refuse(got: Any, expected: str) -> InputError:
        return InputError(path, f"{got!r:.60}", expected, "change the schema")

    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        raise refuse(schema, f"a JSON object, at most {MAX_DEPTH} deep")
    if unknown := [key for key in schema if key not in _KEYWORDS]:
        raise refuse(unknown[0], f"one of the keywords {', '.join(sorted(_KEYWORDS - {'$schema'}))}"[:120])
    kind, properties, required = schema.get("type", "object"), schema.get("properties", {}), schema.get("required", [])
    if not isinstance(kind, str) or kind not in _TYPES:
        raise refuse(kind, f"a type of {', '.join(_TYPES)}")
    if not isinstance(properties, Mapping):
        raise refuse(properties, "properties as a JSON object")
    if not (isinstance(required, list) and all(isinstance(name, str) for name in required)):
        raise refuse(required, "required as a list of names")
    if not isinstance(schema.get("additionalProperties", True), bool):
        raise refuse(schema["additionalProperties"], "additionalProperties true or false")
    if not isinstance(schema.get("enum", []), list):
        raise refuse(schema["enum"], "enum as a list")
    for name in _BOUNDS:
        if name in schema and (isinstance(schema[name], bool) or not isinstance(schema[name], int | float)):
            raise refuse(schema[name], f"{name} as a number")
    for name, inner in properties.items():
        check_schema(inner, f"{path}.{name:.40}", depth + 1)
    if "items" in schema:
        check_schema(schema["items"], f"{path}.items", depth + 1)


def mismatch(data: Any, schema: Mapping[str, Any], path: str = "") -> str:
    """Why JSON is none of a checked schema's, "" if it is: "team: got 3, expected string"."""

    def line(expected: str) -> str:
        return f"{path[1:] or 'JSON'}: got {json.dumps(data)[:40]}, expected {expected}"

    if "type" in schema and not _is(data, schema["type"]):
        return line(schema["type"])
    if "enum" in schema and not any(_equal(data, value) for value in schema["enum"]):
        return line(f"one of {json.dumps(schema['enum'])[:60]}")
    if "const" in schema and not _equal(data, schema["const"]):
        return line(json.dumps(schema["const"])[:60])
    size, suffix = _size(data)
    low, high = schema.get(f"min{suffix}", -math.inf), schema.get(f"max{suffix}", math.inf)
    if not low <= size <= high:
        return line(f"min{suffix} {low}, max{suffix} {high}")
    if isinstance(data, dict):
        properties = schema.get("properties", {})
        if missing := [name for name in schema.get("required", []) if name not in data]:
            return line(f"the key {missing[0]}")
        if not schema.get("additionalProperties", True) and (extra := [name for name in data if name not in properties]):
            return line(f"no key {extra[0]:.40}")
        faults = (mismatch(data[name], inner, f"{path}.{name}") for name, inner in properties.items() if name in data)
    elif isinstance(data, list) and "items" in schema:
        faults = (mismatch(item, schema["items"], f"{path}.{index}") for index, item in enumerate(data))
    else:
        return ""
    return next((fault for fault in faults if fault), "")


def _size(data: Any) -> tuple[float | int, str]:
    """What is bounded, and how the keywords of its bounds end."""
    if isinstance(data, str | list):
        return len(data), "Length" if isinstance(data, str) else "Items"
    return (data, "imum") if isinstance(data, int | float) and not isinstance(data, bool) else (0, "")


def _is(data: Any, kind: str) -> bool:
    if isinstance(data, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(data, float):
        return data.is_integer()
    return isinstance(data, _TYPES[kind])


def _equal(a: Any, b: Any) -> bool:
    """As JSON: true is not 1."""
    return isinstance(a, bool) == isinstance(b, bool) and a == b
