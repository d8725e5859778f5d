"""One model of a server behind HTTP: its address, its key, how often it is asked, and what its errors mean.

The `openai` package waits and tries again: after 429 with or without Retry-After, 5xx, 408, timeouts, connections that are
refused or cut. What it lets pass, a body that is not what was asked for, is asked for again here. Knows no endpoint:
`chat_client` and `transcription_client` do. The API key is read from the environment and is in no error, no file and no
setting. Host side, never jax. Units: seconds.
"""

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from svlm_jax.addresses import hide_secrets_in
from svlm_jax.errors import InputError, shortened
from svlm_jax.media.paths import masked

KEY_ENV = "OPENAI_API_KEY"
TIMEOUT = 120.0  # without a byte, of one try
RETRIES = 6  # by the openai package: about half a minute in all, or as long as Retry-After says
BODY_TRIES = 3  # of a body that cannot be read
BODY_PAUSE = 2.0  # before the second of them, twice as long before the third

Body = TypeVar("Body")
Answer = TypeVar("Answer")


class RequestError(Exception):
    """No answer to this request, after all retries; another request may be answered."""


class Connection:
    """`openai`: the client of that package. Threads may share it."""

    def __init__(self, url: str, model: str, *, key_env: str, timeout: float, retries: int, flag: str) -> None:
        """
        Args:
            url: as of the openai package, usually with /v1 at its end.
            model: as the server calls it.
            key_env: environment variable with the key; unset where a server wants none.
            flag: how errors call it: "--judge" for --judge-url and --judge-model.

        Raises:
            InputError: no http address, no key where one is named, or no openai package.
        """
        try:
            from openai import OpenAI
        except ImportError:
            remedy = "pip install 'svlm-jax[evaluate]'"
            raise InputError("openai", "no such package", "the extra evaluate, or curate", remedy) from None
        self.url, self.model, self.key_env, self.flag = url, model, key_env, flag
        self._key = _read_key(key_env, flag)
        if not _is_address(url):
            raise InputError(f"{flag}-url", masked(url) or "nothing", "http://HOST:PORT/v1 or https://...", "check it")
        self.openai = OpenAI(base_url=url, api_key=self._key or "none", timeout=timeout, max_retries=retries)

    def close(self) -> None:
        """Nothing can be asked after this."""
        self.openai.close()

    def ask(self, send: Callable[[], Body], read: Callable[[Body], Answer], expected: str) -> Answer:
        """What `read` makes of what `send` gets. One of which it can make nothing (ValueError) is asked for again.

        Args:
            expected: what it should be, for errors: "chat completion".

        Raises:
            RequestError, InputError: those of `send`; RequestError where nothing that comes can be read.
        """
        problem = ""
        for number in range(BODY_TRIES):
            time.sleep(BODY_PAUSE * number)
            try:
                return read(send())
            except ValueError as error:
                if isinstance(error, InputError):  # which is one, and is for the user
                    raise
                problem = str(error)
        raise RequestError(f"no {expected}: {self.hide(problem)}")

    def explain(self, error: Any) -> Exception:
        """What an error of the openai package means: `InputError` where no request will be answered (a refused key, an unknown
        model, no credit), else `RequestError`."""
        status, code = getattr(error, "status_code", None), getattr(error, "code", None)
        address = f"{self.flag}-url {masked(self.url)}"
        if status is None:  # a timeout, a connection that is refused or cut
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            return RequestError(self.hide(f"{error}{cause}"))
        if status == 401:
            got = f"401: the key in ${self.key_env} is refused" if self._key else f"401, and ${self.key_env} is not set"
            return InputError(address, got, "a key that it takes", f"set ${self.key_env}")
        if status == 404:
            got = f"404 for the model {shortened(self.model, 60)}"
            remedy = f"check {self.flag}-model, and {self.flag}-url, which usually ends in /v1"
            return InputError(address, got, "a model that it serves", remedy)
        if code == "insufficient_quota":
            return InputError(address, "429: no credit left", "credit", "add some and run again")
        message = error.body.get("message") if isinstance(error.body, dict) else None
        return RequestError(self.hide(f"{status}: {message or error.message}"))

    def hide(self, text: str) -> str:
        """An error of a server on one line, short, without the key and the secrets of addresses."""
        text = text.replace(self._key, "***") if self._key else text
        return shortened(hide_secrets_in(" ".join(text.split())), 200)


def _is_address(url: str) -> bool:
    """Whether the openai package takes it: it says so by errors of its HTTP library, of which there are two."""
    try:
        address = urlsplit(url)
        return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0 and url.isprintable()
    except ValueError:  # brackets, or a port that is none
        return False


def _read_key(name: str, flag: str) -> str:
    """The key; empty where the usual variable is not set: servers of one's own want none."""
    key, expected = os.environ.get(name, "").strip(), "the environment variable with the key"
    if not key and name != KEY_ENV:
        is_name = name.isupper() and name.isidentifier()  # else it may be the key itself
        got = f"{name}, which is not set" if is_name else "no name of a variable"
        raise InputError(f"{flag}-key-env", got, expected, "set it, or leave the flag out")
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"${name}", "letters that no key has", expected, "check what it holds")
    return key
