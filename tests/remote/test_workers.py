"""Requests run side by side, and whoever waits for them is never held back by the slowest."""

import threading

import pytest

from svlm_jax.remote.workers import Workers, map_in_order
from tests.support import HANG


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
    assert len(dict(Workers(lambda _: together.wait(HANG), range(9), 3))) == 9  # fewer would break the barrier
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


def test_results_come_in_the_order_of_the_items_whichever_is_done_first():
    second_done = threading.Event()

    def work(number: int) -> int:
        if number == 1:
            second_done.set()
        assert second_done.wait(HANG)
        return 10 * number

    assert map_in_order(work, [0, 1, 2, 3], 2) == [0, 10, 20, 30]
    assert map_in_order(work, [], 2) == []


def test_after_an_error_nothing_is_begun():
    begun = []

    def work(number: int) -> None:
        begun.append(number)
        raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        map_in_order(work, range(50), 1)
    assert begun == [0]


def test_an_error_is_raised_when_what_is_under_way_is_done_and_can_have_been_stored():
    begun, failing, done = threading.Event(), threading.Event(), []

    def work(number: int) -> None:
        if number == 0:
            assert begun.wait(HANG)
            failing.set()
            raise ValueError("no answer")
        begun.set()
        assert failing.wait(HANG)
        done.append(number)

    with pytest.raises(ValueError, match="no answer"):
        map_in_order(work, [0, 1], 2)
    assert done == [1]
