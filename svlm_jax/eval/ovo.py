"""OVO-Bench: its file of items, prompts and times of their questions, and answers in the shape that the published scorer reads.

Owns items and prompts; marks and means are in `eval.ovo_score`. The published data are read as they are (`ovo_bench_new.json`,
1,640 items, 3,035 questions); the prompts are our own words, and a file replaces them. Units: seconds of the video.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from svlm_jax import json_lines
from svlm_jax.errors import InputError, shortened
from svlm_jax.eval import answers
from svlm_jax.eval.asking import ANSWERS, Query, add_answer, read_answers
from svlm_jax.files import local_path, read_json
from svlm_jax.remote.templates import filled

BACKWARD = ("EPM", "ASI", "HLD")
REALTIME = ("OCR", "ACR", "ATR", "STU", "FPD", "OJR")
FORWARD = ("REC", "SSR", "CRR")
CATEGORIES = {"backward": BACKWARD, "realtime": REALTIME, "forward": FORWARD}
TASKS = BACKWARD + REALTIME + FORWARD
MAX_COUNT = 1000  # of repetitions; the published data have 0 to 10
COUNT_OPTIONS = 10  # the largest count that is an option where replies are compared

Kind = Literal["choice", "count", "step", "clue"]
KINDS: dict[str, Kind] = {"REC": "count", "SSR": "step", "CRR": "clue", **dict.fromkeys(BACKWARD + REALTIME, "choice")}
EXPECTED = "the items of OVO-Bench (ovo_bench_new.json)"

PROMPTS: dict[str, str] = {
    "choice": "{question}\n{options}\nAnswer with the letter of the right option and nothing else.",
    "count": "People in this video may do the same thing again and again. Count every complete time so far, whoever does it.\n"
    "How often has this happened: {activity}?\nAnswer with one number and nothing else.",
    "step": "The video shows a task that is done in steps. Look at what is going on at its end.\n"
    "Is this step being carried out now: {step}?\nAnswer with Yes or No and nothing else.",
    "clue": "A question about the end of the video: {question}\n"
    "Has the video shown enough so far to answer it?\nAnswer with Yes or No and nothing else.",
}


class Question(NamedTuple):
    """One question of an item. key: as the published clips are named, "ID" or "ID_INDEX". ground_truth: a letter, a count, or
    whether the answer is yes. fields: what its prompt is filled with."""

    key: str
    task: str
    video: str
    time: float
    kind: Kind
    ground_truth: str | int | bool
    fields: Mapping[str, str]
    options: tuple[str, ...] = ()

    def query(self) -> Query:
        """The visible part: all from the beginning to the next whole second, as the published clips are cut."""
        return Query(self.key, self.task, self.video, 0.0, float(math.ceil(self.time)), self.replies())

    def replies(self) -> tuple[str, ...]:
        """The replies among which one is chosen where none is generated."""
        if self.kind == "choice":
            return tuple(answers.LETTERS[: len(self.options)])
        return tuple(map(str, range(COUNT_OPTIONS + 1))) if self.kind == "count" else ("Yes", "No")

    def prompt(self, prompts: Mapping[str, str]) -> str:
        return filled(prompts[self.kind], self.fields)


class Item(NamedTuple):
    """An item as it is published (record), and its questions."""

    record: dict[str, Any]
    questions: tuple[Question, ...]


def read_items(path: str | Path, bad: json_lines.BadLines, tasks: Sequence[str] = TASKS) -> list[Item]:
    """The items of some tasks, in the order of the file.

    Raises:
        InputError: another file, no item of the tasks, or more malformed items than `bad` allows: each is named.
    """
    ids: set[int] = set()

    def parse(record: dict[str, Any], source: str) -> Item:
        number = json_lines.require(record, "id", int, source)
        if number in ids:
            raise InputError(f"{source} id", f"{number} a second time", "each id once", "leave one out")
        item = Item(record, _questions(record, number, source))
        ids.add(number)
        return item

    items = [item for item in json_lines.read(path, EXPECTED, parse, bad) if item.questions[0].task in tasks]
    if not items:
        raise InputError(f"items {Path(path).name}", f"no item of {', '.join(tasks)}", EXPECTED, "choose other tasks")
    return items


def _questions(record: dict[str, Any], number: int, source: str) -> tuple[Question, ...]:
    task, video = json_lines.require(record, "task", str, source), json_lines.require_video(record, "video", source)
    if task not in KINDS:
        raise InputError(f"{source} task", f"{task!r:.40}", f"one of {', '.join(TASKS)}", "mend the item, or leave it out")
    kind = KINDS[task]
    if kind == "choice":
        return (_choice(record, str(number), task, video, source),)
    tests = json_lines.require(record, "test_info", list, source)
    if not tests:
        raise InputError(f"{source} test_info", "an empty list", "at least one question", "mend the item, or leave it out")
    questions = []
    for index, test in enumerate(tests):
        test_source = f"{source} test_info[{index}]"
        if not isinstance(test, dict):
            raise InputError(test_source, f"{test!r:.40}", "an object", "mend the item, or leave it out")
        ground_truth: int | bool
        if kind == "count":
            ground_truth = _bounded(test, "count", test_source, MAX_COUNT)
            fields = {"activity": json_lines.require(record, "activity", str, source)}
        else:
            ground_truth = bool(_bounded(test, "type", test_source, 1))
            from_test = kind == "step"
            name = "step" if from_test else "question"
            fields = {name: json_lines.require(test if from_test else record, name, str, test_source)}
        questions.append(Question(f"{number}_{index}", task, video, _time(test, test_source), kind, ground_truth, fields))
    return tuple(questions)


def _choice(record: dict[str, Any], key: str, task: str, video: str, source: str) -> Question:
    options = json_lines.require(record, "options", list, source)
    if not 2 <= len(options) <= len(answers.LETTERS) or not all(isinstance(option, str) for option in options):
        expected = f"2 to {len(answers.LETTERS)} texts"
        raise InputError(f"{source} options", f"{options!r:.60}", expected, "mend the item, or leave it out")
    ground_truth = answers.LETTERS[_bounded(record, "gt", source, len(options) - 1)]
    option_list = "\n".join(f"{letter}. {option}" for letter, option in zip(answers.LETTERS, options, strict=False))
    fields = {"question": json_lines.require(record, "question", str, source), "options": option_list}
    return Question(key, task, video, _time(record, source), "choice", ground_truth, fields, tuple(options))


def _time(record: dict[str, Any], source: str) -> float:
    time = json_lines.require(record, "realtime", float, source)
    if time < 0:
        raise InputError(f"{source} realtime", time, "0 or more seconds", "mend the item, or leave it out")
    return float(time)


def _bounded(record: dict[str, Any], key: str, source: str, maximum: int) -> int:
    value = json_lines.require(record, key, int, source)
    if not 0 <= value <= maximum:
        raise InputError(f"{source} {key}", value, f"0 to {maximum}", "mend the item, or leave it out")
    return value


def questions_of(items: Iterable[Item]) -> list[Question]:
    return [question for item in items for question in item.questions]


def published(items: Sequence[Item], replies: Mapping[str, str | None]) -> dict[str, list[dict[str, Any]]]:
    """Replies in the shape that the published `score.py` reads from results/MODEL/NAME.json; None where there is none."""
    result: dict[str, list[dict[str, Any]]] = {category: [] for category in CATEGORIES}
    for item in items:
        first, record = item.questions[0], item.record
        category = next(name for name, tasks in CATEGORIES.items() if first.task in tasks)
        if category == "forward":
            tests = [
                {**test, "response": replies.get(question.key)}
                for test, question in zip(record["test_info"], item.questions, strict=True)
            ]
            result[category].append({**record, "test_info": tests})
        else:
            named = {key: record[key] for key in ("id", "video", "task", "question")}
            result[category].append({**named, "response": replies.get(first.key), "ground_truth": first.ground_truth})
    return result


def read_replies(path: str | Path, questions: Sequence[Question], bad: json_lines.BadLines) -> dict[str, str | None]:
    """Replies by key: of a run of `svlm evaluate ovo generate` (its folder, or its answers), or of result files in the
    published shape (a file, or a folder of them, as those of one model may lie in several).

    Raises:
        InputError: another file, or more bad answers than `bad` allows: malformed ones, second ones to a question, and those to
            questions that are not asked.
    """
    path, keys = local_path(path), {question.key for question in questions}
    files = sorted(path.glob("*.json")) if path.is_dir() and not (path / ANSWERS).exists() else [path]
    if path.is_dir() and not files:
        raise InputError(shortened(path), "neither answers nor results in it", "the folder of a run", "check the path")
    if (path.is_dir() and files == [path]) or path.suffix == ".jsonl":
        return read_answers(path, keys, bad)
    replies: dict[str, str | None] = {}
    for file in files:
        _read_published(file, keys, replies, bad)
    return replies


def _read_published(file: Path, keys: set[str], replies: dict[str, str | None], bad: json_lines.BadLines) -> None:
    result = read_json(file, "answers in the shape of OVO-Bench")
    for category in CATEGORIES:
        for index, entry in enumerate(json_lines.require(result, category, list, file.name, [])):
            source = f"{file.name} {category}[{index}]"
            try:
                for key, response in _replies_of(entry, source):
                    add_answer(replies, keys, key, response, source)
            except InputError as error:
                bad.add(error)


def _replies_of(entry: Any, source: str) -> list[tuple[str, str | None]]:
    if not isinstance(entry, dict):
        raise InputError(source, f"{entry!r:.40}", "an object", "mend the file")
    number = json_lines.require(entry, "id", int, source)
    tests = entry.get("test_info")
    named = [(str(number), entry)] if tests is None else [(f"{number}_{index}", test) for index, test in enumerate(tests)]
    return [(key, _reply(holder, source)) for key, holder in named]


def _reply(holder: Any, source: str) -> str | None:
    if not isinstance(holder, dict):
        raise InputError(source, f"{holder!r:.40}", "an object", "mend the file")
    response = holder.get("response")
    if isinstance(response, list) and len(response) == 1:  # some published files have each reply in a list of its own
        response = response[0]
    return None if response is None else json_lines.require({"response": response}, "response", str, source)
