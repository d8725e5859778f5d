"""Requests run side by side, and whoever waits for them is never held back by the slowest."""

import threading

from svlm_jax.eval.workers import Workers


def test_each_item_comes_once_with_what_was_made_of_it_or_its_error():
    def halve(number: int) -> int:
        if number % 2:
            raise ValueError(number)
        return number // 2

    results = dict(Workers(halve, range(20), 3))
    assert {item: result for item, result in results.items() if item % 2 == 0} == {n: n // 2 for n in range(0, 20, 2)}
    assert all(isinstance(results[n], ValueError) for n in range(1, 20, 2))
    assert list(Workers(halve, [], 3)) == []


def test_as_many_run_at_a_time_as_was_said():
    together = threading.Barrier(3)
    assert len(dict(Workers(lambda _: together.wait(60.0), range(9), 3))) == 9  # fewer would break the barrier
    assert not together.broken


def test_stop_gives_what_is_done_and_begins_nothing_more():
    begun, hanging = [], threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number == 1:
            hanging.wait()
        return number

    workers = Workers(work, range(100), 2)
    try:
        first = next(iter(workers))
        left = list(workers.stop())
        assert first[0] not in dict(left)
        assert 1 not in dict(left)
        assert list(workers) == []
    finally:
        hanging.set()
    assert len(begun) < 100
