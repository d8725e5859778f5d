"""Streams of every family and with every kind of setting, saved after any chunk and resumed in a new session: from there on all
events are those of the stream that was not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from svlm_jax.checkpoint import huggingface
from svlm_jax.config import StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.families import FAMILIES, config_json
from svlm_jax.inputs import Clip
from svlm_jax.media.processor import load_tokenizer
from svlm_jax.model.parameters import from_parameters
from svlm_jax.presets import LIVECC
from svlm_jax.stream import state_io
from svlm_jax.stream.alerts import AlertRule
from svlm_jax.stream.events import Alert, Caption, Event
from svlm_jax.stream.pacing import Pacing
from svlm_jax.stream.runner import Runner
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Session
from svlm_jax.stream.stream_settings import StreamSettings
from tests.support.families import tiny_checkpoint

DRAWN = Sampling(temperature=1.5, top_k=0, repetition_penalty=1.05)
WINDOWS: dict[str, Any] = {"vision_window": 3, "text_rounds": 3, "sink": 6, "text_window": 6, "max_new_tokens": 6}
LIVE = StreamSettings(query="Commentate", seed=3)
SCHEMA = {"type": "object", "properties": {"team": {"type": "string"}}}
ALERT = AlertRule("Is it red?", yes=("a", "b"), no=("c", "d"), confirm=1, threshold=0.5, schema=SCHEMA)
STREAMS = {"a": LIVE, "b": replace(LIVE, query="", seed=4, max_new_tokens=4)}
# Name -> config, sampling, settings of streams, settings that stream "a" is given after its third chunk.
KINDS: dict[str, tuple[dict[str, Any], Sampling, dict[str, StreamSettings], StreamSettings | None]] = {
    "livecc": (dict(LIVECC.stream), replace(DRAWN, top_k=5), {"a": LIVE}, None),
    "silence threshold": (
        WINDOWS,
        replace(DRAWN, silence_threshold=0.01, silence_threshold_step=0.002),
        STREAMS,
        replace(LIVE, sampling=replace(DRAWN, silence_threshold=0.002)),
    ),
    "silence": (WINDOWS, replace(DRAWN, silence=0.002), STREAMS, replace(LIVE, sampling=DRAWN)),
    "pacing": (
        WINDOWS,
        DRAWN,
        {"a": replace(LIVE, pacing=Pacing(2.0, 1.0)), "b": replace(LIVE, pacing=Pacing(0, 2.0), seed=5), "c": LIVE},
        replace(LIVE, pacing=Pacing(3.0, 1.0), config=StreamConfig(**{**WINDOWS, "vision_window": 2, "text_rounds": 1})),
    ),
    "alert": ({**WINDOWS, "question_tokens": 512}, DRAWN, {"a": replace(LIVE, alert=ALERT), "b": LIVE}, None),
    "window": ({**WINDOWS, "mode": "window", "window_chunks": 4}, DRAWN, STREAMS, None),
    "recompute": ({**WINDOWS, "mode": "recompute"}, DRAWN, {"a": LIVE}, None),
    "full": ({**WINDOWS, "mode": "full"}, DRAWN, {"a": LIVE}, None),
}
CHUNKS = 8


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    directory = tiny_checkpoint(FAMILIES[request.param], tmp_path_factory.mktemp("model") / "0")
    config = config_json.read(directory)
    return from_parameters(config, huggingface.load(directory, config)), load_tokenizer(directory)


def session(model, kind: str) -> Session:
    settings, sampling, streams, _ = KINDS[kind]
    config = StreamConfig(**settings)
    grid = (config.chunk_frames // 2, 4, 6)
    options = {"sampling": sampling, "num_streams": len(streams) + 1, "choices": kind == "alert", "max_top_k": sampling.top_k}
    network, tokenizer = model
    return Session(network, tokenizer, config, grid, **options)


def chunk(number: int, stream: str, config: StreamConfig, vision) -> Chunk:
    first = config.first_chunk_seconds or config.chunk_seconds
    start, end = (0.0, first) if number == 0 else (first + number - 1, first + number)
    frames = config.chunk_frames if number else config.first_chunk_frames or config.chunk_frames
    grid = (frames // 2, 4, 6)
    rng = np.random.default_rng([number, ord(stream)])
    patches = rng.normal(size=(int(np.prod(grid)), vision.patch_dim)).astype(np.float32)
    times = tuple(start + (np.arange(grid[0]) + 0.5) * (end - start) / grid[0])
    clip = Clip(patches, grid, vision.temporal_step(config.fps), video=True, times=times)
    return Chunk(start, end, clip, "who leads?" if number in (2, 5) and stream == "b" else "")


def watched(runner: Runner, kind: str, first: int, save=lambda number: None) -> list[Event]:
    _, _, streams, changed = KINDS[kind]
    events, vision = [], runner.session.model_config.vision
    for number in range(first, CHUNKS):
        if number == 3 and changed is not None:
            runner.change("a", changed)
        events += runner.tick({stream: chunk(number, stream, runner.session.config, vision) for stream in streams})
        save(number)
    return events


def told(events: list[Event], second: float) -> list[Any]:
    """What a user sees of the events from a second on."""
    shown = ("stream", "start", "text", "question", "used_slots", "probability")
    return [
        ([getattr(event, name) for name in shown], event.tokens.tolist()) if isinstance(event, Caption) else event
        for event in events
        if isinstance(event, Caption | Alert) and event.start >= second
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_of_any_setting_that_is_saved_after_any_chunk_goes_on_as_if_it_had_not_been(model, kind, tmp_path):
    runner = Runner(session(model, kind))
    for stream, settings in KINDS[kind][2].items():
        runner.join(stream, settings)
    with state_io.Writer(tmp_path / "last.state", runner.session) as writer:

        def save(number: int) -> None:
            runner.save(writer, {"next": number})
            writer.wait()
            assert writer.failure() is None
            (tmp_path / "last.state").rename(tmp_path / f"{number}.state")

        events = watched(runner, kind, 0, save)
    if kind == "alert":
        assert any(isinstance(event, Alert) for event in events)
    again = session(model, kind)  # of a process that has computed nothing
    config = again.config
    for number in range(CHUNKS - 1):
        resumed = Runner(again)
        resumed.resume(tmp_path / f"{number}.state")
        second = (config.first_chunk_seconds or config.chunk_seconds) + number
        assert told(watched(resumed, kind, number + 1), second) == told(events, second), number
        assert np.array_equal(resumed.sequence("a").positions, runner.sequence("a").positions)
