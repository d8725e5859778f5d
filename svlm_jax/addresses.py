"""What of an address may be printed: no user, no password, no value of a query.

Owns the rule, for one address and for addresses in any text. Every `InputError` goes through it, since an address may stand
where a file or a number was expected. Standard library only.
"""

import re

HIDDEN = "***"
_SCHEME = re.compile(r"^([a-z][a-z0-9+.\-]+:/*)?(.*)$", re.IGNORECASE | re.DOTALL)
_USER = re.compile(r"(^|//)[^/\s]+:[^/]*@")  # also behind a scheme that is mistyped
_VALUE = re.compile(r"=[^&;/?#\s]*")
# a path of Python has one slash left of the two
_IN_TEXT = re.compile(r"\b(?!file:)[a-z][a-z0-9+.\-]+:/+[^\s'\"<>]+", re.IGNORECASE)


def hide_secrets(address: str) -> str:
    """An address, or a name that looks like one, without user and password, and without the values of a query or of `key=value`
    in its path, any of which may be a token. Hides too much rather than too little: a password may hold "/" or "@"."""
    scheme, rest = _SCHEME.fullmatch(address).groups()  # pyright: ignore[reportOptionalMemberAccess] (it matches all)
    if not scheme and not _USER.search(rest):
        return address
    rest = f"{HIDDEN}@{rest.rpartition('@')[2]}" if "@" in rest else rest
    rest = _VALUE.sub(f"={HIDDEN}", rest)
    location, question_mark, query = rest.partition("?")
    shown_query = question_mark + query if not query or "=" in query else f"?{HIDDEN}"
    return (scheme or "") + location + shown_query


def hide_secrets_in(text: str) -> str:
    """A text with `hide_secrets` of every address in it."""
    return _IN_TEXT.sub(lambda match: hide_secrets(match[0]), text)
