"""Several requests at a time to a server, without one being lost or the end being waited for.

Host side, never jax.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Queue
from threading import Event, Lock, Thread
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers(Generic[Item, Result]):
    """Iterate for (item, what `work` gave for it, or the exception that it raised), as they are done.

    The threads are daemons of our own: those of an executor would hold back the end of the process, after Ctrl-C too, until the
    slowest server has answered.
    """

    def __init__(self, work: Callable[[Item], Result], items: Iterable[Item], concurrency: int) -> None:
        """`work` is called by `concurrency` threads, each of which takes the next item when it has done the last: no more items
        are held than that, and no more results wait. What the iterable raises is raised by iterating here."""
        self._work = work
        self._items = iter(items)
        self._taking = Lock()
        self._results: Queue[Any] = Queue(concurrency)  # of (item, result), `_Over` at the end of a thread
        self._stop = Event()
        self._running = concurrency
        for number in range(concurrency):
            Thread(target=self._run, name=f"request {number}", daemon=True).start()

    def __iter__(self) -> Iterator[tuple[Item, Result | Exception]]:
        while self._running:
            result = self._results.get()
            if not isinstance(result, _Over):
                yield result
                continue
            self._running -= 1
            if result.error is not None:
                raise result.error

    def stop(self) -> Iterator[tuple[Item, Result | Exception]]:
        """No further item is begun; gives what is done and was not asked for yet. What is under way is left to itself."""
        self._stop.set()
        self._running = 0
        while not self._results.empty():
            if not isinstance(result := self._results.get(), _Over):
                yield result

    def _run(self) -> None:
        error = None
        while not self._stop.is_set():
            try:
                with self._taking:
                    item = next(self._items)
            except StopIteration:
                break
            except Exception as problem:  # of whoever makes the items; the other threads find it at its end
                error = problem
                break
            try:
                self._results.put((item, self._work(item)))
            except Exception as problem:  # nothing is hidden: it is the result, for the thread that iterates
                self._results.put((item, problem))
        self._results.put(_Over(error))


class _Over:
    def __init__(self, error: Exception | None) -> None:
        self.error = error


def map_in_order(work: Callable[[Item], Result], items: Sequence[Item], concurrency: int) -> list[Result]:
    """Results of all items, in their order. After the first error no further item is begun, and when those under way are done
    it is raised: their work may have been stored."""
    failures: list[Exception] = []

    def attempt(index: int) -> Result | None:
        if failures:
            return None
        try:
            return work(items[index])
        except Exception as error:  # raised below, when what is under way is done
            failures.append(error)
            return None

    results = dict(Workers(attempt, range(len(items)), min(concurrency, len(items))))
    if failures:
        raise failures[0]
    return [results[index] for index in range(len(items))]  # type: ignore[misc] (an exception would be in `failures`)
