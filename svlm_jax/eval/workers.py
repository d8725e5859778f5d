"""Several requests at a time to a server, without one being lost or the end being waited for.

Host side, never jax.
"""

from collections.abc import Callable, Iterator, Sequence
from queue import Empty, Queue, SimpleQueue
from threading import Event, Thread
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers(Generic[Item, Result]):
    """Iterate for (item, what `work` gave for it, or the exception that it raised), as they are done.

    The threads are daemons of our own: those of an executor would hold back the end of the process, after Ctrl-C too, until the
    slowest server has answered.
    """

    def __init__(self, work: Callable[[Item], Result], items: Sequence[Item], concurrency: int) -> None:
        """`work` is called by `concurrency` threads. No more results wait than that: none runs ahead of what is stored."""
        self._work = work
        self._left = len(items)
        self._items: SimpleQueue[Item] = SimpleQueue()
        self._results: Queue[tuple[Item, Result | Exception]] = Queue(concurrency)
        self._stop = Event()
        for item in items:
            self._items.put(item)
        for number in range(min(concurrency, len(items))):
            Thread(target=self._run, name=f"request {number}", daemon=True).start()

    def __iter__(self) -> Iterator[tuple[Item, Result | Exception]]:
        while self._left:
            result = self._results.get()
            self._left -= 1
            yield result

    def stop(self) -> Iterator[tuple[Item, Result | Exception]]:
        """No further item is begun; gives what is done and was not asked for yet. What is under way is left to itself."""
        self._stop.set()
        self._left = 0
        while not self._results.empty():
            yield self._results.get()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                item = self._items.get_nowait()
            except Empty:
                return
            try:
                self._results.put((item, self._work(item)))
            except Exception as error:  # nothing is hidden: it is the result, for the thread that iterates
                self._results.put((item, error))
