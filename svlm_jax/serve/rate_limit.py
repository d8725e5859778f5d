"""How often an event may happen: a token bucket. Knows nothing else. Units: seconds."""

import time
from collections.abc import Callable

Timer = Callable[[], float]  # seconds, of any origin


class RateLimit:
    """`rate` events a second on average, `burst` at once."""

    def __init__(self, rate: float, burst: float, timer: Timer = time.monotonic) -> None:
        self.rate, self.burst, self.timer = rate, burst, timer
        self.credit, self.updated = float(burst), timer()

    def _refill(self) -> None:
        now = self.timer()
        self.credit = min(float(self.burst), self.credit + self.rate * (now - self.updated))
        self.updated = now

    def allow(self) -> bool:
        """Whether one more event may happen now; counts it if so."""
        self._refill()
        if self.credit < 1:
            return False
        self.credit -= 1
        return True

    def reserve(self, cost: float = 1) -> float:
        """Count one event, or as many as it costs, in any case, and return the seconds to wait before it may happen."""
        self._refill()
        self.credit -= cost  # may go below zero: whoever comes next waits longer
        return max(0.0, -self.credit / self.rate)

    @property
    def is_full(self) -> bool:
        """Whether no event happened lately, so that this limit can be forgotten."""
        self._refill()
        return self.credit >= self.burst
