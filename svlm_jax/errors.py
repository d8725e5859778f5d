"""The one error for bad input: field, got, expected, remedy, on one line, without secrets. Commands print it and exit 2."""

from svlm_jax.addresses import hide_secrets_in

MAX_LINE = 291  # characters, 299 with "error: " and the newline; text from outside (a path, a library) is cut
MIN_PART = 40  # characters; no part is cut below that


class InputError(ValueError):
    """Input that a user can correct.

    Args:
        field: what was wrong, as the user wrote it (a flag, a file, a key).
        got: the value, or what is in its place.
        expected: what is accepted.
        remedy: what the user can do.
    """

    def __init__(self, field: str, got: object, expected: str, remedy: str) -> None:
        self.field, self.got, self.expected, self.remedy = field, got, expected, remedy
        parts = {"got": _plain(str(got)), "expected": _plain(expected), "field": _plain(field), "remedy": _plain(remedy)}
        over = sum(map(len, parts.values())) + len(": got , expected ; ") - MAX_LINE
        while over > 0:  # cut the longest part first: a path or a value, and seldom the remedy
            name, text = max(parts.items(), key=lambda part: len(part[1]))
            parts[name] = shortened(text, max(len(text) - over, MIN_PART))
            over -= len(text) - len(parts[name])
        super().__init__("{field}: got {got}, expected {expected}; {remedy}".format(**parts))

    def within(self, source: object) -> "InputError":
        """The same error with the name of a file before the field."""
        return InputError(f"{source} {self.field}", self.got, self.expected, self.remedy)

    def __reduce__(self) -> tuple:  # pickled as its parts: between processes
        return InputError, (self.field, str(self.got), self.expected, self.remedy)


def _plain(text: str) -> str:
    """On one line, without control characters, and without the password of an address: lines of stderr go into bug reports."""
    return "".join(char if char.isprintable() else "?" for char in hide_secrets_in(" ".join(text.split())))


def shortened(text: object, size: int = 160) -> str:
    """Text from outside in at most `size` characters: its start and its end, which of a path are the most telling. Bytes of a
    name that are no UTF-8 come as they are escaped (\\udce9): a terminal, or a file of captions, could not take them."""
    text, end = str(text).encode("utf-8", "backslashreplace").decode(), (size - 3) // 2
    text = text if len(text) <= size else hide_secrets_in(text)  # what is left of an address would not be known as one
    return text if len(text) <= size else f"{text[: size - 3 - end]}...{text[-end:]}"
