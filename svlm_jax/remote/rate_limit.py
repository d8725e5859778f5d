"""So many requests and tokens a minute, as servers allow: requests wait here rather than be refused there.

Requests are spaced evenly, without bursts: a server may count by the second. Those that the `openai` package sends again after
a refusal are not counted; it waits as long as the server says. Host side, never jax.
"""

import time
from collections.abc import Callable
from threading import Lock


class RateLimit:
    """Shared by all threads that ask one server; processes on several hosts each need their part of what is allowed."""

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """None: no such limit."""
        self._per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._next_request = self._next_tokens = clock()
        self._lock = Lock()

    def wait(self, tokens: int = 0) -> None:
        """Until a request of so many tokens may be sent; the next one waits for this one's share."""
        with self._lock:
            now = self._clock()
            start = max(now, self._next_request, self._next_tokens)
            self._next_request, self._next_tokens = start + self._per_request, start + tokens * self._per_token
        if start > now:
            self._sleep(start - now)

    def charge(self, tokens: int) -> None:
        """Tokens that a request took beyond those it waited for, its answer among them; below 0: fewer."""
        with self._lock:
            self._next_tokens += tokens * self._per_token
