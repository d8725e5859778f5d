"""The intervals beside rates: of clusters, reproducible, and none where one cluster says nothing."""

import numpy as np

from svlm_jax.eval.intervals import macro_interval, ratio_interval


def test_one_game_has_no_interval_and_equal_games_have_one_of_no_width():
    assert ratio_interval([3], [4]) is None
    assert ratio_interval([3, 0], [4, 0]) is None  # a game without a segment is no game
    assert ratio_interval([3, 6, 9], [4, 8, 12]) == (0.75, 0.75)


def test_the_order_of_games_does_not_matter():
    parts, totals = [3, 1, 4, 1, 5], [5, 9, 6, 5, 7]
    assert ratio_interval(parts, totals) == ratio_interval(parts[::-1], totals[::-1])


def test_two_games_span_from_one_to_the_other():
    # Of two resampled games, both are the first in a quarter of the draws: rate 0 / 2; both the second in a quarter: 2 / 2.
    assert ratio_interval([0, 1], [1, 1]) == (0.0, 1.0)


def test_the_interval_covers_the_rate_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        totals = np.full(30, 20)
        low, high = ratio_interval(random.binomial(totals, 0.6), totals)
        covered += low <= 0.6 <= high
    assert 85 <= covered <= 100


def test_games_that_agree_within_themselves_count_as_games_not_as_segments():
    # 10 games of 100 segments, each all won or all lost: an interval over segments would be 3 % wide on either side.
    low, high = ratio_interval([100, 0] * 5, [100] * 10)
    assert high - low > 0.4


def test_a_macro_mean_of_one_task_is_its_ratio():
    totals = np.array([[4], [8], [12], [6]])
    parts = np.array([[1], [8], [6], [0]])
    assert np.allclose(macro_interval(parts, totals, [[0]]), ratio_interval(parts[:, 0], totals[:, 0]), atol=0.02)
    assert macro_interval([[3, 1]], [[4, 4]], [[0], [1]]) is None


def test_a_macro_mean_weighs_tasks_and_not_questions():
    # Every video: 9 of 10 of the first task, 0 of 1 of the second: (0.9 + 0) / 2, and not 9 / 11. The third task, alone in its
    # group, has no question: (0.45) is the mean of the groups that have some.
    parts, totals = [[9, 0, 0]] * 5, [[10, 1, 0]] * 5
    assert np.allclose(macro_interval(parts, totals, [[0, 1], [2]]), (0.45, 0.45))
