"""Prompts with fields, "{question}", and the file that replaces those of a benchmark. Host side, never jax."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from svlm_jax.errors import InputError, shortened
from svlm_jax.files import local_path, read_json

OPTIONS = "options"  # a field
_FIELD = re.compile(r"\{(\w+)\}")


def filled(template: str, fields: Mapping[str, str]) -> str:
    """A prompt with its fields in place. Not `str.format`: a question may have braces, and so may its answer."""
    return _FIELD.sub(lambda match: fields.get(match[1], match[0]), template)


def read_templates(path: str | Path | None, defaults: Mapping[str, str], may_be_empty: Sequence[str] = ()) -> dict[str, str]:
    """Prompts by name: those of a JSON file, and the defaults where it has none.

    Args:
        may_be_empty: names of prompts that may be "": nothing is asked then.

    Raises:
        InputError: another file, a name that is not used, or a prompt that leaves out a field which its default has; but for
            the options, without which a model answers in its own words.
    """
    if path is None:
        return dict(defaults)
    file = local_path(path)
    texts = read_json(file, f"prompts by name: {', '.join(defaults)}", is_handwritten=True)
    for name, text in texts.items():
        source = f"--prompt-file {shortened(file.name, 60)} {name:.40}"
        if name not in defaults or not isinstance(text, str):
            got = f"{text!r:.40}" if name in defaults else "no prompt of this benchmark"
            raise InputError(source, got, f"a text for one of {', '.join(defaults)}", "correct it")
        missing = set(_FIELD.findall(defaults[name])) - set(_FIELD.findall(text)) - {OPTIONS}
        if missing and not (text == "" and name in may_be_empty):
            raise InputError(source, f"a text without {{{min(missing)}}}", "a place for it", "put it where it belongs")
    return {**defaults, **texts}


def digest(templates: Mapping[str, str]) -> str:
    """Which prompts an answer is of: SHA-256, in hex."""
    return hashlib.sha256(json.dumps(dict(templates), sort_keys=True).encode()).hexdigest()
