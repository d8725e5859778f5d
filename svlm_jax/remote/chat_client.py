"""Any server that speaks OpenAI's chat protocol, asked until it answers: what it refuses left out, answers kept.

What an address, a key, a retry and an error are: `connection`. Knows neither judges nor benchmarks. Host side, never jax.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from svlm_jax.remote.connection import KEY_ENV, RETRIES, TIMEOUT, Connection
from svlm_jax.remote.rate_limit import RateLimit
from svlm_jax.remote.response_cache import ResponseCache, canonical

# Parameters that some models refuse (temperature: those that reason), and under which name they take them.
OPTIONAL = {
    "temperature": None,
    "seed": None,
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": None,
    "response_format": None,  # a JSON schema: without it the prompt alone says what to answer
}
REFUSALS = ("content_filter", "content_policy_violation")  # codes of a 400 that is about what the request says
CHARACTERS_PER_TOKEN = 4  # of English, about


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
        limit: RateLimit | None = None,
    ) -> None:
        """
        Args:
            url: as of the openai package, usually with /v1 at its end.
            key_env: environment variable with the key; unset where a server wants none.
            cache: folder of answers.
            flag: how errors call it: "--judge" for --judge-url and --judge-model.
            limit: of requests that the cache does not answer.

        Raises:
            InputError: no http address, no key where one is named, no openai package, or a file in the place of the cache.
        """
        self.model, self.flag = model, flag
        self.cache = ResponseCache(cache) if cache is not None else None
        self._connection = Connection(url, model, key_env=key_env, timeout=timeout, retries=retries, flag=flag)
        self._limit = limit or RateLimit()
        self._refused: set[str] = set()  # names of parameters

    def close(self) -> None:
        """The cache still answers after this; the server is not asked."""
        self._connection.close()

    def complete(self, messages: Sequence[Mapping[str, Any]], **parameters: Any) -> Reply:
        """The answer, from the cache or the server.

        Args:
            messages: of the chat protocol.
            parameters: temperature, seed, max_tokens, response_format; None is left out.

        Raises:
            RequestError: this request is not answered.
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
        tokens = approximate_tokens(payload["messages"])

        def send() -> tuple[str | None, dict[str, Any]]:
            self._limit.wait(tokens)
            return self._send(payload)

        def read(exchange: tuple[str | None, dict[str, Any]]) -> Reply:
            body, parameters = exchange
            if body is None:
                return Reply("", {"model": self.model, "finish_reason": "content_filter"})
            reply = _reply(body, parameters)
            self._limit.charge(_total_tokens(body, tokens + len(reply.text) // CHARACTERS_PER_TOKEN) - tokens)
            if self.cache:
                self.cache.write(request, parameters, body)
            return reply

        return self._connection.ask(send, read, "chat completion")

    def _send(self, payload: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """The raw body, None for a refusal of what the request says, and the parameters that it was sent with."""
        from openai import APIStatusError, OpenAIError

        while True:
            request = self._accepted(payload)
            parameters = {name: value for name, value in request.items() if name != "messages"}
            try:
                return self._connection.openai.chat.completions.with_raw_response.create(**request).text, parameters
            except APIStatusError as error:
                if self._refuses_parameter(error, parameters):
                    continue  # without it, and so from now on
                if error.code in REFUSALS:
                    return None, parameters
                raise self._connection.explain(error) from None
            except OpenAIError as error:
                raise self._connection.explain(error) from None

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
        text = f"{error.param} {error.message}".replace("json_schema", "response_format")  # some name the kind, not the field
        names = [name for name in OPTIONAL if name in parameters and name in text]
        if not names or ("max_" in names[0] and "support" not in text):  # a limit that is only too high must not be dropped
            return False
        self._refused.add(names[0])
        return True


def approximate_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """Of the texts of messages: for an estimate of what they cost."""
    texts = [
        part.get("text", "")
        for message in messages
        for part in ([{"text": message["content"]}] if isinstance(message["content"], str) else message["content"])
    ]
    return sum(map(len, texts)) // CHARACTERS_PER_TOKEN


def _total_tokens(body: str, default: int) -> int:
    """Of a request and its answer, as the server counts them, where it does."""
    usage = json.loads(body).get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) and total > 0 else default


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
