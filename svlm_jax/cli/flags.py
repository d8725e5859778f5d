"""Flags of commands: a command is named as it is typed, what is wrong with a flag is one line, numbers have bounds.

Knows no command. The line is that of `InputError`: flag, got, expected, remedy.
"""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from svlm_jax.errors import shortened
from svlm_jax.media.paths import masked

BAD_INPUT = 2  # exit code
LONGEST = 60  # letters of what was typed that are repeated
SEEDS = 2**32 - 1  # the largest
MOST = 2**31 - 1  # of a number without another bound
YEAR = 366 * 24 * 3600.0  # seconds: no video is longer
_KINDS = {"int": "a whole number", "float": "a number", "Path": "a path"}


class Parser(argparse.ArgumentParser):
    """argparse with `python -m launch.NAME` as the name of the command and one line for what is wrong."""

    def __init__(self, *args: Any, **options: Any) -> None:
        if len(args) + ("prog" in options) == 0:  # a command's own; those of its subcommands are named by argparse
            spec = getattr(sys.modules["__main__"], "__spec__", None)
            options["prog"] = f"python -m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **options)

    def error(self, message: str) -> NoReturn:
        words = self._told(message).split()
        line = " ".join(masked(word) if "://" in word else word for word in words)  # no password of a camera
        print(f"error: {line}; {self.prog} --help lists the flags", file=sys.stderr)
        sys.exit(BAD_INPUT)

    def _told(self, message: str) -> str:
        if found := re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL):
            typed = found[1].split()[0]
            near = difflib.get_close_matches(typed.partition("=")[0], self._option_string_actions, 1)
            return f"{short(typed)}: got an argument that is unknown, expected {near[0] if near else 'a flag of this command'}"
        if found := re.fullmatch(r"the following arguments are required: (.*)", message):
            return f"{found[1]}: got nothing, expected a value"
        if found := re.fullmatch(r"argument (.*?): expected (.*) arguments?", message):
            return f"{found[1]}: got nothing, expected {'a value' if found[2] == 'one' else found[2] + ' values'}"
        if found := re.fullmatch(r"argument (.*?): invalid choice: (.*) \(choose from (.*)\)", message, re.DOTALL):
            return f"{found[1]}: got {short(found[2])}, expected one of {found[3]}"
        if found := re.fullmatch(r"argument (.*?): invalid (\w+) value: (.*)", message, re.DOTALL):
            return f"{found[1]}: got {short(found[3])}, expected {_KINDS.get(found[2], found[2])}"
        return message.removeprefix("argument ")


def short(text: str) -> str:
    """What somebody typed, at most LONGEST letters of it."""
    return shortened(text, LONGEST)


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """A flag's type: a whole number in least..most."""

    def number(text: str) -> int:
        try:
            value, got, kind = int(text), short(text), ""
        except ValueError:
            value, got, kind = least - 1, short(repr(text)), "a whole number, "
        if not least <= value <= most:
            bounds = f"{least} or more" if most == MOST else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"got {got}, expected {kind}{bounds}")
        return value

    return number


def real(least: float, most: float = YEAR) -> Callable[[str], float]:
    """A flag's type: a number in least..most; neither nan nor infinite."""

    def number(text: str) -> float:
        try:
            value, got = float(text), short(text)
        except ValueError:
            value, got = math.nan, short(repr(text))
        if not least <= value <= most:  # also for nan
            raise argparse.ArgumentTypeError(f"got {got}, expected a number, {least:g} to {most:g}")
        return value

    return number


def word_of(text: str) -> int | None:
    """A flag's type: a whole number, or "none"."""
    return None if text == "none" else whole(0)(text)
