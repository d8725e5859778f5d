"""Chat completions: requests that share the device with the live streams.

A request waits for its turn as it was sent; then a thread decodes its media and lays out the prompt, another compiles what it
needs and is not compiled yet, and the engine's thread runs its slices between ticks (`one_shot`, `decode.sliced`). Owns the
threads, who may have how many requests, and how many are in memory at a time. Knows no HTTP. Units: seconds, tokens.
"""

import asyncio
import secrets
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol, TypeVar

from svlm_jax.decode.sampling import Sampling, largest_top_k
from svlm_jax.decode.sliced import SlicedGeneration, SlicedPrompt
from svlm_jax.errors import InputError
from svlm_jax.families.chat import Turn, encode
from svlm_jax.inputs import Clip
from svlm_jax.pretrained import Pretrained
from svlm_jax.serve.chat.limits import ChatLimits
from svlm_jax.serve.chat.media import Fetch, MediaReader
from svlm_jax.serve.chat.reply_text import FinishReason, ReplyText
from svlm_jax.serve.chat.request import ChatRequest, Media, read_request
from svlm_jax.serve.engine.one_shot import OneShotWork
from svlm_jax.serve.http.connections import address_group
from svlm_jax.serve.json_fields import RequestError
from svlm_jax.serve.metrics import Metrics

Result = TypeVar("Result")

READERS = 2  # threads that fetch and decode media
CHARS_PER_TOKEN = 16  # of a prompt, at most: longer texts are refused before they are tokenised
REQUESTS, TOKENS = "svlm_chat_requests_total", "svlm_chat_tokens_total"


class Submit(Protocol):
    """`Engine.submit`."""

    def __call__(self, work: OneShotWork) -> None: ...


class ReplyPart(NamedTuple):
    """Words of a reply. num_prompt_tokens: of the prompt; num_tokens: of the reply so far."""

    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_tokens: int


class TooManyRequests(Exception):
    """More than are taken at a time; the line says whose."""


class ComputeError(Exception):
    """A request that was right, and failed here."""


class SlicedReply:
    """One request in the engine: its slices become parts of a reply, which `deliver` takes, in the engine's thread."""

    def __init__(
        self,
        slices: Iterator[list[int]],
        text: ReplyText,
        num_prompt_tokens: int,
        deliver: Callable[[ReplyPart | Exception], None],
        on_freed: Callable[[], None],
    ) -> None:
        """on_freed: called once the request is in device memory no more."""
        self.slices, self.text, self.num_prompt_tokens = slices, text, num_prompt_tokens
        self.deliver, self.on_freed = deliver, on_freed
        self.is_cancelled = self.is_freed = False

    def run_slice(self) -> bool:
        if self.is_cancelled:
            self.free()
            return False
        tokens = next(self.slices)
        words = self.text.add(tokens)
        reason = self.text.finish_reason
        if reason:
            self.free()
        if words or reason:
            self.deliver(ReplyPart(words, reason, self.num_prompt_tokens, self.text.num_tokens))
        return not reason

    def fail(self, error: Exception) -> None:
        self.free()
        self.deliver(error)

    def free(self) -> None:
        """Give the memory back."""
        if not self.is_freed:
            self.is_freed = True
            close = getattr(self.slices, "close", None)
            if close is not None:
                close()
            self.on_freed()


class Chat:
    """The requests of one server. All methods belong to the event loop."""

    def __init__(
        self,
        generation: SlicedGeneration,
        media: MediaReader,
        submit: Submit,
        limits: ChatLimits,
        metrics: Metrics,
        *,
        default: Sampling = Sampling(),
    ) -> None:
        """default: how tokens are chosen where a request does not say."""
        self.generation, self.media, self.submit = generation, media, submit
        self.limits, self.metrics, self.default = limits, metrics, default
        self.by_address: Counter[str] = Counter()
        self.open_bytes = 0  # of bodies
        self.running = asyncio.Semaphore(limits.max_running_requests)
        self.parser = ThreadPoolExecutor(1, "chat-parser")
        self.readers = ThreadPoolExecutor(READERS, "chat-reader")
        self.compiler = ThreadPoolExecutor(1, "chat-compiler")

    @classmethod
    def of(cls, vlm: Pretrained, submit: Submit, limits: ChatLimits, metrics: Metrics, fetch: Fetch | None = None) -> "Chat":
        """Of a model, as its own settings say; `Pretrained.replies` gives the same replies. fetch: as of `MediaReader`."""
        top_k = largest_top_k([vlm.generation, Sampling()])
        longest = limits.max_reply_tokens
        generation = SlicedGeneration(vlm.model, vlm.eos_token_ids, max_reply_tokens=longest, max_top_k=top_k)
        return cls(generation, MediaReader(vlm.processor, limits, fetch), submit, limits, metrics, default=vlm.generation)

    def close(self) -> None:
        """Take no more work; what is running in the threads goes on to its end."""
        for pool in (self.parser, self.readers, self.compiler):
            pool.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def admission(self, address: str, num_bytes: int) -> Iterator[None]:
        """One more request of an address, for as long as the context is open: it is in memory until it is answered.

        Args:
            num_bytes: that its body has, or may have.

        Raises:
            TooManyRequests: it, or all together, have as many as they may.
        """
        group, limits = address_group(address), self.limits
        if self.by_address.total() >= limits.max_requests:
            raise TooManyRequests(f"{limits.max_requests} requests are being answered or wait; come back later")
        if self.by_address[group] >= limits.max_requests_per_address:
            raise TooManyRequests(f"{limits.max_requests_per_address} requests of your address are open; wait for one")
        if self.open_bytes and self.open_bytes + num_bytes > limits.max_open_bytes:
            raise TooManyRequests(f"{self.open_bytes} bytes of requests are being answered or wait; come back later")
        self.by_address[group] += 1
        self.open_bytes += num_bytes
        try:
            yield
        finally:
            self.open_bytes -= num_bytes
            self.by_address[group] -= 1
            if not self.by_address[group]:
                del self.by_address[group]

    async def read(self, body: bytes) -> ChatRequest:
        """The request in a body; in a thread: a body may have megabytes.

        Raises:
            InputError: what is wrong with it.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.parser, bare, read_request, body, self.default, self.limits.max_reply_tokens)

    async def reply(self, request: ChatRequest) -> AsyncGenerator[ReplyPart, None]:
        """The reply part by part. The first has no words: it comes when the prompt is known to be right. Close the generator to
        end the reply early.

        Raises:
            InputError: what is wrong with the media or the length of the prompt; before the first part.
            ComputeError: the engine stopped, or the device failed.
        """
        loop, outcome = asyncio.get_running_loop(), "cancelled"
        parts: asyncio.Queue[ReplyPart | Exception] = asyncio.Queue()
        work: SlicedReply | None = None
        await self.running.acquire()
        try:
            prompt, max_tokens = await loop.run_in_executor(self.readers, bare, self._prompt, request)
            stop = request.stop
            del request  # it has the media as they were sent
            self.metrics.count(TOKENS, prompt.num_tokens, "prompt")
            yield ReplyPart("", "", prompt.num_tokens, 0)
            await loop.run_in_executor(self.compiler, self.generation.compile, prompt)
            work = SlicedReply(
                self.generation.slices(prompt),
                ReplyText(self.media.processor.tokenizer, self.generation.eos, max_tokens, stop),
                prompt.num_tokens,
                lambda part: _call_soon(loop, parts.put_nowait, part),
                lambda: _call_soon(loop, self.running.release),
            )
            del prompt
            self._start(work)
            while not isinstance(part := await parts.get(), Exception):
                outcome = part.finish_reason or outcome
                yield part
                if part.finish_reason:
                    return
            raise _compute_error(part) from part
        except InputError:
            outcome = "refused"
            raise
        except ComputeError:
            outcome = "error"
            raise
        finally:
            self.metrics.count(REQUESTS, label=outcome)
            if work is None:
                self.running.release()
            else:
                self.metrics.count(TOKENS, work.text.num_tokens, "reply")
                work.is_cancelled = True  # its memory is given back by its next slice

    def _start(self, work: SlicedReply) -> None:
        try:
            self.submit(work)
        except InputError as error:  # no fault of the request
            work.free()
            raise ComputeError("the server is stopping; try another") from error

    def _prompt(self, request: ChatRequest) -> tuple[SlicedPrompt, int]:
        """(prompt, tokens that its reply may have). In a reader's thread."""
        limits, config = self.limits, self.generation.config
        if len(request.media) > limits.max_media:
            got = f"{len(request.media)} images and videos"
            raise RequestError("messages", got, f"at most {limits.max_media}", "send fewer")
        max_tokens = min(limits.max_prompt_tokens, config.text.max_position_embeddings - 1)
        num_chars = sum(len(item) for message in request.messages for item in message.content if isinstance(item, str))
        if num_chars > CHARS_PER_TOKEN * max_tokens:
            raise _too_long(f"{num_chars} characters", f"at most {max_tokens} tokens")
        turns, num_vision, deadline = [], 0, time.monotonic() + limits.media_timeout
        for message in request.messages:
            content: list[str | Clip] = []
            for item in message.content:
                if isinstance(item, Media):
                    if time.monotonic() > deadline:
                        got, remedy = (
                            f"media that take longer than {limits.media_timeout:g} s",
                            "send fewer or smaller ones",
                        )
                        raise RequestError(item.field, got, "less", remedy)
                    clip = self.media.clip(item)
                    num_vision += len(clip.patches) // config.vision.merge_unit
                    content.append(clip)
                    if num_vision > max_tokens:  # before the next is decoded
                        raise _too_long(f"{num_vision} vision tokens or more", f"at most {max_tokens} tokens")
                else:
                    content.append(item)
            turns.append(Turn(message.role, tuple(content)))
        sample = encode(turns, self.media.processor.tokenizer, config)
        if len(sample.ids) > max_tokens:
            raise _too_long(f"{len(sample.ids)} tokens", f"at most {max_tokens}")
        room = config.text.max_position_embeddings - len(sample.ids)
        length = min(request.max_tokens or limits.max_reply_tokens, limits.max_reply_tokens, room)
        seed = secrets.randbits(32) if request.seed is None else request.seed
        options = {"max_new_tokens": length, "sampling": request.sampling, "seed": seed}
        return self.generation.prompt(sample, **options), length


def _too_long(got: str, expected: str) -> RequestError:
    return RequestError("messages", got, expected, "send less", code="context_length_exceeded")


def _compute_error(error: Exception) -> ComputeError:
    if not isinstance(error, RuntimeError) or type(error) is not RuntimeError:  # the engine says why it stopped by itself
        traceback.print_exception(error, file=sys.stderr)
    return ComputeError("the server could not compute the reply; try again later")


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    """From another thread. A loop that is closed needs nothing any more."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)


def bare(work: Callable[..., Result], *arguments: Any) -> Result:
    """The result of some work. What it refuses is raised without the frames in which it was found: in a cycle of references,
    which exceptions of tasks are easily part of, they would keep decoders and pictures, hundreds of megabytes, for minutes.

    Raises:
        InputError: as `work` does.
    """
    try:
        return work(*arguments)
    except InputError as error:
        refusal = error.with_traceback(None)
        refusal.__context__ = None
    del work, arguments
    try:
        raise refusal
    finally:
        del refusal
