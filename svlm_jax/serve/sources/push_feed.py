"""Frames that a client of the server pushes, one encoded image after the other.

Owns what becomes of each image: when it is decoded, and whether its sender waits or it makes way for a newer one. Does not know
how images arrive. `push_image` runs in the event loop, pixels are decoded in a pool, frames are read in the thread of a player.
Units: seconds. Axes: H, W pixels.

feed = PushFeed(config, sink, limits)              # engine.open(name, feed, settings)
pushed = await feed.push_image(jpeg, second=0.0)   # waits while the stream is behind
feed.finish()
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from svlm_jax.errors import InputError
from svlm_jax.media.chunks import Interruption, Timing
from svlm_jax.media.image import letterbox
from svlm_jax.media.push import MAX_STAMP, PushSource
from svlm_jax.serve.limits import Limits
from svlm_jax.serve.sources.feed import Feed, FeedConfig, FrameSink
from svlm_jax.serve.sources.images import decode_image, encode_jpeg, fit_size, read_header

WAITING_CHUNKS = 2  # of stamped frames that may wait before their sender does
DECODES_PER_FRAME = 2  # images without stamps are decoded at most so often for each frame that the model takes


class PushedImage(NamedTuple):
    """What became of a client's image.

    second: of the stream; None: not watched, a newer image came before it was decoded. complete_until: chunks that end at or
    before this second need no further image (stamped frames only).
    """

    second: float | None
    complete_until: float | int = 0


class PushFeed(Feed):
    """The first image decides for all of them.

    With a time stamp, the stamps are the clock of the stream, and no frame is lost: whoever pushes faster than the model
    watches waits in `push_image`. Without one it is a camera: the newest image is watched at each tick of the clock that all
    feeds share, one that comes too fast makes way for the next, and the last one stands still for up to `max_silence` seconds.
    All pictures are fitted into the size of the first without distortion.
    """

    live = True  # unless the first image has a stamp
    may_stall = True

    def __init__(
        self,
        config: FeedConfig,
        sink: FrameSink,
        limits: Limits,
        *,
        title: str = "camera",
        pool: Executor | None = None,
        max_silence: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        pool: decodes images; asyncio's default by default. One that all feeds share bounds what decoding may cost.
        max_silence: seconds without an image after which the stream ends; `limits.camera_timeout` by default.
        clock: of the host, for images without stamps and for pauses.
        """
        super().__init__(title, config, sink)
        self.limits, self.pool, self.clock = limits, pool, clock
        self.max_silence = limits.camera_timeout if max_silence is None else max_silence
        timing = Timing(config.fps, config.chunk_seconds, first_chunk_seconds=config.first_chunk_seconds)
        self.stamped = PushSource(
            title,
            timing,
            max_frames=math.ceil(WAITING_CHUNKS * config.chunk_seconds * config.fps),
            max_silence=self.max_silence,
            clock=clock,
            on_taken=self._wake,
        )
        self.notes = self.stamped.notes  # shared: jumps of the stamps become notes of this feed's chunks
        self.is_decided = False  # whether images have stamps
        self.image: np.ndarray | None = None  # the newest one without a stamp
        self.image_time = clock()
        self.has_image = threading.Event()  # or there will be none
        self.loop: asyncio.AbstractEventLoop | None = None  # that of the client
        self.room = asyncio.Event()
        self.push_lock = asyncio.Lock()  # stamped images are pushed one after the other
        self.next_image: tuple[bytes, asyncio.Future[PushedImage]] | None = None
        self.decode_task: asyncio.Task[None] | None = None

    # in the event loop

    async def push_image(self, data: bytes, second: float | None = None) -> PushedImage:
        """Add an encoded image: JPEG, PNG or WebP. In order of time, from one event loop.

        With a stamp it returns when the frame is in the stream, and waits for that while the stream is behind: a caller that
        reads no further image meanwhile passes the pressure on to its client. Without one it returns when the image is decoded
        or a newer one has taken its place, so that at most two calls are open at a time.

        Args:
            second: time stamp of the client, counted from anywhere.

        Raises:
            InputError: an image or a stamp that is refused; the stream has ended.
        """
        self.check(data, second)
        self.loop = asyncio.get_running_loop()
        if not self.is_decided:  # here, and not when the image is decoded: another may come meanwhile
            self.is_decided, self.live = True, second is None
        if second is None:
            return await self._push_newest(data)
        async with self.push_lock:
            while not self.has_room:
                self.room.clear()
                if not self.has_room:  # it may have come between the two lines
                    await self.room.wait()
            image = await self.loop.run_in_executor(self.pool, self._decode, data)
            if self.stop_event.is_set() or not self.stamped.push(image, second):
                raise _ended()
            self.has_image.set()
            return PushedImage(self.start + self.stamped.second, self.stamped.complete_until)

    def check(self, data: bytes, second: float | None = None) -> None:
        """Refuse an image by its header and its stamp alone.

        Raises:
            InputError: as `read_header` and `fit_size` do; a stamp that is no number, or that only some images have.
        """
        if self.stop_event.is_set() or self.stamped.finished:
            raise _ended()
        if second is not None and not abs(second) < MAX_STAMP:
            raise InputError("timestamp", second, f"a number of seconds below {MAX_STAMP:g}", "send seconds, or leave it out")
        if self.is_decided and (second is None) != self.live:
            got, expected = ("none", "a time") if second is None else ("a time", "none")
            raise InputError("timestamp", got, f"{expected}, as the first image had", "stamp all images or none")
        header = read_header(data, self.limits)
        fit_size(header.width, header.height, self.config.box)

    @property
    def has_room(self) -> bool:
        """Whether a stamped image need not wait."""
        return self.stamped.has_room or self.stamped.finished

    def finish(self, reason: str = "the client has finished") -> None:
        """No more images; those that were pushed are still watched. From any thread."""
        self.stamped.finish(reason)
        if self.live:
            self.stop_event.set()
            self.ending = reason
        self.has_image.set()

    async def _push_newest(self, data: bytes) -> PushedImage:
        if self.next_image is not None and not self.next_image[1].done():
            self.next_image[1].set_result(PushedImage(None))
        future: asyncio.Future[PushedImage] = asyncio.get_running_loop().create_future()
        self.next_image = data, future
        if self.decode_task is None:
            self.decode_task = asyncio.create_task(self._decode_newest())
        return await future

    async def _decode_newest(self) -> None:
        """Decode images until none waits."""
        loop = asyncio.get_running_loop()
        try:
            while self.next_image is not None and not self.stop_event.is_set():
                started, (data, future) = loop.time(), self.next_image
                self.next_image = None
                try:
                    self.image = await loop.run_in_executor(self.pool, self._decode, data)
                    self.image_time = self.clock()
                    self.has_image.set()
                    _resolve(future, PushedImage(self.position))
                except InputError as error:
                    _resolve(future, error)
                await asyncio.sleep(max(0.0, started + 1 / (DECODES_PER_FRAME * self.config.fps) - loop.time()))
        except RuntimeError:  # the server is stopping: the pool takes nothing more
            pass
        finally:
            self.decode_task = None
            if self.next_image is not None:
                _resolve(self.next_image[1], PushedImage(None))

    # in the pool

    def _decode(self, data: bytes) -> np.ndarray:
        image = decode_image(data, self.limits, self.config.box)
        if self.frame_size is None:
            self.frame_size = (image.shape[1], image.shape[0])
        return letterbox(image, self.frame_size)

    # in the thread of the player

    def frames(self) -> Iterator[np.ndarray | Interruption]:
        if not self.has_image.wait(self.max_silence):
            self.stamped.finish(f"no image came for {self.max_silence:g} s")
            self.ending = self.stamped.ending
        elif self.live:
            yield from super().frames()
        else:
            for index, frame in enumerate(self.stamped.frames()):
                if self.sink.is_watched():
                    self.sink.send(self.start + index / self.fps, encode_jpeg(frame))
                yield frame
            self.ending = self.stamped.ending

    def draw_calls(self) -> Iterator[Callable[[], np.ndarray]]:
        while not self.stop_event.is_set() and self.image is not None:
            silence = self.clock() - self.image_time
            if silence > self.max_silence:
                self.ending = f"no image from the camera for {silence:.0f} s"
                self.stamped.finish(self.ending)
                return
            yield lambda image=self.image: image

    def stride(self) -> int:
        return 1  # its viewers see the frames of the model; the owner sees the camera itself

    def stop(self) -> None:
        super().stop()
        self.stamped.finish()
        self.has_image.set()

    def _wake(self) -> None:
        if self.loop is not None:
            with suppress(RuntimeError):  # the loop is closed: no client is left
                self.loop.call_soon_threadsafe(self.room.set)


def _resolve(future: "asyncio.Future[PushedImage]", result: PushedImage | InputError) -> None:
    """Unless whoever waits for it has gone."""
    if future.done():
        return
    if isinstance(result, InputError):
        future.set_exception(result)
    else:
        future.set_result(result)


def _ended() -> InputError:
    return InputError("image", "one for a stream that has ended", "a running stream", "start another")
