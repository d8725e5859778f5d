"""The one error for bad input: field, got, expected, remedy, on one line. Commands print it and exit 2."""


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
        line = f"{field}: got {got}, expected {expected}; {remedy}"
        super().__init__(" ".join(line.split()))
