"""The JSON in an answer of a language model, which may stand in a code fence or between sentences. Host side, never jax."""

import json
import re
from collections.abc import Callable
from typing import Any

MAX_TRIES = 100  # places where a value may begin; an answer of thousands of braces is no answer
_OPENING = re.compile(r"[\[{]")


def find_json(answer: str, is_expected: Callable[[Any], bool]) -> Any:
    """The first JSON object or list of an answer that is what is expected, whatever stands before and after it; None: there is
    none."""
    decoder, position = json.JSONDecoder(), 0
    for _ in range(MAX_TRIES):
        if not (opening := _OPENING.search(answer, position)):
            return None
        position = opening.end()
        try:
            value, end = decoder.raw_decode(answer, opening.start())
        except (ValueError, RecursionError):
            continue
        if is_expected(value):
            return value
        position = end
    return None
