"""A server of chat completions for tests: real sockets and an engine without a model; a generation that says what a test wrote,
or a real one."""

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from svlm_jax.families import config_json
from svlm_jax.media.processor import Processor
from svlm_jax.serve.chat.completions import Chat
from svlm_jax.serve.chat.limits import ChatLimits
from svlm_jax.serve.chat.media import Fetch, MediaReader
from svlm_jax.serve.chat.routes import ChatRoutes
from svlm_jax.serve.http.access import Access
from svlm_jax.serve.hub import Hub
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.metrics import Metrics
from tests.support import HANG
from tests.support.fake_engine import FEED, Script, fake_engine
from tests.support.serving import ServerThread

MODEL = "tiny"
LIMITS = ChatLimits()


class ScriptedGeneration:
    """In place of `SlicedGeneration`: every reply is `text`, two tokens a slice. may_go_on: cleared, a slice waits before the
    tokens after the first two, and with it the engine; has_begun: set once it has come there."""

    def __init__(self, processor: Processor, text: str) -> None:
        self.config, self.eos = processor.config, (435,)
        self.ids = [*processor.tokenizer.encode(text, add_special_tokens=False), *self.eos]
        self.samples: list[Any] = []
        self.options: list[dict[str, Any]] = []
        self.num_open = 0  # replies in device memory
        self.error: Exception | None = None
        self.may_go_on, self.has_begun = threading.Event(), threading.Event()
        self.may_go_on.set()

    def prompt(self, sample: Any, **options: Any) -> Any:
        self.samples.append(sample)
        self.options.append(options)
        return SimpleNamespace(num_tokens=len(sample.ids), max_new_tokens=options["max_new_tokens"])

    def compile(self, prompt: Any) -> None:
        pass

    def slices(self, prompt: Any) -> Iterator[list[int]]:
        ids = self.ids[: prompt.max_new_tokens]
        self.num_open += 1
        try:
            yield []
            for start in range(0, len(ids), 2):
                if self.error:
                    raise self.error
                if start:
                    self.has_begun.set()
                    assert self.may_go_on.wait(HANG)
                yield ids[start : start + 2]
        finally:
            self.num_open -= 1


class ChatServer:
    """generation, metrics, chat, engine: of the server, for a test to look at."""

    def __init__(self, thread: ServerThread, generation: Any, chat: Chat) -> None:
        self.thread, self.generation, self.chat, self.metrics = thread, generation, chat, chat.metrics
        self.engine, self.address = thread.engine, thread.address
        self.clients = ExitStack()

    def client(self, token: str = "none", **options: Any) -> OpenAI:
        """Closed with the server: a stream that breaks leaves its connection open."""
        options |= {"base_url": f"{self.thread.http}/v1", "api_key": token}
        return self.clients.enter_context(OpenAI(max_retries=0, timeout=HANG, **options))


@contextmanager
def chat_server(
    processor: Processor,
    generation: Any,
    *,
    limits: ChatLimits = LIMITS,
    server_limits: Limits | None = None,
    token: str = "",
    fetch: Fetch | None = None,
    script: Script | None = None,
) -> Iterator[ChatServer]:
    """script: what streams say beside the requests."""
    server_limits, metrics = server_limits or Limits(), Metrics()
    hub = Hub(FEED, limits=server_limits, metrics=metrics)
    with fake_engine(script or (lambda stream, chunk: []), publish=hub.publish, limits=server_limits, metrics=metrics) as (
        engine,
        _,
        _,
    ):
        hub.attach(engine)
        chat = Chat(generation, MediaReader(processor, limits, fetch), engine.submit, limits, metrics)
        thread = ServerThread(engine, hub, Access(token=token), ChatRoutes(chat, MODEL).routes())
        try:
            thread.wait_until_started()
            server = ChatServer(thread, generation, chat)
            with server.clients:
                yield server
        finally:
            thread.stop()
            if isinstance(generation, ScriptedGeneration):
                generation.may_go_on.set()
            chat.close()


TEXT = "Red passes. Blue shoots, and it is a goal."
HELLO: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}


def picture(seed=0, size=(56, 84)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def data_uri(image, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.fixture(scope="module")
def processor(shallow_dir, processor_dir):
    return Processor.from_directory(processor_dir, config_json.read(shallow_dir))


@pytest.fixture(scope="module")
def server(processor):
    with chat_server(processor, ScriptedGeneration(processor, TEXT), limits=ChatLimits(max_requests=3)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def request_of(*parts, **options) -> Any:
    return {"model": MODEL, "messages": [{"role": "user", "content": list(parts)}], **options}


def text(words):
    return {"type": "text", "text": words}


def image_url(url, **options):
    return {"type": "image_url", "image_url": {"url": url, **options}}
