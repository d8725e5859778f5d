"""The prompt of one question to a chat model: a text file with fields, "{title}", which another file can replace.

Knows neither judges nor editors: they name the fields that a prompt must have. Host side, never jax.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from svlm_jax.errors import InputError, shortened
from svlm_jax.files import local_path, read_text, refuse_other_kinds_of_file
from svlm_jax.remote.templates import filled

_SECTION = re.compile(r"^\[(system|user)\]\s*$", re.MULTILINE)


class Prompt(NamedTuple):
    """system: "" for none. user: with fields."""

    system: str
    user: str

    @classmethod
    def read(cls, path: str | Path, required: Sequence[str], flag: str = "--prompt-file") -> "Prompt":
        """A text file: lines `[system]` and `[user]` begin its two messages; without them it is all the user's.

        Args:
            required: fields that the user's message must have.
            flag: what errors call the file.

        Raises:
            InputError: no such file, no text, or no place for a required field.
        """
        expected = f"a text with {' and '.join(f'{{{field}}}' for field in required)}"
        path = local_path(path, flag)
        if not path.is_file():
            raise InputError(flag, shortened(path), expected, "check the path")
        refuse_other_kinds_of_file(path, expected)
        parts = _SECTION.split(read_text(path, flag, expected))
        sections = dict(zip(parts[1::2], parts[2::2], strict=True)) if len(parts) > 1 else {"user": parts[0]}
        user = sections.get("user", "").strip()
        if missing := [field for field in required if f"{{{field}}}" not in user]:
            got = f"{shortened(path, 100)} without {{{missing[0]}}}"
            raise InputError(flag, got, expected, "add it to the part after [user]")
        return cls(sections.get("system", "").strip(), user)

    def messages(self, fields: Mapping[str, str]) -> list[dict[str, str]]:
        """Of the chat protocol. All fields are filled at once: braces in a field stay what they are."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": filled(self.user, fields)}]

    def digest(self) -> str:
        """SHA-256, in hex."""
        return hashlib.sha256(f"{self.system}\0{self.user}".encode()).hexdigest()


def remind(messages: Sequence[Mapping[str, str]], reminder: str) -> list[dict[str, str]]:
    """The question again, with a reminder at its end: the same again would give the same at temperature 0. The answer is not
    shown: some servers take no empty one."""
    *before, last = messages
    return [*map(dict, before), {**last, "content": f"{last['content']}\n\n{reminder}"}]
