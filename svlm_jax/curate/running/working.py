"""Who works on the lines of a step: this process, several, or threads that wait for servers.

Gives rows as they are done, in any order, and holds only those under way. Owns that the workers end with the run, however it
ends. Does not know files. Host side, never jax.
"""

import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, NamedTuple

from svlm_jax.curate.outcome import NotDone, Outcome, Step
from svlm_jax.curate.running.input_lines import InputLines, Line
from svlm_jax.curate.running.step_files import STATUS_KEPT, STATUS_SET_ASIDE, Row
from svlm_jax.errors import InputError
from svlm_jax.files import parse_json
from svlm_jax.processes import end_with_parent
from svlm_jax.remote.workers import Workers

Parse = Callable[[dict[str, Any], str], Any]
BAD_LINE = "bad lines"  # a count of a row: its line could not be parsed
EXPECTED = "a video with its words"
REMEDY = "mend the line, or set it aside with --max-bad"
PER_JOB = 2  # lines handed to a process: one under way, one that waits


class Result(NamedTuple):
    """bad: why the line could not be parsed; its row sets it aside."""

    line: Line
    row: Row
    bad: InputError | None = None


class Failure(NamedTuple):
    """error: what the step raised."""

    line: Line
    error: Exception


def work_through(
    step: Step, parse: Parse, lines: InputLines, pending: Sequence[Line], jobs: int, waits: bool
) -> Generator[Result | Failure]:
    """A result for each pending line; `run.run_step` has the arguments. Close it to end the workers at once."""
    if waits:
        return _by_threads(step, parse, lines, pending, jobs)
    if jobs > 1 and len(pending) > 1:
        return _by_processes(step, parse, lines, pending, min(jobs, len(pending)))
    return (_result(step, parse, line, lines.read(line)) for line in pending)


def check_lines(parse: Parse, lines: InputLines, pending: Sequence[Line], allowed: int) -> None:
    """Before hours of work and paid answers: all that is wrong with the lines themselves.

    Raises:
        InputError: one bad line more than is allowed.
    """
    for line in pending:
        try:
            _parsed(parse, line, lines.read(line))
        except InputError:
            if not allowed:
                raise
            allowed -= 1


def _by_threads(step: Step, parse: Parse, lines: InputLines, pending: Sequence[Line], jobs: int) -> Generator[Result | Failure]:
    workers = Workers(lambda line: _result(step, parse, line, lines.read(line)), pending, jobs)
    try:
        for line, result in workers:
            yield Failure(line, result) if isinstance(result, Exception) else result
    finally:
        for _ in workers.stop():
            pass  # what is done and not asked for is lost; servers' answers are in caches


def _by_processes(
    step: Step, parse: Parse, lines: InputLines, pending: Sequence[Line], jobs: int
) -> Generator[Result | Failure]:
    before = set(multiprocessing.active_children())
    # Spawned: a fork of a process with threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (step, parse))
    left, futures = iter(pending), dict[Future[Result | Failure], Line]()
    try:
        while True:
            for line in islice(left, PER_JOB * jobs - len(futures)):
                futures[pool.submit(_result_here, line, lines.read(line))] = line
            if not futures:
                pool.shutdown()
                return
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                futures.pop(future)
                yield future.result()
    except BrokenProcessPool:
        got = "a process that was killed, perhaps for its memory"
        raise InputError("--jobs", got, "as many as the memory allows", "lower it and run again") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()


_worker: tuple[Step, Parse]


def _start_worker(step: Step, parse: Parse) -> None:
    """Ctrl-C is for the process that started this one, and this one ends with it, killed or not."""
    global _worker
    _worker = step, parse
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _result_here(line: Line, data: bytes) -> Result | Failure:
    result = _result(*_worker, line, data)
    if isinstance(result, Failure):
        try:
            pickle.loads(pickle.dumps(result.error))
        except Exception:  # an error that cannot be sent would end all processes, and say nothing of itself
            error = RuntimeError(repr(result.error))
            error.__notes__ = getattr(result.error, "__notes__", [])
            return Failure(line, error)
    return result


def _result(step: Step, parse: Parse, line: Line, data: bytes) -> Result | Failure:
    try:
        item, record = _parsed(parse, line, data)
    except InputError as error:
        return Result(line, _bad_row(line, data, error), error)
    try:
        return Result(line, _row(line, record, step.run(item)))
    except Exception as error:  # who iterates decides what it means for the others
        if not isinstance(error, NotDone | InputError):  # a traceback does not come from another process; a note does
            error.add_note(f"in step {step.name}, {line.name}: {traceback.format_exc()}")
        return Failure(line, error)


def _parsed(parse: Parse, line: Line, data: bytes) -> tuple[Any, dict[str, Any]]:
    record = parse_json(data, line.name, EXPECTED, REMEDY)
    return parse(record, line.name), record


def _row(line: Line, record: dict[str, Any], outcome: Outcome) -> Row:
    is_kept = not outcome.reason
    seconds, words = zip(_measure([record]), _measure(outcome.lines if is_kept else ()), strict=True)
    row = {
        "video": str(record.get("video", line.name)),
        "source": str(record.get("source") or ""),
        "input": line.digest,
        "status": STATUS_KEPT if is_kept else STATUS_SET_ASIDE,
        "reason": outcome.reason,
        "seconds": list(seconds),
        "words": list(words),
        "counts": dict(outcome.counts),
        "changes": [list(change) for change in outcome.changes],
        "lines": list(outcome.lines) if is_kept else [],
    }
    return row if is_kept else {**row, "record": record}


def _bad_row(line: Line, data: bytes, error: InputError) -> Row:
    """The line as it is: JSON where it is some, else its text."""
    try:
        record: Any = parse_json(data, line.name, EXPECTED)
    except InputError:
        record = data.decode("utf-8", "replace")
    video = record.get("video") if isinstance(record, dict) else None
    return {
        "video": video if isinstance(video, str) else line.name,
        "source": "",
        "input": line.digest,
        "status": STATUS_SET_ASIDE,
        "reason": str(error),
        "seconds": [0, 0],
        "words": [0, 0],
        "counts": {BAD_LINE: 1},
        "changes": [],
        "lines": [],
        "record": record,
    }


def _measure(records: Sequence[Any]) -> tuple[float, int]:
    """(seconds, words) of the lines of one video: its transcript, or records of its windows in order of time. What is in two
    windows counts once."""
    seconds, words, covered = 0.0, 0, 0.0
    for record in records:
        if isinstance(record, dict):
            duration = record.get("duration")
            if isinstance(duration, int | float) and not isinstance(duration, bool):
                seconds += duration
            words += len(record.get("content") or ())
            continue
        (clip, _), (speech,) = (turn["content"] for turn in record)
        start, end = max(clip["video_start"], covered), clip["video_end"]
        seconds += max(end - start, 0)
        words += sum(start < word[1] <= end for word in speech["text_stream"])
        covered = max(covered, end)
    return seconds, words
