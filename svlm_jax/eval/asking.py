"""Questions about videos, asked one by one: over frames that are read ahead, or at the end of a stream.

Owns the loop over questions and the lines of answers, one a question: {"key", "task", "video", "time", "response", ...}. Does
not know benchmarks: they bring queries and prompts. Units: seconds of the video.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from svlm_jax import json_lines
from svlm_jax.errors import InputError, shortened
from svlm_jax.eval.collecting import collect
from svlm_jax.eval.commentator import Commentator, Job, job_seed
from svlm_jax.eval.frames import FrameSet, end_within, prefix, recent
from svlm_jax.eval.models import Answerer, Request

ANSWERS = "answers.jsonl"  # of a run's folder
LOCAL_PREFETCH = 2  # questions whose frames are read while a local model answers

Item = TypeVar("Item")
Output = TypeVar("Output")


class Query(NamedTuple):
    """One question.

    Attributes:
        key: its permanent name, in files and when a run is resumed.
        video: path below the folder of videos.
        start, end: the part of the video that may be seen; the question is asked at `end`.
        options: the replies to choose among where none is generated.
    """

    key: str
    task: str
    video: str
    start: float
    end: float
    options: tuple[str, ...] = ()


class View(NamedTuple):
    """Which frames a model is shown: of all that may be seen, thinned to `frames`, or the newest `frames` alone."""

    mode: Literal["prefix", "recent"] = "prefix"
    frames: int = 64
    fps: float = 2.0

    def of(self, path: Path, query: Query) -> FrameSet:
        if self.mode == "recent":
            return recent(path, query.end, frames=self.frames, fps=self.fps)
        return prefix(path, query.end, max_frames=self.frames, fps=self.fps, start=query.start)


class Chooser(Protocol):
    """Of some replies, the likeliest: `models.LocalModel`."""

    def choose(self, request: Request, options: Sequence[str], *, ended: bool = False) -> tuple[int, list[float]]: ...


Ask = Callable[[Query, FrameSet], dict[str, Any]]
Prompt = Callable[[Query], str]


def answering(answerer: Answerer, prompt: Prompt, max_new_tokens: int) -> Ask:
    """Ask for a reply."""

    def ask(query: Query, frames: FrameSet) -> dict[str, Any]:
        return {"response": answerer.answer(Request(prompt(query), frames, max_new_tokens=max_new_tokens))}

    return ask


def choosing(chooser: Chooser, prompt: Prompt, lead: str = "The answer is:\n") -> Ask:
    """Take the likeliest of a question's options as the beginning of the reply, after `lead`; no token is generated. Options of
    which one begins as another ("1", "10") are compared with the end of the reply behind them."""

    def ask(query: Query, frames: FrameSet) -> dict[str, Any]:
        options, ended = query.options, _one_begins_another(query.options)
        best, log_probs = chooser.choose(Request(prompt(query), frames), [lead + each for each in options], ended=ended)
        return {"response": options[best], "log_probs": [round(each, 4) for each in log_probs]}

    return ask


def _one_begins_another(options: Sequence[str]) -> bool:
    return any(a is not b and b.startswith(a) for a in options for b in options)


def ask_offline(
    queries: Sequence[Query], videos: Path, view: View, ask: Ask, *, concurrency: int = 1
) -> Iterator[tuple[Query, dict[str, Any] | InputError]]:
    """(query, what was answered or why it was not), in order. Frames are read ahead by threads; with `concurrency` above 1 (a
    server answers) the questions are asked by them too."""

    def load(query: Query) -> Callable[[], dict[str, Any]]:
        return partial(ask, query, view.of(videos / query.video, query))

    def load_and_ask(query: Query) -> Callable[[], dict[str, Any]]:
        answer = load(query)()
        return lambda: answer

    work, threads = (load, LOCAL_PREFETCH) if concurrency == 1 else (load_and_ask, concurrency)
    for query, future in in_order(queries, work, threads):
        try:
            yield query, future.result()()
        except InputError as error:
            yield query, error


def in_order(items: Iterable[Item], work: Callable[[Item], Output], threads: int) -> Iterator[tuple[Item, "Future[Output]"]]:
    """(item, its finished work), in order, `threads` at a time and no further ahead."""
    waiting: deque[tuple[Item, Future[Output]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) >= threads:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:  # stopped early: wait for the running items, cancel those not started
            for _, future in waiting:
                future.cancel()


def ask_online(
    queries: Sequence[Query], videos: Path, commentator: Commentator, prompt: Prompt, *,
    request: str = "", seed: int = 0, skip: Collection[str] = (),
) -> Iterator[tuple[Query, dict[str, Any] | InputError]]:  # fmt: skip
    """(query, what was answered or why it was not), as they come: each video is played from the query's start as a stream, and
    the question is asked with the last chunk before its end.

    Args:
        request: the query of the first turn; "" for the one that the model was trained with.
        skip: keys of queries that have been answered.
    """
    by_key = {query.key: query for query in queries}
    jobs = []
    for query in queries:
        path = videos / query.video
        try:
            start, end = stream_span(path, query)
        except InputError as error:
            if query.key not in skip:
                yield query, error
            continue
        question = (end, prompt(query))
        jobs.append(Job(query.key, path, start, end, query=request, questions=(question,), seed=job_seed(seed, query.key)))
    for finished in commentator.run(jobs, skip=skip):
        answer = finished.answers[0]
        if answer.refused:
            got = shortened(answer.refused, 120)
            yield by_key[finished.job.key], InputError("stream", got, "an answer", "mend the video, or allow it with --bad")
        else:
            yield by_key[finished.job.key], {"response": answer.text, "asked": answer.time}


def stream_span(path: Path, query: Query) -> tuple[float, float]:
    """(start, end) of the stream that a query is asked in: whole seconds, so that the last chunk is a full one of the video."""
    end = max(1.0, min(math.ceil(query.end), math.floor(end_within(path, query.end))))
    return max(0.0, min(math.floor(query.start), end - 1.0)), end


def write_answers(
    folder: Path, queries: Sequence[Query], run: Callable[[Mapping[str, dict[str, Any]]], Iterable[tuple[Query, Any]]],
    bad: json_lines.BadLines, progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Ask all questions that a run's folder has no answer to, and write them; returns lines by key.

    Args:
        run: `ask_offline` or `ask_online`, called with the stored answers; skips their queries.
        bad, progress: as of `collecting.collect`.

    Raises:
        InputError: more questions failed than `bad` allows; at the end, when all others are answered.
    """

    def records(done: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any] | InputError]]:
        for query, answer in run(done):
            if isinstance(answer, InputError):
                yield query.key, answer.within(f"question {query.key}")
            else:
                yield query.key, {"key": query.key, "task": query.task, "video": query.video, "time": query.end, **answer}

    keys = [query.key for query in queries]
    file = collect(folder / ANSWERS, keys, lambda record: record["key"], records, bad, progress)
    written = json_lines.read(file, "answers of svlm evaluate", lambda record, source: record, json_lines.BadLines())
    return {record["key"]: record for record in written}


def read_answers(path: str | Path, keys: Iterable[str], bad: json_lines.BadLines) -> dict[str, str | None]:
    """Replies by key of a run's folder or of its file.

    Raises:
        InputError: more lines than `bad` allows that are malformed, answer a question twice, or one that is not asked.
    """
    path, known, answers = Path(path), set(keys), {}

    def parse(record: dict[str, Any], source: str) -> None:
        key = json_lines.require(record, "key", str, source)
        response = None if record.get("response") is None else json_lines.require(record, "response", str, source)
        add_answer(answers, known, key, response, source)

    json_lines.read(path / ANSWERS if path.is_dir() else path, "answers of svlm evaluate", parse, bad)
    return answers


def add_answer(answers: dict[str, Any], known: Iterable[str], key: str, response: Any, source: str) -> None:
    """Raises:
    InputError: a key that has an answer already, or that no question has.
    """
    if key in answers:
        raise InputError(f"{source} answer", f"a second one to question {key:.40}", "one a question", "take one of them out")
    if key not in known:
        raise InputError(f"{source} answer", f"one to question {key:.40}", "one of the items", "score with the items asked")
    answers[key] = response
