"""StreamingBench: its files of questions, their prompts and times, and answers in the shape that the published counter reads.

Owns the questions with options: real-time (`questions_real.json`), omni-source (its sound is part of the question, and this
library hears nothing) and sequential (`questions_sqa.json`), also as grouped by video in the `_stream` files. Proactive output
is in `eval.proactive`, scores are in `eval.streamingbench_score`. The prompts are our own words, and a file replaces them.
Units: seconds of the video.
"""

import copy
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from svlm_jax import json_lines
from svlm_jax.errors import InputError, shortened
from svlm_jax.eval import answers
from svlm_jax.eval.asking import Query, add_answer, read_answers
from svlm_jax.files import atomic_write, local_path, parse_json_list, refuse_other_kinds_of_file, report_write_errors
from svlm_jax.remote.templates import filled

Subset = Literal["real", "omni", "sqa", "proactive"]
EXPECTED = "questions of StreamingBench (questions_real.json, questions_sqa.json, ...)"
SEQUENTIAL = "Sequential Question Answering"
OMNI = (
    "Emotion Recognition", "Scene Understanding", "Source Discrimination", "Multimodal Alignment",
    "Misleading Context Understanding", "Anomaly Context Understanding",
)  # fmt: skip
NUM_OPTIONS = 4
CONTEXT = 60.0  # seconds before a question that are shown: the README's main setting; 0 or less: from the beginning

PROMPTS: dict[str, str] = {
    "choice": "{question}\n{options}\nAnswer with the letter of the right option and nothing else.",
    "earlier": "At {time}: {question} {options} Answer: {answer}",
    "sequence": "What has been asked about this video so far, and the answers:\n{earlier}\n\nNow answer the next question.\n"
    "{question}\n{options}\nAnswer with the letter of the right option and nothing else.",
    "poll": '{question}\nIs this the moment to say "{output}"? Answer yes or no and nothing else.',
    "output": "{question}\nThe moment has come: what is to be said? Say that and nothing else.",
    "native": "{question}",
}
_STAMP = re.compile(r"(?:(\d{1,2}):)?(\d{1,2}):(\d{1,2})")
_LABEL = re.compile(r"[A-J]\s*[.):]\s*")
Question_ = TypeVar("Question_")


class Question(NamedTuple):
    """A question with options. key: its place in the file, "ENTRY.INDEX" or "VIDEO.ENTRY.INDEX". stamp: `time` as published.
    options: without their letters. answer: the right letter."""

    key: str
    task: str
    video: str
    time: float
    stamp: str
    text: str
    options: tuple[str, ...]
    answer: str

    def query(self, context: float) -> Query:
        """The visible part: the `context` seconds before the question, or, with 0 or less, all from the beginning."""
        start = max(0.0, self.time - context) if context > 0 else 0.0
        return Query(self.key, self.task, self.video, start, self.time, tuple(answers.LETTERS[: len(self.options)]))

    def option_list(self, separator: str = "\n") -> str:
        return separator.join(f"{letter}. {option}" for letter, option in zip(answers.LETTERS, self.options, strict=False))

    def prompt(self, prompts: Mapping[str, str], earlier: Sequence[tuple["Question", str]] = ()) -> str:
        """earlier: questions about the same video that came before, with their answers."""
        fields = {"question": self.text, "options": self.option_list()}
        if not earlier:
            return filled(prompts["choice"], fields)
        earlier_fields = [
            {"time": each.stamp, "question": each.text, "options": each.option_list("; "), "answer": answer}
            for each, answer in earlier
        ]
        return filled(
            prompts["sequence"], {"earlier": "\n".join(filled(prompts["earlier"], each) for each in earlier_fields), **fields}
        )


class Data(NamedTuple):
    """tree: the file as it is. questions: in its order."""

    subset: Subset
    tree: list[Any]
    questions: tuple[Question, ...]


def read_questions(path: str | Path, bad: json_lines.BadLines) -> Data:
    """The questions with options of a published file.

    Raises:
        InputError: another file, no question in it, or more malformed questions than `bad` allows: each is named.
    """
    tree = read_tree(path)
    questions = read_each(tree, Path(path).name, _question, bad)
    tasks = {question.task for question in questions}
    subset = "sqa" if tasks == {SEQUENTIAL} else "omni" if tasks <= set(OMNI) else "real"
    return Data(subset, tree, tuple(questions))


def read_tree(path: str | Path) -> list[Any]:
    """The JSON list that a published file is."""
    file = local_path(path)
    if not file.is_file():
        raise InputError(shortened(file), "no such file", EXPECTED, "check the path")
    refuse_other_kinds_of_file(file, EXPECTED)
    tree = parse_json_list(file.read_bytes(), file.name, EXPECTED)
    try:
        json.dumps(tree, allow_nan=False)  # now, and not when the answers to all of it are to be written
    except ValueError:
        raise InputError(shortened(file), "NaN or Infinity", EXPECTED, "write null for it") from None
    return tree


def is_proactive(tree: Sequence[Any]) -> bool:
    """The file is one of proactive questions: they have an output and no options."""
    return any("ground_truth_output" in question for _, _, question in walk(tree) if isinstance(question, dict))


def read_each(
    tree: Sequence[Any], name: str, parse: Callable[[str, str, dict[str, Any], str], Question_], bad: json_lines.BadLines
) -> list[Question_]:
    """What `parse` makes of each question, called with (key, video, question, its name for errors)."""
    parsed = []
    for index, entry, record in walk(tree):
        source = name + "".join(f"[{number}]" for number in index)
        try:
            if not isinstance(entry, dict) or not isinstance(record, dict):
                raise InputError(source, f"{record if isinstance(entry, dict) else entry!r:.40}", "an object", "mend it")
            video = json_lines.require_video(entry, "video_path", source).removeprefix("./")
            parsed.append(parse(".".join(map(str, index)), video, record, source))
        except InputError as error:
            bad.add(error)
    if not parsed:
        raise InputError(name, "no question", EXPECTED, "check the file")
    return parsed


def walk(tree: Sequence[Any]) -> Iterator[tuple[tuple[int, ...], Any, Any]]:
    """(index, entry, question) of all questions. index: in each of the nested lists; the entries of sequential questions lie in
    one list a video."""
    for number, member in enumerate(tree):
        for position, entry in enumerate(member) if isinstance(member, list) else [(None, member)]:
            prefix = (number,) if position is None else (number, position)
            questions = entry.get("questions") if isinstance(entry, dict) else None
            if not isinstance(questions, list):
                yield prefix, entry if not isinstance(entry, dict) else {}, entry
                continue
            for index, question in enumerate(questions):
                yield (*prefix, index), entry, question


def _question(key: str, video: str, record: dict[str, Any], source: str) -> Question:
    stamp = json_lines.require(record, "time_stamp", str, source)
    options = _options(json_lines.require(record, "options", list, source), source)
    answer = json_lines.require(record, "answer", str, source).strip()
    if answer not in tuple(answers.LETTERS[: len(options)]):
        letters = answers.LETTERS[: len(options)]
        raise InputError(f"{source} answer", f"{answer!r:.40}", f"a letter of {letters}", "mend it, or leave it out")
    task, text = json_lines.require(record, "task_type", str, source), json_lines.require(record, "question", str, source)
    return Question(key, task, video, seconds(stamp, f"{source} time_stamp"), stamp, text, options, answer)


def seconds(stamp: str, source: str) -> float:
    """Of "hh:mm:ss" or "mm:ss", as they are published, with or without leading zeros.

    Raises:
        InputError: another text; the published counter reads "00:12450" as three and a half hours.
    """
    match = _STAMP.fullmatch(stamp.strip())
    if match is None or int(match[2]) > 59 or int(match[3]) > 59:
        raise InputError(source, f"{stamp!r:.40}", "hh:mm:ss", "mend it, or leave it out")
    return float(int(match[1] or 0) * 3600 + int(match[2]) * 60 + int(match[3]))


def _options(options: list[Any], source: str) -> tuple[str, ...]:
    """Options without letters. Published ones have letters, or none, or only the first has one; some are broken over several
    members of the list, and blank or left-over members lie between them (the published script takes the first four)."""
    if not all(isinstance(option, str) for option in options):
        raise InputError(f"{source} options", f"{options!r:.60}", "texts", "mend it, or leave it out")
    texts = [option.strip() for option in options if option.strip()]
    if len(texts) > NUM_OPTIONS:
        texts = _by_letter(texts)
    if texts and texts[0].startswith("A."):
        texts = [_LABEL.sub("", text, count=1) for text in texts]
    if not 2 <= len(texts) <= NUM_OPTIONS:
        raise InputError(f"{source} options", f"{len(options)} of them", f"2 to {NUM_OPTIONS}", "mend it, or leave it out")
    return tuple(texts)


def _by_letter(texts: Sequence[str]) -> list[str]:
    """One text for each letter from A on. What has no letter goes on with the text before; letters out of order are left
    over."""
    options: list[str] = []
    for text in texts:
        if not _LABEL.match(text) and options:
            options[-1] += " " + text
        elif len(options) < NUM_OPTIONS and text.startswith(answers.LETTERS[len(options)]):
            options.append(text)
    return options


def earlier_of(question: Question, questions: Sequence[Question]) -> list[Question]:
    """The questions about the same video that come before one in the file."""
    same = [each for each in questions if each.video == question.video]
    return same[: same.index(question)]


def published(tree: list[Any], name: str, answered: Mapping[str, Any]) -> list[Any]:
    """A copy of the file's tree in which each answered question has its answer under the model's name."""
    result = copy.deepcopy(tree)
    for index, _, question in walk(result):
        if (key := ".".join(map(str, index))) in answered:
            question[name] = answered[key]
    return result


def read_replies(path: str | Path, keys: Collection[str], name: str, bad: json_lines.BadLines) -> dict[str, str | None]:
    """Replies by key: of a run of `svlm evaluate streamingbench generate`, or of a file in the published shape, where they are
    those of the model `name`.

    Raises:
        InputError: as `asking.read_answers`.
    """
    path = local_path(path)
    if path.is_dir() or path.suffix == ".jsonl":
        return read_answers(path, keys, bad)
    replies: dict[str, str | None] = {}
    for index, _, question in walk(read_tree(path)):
        if not isinstance(question, dict) or name not in question:
            continue
        source = path.name + "".join(f"[{number}]" for number in index)
        try:
            reply = None if question[name] is None else json_lines.require(question, name, str, source)
            add_answer(replies, keys, ".".join(map(str, index)), reply, source)
        except InputError as error:
            bad.add(error)
    if not replies:
        raise InputError(f"--model {shortened(name, 60)}", "no answer of it", f"a model of {path.name}", "check the name")
    return replies


def write_tree(path: Path, tree: list[Any]) -> None:
    """Write a file in the published shape, complete or not at all."""
    with report_write_errors(path), atomic_write(path) as draft:
        draft.write_text(json.dumps(tree, indent=4, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
