"""The host's part of a step, at the depth of a stream of hours: the milliseconds before, between and after the programs.

The programs are stand-ins that return at once, so nothing is compiled and any machine measures the same work. What stands
before the vision tower is what the device waits for; what stands between it and the prefill is done while it works.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.model_configs import published_config, tower_blocks
from benchmarks.report import record
from svlm_jax.cli.flags import integer
from svlm_jax.config import ModelConfig
from svlm_jax.stream.stream_settings import StreamSettings

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
FPS, FRAME = 2, (720, 1280, 3)
FILLED = 64  # chunks after which all windows are full
WORDS = (10, 400)  # ids of replies, of words in the tests' vocabulary
PARTS = ("before vision", "vision to prefill", "prefill to decode", "after the reply")


class Stopwatch:
    """Processor milliseconds of this process between laps, by part."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.last = time.process_time()

    def lap(self, part: str) -> None:
        now = time.process_time()
        self.ms[part], self.last = self.ms[part] + 1000 * (now - self.last), now


def bench(args: argparse.Namespace) -> None:
    rows = []
    for num_streams in args.num_streams:
        rows.append(measure(num_streams, args.chunks))
        print(json.dumps(rows[-1]), flush=True)
    description = (
        f"The host's part of a step: a stream of {FRAME[1]}x{FRAME[0]} frames whose windows are full, the vocabulary of 7B, "
        "patches made before. Processor milliseconds, medians; the programs are stand-ins. The device waits for what is before "
        "the vision tower."
    )
    record(args.name, description, rows, args.out)


def measure(num_streams: int, chunks: int) -> dict[str, Any]:
    """One row: medians over `chunks` steps of all streams, once their windows are full."""
    from svlm_jax.stream.sequence import Chunk

    session, clip = make_session(num_streams, published_config("7b"))
    state, laps = session.init_state(), []
    for b in range(num_streams):
        state = session.join(state, b, StreamSettings(seed=b))
    with stand_ins() as stopwatch:
        for number in range(FILLED + chunks):
            chunk = Chunk(float(number), float(number + 1), clip)
            timer = stopwatch()
            state, _ = session.step(state, [chunk] * num_streams)
            timer.lap(PARTS[-1])
            laps.append(timer.ms)
    stream = state.streams[0]
    assert stream is not None
    parts = {part: float(np.median([ms[part] for ms in laps[FILLED:]])) for part in PARTS}
    return {
        "streams": num_streams,
        "tokens a stream": len(stream.ids),
        **{f"{part} (ms)": round(ms, 2) for part, ms in parts.items()},
        "a step (ms)": round(sum(parts.values()), 2),
    }


def make_session(num_streams: int, published: ModelConfig) -> tuple[Any, Any]:
    """A session of a published model, but without width, and a clip of it."""
    from flax import nnx

    from svlm_jax.config import StreamConfig
    from svlm_jax.media.processor import Processor, load_tokenizer
    from svlm_jax.model.vlm import QwenVL
    from svlm_jax.stream.session import Session

    sizes = {"hidden_size": 16, "intermediate_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "mrope_section": (2, 1, 1)}
    text = replace(published.text, num_hidden_layers=1, **sizes, **heads)
    vision = replace(published.vision, num_heads=2, out_hidden_size=16, **sizes, **tower_blocks(published.vision, 1, (0,)))
    config = replace(published.compute("float32"), text=text, vision=vision)
    tokenizer = load_tokenizer(FIXTURES / "processor")
    processor = Processor(config, tokenizer)
    clip = processor.video(np.zeros((FPS, *FRAME), np.uint8), fps=FPS, raw=True)
    model = QwenVL(config, nnx.Rngs(0))
    return Session(model, tokenizer, StreamConfig(fps=FPS), clip.grid, num_streams=num_streams), clip


@contextmanager
def stand_ins() -> Iterator[Callable[[], Stopwatch]]:
    """Programs that compute nothing and tell when they are called; gives what begins a step."""
    from svlm_jax.decode.loop import DecodeState
    from svlm_jax.model.vision import Features
    from svlm_jax.stream import programs

    rng, current = np.random.default_rng(0), [Stopwatch()]

    def start_stopwatch() -> Stopwatch:
        current[0] = Stopwatch()
        return current[0]

    def encode_vision(params, frames, **_: Any) -> Features:
        current[0].lap("before vision")
        return Features(np.zeros((1, 1, 1)))  # pyright: ignore[reportArgumentType]

    def prefill(params, batch, features, hidden, cache, **_: Any) -> tuple[Any, Any]:
        current[0].lap("vision to prefill")
        return hidden, cache

    def decode(params, inputs, hidden, cache, limit, **_: Any) -> DecodeState:
        current[0].lap("prefill to decode")
        tokens = rng.integers(*WORDS, inputs.slots.shape, np.int32)
        count = np.full(len(tokens), tokens.shape[1], np.int32)
        undecided = np.full(len(count), -1, np.float32)
        return DecodeState(tokens, count, count > 0, inputs.generated, cache, None, undecided)  # pyright: ignore[reportArgumentType]

    with (
        patch.object(programs, "encode_vision", encode_vision),
        patch.object(programs, "prefill", prefill),
        patch.object(programs, "decode", decode),
    ):
        yield start_stopwatch


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-streams", type=integer(1), nargs="+", default=[1, 16], help="streams (default 1 16)")
    parser.add_argument("--chunks", type=integer(1), default=40, help="measured, once the windows are full (default 40)")
    parser.add_argument("--name", default="host", help="of the JSON file (default host)")
