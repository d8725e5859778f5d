"""Any server that speaks OpenAI's chat protocol, asked until it answers: retries, what it refuses left out, answers kept.

The `openai` package waits and tries again: after 429 with or without Retry-After, 5xx, 408, timeouts, connections that are
refused or cut. What it lets pass, a body that is no chat completion, is asked for again here. Knows neither judges nor
benchmarks. The API key is read from the environment and is in no error, no file and no setting. Host side, never jax.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from svlm_jax.errors import InputError, shortened
from svlm_jax.eval.response_cache import ResponseCache, canonical
from svlm_jax.media.paths import masked

KEY_ENV = "OPENAI_API_KEY"
TIMEOUT = 120.0  # seconds without a byte, of one try
RETRIES = 6  # by the openai package: about half a minute in all, or as long as Retry-After says
BODY_TRIES = 3  # of a body that is no chat completion
BODY_PAUSE = 2.0  # seconds before the second of them, twice as many before the third
# Parameters that some models refuse (temperature: those that reason), and under which name they take them.
OPTIONAL = {"temperature": None, "seed": None, "max_tokens": "max_completion_tokens", "max_completion_tokens": None}
REFUSALS = ("content_filter", "content_policy_violation")  # codes of a 400 that is about what the request says
CHARACTERS_PER_TOKEN = 4  # of English, about


class ChatError(Exception):
    """No answer to this request, after all retries; another request may be answered."""


class Reply(NamedTuple):
    """text: what the model wrote, without its thoughts; "" where it wrote nothing. details: the model as the server names it,
    the temperature of the request (None: the model takes none), and why it stopped, unless it was done."""

    text: str
    details: Mapping[str, Any]


class ChatClient:
    """One model of one server. Threads may share it."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_env: str = KEY_ENV,
        cache: str | Path | None = None,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        flag: str = "--judge",
    ) -> None:
        """
        Args:
            url: as of the openai package, usually with /v1 at its end.
            key_env: environment variable with the key; unset where a server wants none.
            cache: folder of answers.
            flag: how errors call it: "--judge" for --judge-url and --judge-model.

        Raises:
            InputError: no http address, no key where one is named, no openai package, or a file in the place of the cache.
        """
        try:
            from openai import OpenAI
        except ImportError:
            raise InputError("openai", "no such package", "the extra evaluate", "pip install 'svlm-jax[evaluate]'") from None
        self.url, self.model, self.key_env, self.flag = url, model, key_env, flag
        self.cache = ResponseCache(cache) if cache is not None else None
        self._key = _read_key(key_env, flag)
        if not _is_address(url):
            raise InputError(f"{flag}-url", masked(url) or "nothing", "http://HOST:PORT/v1 or https://...", "check it")
        self._openai = OpenAI(base_url=url, api_key=self._key or "none", timeout=timeout, max_retries=retries)
        self._refused: set[str] = set()  # names of parameters

    def complete(self, messages: Sequence[Mapping[str, Any]], **parameters: Any) -> Reply:
        """The answer, from the cache or the server.

        Args:
            messages: of the chat protocol.
            parameters: temperature, seed, max_tokens; None is left out.

        Raises:
            ChatError: this request is not answered.
            InputError: none will be: a refused key, an unknown model, no credit.
        """
        request = self._canonical(messages, parameters)
        if entry := self.cache and self.cache.read(request):
            try:
                return _reply(entry["response"], entry["sent"])
            except ValueError:
                pass  # damaged
        return self._ask(request)

    def is_cached(self, messages: Sequence[Mapping[str, Any]], **parameters: Any) -> bool:
        return self.cache is not None and self.cache.read(self._canonical(messages, parameters)) is not None

    def _canonical(self, messages: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]) -> bytes:
        set_parameters = {name: value for name, value in parameters.items() if value is not None}
        return canonical({"model": self.model, "messages": list(messages), **set_parameters})

    def _ask(self, request: bytes) -> Reply:
        payload = json.loads(request)
        error = ""
        for number in range(BODY_TRIES):
            time.sleep(BODY_PAUSE * number)
            body, parameters = self._send(payload)
            if body is None:
                return Reply("", {"model": self.model, "finish_reason": "content_filter"})
            try:
                reply = _reply(body, parameters)
            except ValueError as problem:
                error = str(problem)
                continue
            if self.cache:
                self.cache.write(request, parameters, body)
            return reply
        raise ChatError(f"no chat completion: {error}")

    def _send(self, payload: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """The raw body, None for a refusal of what the request says, and the parameters that it was sent with."""
        from openai import APIStatusError, OpenAIError

        while True:
            request = self._accepted(payload)
            parameters = {name: value for name, value in request.items() if name != "messages"}
            try:
                return self._openai.chat.completions.with_raw_response.create(**request).text, parameters
            except APIStatusError as error:
                if self._refuses_parameter(error, parameters):
                    continue  # without it, and so from now on
                if error.code in REFUSALS:
                    return None, parameters
                raise self._explain(error) from None
            except OpenAIError as error:  # a timeout, a connection that is refused or cut
                cause = f" ({error.__cause__})" if error.__cause__ else ""
                raise ChatError(self._hide(f"{error}{cause}")) from None

    def _accepted(self, payload: dict[str, Any]) -> dict[str, Any]:
        request = dict(payload)
        for name, other in OPTIONAL.items():  # in this order: another name may be refused too
            if name in request and name in self._refused:
                value = request.pop(name)
                if other is not None:
                    request[other] = value
        return request

    def _refuses_parameter(self, error: Any, parameters: dict[str, Any]) -> bool:
        """Whether it is a 400 that names a parameter which can be left out; remembered."""
        if error.status_code not in (400, 422):
            return False
        text = f"{error.param} {error.message}"
        names = [name for name in OPTIONAL if name in parameters and name in text]
        if not names or ("max_" in names[0] and "support" not in text):  # a limit that is only too high must not be dropped
            return False
        self._refused.add(names[0])
        return True

    def _explain(self, error: Any) -> Exception:
        status, code = error.status_code, error.code
        if status == 401:
            got = f"401: the key in ${self.key_env} is refused" if self._key else f"401, and ${self.key_env} is not set"
            return InputError(f"{self.flag}-url {masked(self.url)}", got, "a key that it takes", f"set ${self.key_env}")
        if status == 404:
            got = f"404 for the model {shortened(self.model, 60)}"
            remedy = f"check {self.flag}-model, and {self.flag}-url, which usually ends in /v1"
            return InputError(f"{self.flag}-url {masked(self.url)}", got, "a model that it serves", remedy)
        if code == "insufficient_quota":
            return InputError(f"{self.flag}-url {masked(self.url)}", "429: no credit left", "credit", "add some and run again")
        message = error.body.get("message") if isinstance(error.body, dict) else None
        return ChatError(self._hide(f"{status}: {message or error.message}"))

    def _hide(self, text: str) -> str:
        """An error of a server on one line, short, and without the key."""
        text = text.replace(self._key, "***") if self._key else text
        return shortened(" ".join(text.split()), 200)


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


def approximate_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """Of the texts of messages: for an estimate of what they cost."""
    texts = [
        part.get("text", "")
        for message in messages
        for part in ([{"text": message["content"]}] if isinstance(message["content"], str) else message["content"])
    ]
    return sum(map(len, texts)) // CHARACTERS_PER_TOKEN


def _reply(body: str, parameters: Mapping[str, Any]) -> Reply:
    """Raises:
    ValueError: the body is no chat completion.
    """
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        message = choice["message"]
        content = message.get("content") or message.get("refusal") or ""
        if isinstance(content, list):  # parts, as some servers give them
            content = "".join(part.get("text", "") for part in content)
        content = content.encode("utf-8", "replace").decode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError(repr(body[:60])) from None
    details = {"model": str(completion.get("model") or ""), "temperature": parameters.get("temperature")}
    if (reason := choice.get("finish_reason")) not in ("stop", None):
        details["finish_reason"] = reason
    text = content.rpartition("</think>")[2].strip()
    return Reply("" if text.startswith("<think>") else text, details)  # thoughts that were cut off are no answer
