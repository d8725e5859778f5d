"""The one error for bad input: field, got, expected, remedy, on one line. Commands print it and exit 2."""

LINE = 299  # characters of a line at most; what is longer comes from outside (a file, a path, a library) and is cut
KEPT = 40  # characters that a part keeps in any case


class InputError(ValueError):
    """Input that a user can mend.

    Args:
        field: what was wrong, as the user wrote it (a flag, a file, a key).
        got: what was found there.
        expected: what would have been right.
        remedy: what to do about it.
    """

    def __init__(self, field: str, got: object, expected: str, remedy: str) -> None:
        self.field, self.got, self.expected, self.remedy = field, got, expected, remedy
        parts = {"got": _plain(str(got)), "expected": _plain(expected), "field": _plain(field), "remedy": _plain(remedy)}
        over = sum(map(len, parts.values())) + len(": got , expected ; ") - LINE
        while over > 0:  # the longest part gives way first: a path or what was found, and seldom the remedy
            name, text = max(parts.items(), key=lambda part: len(part[1]))
            parts[name] = shortened(text, max(len(text) - over, KEPT))
            over -= len(text) - len(parts[name])
        super().__init__("{field}: got {got}, expected {expected}; {remedy}".format(**parts))

    def within(self, source: object) -> "InputError":
        """The same, of a file: its name before the field."""
        return InputError(f"{source} {self.field}", self.got, self.expected, self.remedy)

    def __reduce__(self) -> tuple:  # made again from its parts, between processes
        return InputError, (self.field, str(self.got), self.expected, self.remedy)


def _plain(text: str) -> str:
    """On one line, without what a terminal would obey or could not show."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def shortened(text: object, size: int = 160) -> str:
    """What comes from outside in `size` characters at most: its beginning and its end, where a path says most."""
    text = str(text)
    end = (size - 3) // 2
    return text if len(text) <= size else f"{text[: size - 3 - end]}...{text[-end:]}"
