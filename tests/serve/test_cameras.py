"""Cameras of a server: lost and back while they are watched, kept while nobody watches. No model, no waiting for real time."""

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from svlm_jax.cli import serve_flags
from svlm_jax.errors import InputError
from svlm_jax.media.chunks import Source
from svlm_jax.media.reconnect import Reconnect, ReconnectingSource
from svlm_jax.media.sources import SCHEMES
from svlm_jax.serve.always_on import POLL_INTERVAL, AlwaysOnSources
from svlm_jax.serve.engine.reports import ChunkReport, TimelineEvent
from svlm_jax.serve.hub import Hub
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.metrics import Metrics
from svlm_jax.serve.sources.catalog import SourceCatalog, StreamSource
from svlm_jax.serve.sources.feed import FrameSink, OpenedFeed
from svlm_jax.stream.events import Ended, SourceBack, SourceLost
from svlm_jax.stream.stream_settings import StreamSettings
from tests.media.test_reconnect import Clock, part
from tests.support import HANG
from tests.support.cameras import REFUSE, serving_camera
from tests.support.fake_engine import FEED, fake_engine
from tests.support.films import BLUE, GREEN, RED

FOREVER = Reconnect(seconds=float("inf"))


def camera_feed(camera, sent: list[float]) -> OpenedFeed:
    sink = FrameSink(lambda second, jpeg: sent.append(second), lambda: True)
    feed = OpenedFeed(FEED, sink, camera.url, title="gate", is_private=True, schemes=SCHEMES, reconnect=FOREVER)
    source, clock = feed.inner, Clock()
    assert isinstance(source, ReconnectingSource)
    source.clock, source.sleep, source.draw, source.lost_at = clock, clock.sleep, lambda: 0.0, clock()
    return feed


def test_a_camera_that_is_lost_is_told_and_watched_on_in_the_same_stream(tmp_path):
    """Its viewers see the same stream: what was said before, a gap with its seconds, and what comes after."""
    films = [part(tmp_path, colour, size=size) for colour, size in [(RED, (64, 48)), (GREEN, (48, 64)), (BLUE, (64, 48))]]
    sent: list[float] = []
    with serving_camera(films[0], films[1], REFUSE, films[2]) as camera, fake_engine(lambda stream, chunk: ["word"]) as parts:
        engine, _, published = parts
        engine.open("a", camera_feed(camera, sent), StreamSettings())
        published.wait_for(ChunkReport, 6)
        published.wait_for(TimelineEvent, 5)
        engine.end("a", "enough")
    timeline = [event.event for event in published if isinstance(event, TimelineEvent)]
    assert [type(event) for event in timeline] == [SourceLost, SourceBack] * 2 + [SourceLost]
    spans = [(report.start, report.end) for report in published if isinstance(report, ChunkReport)]
    assert spans == [(0, 1), (1, 2), (3, 4), (4, 5), (11, 12), (12, 13)]  # away 1 s, then 2 + 4 s
    gaps = [(event.start, event.end, event.chunks, event.attempts) for event in timeline if isinstance(event, SourceBack)]
    assert gaps == [(2, 3, 1, 1), (5, 11, 6, 2)]
    numbers = [event.number for event in published if isinstance(event, ChunkReport | TimelineEvent)]
    assert sorted(numbers) == list(range(11))
    assert sent == sorted(sent) and sent[-1] == pytest.approx(12.875) and not any(2 <= second < 3 for second in sent)
    assert "s3cret" not in str(list(published))


class Brief(Source):
    """A video that is over as soon as it has begun."""

    def frames(self) -> Iterator[np.ndarray]:
        return iter(())


def test_kept_sources_play_unwatched_and_begin_anew_when_they_end(tmp_path):
    """A camera that only a webhook listens to must not end because no browser is open, nor for ever because it once broke."""
    opened, delays, enough = [], [], asyncio.Event()

    def open_brief(name, timing):
        opened.append(name)
        return Brief(name, timing)

    async def sleep(seconds: float) -> None:
        if seconds != POLL_INTERVAL:
            delays.append(seconds)
        if len(opened) >= 4:
            enough.set()
        await asyncio.sleep(0.001)

    async def run(hub: Hub) -> None:
        hub.loop = asyncio.get_running_loop()
        sources = AlwaysOnSources(hub, [0, 1], policy=Reconnect(jitter=0.0), sleep=sleep)
        tasks = [asyncio.create_task(sources.run()), asyncio.create_task(hub.run_housekeeping())]
        async with asyncio.timeout(HANG):
            await enough.wait()
            while not any(item.title == "gate" and item.history for item in hub.broadcasts.values()):
                await asyncio.sleep(0.01)
        (gate,) = [item for item in hub.broadcasts.values() if item.title == "gate"]
        hub._end_unwatched(gate.unwatched_since + 1e6)
        with pytest.raises(InputError, match="keeps playing"):
            hub.stop(gate)
        assert gate.is_always_on and gate.is_running
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with serving_camera() as camera:  # it is not there
        listed = [("brief", "brief:1"), ("gate", camera.url)]
        catalog = SourceCatalog(listed, schemes={**SCHEMES, "brief": open_brief})
        hub = Hub(FEED, limits=Limits(), metrics=Metrics(), catalog=catalog)
        # places enough: the hub counts a stream that is being opened twice for a moment
        with fake_engine(lambda stream, chunk: ["word"], publish=hub.publish, num_streams=4) as (engine, _, _):
            hub.attach(engine)
            asyncio.run(run(hub))
    assert delays[:3] == [1, 2, 4]


def test_a_source_that_viewers_start_must_be_there(tmp_path):
    """A viewer who chooses a camera that is off reads so at once, and takes no place."""
    with serving_camera() as camera:
        catalog = SourceCatalog([("gate", camera.url)])
        sink = FrameSink(lambda second, jpeg: None, lambda: False)
        with pytest.raises(InputError, match="does not open"):
            catalog.open(StreamSource("listed"), FEED, sink)


@pytest.mark.parametrize("sources, num_streams", [(0, 4), (3, 2)])
def test_keep_needs_sources_and_a_place_for_each(sources, num_streams):
    args = serve_flags.serve_parser("").parse_args(
        ["--keep", "--num-streams", str(num_streams), *["--source", "rtsp://camera"] * sources]
    )
    with pytest.raises(InputError, match="--keep"):
        serve_flags.check_keep(args)


def test_a_stream_that_ends_while_its_camera_is_away_ends_at_once(tmp_path):
    """Not when the next attempt is over."""
    with serving_camera(part(tmp_path, RED)) as camera, fake_engine(lambda stream, chunk: [""]) as (engine, _, published):
        feed = camera_feed(camera, [])
        source, asleep = feed.inner, threading.Event()
        assert isinstance(source, ReconnectingSource)

        def sleep(seconds: float) -> None:
            asleep.set()
            assert source.stopping.wait(HANG)

        source.sleep = sleep
        engine.open("a", feed, StreamSettings())
        assert asleep.wait(HANG)
        player = engine.playback.players["a"]
        engine.end("a", "enough")
        player.thread.join(HANG)
        assert not player.thread.is_alive() and published.wait_for(Ended).reason == "enough"
