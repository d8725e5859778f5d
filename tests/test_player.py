"""Playing: what runs ahead, what is dropped and said, how it ends. No test waits for a clock."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from svlm_jax.data.player import AHEAD, LATE, MOST, Player
from svlm_jax.data.sources import Source

FRAME = np.zeros((2, 2, 3), np.uint8)


class Fake(Source):
    """Chunks of two frames; goes on when it is let."""

    def __init__(self, chunks: int, *, live: bool = False, error: Exception | None = None) -> None:
        super().__init__("fake", 2, 1, 0, None)
        self.chunks, self.live, self.error = chunks, live, error
        self.made, self.gone, self.go = threading.Event(), threading.Event(), threading.Semaphore(0)
        self.closed_in: threading.Thread | None = None

    def pictures(self) -> Iterator[np.ndarray]:
        for number in range(self.chunks):
            self.go.acquire(timeout=10)
            yield FRAME + number
            yield FRAME + number
        self.made.set()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed_in = threading.current_thread()
        self.gone.set()

    def let(self, chunks: int) -> "Fake":
        for _ in range(chunks):
            self.go.release()
        return self


def numbers(played) -> list[int]:
    return [chunk.number for chunk, _ in played]


def test_nothing_is_dropped_without_a_pace():
    lost = []
    with Player(Fake(40).let(40), lambda chunk: chunk.number * 10, report=lost.extend) as player:
        played = list(player)
    assert numbers(played) == list(range(40)) and [made for _, made in played] == list(range(0, 400, 10))
    assert lost == []


def test_it_runs_ahead_but_not_far():
    source, seen = Fake(20).let(20), []
    reached = threading.Event()

    def prepare(chunk):
        seen.append(chunk.number)
        if len(seen) == AHEAD + 2:  # one is taken, AHEAD wait, one is being prepared
            reached.set()

    with Player(source, prepare) as player:
        taken = iter(player)
        next(taken)
        assert reached.wait(10)
        assert not source.made.wait(0.2) and len(seen) <= AHEAD + 2
        assert len([1 for _ in taken]) == 19


@pytest.mark.parametrize("waiting", [LATE, LATE + 1, LATE + 5])
def test_of_chunks_that_come_too_late_the_newest_is_watched_and_the_others_are_said(waiting):
    source, lost = Fake(waiting + 1, live=True), []
    with Player(source, lambda chunk: None, report=lost.extend) as player:
        taken = iter(player)
        source.let(1)
        assert next(taken)[0].number == 0
        source.let(waiting)  # they come while the first is being watched
        assert source.made.wait(10) and player.thread.join(10) is None
        rest = numbers(taken)
    dropped = [chunk.number for chunk in lost]
    assert sorted([0, *rest, *dropped]) == list(range(waiting + 1))  # none is lost without a word
    assert dropped == ([] if waiting <= LATE else list(range(1, waiting)))


def test_what_nobody_takes_for_long_is_said_too():
    source, lost = Fake(MOST + 20, live=True).let(MOST + 20), []
    with Player(source, lambda chunk: None, report=lost.extend) as player:
        player.thread.start = lambda start=player.thread.start: (start(), source.made.wait(10), player.thread.join(10))
        rest = numbers(player)
    assert rest == [MOST + 19] and [chunk.number for chunk in lost] == list(range(MOST + 19))


def test_a_file_at_its_own_speed_is_given_out_by_the_clock():
    now, waits = [100.0], []
    source = Fake(5).let(5)
    player = Player(source, lambda chunk: None, pace=True, clock=lambda: now[0])

    def wait_for(predicate, timeout=None):
        if timeout is not None:  # the thread waits until the last frame of the chunk is due
            waits.append(timeout)
            now[0] += timeout
            return False
        return threading.Condition.wait_for(player.changed, predicate)

    player.changed.wait_for = wait_for
    with player:
        numbers(player)
    assert waits == [1.0] * 5


@pytest.mark.parametrize("where", ["source", "prepare"])
def test_an_error_comes_after_what_came_before_it(where):
    def prepare(chunk):
        if where == "prepare" and chunk.number == 3:
            raise RuntimeError("broken")

    source = Fake(3 if where == "source" else 9, error=RuntimeError("broken")).let(9)
    played = []
    with Player(source, prepare) as player, pytest.raises(RuntimeError, match="broken"):
        for chunk, _ in player:
            played.append(chunk.number)
    assert played == [0, 1, 2]


def test_leaving_early_stops_the_thread_which_closes_the_source():
    source = Fake(50).let(50)
    with Player(source, lambda chunk: None) as player:
        next(iter(player))
    assert source.gone.wait(10) and source.closed_in is player.thread
    player.thread.join(10)
    assert not player.thread.is_alive()


def test_it_can_be_stopped_while_it_waits():
    source = Fake(5, live=True).let(1)
    with Player(source, lambda chunk: None) as player:
        taken = iter(player)
        next(taken)
        threading.Timer(0.05, player.stop).start()
        assert list(taken) == []
        source.let(5)
    assert source.gone.wait(10)
