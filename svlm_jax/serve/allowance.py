"""How often something may be done: a bucket that fills at a rate. Knows nothing else. Units: seconds."""

import time
from collections.abc import Callable

Timer = Callable[[], float]  # seconds, of any origin


class Allowance:
    """`rate` a second on average, `burst` at once."""

    def __init__(self, rate: float, burst: float, timer: Timer = time.monotonic) -> None:
        self.rate, self.burst, self.timer = rate, burst, timer
        self.level, self.filled = float(burst), timer()

    def _fill(self) -> None:
        now = self.timer()
        self.level = min(float(self.burst), self.level + self.rate * (now - self.filled))
        self.filled = now

    def take(self) -> bool:
        """Whether one more may be done now; counts it if so."""
        self._fill()
        if self.level < 1:
            return False
        self.level -= 1
        return True

    def debt(self) -> float:
        """Count one in any case; seconds to wait before it is done."""
        self._fill()
        self.level -= 1
        return max(0.0, -self.level / self.rate)

    @property
    def full(self) -> bool:
        """Whether nothing was done lately: it can be forgotten."""
        self._fill()
        return self.level >= self.burst
