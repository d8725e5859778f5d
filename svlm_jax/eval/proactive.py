"""Proactive output of StreamingBench: "when the score becomes 2-1, output 2-1", asked before it does.

Two protocols. Polled, as published: every second the model is asked whether this is the moment to say the expected words, which
are in the prompt; after its first yes it is asked for the words. Native: the video is played as a stream, the request is made
once, and what counts is when the model says the expected words by itself. They are in no other prompt.

Owns questions, both protocols and their scores. Units: seconds of the video.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from svlm_jax import json_lines
from svlm_jax.errors import InputError, shortened
from svlm_jax.eval import answers
from svlm_jax.eval.asking import ANSWERS, Query, View, add_answer, in_order
from svlm_jax.eval.commentator import Commentator, Job, job_seed
from svlm_jax.eval.frames import FrameSet
from svlm_jax.eval.marks import Mark, accuracy
from svlm_jax.eval.models import Answerer, Request
from svlm_jax.eval.result import Metric, Result
from svlm_jax.eval.streamingbench import read_each, read_tree, seconds, walk
from svlm_jax.files import local_path
from svlm_jax.remote.templates import filled

PATIENCE = 4.0  # seconds after the expected moment at which polling, or the stream, ends
TOLERANCE = 2.0  # seconds that the words may be early or late
MAX_NEW_TOKENS = 128
Record = dict[str, Any]


class ProactiveQuestion(NamedTuple):
    """request_time, due: when the request is made, and when the words are to be said. output: the words."""

    key: str
    task: str
    video: str
    request_time: float
    due: float
    text: str
    output: str

    def query(self) -> Query:
        return Query(self.key, self.task, self.video, self.request_time, self.due)


def read_questions(path: str | Path, bad: json_lines.BadLines) -> tuple[list[Any], list[ProactiveQuestion]]:
    """(the file's tree, its questions).

    Raises:
        InputError: another file, or more malformed questions than `bad` allows: each is named.
    """
    tree = read_tree(path)
    return tree, read_each(tree, Path(path).name, _question, bad)


def _question(key: str, video: str, record: Record, source: str) -> ProactiveQuestion:
    request_time, due = (
        seconds(json_lines.require(record, name, str, source), f"{source} {name}")
        for name in ("time_stamp", "ground_truth_time_stamp")
    )
    text, output = (
        json_lines.require(record, "question", str, source),
        json_lines.require(record, "ground_truth_output", str, source),
    )
    if due < request_time:
        raise InputError(
            f"{source} ground_truth_time_stamp", f"{due:g} s", f"{request_time:g} s or later", "mend it, or leave it out"
        )
    if not output.strip():
        raise InputError(f"{source} ground_truth_output", "no words", "what is to be said", "mend it, or leave it out")
    return ProactiveQuestion(key, json_lines.require(record, "task_type", str, source), video, request_time, due, text, output)


# Polled


def poll_all(
    questions: Sequence[ProactiveQuestion], videos: Path, view: View, answerer: Answerer, prompts: Mapping[str, str],
    concurrency: int = 1,
) -> Iterator[tuple[Query, Record | InputError]]:  # fmt: skip
    """(query, {"polls": ...} or why there are none), in order; `concurrency` questions at a time."""

    def ask(question: ProactiveQuestion) -> Record:
        path, query = videos / question.video, question.query()
        return {"polls": poll(question, lambda now: view.of(path, query._replace(end=now)), answerer, prompts)}

    for question, future in in_order(questions, ask, concurrency):
        try:
            yield question.query(), future.result()
        except InputError as error:
            yield question.query(), error


def poll(
    question: ProactiveQuestion, show: Callable[[float], FrameSet], answerer: Answerer, prompts: Mapping[str, str]
) -> list[Record]:
    """Ask every second whether the moment has come, on the frames from the request to now; {"time", "reply"} of each poll, and
    "answer" where the model was then asked what is to be said.

    Polling ends when the reply has been a yes by the strict parse and by the official rule, which need not be the same poll, so
    that both can be scored.
    """
    fields = _fields(question)
    polls, pending_rules = [], {"strict", "official"}
    now = question.request_time + 1
    while pending_rules and now <= question.due + PATIENCE:
        frames = show(now)
        entry = {"time": now, "reply": answerer.answer(_request(filled(prompts["poll"], fields), frames))}
        new_rules = pending_rules & {rule for rule in pending_rules if _says_yes(entry["reply"], rule)}
        if new_rules:
            entry["answer"] = answerer.answer(_request(filled(prompts["output"], fields), frames))
        polls.append(entry)
        pending_rules -= new_rules
        now += 1
    return polls


def _fields(question: ProactiveQuestion) -> dict[str, str]:
    return {"question": question.text, "output": question.output}


def _request(text: str, frames: FrameSet) -> Request:
    return Request(text, frames, max_new_tokens=MAX_NEW_TOKENS)


def _says_yes(reply: str, rule: str) -> bool:
    """Officially "yes" anywhere in the reply, in any case, so that "eyes" is a yes."""
    return answers.yes_no(reply) is True if rule == "strict" else "yes" in reply.lower()


# Native


def play_all(
    questions: Sequence[ProactiveQuestion], videos: Path, commentator: Commentator, prompts: Mapping[str, str], *,
    context: float = 0.0, request: str = "", seed: int = 0, skip: Collection[str] = (),
) -> Iterator[tuple[Query, Record | InputError]]:  # fmt: skip
    """(query, {"utterances": ...} since the request or why there are none), as they come: each video is played from `context`
    seconds before the request to the moment at which polling would end. An empty prompt "native": nothing is requested, for
    models that comment by themselves."""
    by_key = {question.key: question for question in questions}
    jobs = []
    for each in questions:
        start, end = max(0.0, each.request_time - context), each.due + PATIENCE
        # Without context the request comes with the first chunk, with context with the chunk that ends at its second.
        request_text = filled(prompts["native"], {"question": each.text})
        timed_requests = ((each.request_time, request_text),) if request_text else ()
        seeds = job_seed(seed, each.key)
        jobs.append(Job(each.key, videos / each.video, start, end, query=request, questions=timed_requests, seed=seeds))
    for finished in commentator.run(jobs, skip=skip):
        question, answers = by_key[finished.job.key], finished.answers
        refused = answers[0].refused if answers else ""
        request_end = answers[0].time if answers and not refused else question.request_time
        utterances = [each for each in finished.utterances if each.end >= request_end]
        # A video may end before the stream is to: what was said until then counts.
        if refused or (finished.error and not utterances):
            error = InputError(
                "stream", shortened(refused or finished.error, 120), "an answer", "mend the video, or allow it with --bad"
            )
            yield question.query(), error
        else:
            yield question.query(), {"utterances": [list(each) for each in utterances]}


# Scores


class Outcome(NamedTuple):
    """When the words were said, by one rule: None for never. is_correct: whether they were the expected ones."""

    time: float | None = None
    is_correct: bool = False


def outcome(question: ProactiveQuestion, record: Record | None, rule: str) -> Outcome:
    """rule: "strict": a yes is a reply that begins with it, and the expected words are whole words in any case. "official": a
    yes is one anywhere in the reply, and the expected words are a part of the answer, letter by letter."""
    contains = answers.contains_phrase if rule == "strict" else lambda text, phrase: phrase in (text or "")
    if record is None:
        return Outcome()
    if "utterances" in record:
        transcript = ""
        for _, end, text in record["utterances"]:
            transcript = f"{transcript} {text.strip()}".strip()  # the words may come in two utterances
            if contains(transcript, question.output):
                return Outcome(end, True)
        return Outcome()
    for entry in record["polls"]:
        if _says_yes(entry["reply"], rule):
            return Outcome(entry["time"], contains(entry.get("answer"), question.output))
    return Outcome()


def is_timely(question: ProactiveQuestion, time: float | None, tolerance: float = TOLERANCE) -> bool:
    return time is not None and abs(time - question.due) <= tolerance


def score(questions: Sequence[ProactiveQuestion], records: Mapping[str, Record], label: str) -> tuple[Result, dict[str, Any]]:
    """(metrics; details for the result's file). An answer is correct only in time; a question without a record is wrong."""
    time_marks, answer_marks, delays = [], [], []
    silent_keys, details = [], {}
    for question in questions:
        record = records.get(question.key)
        strict, official = (outcome(question, record, rule) for rule in ("strict", "official"))
        timely = [is_timely(question, each.time) for each in (strict, official)]
        correct = [each.is_correct and in_time for each, in_time in zip((strict, official), timely, strict=True)]
        shared = {"key": question.key, "video": question.video, "task": question.task, "answered": record is not None}
        time_marks.append(Mark(**shared, correct=timely[0], official=timely[1]))
        answer_marks.append(Mark(**shared, correct=correct[0], official=correct[1]))
        if strict.time is None:
            silent_keys.append(question.key)
        else:
            delays.append(strict.time - question.due)
    metrics = [accuracy("answer_correct", answer_marks), accuracy("time_correct", time_marks)]
    metrics += [accuracy("answer_correct_compat", answer_marks, "official")]
    metrics += [accuracy("time_correct_compat", time_marks, "official")]
    if delays:
        metrics.append(Metric("mean_delay", sum(delays) / len(delays), None, len(delays), "s"))
    details = {
        "questions": len(questions),
        "missing": [mark.key for mark in time_marks if not mark.answered],
        "never_said": silent_keys,
        "within_seconds": {
            f"{limit:g}": sum(abs(delay) <= limit for delay in delays) / len(questions) for limit in (1, 2, 3, 5, 10)
        },
    }
    return Result("streamingbench_proactive", label, tuple(metrics)), details


# Answers in files


def read_records(
    path: str | Path, questions: Sequence[ProactiveQuestion], name: str, bad: json_lines.BadLines
) -> dict[str, Record]:
    """What was answered, by key: of a run's folder or its lines, or of a file in the published shape, of the model `name`.

    Raises:
        InputError: more answers than `bad` allows that are malformed, second ones to a question, or to one that is not asked.
    """
    path, records = local_path(path), {}
    by_key = {question.key: question for question in questions}

    def parse(record: Record, source: str) -> None:
        add_answer(records, by_key, json_lines.require(record, "key", str, source), _checked(record, source), source)

    if path.is_dir() or path.suffix == ".jsonl":
        json_lines.read(path / ANSWERS if path.is_dir() else path, "answers of svlm evaluate", parse, bad)
        return records
    for index, _, record in walk(read_tree(path)):
        key, source = ".".join(map(str, index)), f"{path.name} question {'.'.join(map(str, index))}"
        if not isinstance(record, dict) or record.get(name) is None:
            continue
        try:
            if key not in by_key:
                raise InputError(source, "an answer", "one to a question of the items", "score with the items that were asked")
            records[key] = _of_history(json_lines.require(record, name, dict, source), by_key[key], source)
        except InputError as error:
            bad.add(error)
    if not records:
        raise InputError(f"--model {shortened(name, 60)}", "no answer of it", f"a model of {path.name}", "check the name")
    return records


def _checked(record: Record, source: str) -> Record:
    if "utterances" in record:
        for each in json_lines.require(record, "utterances", list, source):
            if not (isinstance(each, list) and [type(part) for part in each][2:] == [str] and None not in each):
                raise InputError(f"{source} utterances", f"{each!r:.40}", "[start, end, text] each", "mend the line")
        return record
    for each in json_lines.require(record, "polls", list, source):
        if not isinstance(each, dict):
            raise InputError(f"{source} polls", f"{each!r:.40}", "objects", "mend the line")
        json_lines.require(each, "time", float, source)
        json_lines.require(each, "reply", str, source)
        json_lines.require(each, "answer", str, source, "")
    return record


def published_answer(question: ProactiveQuestion, record: Record, prompts: Mapping[str, str]) -> Record:
    """In the shape that the published counter reads, which takes what was last said, and when: of polls those up to the first
    that it takes for a yes, of a stream the transcript until the expected words."""
    result = outcome(question, record, "official")
    exchanges = [
        (entry["time"], filled(prompts["poll"], _fields(question)), entry["reply"]) for entry in record.get("polls", ())
    ]
    if "utterances" in record:
        end = question.due + PATIENCE if result.time is None else result.time
        transcript = " ".join(text.strip() for _, until, text in record["utterances"] if until <= end)
        exchanges = [(end, question.text, transcript)]
    elif result.time is not None:
        answer = next(entry.get("answer", "") for entry in record["polls"] if entry["time"] == result.time)
        exchanges = [each for each in exchanges if each[0] <= result.time] + [(result.time, question.text, answer)]
    history = [
        {"role": role, "content": content, "time": time}
        for time, prompt, reply in exchanges
        for role, content in (("user", prompt), ("assistant", reply))
    ]
    return {"answered": False if result.time is None else result.time, "dialog_history": history}


def _of_history(answer: Record, question: ProactiveQuestion, source: str) -> Record:
    """The polls of a published dialogue; a prompt that is the question alone asks what is to be said."""
    polls: list[Record] = []
    history = json_lines.require(answer, "dialog_history", list, source)
    for prompt, reply in zip(history[::2], history[1::2], strict=False):
        if not isinstance(prompt, dict) or not isinstance(reply, dict):
            raise InputError(f"{source} dialog_history", "no objects", "messages", "mend the file")
        time, content = json_lines.require(reply, "time", float, source), json_lines.require(reply, "content", str, source)
        if json_lines.require(prompt, "content", str, source) == question.text and polls:
            polls[-1]["answer"] = content
        else:
            polls.append({"time": time, "reply": content})
    return {"polls": polls}
