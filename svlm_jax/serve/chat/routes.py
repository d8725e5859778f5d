"""/v1/chat/completions and /v1/models, as OpenAI's clients read them.

Owns the JSON of replies, whole and as server-sent events, and that a request ends when its client leaves. Starlette is imported
inside functions. Units: seconds.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import ExitStack, aclosing, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from svlm_jax.serve.chat.completions import Chat, ComputeError, ReplyPart, TooManyRequests
from svlm_jax.serve.chat.request import ChatRequest
from svlm_jax.serve.http.routes import HttpError, HttpRoute, body_length, read_body, renew_deadline, respond_json
from svlm_jax.serve.http.server_sent_events import event_response, event_text

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

RENEW_SECONDS = 10.0  # between two signs that a response is still being made
CLOSED = 499  # nginx's status of a request whose client has left: nobody reads it
OWNER = "svlm"
T = TypeVar("T")


class ChatRoutes:
    """Handlers of one server with one model."""

    def __init__(self, chat: Chat, model: str) -> None:
        """model: its id, which requests name."""
        self.chat, self.model, self.created = chat, model, int(time.time())

    def routes(self) -> list[HttpRoute]:
        return [
            HttpRoute("/v1/models", self.models),
            HttpRoute("/v1/models/{model:path}", self.one_model),
            HttpRoute("/v1/chat/completions", self.completions, ("POST",), starts_work=True),
        ]

    async def models(self, request: "Request") -> "Response":
        return respond_json({"object": "list", "data": [self._model()]})

    async def one_model(self, request: "Request") -> "Response":
        self._check_model(request.path_params["model"])
        return respond_json(self._model())

    def _model(self) -> dict[str, Any]:
        limits = self.chat.limits
        max_length = limits.max_prompt_tokens + limits.max_reply_tokens
        fields = {"id": self.model, "object": "model", "created": self.created, "owned_by": OWNER}
        return fields | {"max_model_len": max_length}  # vLLM's name for it

    def _check_model(self, name: str) -> None:
        if name != self.model:
            line = f"model: got {name[:80]!r}, expected {self.model}; list /v1/models"
            raise HttpError(404, line, param="model", code="model_not_found")

    async def completions(self, request: "Request") -> "Response":
        limits = self.chat.limits
        with ExitStack() as stack:
            try:
                num_bytes = min(body_length(request, limits.max_body_bytes), limits.max_body_bytes)
                stack.enter_context(self.chat.admission(request.client.host if request.client else "", num_bytes))
            except TooManyRequests as error:
                self.chat.metrics.count("svlm_refused_total", label="max_chat_requests")
                raise HttpError(429, str(error), code="rate_limit_exceeded", retry_after=5) from None
            renew_deadline(request)  # a body of megabytes takes longer than a request usually may
            body = await read_body(request, limits.max_body_bytes)
            deadline = asyncio.get_running_loop().time() + limits.timeout
            chat = await self.chat.read(body)
            del body
            self._check_model(chat.model)
            parts = self.chat.reply(chat)
            chat = chat._replace(messages=())  # their media are in memory until `parts` has read them
            if not chat.is_streamed:
                async with aclosing(parts):
                    return respond_json(await _unless_left(request, self._complete_response(parts), deadline))
            # The first part says that the request is right: until then an error has a status of its own.
            await _unless_left(request, anext(parts), deadline)
            events = self._events(parts, chat, deadline, stack.pop_all())
            first = await anext(events)  # begun here, it gives everything back whatever becomes of the response
            return event_response(request, _chained(first, events))

    async def _complete_response(self, parts: AsyncGenerator[ReplyPart, None]) -> dict[str, Any]:
        texts, last = [], ReplyPart("", "", 0, 0)
        try:
            async for last in parts:
                texts.append(last.text)
        except ComputeError as error:
            raise _server_error(error) from None
        message = {"role": "assistant", "content": "".join(texts), "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": last.finish_reason, "logprobs": None}
        return self._head("chat.completion") | {"choices": [choice], "usage": _usage(last)}

    async def _events(
        self, parts: AsyncGenerator[ReplyPart, None], chat: ChatRequest, deadline: float, stack: ExitStack
    ) -> AsyncGenerator[str, None]:
        head, last = self._head("chat.completion.chunk"), ReplyPart("", "", 0, 0)
        usage: dict[str, Any] = {"usage": None} if chat.includes_usage else {}

        def chunk(delta: dict[str, str], finish_reason: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
            return event_text(json.dumps(head | {"choices": [choice]} | usage))

        with stack:
            async with aclosing(parts):
                yield chunk({"role": "assistant", "content": ""})
                try:
                    while not last.finish_reason:
                        # not one timeout around all of it: each part may be asked for in another task
                        last = await asyncio.wait_for(anext(parts), deadline - asyncio.get_running_loop().time())
                        if last.text:
                            yield chunk({"content": last.text})
                except (ComputeError, TimeoutError) as error:
                    failure = _server_error(error) if isinstance(error, ComputeError) else _too_late()
                    fields = {"message": failure.message, "type": "server_error", "param": None, "code": failure.code}
                    yield event_text(json.dumps({"error": fields}))
                    return
            yield chunk({}, last.finish_reason)
            if chat.includes_usage:
                yield event_text(json.dumps(head | {"choices": [], "usage": _usage(last)}))
            yield event_text("[DONE]")

    def _head(self, kind: str) -> dict[str, Any]:
        created = int(time.time())
        return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": created, "model": self.model}


def _usage(last: ReplyPart) -> dict[str, int]:
    total = last.num_prompt_tokens + last.num_tokens
    return {"prompt_tokens": last.num_prompt_tokens, "completion_tokens": last.num_tokens, "total_tokens": total}


def _server_error(error: ComputeError) -> HttpError:
    return HttpError(503, str(error), code="server_error", retry_after=5)


def _too_late() -> HttpError:
    return HttpError(503, "the reply took too long; send less, or try again later", code="timeout", retry_after=30)


async def _chained(first: str, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async with aclosing(events):
        yield first
        async for text in events:
            yield text


async def _unless_left(request: "Request", work: Awaitable[T], deadline: float) -> T:
    """The result of some work, which is cancelled when the client leaves or the deadline passes.

    Raises:
        HttpError: either of them.
    """
    loop = asyncio.get_running_loop()
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_client_left(request))
    try:
        while loop.time() < deadline:
            timeout = min(RENEW_SECONDS, deadline - loop.time())
            await asyncio.wait({task, left}, timeout=max(0.0, timeout), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if left.done():
                raise HttpError(CLOSED, "the client has left", code="cancelled")
            renew_deadline(request)
        raise _too_late()
    finally:
        for pending in (task, left):
            pending.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await pending
        del task, left, pending  # else an error of the task holds itself, and with it the media of the request


async def _client_left(request: "Request") -> None:
    """Returns when the connection is closed; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
