"""Several sources at once: one that is lost delays nobody, and what happens to it is told."""

import threading
from collections.abc import Iterator

import numpy as np

from svlm_jax.inputs import Clip
from svlm_jax.media.chunks import Interruption, Lost, Returned, Source, Timing
from svlm_jax.stream.events import SourceBack, SourceLost
from svlm_jax.stream.playback import Playback
from tests.support import HANG
from tests.support.fake_engine import FakeProcessor


class Scripted(Source):
    """Gives what it is told to, one after the other; True is a frame."""

    live = True

    def __init__(self, *script: Interruption | threading.Event | bool) -> None:
        super().__init__("camera", Timing(fps=1 / 3600, chunk_seconds=3600))  # a batch would wait six minutes for a late one
        self.script = script

    def frames(self) -> Iterator[np.ndarray | Interruption]:
        for item in self.script:
            if isinstance(item, threading.Event):
                assert item.wait(HANG)
            else:
                yield item if isinstance(item, Interruption) else np.zeros((28, 28, 3), np.uint8)


def test_a_stream_whose_camera_is_lost_does_not_delay_the_others():
    """Else every step of all cameras is late for as long as one of them is broken."""
    back, end, more = (threading.Event() for _ in range(3))
    with Playback(FakeProcessor()) as playback:
        playback.open("lost", Scripted(True, Lost("gone"), back, Returned(7200.0, 3), True, end))
        events, ready = [], {}
        while len(ready) + len(events) < 2:
            playback.wait(HANG)
            chunks, new = playback.poll()
            ready, events = ready | chunks, events + new
        assert events == [SourceLost(stream="lost", second=3600, reason="gone")] and isinstance(ready["lost"].clip, Clip)
        playback.open("other", Scripted(True, more))
        waiting = threading.Thread(target=playback.wait)
        waiting.start()
        waiting.join(HANG)
        assert not waiting.is_alive() and set(playback.poll()[0]) == {"other"}
        more.set()
        playback.close("other")
        back.set()
        events, ready = [], {}
        while len(ready) + len(events) < 2:
            playback.wait(HANG)
            chunks, new = playback.poll()
            ready, events = ready | chunks, events + new
        assert events == [SourceBack(stream="lost", start=3600, end=10800, chunks=2, seconds=7200.0, attempts=3)]
        assert ready["lost"].start == 10800 and "no video from 3600 s to 10800 s" in ready["lost"].note
        end.set()


def test_a_return_is_told_with_the_first_chunk_after_it():
    """Else a file of captions has the gap before the second that came before it, and its viewers believe a camera to be back
    that was lost again."""
    polled = []
    with Playback(FakeProcessor(), max_delay=1e9) as playback:
        script = (True, True, Lost("gone"), Returned(7200.0, 1), True, Lost("again"))
        playback.open("camera", Scripted(*script))
        playback.players["camera"].thread.join(HANG)  # all of it has come before anything is polled
        while "camera" in playback:
            ready, events = playback.poll()
            polled += [type(event).__name__ for event in events] + [item.start for item in ready.values()]
    assert polled == ["SourceLost", 0, 3600, "SourceBack", "SourceLost", 14400, "Ended"]
