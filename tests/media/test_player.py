"""Playing: what runs ahead, what is dropped and reported, how it ends. No test waits for a clock."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from svlm_jax.media.chunks import Source, Timing
from svlm_jax.media.player import MAX_DELAY, PREFETCH, Player
from tests.support import HANG

FRAME = np.zeros((2, 2, 3), np.uint8)


class Fake(Source):
    """Chunks of two frames; goes on when it is let."""

    def __init__(self, chunks: int, *, live: bool = False, error: Exception | None = None) -> None:
        super().__init__("fake", Timing(2, 1))
        self.chunks, self.live, self.error = chunks, live, error
        self.exhausted, self.closed, self.permits = threading.Event(), threading.Event(), threading.Semaphore(0)
        self.closed_in: threading.Thread | None = None

    def frames(self) -> Iterator[np.ndarray]:
        for number in range(self.chunks):
            self.permits.acquire(timeout=HANG)
            yield FRAME + number
            yield FRAME + number
        self.exhausted.set()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed_in = threading.current_thread()
        self.closed.set()

    def allow(self, chunks: int) -> "Fake":
        for _ in range(chunks):
            self.permits.release()
        return self


def numbers(played) -> list[int]:
    return [chunk.number for chunk, _ in played]


def test_nothing_is_dropped_without_a_pace():
    lost = []
    with Player(Fake(40).allow(40), lambda chunk: chunk.number * 10, on_dropped=lost.extend) as player:
        played = list(player)
    assert numbers(played) == list(range(40)) and [value for _, value in played] == list(range(0, 400, 10))
    assert lost == []


def test_it_runs_ahead_but_not_far():
    source, prepared = Fake(20).allow(20), []
    reached = threading.Event()

    def prepare(chunk):
        prepared.append(chunk.number)
        if len(prepared) == PREFETCH + 2:  # one is taken, PREFETCH wait, one is being prepared
            reached.set()

    with Player(source, prepare) as player:
        reader = iter(player)
        next(reader)
        assert reached.wait(HANG)
        # On a slow machine this may see less than it could, and never fails for that.
        assert not source.exhausted.wait(0.2) and len(prepared) <= PREFETCH + 2
        assert len([1 for _ in reader]) == 19


def held_up(chunks: int, late: float = MAX_DELAY) -> tuple[list[int], list[int]]:
    """(watched, lost) when the first chunk of a live source takes as long as it takes for all others to come."""
    source, lost = Fake(chunks, live=True), []
    with Player(source, lambda chunk: None, max_delay=late, on_dropped=lost.extend) as player:
        reader = iter(player)
        source.allow(1)
        watched = [next(reader)[0].number]
        source.allow(chunks - 1)
        assert source.exhausted.wait(HANG) and player.thread.join(HANG) is None
        watched += numbers(reader)
    return watched, [chunk.number for chunk in lost]


@pytest.mark.parametrize("waiting", [1, 3, int(MAX_DELAY)])
def test_a_moment_of_load_is_caught_up_and_costs_no_word(waiting):
    assert held_up(1 + waiting) == (list(range(1 + waiting)), [])


@pytest.mark.parametrize(("waiting", "late"), [(int(MAX_DELAY) + 1, MAX_DELAY), (70, MAX_DELAY), (3, 2), (3, 0.5), (9, 0)])
def test_of_what_comes_too_late_the_newest_seconds_are_watched_and_the_others_are_said(waiting, late):
    watched, lost = held_up(1 + waiting, late)
    newest = max(1, int(late))
    assert watched == [0, *range(1 + waiting - newest, 1 + waiting)]
    assert lost == list(range(1, 1 + waiting - newest))  # none is lost without a word


def test_what_nobody_takes_for_long_is_said_too_and_takes_no_memory():
    source, lost = Fake(100, live=True).allow(100), []
    with Player(source, lambda chunk: None, on_dropped=lost.extend) as player:
        player.start()
        assert source.exhausted.wait(HANG) and player.thread.join(HANG) is None
        assert len(player.ready) == MAX_DELAY
        # of 1080p, a minute of compiling would otherwise hold 700 MB
        assert not any(chunk.frames.size or chunk.frames.base is not None for chunk in player.dropped)
        rest = [player.poll()[0].number for _ in range(int(MAX_DELAY))]
        assert player.poll() is None and player.is_over
    assert rest == list(range(95, 100)) and [chunk.number for chunk in lost] == list(range(95))


def test_a_file_at_its_own_speed_is_given_out_by_the_clock():
    clock, waits = [100.0], []
    source = Fake(5).allow(5)
    player = Player(source, lambda chunk: None, pace=True, clock=lambda: clock[0])

    def wait_for(predicate, timeout=None):
        if timeout is not None:  # the thread waits until the last frame of the chunk is due
            waits.append(timeout)
            clock[0] += timeout
            return False
        return threading.Condition.wait_for(player.changed, predicate)

    player.changed.wait_for = wait_for
    with player:
        numbers(player)
    assert waits == [1.0] * 5


@pytest.mark.parametrize("culprit", ["source", "prepare"])
def test_an_error_comes_after_what_came_before_it(culprit):
    def prepare(chunk):
        if culprit == "prepare" and chunk.number == 3:
            raise RuntimeError("broken")

    source = Fake(3 if culprit == "source" else 9, error=RuntimeError("broken")).allow(9)
    played = []
    with Player(source, prepare) as player, pytest.raises(RuntimeError, match="broken"):
        for chunk, _ in player:
            played.append(chunk.number)
    assert played == [0, 1, 2]


def test_leaving_early_stops_the_thread_which_closes_the_source():
    source = Fake(50).allow(50)
    with Player(source, lambda chunk: None) as player:
        next(iter(player))
    assert source.closed.wait(HANG) and source.closed_in is player.thread
    player.thread.join(HANG)
    assert not player.thread.is_alive()


def test_it_can_be_stopped_while_it_waits():
    source = Fake(5, live=True).allow(1)
    with Player(source, lambda chunk: None) as player:
        reader = iter(player)
        next(reader)
        waits, wait_for = threading.Event(), player.changed.wait_for
        player.changed.wait_for = lambda predicate: (waits.set(), wait_for(predicate))  # the lock is held until it waits
        threading.Thread(target=lambda: (waits.wait(HANG), player.stop())).start()
        assert list(reader) == []
        source.allow(5)
    assert source.closed.wait(HANG)
