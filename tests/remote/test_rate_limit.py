"""A server that allows so much a minute is not asked for more, and not for less."""

from svlm_jax.remote.rate_limit import RateLimit


class Clock:
    """Time passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def times(limit: RateLimit, clock: Clock, tokens: list[int]) -> list[float]:
    started = clock.now
    sent = []
    for number in tokens:
        limit.wait(number)
        sent.append(round(clock.now - started, 6))
    return sent


def test_requests_are_spaced_evenly():
    clock = Clock()
    assert times(RateLimit(30, None, clock, clock.sleep), clock, [0] * 4) == [0, 2, 4, 6]


def test_a_long_request_is_waited_for_as_long_as_its_tokens_take():
    clock = Clock()
    assert times(RateLimit(None, 6000, clock, clock.sleep), clock, [300, 100, 1, 1]) == [0, 3, 4, 4.01]


def test_the_stricter_of_two_limits_counts():
    clock = Clock()
    assert times(RateLimit(60, 6000, clock, clock.sleep), clock, [300, 10, 10]) == [0, 3, 4]


def test_tokens_of_the_answer_count_as_well():
    clock = Clock()
    limit = RateLimit(None, 600, clock, clock.sleep)
    assert times(limit, clock, [10]) == [0]
    limit.charge(20)
    assert times(limit, clock, [10]) == [3]


def test_time_that_passed_unused_is_no_credit_for_a_burst():
    clock = Clock()
    limit = RateLimit(60, None, clock, clock.sleep)
    limit.wait()
    clock.now += 600
    assert times(limit, clock, [0, 0, 0]) == [0, 1, 2]


def test_without_a_limit_nothing_waits():
    clock = Clock()
    assert times(RateLimit(clock=clock, sleep=clock.sleep), clock, [10**9] * 3) == [0, 0, 0]
