"""A session on a tiny model, and chunks for it; shared by the tests of what it says and of what it compiles."""

import jax
import numpy as np
import pytest

from svlm_jax.checkpoint import huggingface
from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.families import config_json
from svlm_jax.inputs import Clip
from svlm_jax.media.processor import load_tokenizer
from svlm_jax.model.parameters import from_parameters
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Session
from svlm_jax.stream.stream_settings import StreamSettings

GRID = (1, 4, 6)
WINDOWS = {"vision_window": 3, "text_rounds": 3, "sink": 6, "text_window": 6}
GREEDY = Sampling(repetition_penalty=1.05)
DRAWN = Sampling(temperature=1.5, top_k=0, repetition_penalty=1.05)


@pytest.fixture(scope="module")
def model(shallow_dir):
    config = config_json.read(shallow_dir)
    return from_parameters(config, huggingface.load(shallow_dir, config))


@pytest.fixture(scope="module")
def tokenizer(processor_dir):
    return load_tokenizer(processor_dir)


@pytest.fixture(scope="module")
def make(model, tokenizer):
    def made(
        *,
        num_streams: int = 1,
        sampling: Sampling = GREEDY,
        markup: bool = False,
        max_top_k: int | None = None,
        silence_rule: bool | None = None,
        grid: tuple[int, int, int] = GRID,
        **config,
    ) -> Session:
        options = {"num_streams": num_streams, "markup": markup, "max_top_k": max_top_k, "silence_rule": silence_rule}
        settings = StreamConfig(**{**WINDOWS, **config})
        return Session(model, tokenizer, settings, grid, sampling=sampling, **options)

    return made


def chunk(number: int, seed: int = 0, grid: tuple[int, int, int] = GRID, question: str = "") -> Chunk:
    rng = np.random.default_rng([seed, number])
    patches = rng.normal(size=(int(np.prod(grid)), 1176)).astype(np.float32)
    return Chunk(number, number + 1, Clip(patches, grid, 1.0, video=True), question)


def watch(made: Session, chunks: int, *, state=None, first: int = 0, record: bool = False, **join):
    """Replies of one stream, and the state after it."""
    state = made.join(made.init_state(), settings=StreamSettings(**join)) if state is None else state
    replies = []
    for number in range(first, first + chunks):
        state, (reply,) = made.step(state, [chunk(number)], record=record)
        replies.append(reply)
    return replies, state


def said(replies) -> list[list[int]]:
    return [reply.tokens.tolist() for reply in replies]


class Compiled:
    """Programs that XLA compiles while it is entered."""

    def __enter__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self.heard)
        return self

    def heard(self, event, duration_secs, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self.heard)
