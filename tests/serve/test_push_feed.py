"""What becomes of the images that a client pushes: with stamps all are watched in order, without them the newest."""

import asyncio
import io
import threading
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest
from PIL import Image

from svlm_jax.errors import InputError
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.sources.feed import FeedConfig, FrameSink
from svlm_jax.serve.sources.images import Box
from svlm_jax.serve.sources.push_feed import PushedImage, PushFeed
from tests.support import HANG
from tests.support.films import BLUE, GREEN, RED, colours, plain

CONFIG = FeedConfig(fps=2, chunk_seconds=1.0, box=Box(64, 48))
SINK = FrameSink(lambda second, jpeg: None, lambda: False)


def jpeg(colour, size=(64, 48)) -> bytes:
    out = io.BytesIO()
    Image.fromarray(plain(colour, size)).save(out, "JPEG", quality=95)
    return out.getvalue()


def feed(**options) -> PushFeed:
    return PushFeed(CONFIG, SINK, Limits(), **options)


@asynccontextmanager
async def reading(source: PushFeed):
    """The chunks of a feed, read in a thread; none before `allow` is set."""
    chunks, allow = [], threading.Event()

    def read() -> None:
        assert allow.wait(HANG)
        chunks.extend(source)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        async with asyncio.timeout(HANG):
            yield chunks, allow, thread
    finally:
        allow.set()
        source.stop()
        await asyncio.to_thread(thread.join, HANG)


def test_a_client_that_stamps_its_frames_loses_none_however_late_the_model_is():
    """A file sent over a socket at full speed: a dropped frame would be a second that nobody commented on."""

    async def run() -> None:
        source, letters = feed(), "RGB" * 20
        async with reading(source) as (chunks, allow, thread):
            pushed: list[PushedImage] = []

            async def push() -> None:
                for number, colour in enumerate([RED, GREEN, BLUE] * 20):
                    pushed.append(await source.push_image(jpeg(colour), 7.0 + number / 2))
                source.finish()

            pushing = asyncio.create_task(push())
            while source.has_room:
                await asyncio.sleep(0.001)
            num_waiting = len(pushed)
            assert num_waiting <= 4 and not pushing.done()
            allow.set()
            await pushing
            await asyncio.to_thread(thread.join, HANG)
            assert not source.live and colours(np.concatenate([chunk.frames for chunk in chunks])) == letters
            assert [image.second for image in pushed] == [number / 2 for number in range(60)]
            # whoever waits for a reply knows from the answer whether there will be one
            assert [image.complete_until for image in pushed[:5]] == [0, 1, 1, 2, 2]
            assert source.ending == "the client has finished"

    asyncio.run(run())


def test_a_sender_that_waits_hears_when_the_stream_ends():
    """Else its socket hangs for ever."""

    async def run() -> None:
        source = feed()
        for number in range(4):
            await source.push_image(jpeg(RED), number / 2)
        waiting = asyncio.create_task(source.push_image(jpeg(RED), 2.0))
        while not source.push_lock.locked():
            await asyncio.sleep(0)
        source.stop()
        with pytest.raises(InputError, match="ended"):
            await asyncio.wait_for(waiting, HANG)
        with pytest.raises(InputError, match="ended"):
            await source.push_image(jpeg(RED), 3.0)

    asyncio.run(run())


def test_without_stamps_an_image_makes_way_for_a_newer_one(monkeypatch):
    """Else a camera that sends faster than it is decoded falls behind, further with each image."""

    async def run() -> None:
        source, decoded = feed(), []
        allow, original = threading.Event(), source._decode

        def slow(data: bytes) -> np.ndarray:
            assert allow.wait(HANG)
            decoded.append(data)
            return original(data)

        monkeypatch.setattr(source, "_decode", slow)
        images = [jpeg(RED, (64, 40 + number)) for number in range(5)]
        tasks = []
        for image in images:
            tasks.append(asyncio.create_task(source.push_image(image)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        allow.set()
        results = await asyncio.wait_for(asyncio.gather(*tasks), HANG)
        assert decoded == [images[0], images[-1]] or decoded == [images[-1]]
        assert [result.second is None for result in results[-2:]] == [True, False]
        source.stop()

    asyncio.run(run())


def test_all_images_have_the_size_of_the_first_and_are_not_distorted():
    """A phone that is turned, a camera that changes its resolution: people must not become thin."""

    async def run() -> None:
        source = feed()
        async with reading(source) as (chunks, allow, thread):
            allow.set()
            for number, size in enumerate([(64, 48), (48, 64), (640, 480), (128, 48)]):
                await source.push_image(jpeg(GREEN, size), number / 2)
            source.finish()
            await asyncio.to_thread(thread.join, HANG)
        frames = np.concatenate([chunk.frames for chunk in chunks])
        assert frames.shape == (4, 48, 64, 3)
        is_green = frames[..., 1] > 128
        assert is_green[0].all() and is_green[2].all()
        assert is_green[1].any(axis=0).sum() == 36 and is_green[1].any(axis=1).sum() == 48
        assert is_green[3].any(axis=0).sum() == 64 and is_green[3].any(axis=1).sum() == 24

    asyncio.run(run())


@pytest.mark.parametrize("second", [float("nan"), float("inf"), -1e300])
def test_a_stamp_that_is_no_time_is_refused(second):
    with pytest.raises(InputError, match="timestamp"):
        asyncio.run(feed().push_image(jpeg(RED), second))


def test_stamps_on_some_images_only_are_refused():
    async def run() -> None:
        source = feed()
        await source.push_image(jpeg(RED), 0.0)
        with pytest.raises(InputError, match="as the first image had"):
            await source.push_image(jpeg(RED))
        await source.push_image(jpeg(RED), 0.5)

    asyncio.run(run())


def test_two_first_images_at_once_do_not_disagree():
    """The second comes while the first is being decoded: a stream that then waits for both kinds shows neither."""

    async def run() -> None:
        source = feed()
        tasks = [asyncio.create_task(source.push_image(jpeg(RED), second)) for second in (0.0, None)]
        first, second = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(first, PushedImage) and isinstance(second, InputError) and not source.live

    asyncio.run(run())


def test_a_broken_image_is_refused_and_the_next_one_watched():
    async def run() -> None:
        source = feed()
        for second in (None, 0.0):
            with pytest.raises(InputError, match="image"):
                await source.push_image(jpeg(RED)[:200], second)
        assert (await source.push_image(jpeg(RED), 0.0)).second == 0

    asyncio.run(run())


def test_a_client_that_says_nothing_is_let_go(monkeypatch):
    source = feed(max_silence=0.01)
    with pytest.raises(InputError, match="no image came"):
        list(source)
    assert source.ending == "no image came for 0.01 s"


def test_a_camera_without_stamps_is_watched_by_the_clock():
    """Its last picture stands still, and a stream without images ends with the reason."""
    now = [100.0]
    source = feed(clock=lambda: now[0])

    async def run() -> None:
        await source.push_image(jpeg(RED))

    asyncio.run(run())
    source.first_frame_time = lambda: time.monotonic()
    draws = source.draw_calls()
    assert colours(np.stack([next(draws)()])) == "R" and source.live  # pyright: ignore[reportArgumentType]
    now[0] += 20
    assert next(draws, None) is None and source.ending == "no image from the camera for 20 s"
