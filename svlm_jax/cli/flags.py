"""Flags of commands: numbers have bounds, and what is wrong with a flag is one line.

Knows no command. The line is that of `InputError`: flag, got, expected, remedy.
"""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

from svlm_jax.addresses import hide_secrets_in
from svlm_jax.errors import InputError, shortened
from svlm_jax.files import local_path

BAD_INPUT = 2  # exit code
MAX_ECHO = 60  # characters of a bad value that are repeated in its error line
MAX_SEED = 2**32 - 1
MAX_INTEGER = 2**31 - 1  # of a flag without another bound
YEAR = 366 * 24 * 3600.0  # seconds: no video is longer
_KINDS = {"int": "a whole number", "float": "a number", "Path": "a path"}


class Parser(argparse.ArgumentParser):
    """argparse with one line for what is wrong, and the name of the command as it was typed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        if len(args) + ("prog" in options) == 0:  # a command's own; those of its subcommands are named by argparse
            spec = getattr(sys.modules["__main__"], "__spec__", None)
            if spec is None or sys.argv[0].startswith("svlm "):
                options["prog"] = sys.argv[0]
            else:
                options["prog"] = f"python -m {spec.name.removesuffix('.__main__')}"
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **options)
        self.register("type", Path, path)

    def error(self, message: str) -> NoReturn:
        line = " ".join(self._explain(hide_secrets_in(message)).split())  # no password of a camera
        print(f"error: {line}; {self.prog} --help lists the flags", file=sys.stderr)
        sys.exit(BAD_INPUT)

    def _explain(self, message: str) -> str:
        if match := re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL):
            argument = match[1].split()[0]
            suggestions = difflib.get_close_matches(argument.partition("=")[0], self._option_string_actions, 1)
            expected = suggestions[0] if suggestions else "a flag of this command"
            return f"{short(argument)}: got an argument that is unknown, expected {expected}"
        if match := re.fullmatch(r"the following arguments are required: (.*)", message):
            return f"{match[1]}: got nothing, expected a value"
        if match := re.fullmatch(r"argument (.*?): expected (.*) arguments?", message):
            return f"{match[1]}: got nothing, expected {'a value' if match[2] == 'one' else match[2] + ' values'}"
        if match := re.fullmatch(r"argument (.*?): invalid choice: (.*) \(choose from (.*)\)", message, re.DOTALL):
            return f"{match[1]}: got {short(match[2])}, expected one of {match[3]}"
        if match := re.fullmatch(r"argument (.*?): invalid (\w+) value: (.*)", message, re.DOTALL):
            return f"{match[1]}: got {short(match[3])}, expected {_KINDS.get(match[2], match[2])}"
        return message.removeprefix("argument ")


def short(text: str) -> str:
    """A value as it was typed but for secrets, at most MAX_ECHO letters of it."""
    return shortened(hide_secrets_in(text), MAX_ECHO)


def path(text: str) -> Path:
    """A flag's type, and what `type=Path` means: "" is no path, but what a shell makes of a variable that is not set. As a path
    it would be the current folder. "file:///a/b" is /a/b; of "gs://bucket/run" `Path` would make a folder called "gs:"."""
    if not text:
        raise argparse.ArgumentTypeError("got nothing, expected a path")
    try:
        return local_path(unquote(text.removeprefix("file://")) if text.startswith("file:///") else text)
    except InputError as error:
        raise argparse.ArgumentTypeError(f"got {error.got}, expected {error.expected}; {error.remedy}") from None


def integer(minimum: int, maximum: int = MAX_INTEGER) -> Callable[[str], int]:
    """A flag's type: a whole number in minimum..maximum."""

    def parse(text: str) -> int:
        try:
            value, got, kind = int(text), short(text), ""
        except ValueError:
            value, got, kind = minimum - 1, short(repr(text)), "a whole number, "
        if not minimum <= value <= maximum:
            bounds = f"{minimum} or more" if maximum == MAX_INTEGER else f"{minimum} to {maximum}"
            raise argparse.ArgumentTypeError(f"got {got}, expected {kind}{bounds}")
        return value

    return parse


def number(minimum: float, maximum: float = YEAR) -> Callable[[str], float]:
    """A flag's type: a number in minimum..maximum; neither nan nor infinite."""

    def parse(text: str) -> float:
        try:
            value, got = float(text), short(text)
        except ValueError:
            value, got = math.nan, short(repr(text))
        if not minimum <= value <= maximum:  # also refuses nan, which compares false
            raise argparse.ArgumentTypeError(f"got {got}, expected a number, {minimum:g} to {maximum:g}")
        return value

    return parse


def number_or_none(minimum: float, maximum: float = YEAR) -> Callable[[str], float | None]:
    """A flag's type: a number in minimum..maximum, or "none"."""
    return lambda text: None if text == "none" else number(minimum, maximum)(text)


def integer_or_none(text: str) -> int | None:
    """A flag's type: a whole number, or "none"."""
    return None if text == "none" else integer(0)(text)
