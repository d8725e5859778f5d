"""Server-sent events: how one is written, and a response that stays open while they come.

Owns the format (the `text/event-stream` of the HTML standard) and the life of such a response: a comment now and then, so that
proxies do not take it for dead, and a deadline that starts anew with every part. Knows no stream. Starlette is imported inside
functions. Units: seconds.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from svlm_jax.serve.http.routes import renew_deadline

if TYPE_CHECKING:
    from starlette.requests import Request

KEEP_ALIVE_SECONDS = 15.0  # proxies close what is silent for 60 s
COMMENT = ":\n\n"
MEDIA_TYPE = "text/event-stream"
HEADERS = {"X-Accel-Buffering": "no"}  # nginx would collect events and send them in batches


def event_text(data: str, *, event: str = "", event_id: str = "") -> str:
    """One event. `event` and `event_id` are ours: one line each. Lines of `data` arrive joined by newlines."""
    fields = [f"id: {event_id}"] if event_id else []
    fields += [f"event: {event}"] if event else []
    fields += [f"data: {line}" for line in data.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    return "\n".join(fields) + "\n\n"


def event_response(
    request: "Request",
    events: AsyncGenerator[str, None],
    *,
    keep_alive: float = KEEP_ALIVE_SECONDS,
    on_close: Callable[[], None] = lambda: None,
) -> Any:
    """A response of events as `event_text` writes them; it ends when they do. When the client leaves, `events` is closed.

    Args:
        keep_alive: seconds of silence after which a comment is sent.
        on_close: called once the response is over, however it ends.
    """
    from starlette.responses import Response, StreamingResponse

    async def parts() -> AsyncGenerator[bytes, None]:
        async with aclosing(_with_comments(events, keep_alive)) as texts:
            async for text in texts:
                yield text.encode()
                renew_deadline(request)  # what was sent before has found room: the client reads

    async def respond(scope: Any, receive: Any, send: Any) -> None:
        try:
            if request.method == "HEAD":  # what is asked is whether there are any
                await Response(headers=HEADERS, media_type=MEDIA_TYPE)(scope, receive, send)
            else:
                await StreamingResponse(parts(), headers=HEADERS, media_type=MEDIA_TYPE)(scope, receive, send)
        finally:  # not in `events`: a generator that has not started does not clean up
            on_close()

    return respond


async def _with_comments(events: AsyncGenerator[str, None], keep_alive: float) -> AsyncGenerator[str, None]:
    """The events, with a comment after every `keep_alive` seconds without one. A comment comes first: it says that the
    subscription has begun."""
    yield COMMENT
    pending: asyncio.Future[str] | None = None
    try:
        while True:
            # the same future across comments: a generator that is cancelled while it waits would be over
            pending = pending or asyncio.ensure_future(anext(events))
            if not (await asyncio.wait({pending}, timeout=keep_alive))[0]:
                yield COMMENT
                continue
            done, pending = pending, None
            try:
                text = done.result()
            except StopAsyncIteration:
                return
            yield text
    finally:
        if pending is not None:
            pending.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await pending
        await events.aclose()
