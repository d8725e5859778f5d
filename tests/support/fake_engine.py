"""An engine without a model: replies are scripted, chunks come when a test gives them. All its threads are real."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import COMMENTARY
from svlm_jax.errors import InputError
from svlm_jax.inputs import Clip
from svlm_jax.media.processor import Processor
from svlm_jax.serve.engine.engine import Engine
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.sources.feed import Feed, FeedConfig, FrameSink
from svlm_jax.serve.sources.images import Box
from svlm_jax.stream.events import Caption, Refused, TokenDelta
from svlm_jax.stream.runner import Runner
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Session, StreamState
from svlm_jax.stream.stream_settings import StreamSettings
from tests.support import HANG

FAKE_CONFIG = StreamConfig(max_new_tokens=4, fps=2, chunk_seconds=1)
FEED = FeedConfig(FAKE_CONFIG.fps, FAKE_CONFIG.chunk_seconds, Box(28, 28))
CLIP = Clip(np.zeros((4, 1176), np.float32), (1, 2, 2), 1.0, video=True)
Script = Callable[[str, Chunk], Iterable[str]]  # stream, chunk -> the pieces of its reply, one a token; "" is silence


class ScriptedFeed(Feed):
    """`give` makes a chunk complete; `finish` ends the video."""

    may_stall = True
    live = False

    def __init__(self, config: FeedConfig = FEED) -> None:
        super().__init__("film", config, FrameSink(lambda second, jpeg: None, lambda: False))
        self.given: queue.Queue[bool] = queue.Queue()

    def give(self, chunks: int = 1) -> None:
        for _ in range(chunks * round(self.fps * self.chunk_seconds)):
            self.given.put(True)

    def finish(self) -> None:
        self.given.put(False)

    def stop(self) -> None:
        super().stop()
        self.given.put(False)

    def frames(self) -> Iterator[np.ndarray]:
        while self.given.get():
            yield np.zeros((self.config.box.height, self.config.box.width, 3), np.uint8)


class FakeRunner(Runner):
    """What the engine needs of a `Runner`. changes: settings that streams were given while they played. ticks: the streams of
    each step; limits: the longest reply that each was asked for."""

    def __init__(self, session: Any, script: Script) -> None:
        self.session, self.script = session, script
        self.state = StreamState(cast("Any", None), (None,) * session.num_streams)
        self.joined: dict[str, Any] = {}
        self.changes: list[tuple[str, Any]] = []
        self.ticks: list[tuple[str, ...]] = []
        self.limits: list[dict[str, int | None]] = []
        self.refused_question = ""

    def join(self, stream: str, settings: Any) -> None:
        self.joined[stream] = SimpleNamespace(settings=settings, config=FAKE_CONFIG, spans=(), chunk=0)

    def change(self, stream: str, settings: Any) -> None:
        if settings.seed != self.joined[stream].settings.seed:
            raise InputError("seed", settings.seed, "the old one", "start another stream")
        self.changes.append((stream, settings))
        self.joined[stream].settings = settings

    def leave(self, stream: str) -> None:
        del self.joined[stream]

    def sequence(self, stream: str) -> Any:
        return self.joined[stream]

    def prepare(self, chunks: dict[str, Chunk]) -> tuple[dict[str, Chunk], list[Refused]]:
        events = []
        for stream, chunk in chunks.items():
            if chunk.question and chunk.question == self.refused_question:
                error = InputError("question", "too many", "fewer", "wait")
                span = {"stream": stream, "start": chunk.start, "end": chunk.end}
                events.append(Refused(**span, question=chunk.question, error=error))
                chunks = {**chunks, stream: chunk._replace(question="")}
        return chunks, events

    def step(
        self,
        prepared: dict[str, Chunk],
        *,
        on_token: Callable[[TokenDelta], Any] | None = None,
        cancelled: Callable[[str], bool] = lambda stream: False,
        recoverable: bool = True,
    ) -> list[Caption]:
        self.ticks.append(tuple(sorted(prepared)))
        self.limits.append({stream: chunk.max_new_tokens for stream, chunk in prepared.items()})
        return [self._reply(stream, chunk, on_token, cancelled) for stream, chunk in prepared.items()]

    def _reply(
        self, stream: str, chunk: Chunk, on_token: Callable[[TokenDelta], Any] | None, cancelled: Callable[[str], bool]
    ) -> Caption:
        finish = "stop"
        span, text, count = {"stream": stream, "start": chunk.start, "end": chunk.end}, "", 0
        for count, piece in enumerate(self.script(stream, chunk), 1):
            text += piece
            if on_token is not None:
                on_token(TokenDelta(**span, token=count, text=piece))
            if cancelled(stream):
                finish = "cancelled"
                break
        self.joined[stream].chunk += 1
        tokens = np.arange(count, dtype=np.int32)
        return Caption(**span, text=text, raw=text, question=chunk.question, tokens=tokens, ms={"decode": 1.0}, finish=finish)


class FakeSession(Session):
    def __init__(self, num_streams: int) -> None:
        self.num_streams, self.config, self.frame_box, self.sampling = num_streams, FAKE_CONFIG, None, COMMENTARY
        self.mesh = object()  # so that the engine compiles nothing

    def check_query(self, query: str) -> None:
        pass

    def check(self, settings: StreamSettings) -> None:
        pass

    def upload(self, clip: Clip) -> Clip:
        return clip


class FakeProcessor(Processor):
    def __init__(self) -> None:
        pass

    def video(self, frames: Any, **_: Any) -> Clip:
        return CLIP


@contextmanager
def fake_engine(
    script: Script,
    *,
    num_streams: int = 2,
    limits: Limits = Limits(),  # noqa: B008
    publish: Callable[[Any], None] | None = None,
    **options: Any,
):
    """A running engine and `published`, the list of what it publishes; `wait_for` waits for it."""
    published = Published()
    session = FakeSession(num_streams)
    runner = FakeRunner(session, script)
    engine = Engine(FakeProcessor(), session, CLIP, publish=publish or published.add, limits=limits, runner=runner, **options)
    engine.start()
    try:
        yield engine, runner, published
    finally:
        engine.stop()
        assert not engine.thread.is_alive()


class Published(list):
    """Events in the order in which they came."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()

    def add(self, event: Any) -> None:
        with self.changed:
            self.append(event)
            self.changed.notify_all()

    def wait_for(self, kind: type, count: int = 1, **fields: Any) -> Any:
        """The last of `count` events of a type that have these fields."""

        def found() -> list[Any]:
            return [
                event
                for event in self
                if isinstance(event, kind) and all(getattr(event, name) == value for name, value in fields.items())
            ]

        with self.changed:
            assert self.changed.wait_for(lambda: len(found()) >= count, HANG), f"no {kind.__name__} {fields}: {list(self)}"
            return found()[count - 1]
