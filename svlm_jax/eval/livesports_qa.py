"""LiveSports-3K QA (arXiv 2504.16030): questions with options about a sports video, answered by the likeliest letter.

Owns questions, answers and their score. The published protocol generates nothing: after "Answer:" the likeliest of " A", " B",
... counts. A question's key is `VIDEO_ID_QUESTION_ID`. Units: seconds of the whole video.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from svlm_jax.errors import InputError, shortened
from svlm_jax.eval import answers
from svlm_jax.eval.asking import ANSWERS, Ask, Chooser, Prompt, Query, add_answer, answering, choosing
from svlm_jax.eval.livesports_cc import fill_prompt, find_video, read_prompt
from svlm_jax.eval.marks import Mark, accuracy, not_counted, summary, task_details
from svlm_jax.eval.models import Answerer
from svlm_jax.eval.result import Result
from svlm_jax.files import local_path
from svlm_jax.json_lines import BadLines, read, require
from svlm_jax.media.container import declared_length

PROMPT = "livesports_qa.txt"
PREFIX = "Answer: "  # of the assistant; the blank belongs to the letter's token
LETTER_TOKENS = 16  # of a generated answer, at most


class Question(NamedTuple):
    """options: each begins with its letter, as the file has them. answer: the right letter. ocr: text on screen has to be read.
    start, end: the part of the video that is shown; None: all of it."""

    video_id: str
    question_id: int | str
    q_type: str
    ocr: bool
    text: str
    options: tuple[str, ...]
    answer: str
    video: str = ""
    start: float = 0.0
    end: float | None = None

    @property
    def key(self) -> str:
        return f"{self.video_id}_{self.question_id}"


def read_questions(path: str | Path, bad: BadLines) -> list[Question]:
    """LiveSports-3K-QA.json, or the same as lines, in its order.

    Raises:
        InputError: a question that cannot be asked or scored, or is there twice.
    """
    keys: set[str] = set()

    def parse(record: dict[str, Any], source: str) -> Question:
        question = _question(record, source)
        if question.key in keys:
            got = f"{shortened(question.key, 60)} a second time"
            raise InputError(f"{source} question", got, "each question once", "leave one out")
        keys.add(question.key)
        return question

    return read(path, "questions of LiveSports-3K QA", parse, bad)


def _question(record: dict[str, Any], source: str) -> Question:
    record = {key: value for key, value in record.items() if value is not None}
    kind = str if isinstance(record.get("question_id"), str) else int
    options = require(record, "options", list, source)
    letters = answers.LETTERS[: len(options)]
    for letter, option in zip(letters, options, strict=False):
        if not isinstance(option, str) or option[:1] != letter or option[1:2].isalnum():
            raise InputError(
                f"{source} options", f"{option!r:.40}", f'a text that begins with "{letter}."', "mend the question"
            )
    if not 2 <= len(options) <= len(answers.LETTERS):
        raise InputError(
            f"{source} options", len(options), f"2 to {len(answers.LETTERS)}", "mend the question, or leave it out"
        )
    answer = require(record, "answer", str, source).strip()
    if len(answer) != 1 or answer not in letters:
        raise InputError(
            f"{source} answer", f"{answer!r:.40}", f"one letter of {letters}", "mend the question, or leave it out"
        )
    start, end = require(record, "video_start", float, source, 0.0), record.get("video_end")
    if end is not None and not 0 <= start < require(record, "video_end", float, source):
        got = f"{start:g}, {end:g}"
        raise InputError(f"{source} video_start, video_end", got, "0 <= start < end, seconds", "mend the question")
    ocr = require(record, "OCR", int, source, 0)
    return Question(
        require(record, "video_id", str, source),
        require(record, "question_id", kind, source),
        require(record, "q_type", str, source),
        ocr == 1,
        require(record, "question", str, source),
        tuple(options),
        answer,
        require(record, "video", str, source, ""),
        float(start),
        end,
    )


def queries(questions: Iterable[Question], folder: str | Path, bad: BadLines) -> list[Query]:
    """The questions whose video is in the folder, each about the part of it that the question names, or all of it.

    Raises:
        InputError: more videos are missing, empty or without a length than may be.
    """
    items = []
    for question in questions:
        name = f"question {shortened(question.key, 60)}"
        try:
            path = find_video(folder, name, question.video, question.video_id)
            end = question.end or declared_length(path)
            if end is None:
                raise InputError(f"{name} {shortened(path, 80)}", "no length in its header", "one, or video_end", "remux it")
        except InputError as error:
            bad.add(error)
            continue
        video = path.relative_to(local_path(folder)).as_posix()
        items.append(Query(question.key, question.q_type, video, question.start, float(end), _letters(question)))
    return items


def _letters(question: Question) -> tuple[str, ...]:
    return tuple(answers.LETTERS[: len(question.options)])


def prompts(questions: Iterable[Question], template: str) -> Prompt:
    """The prompts: the template, with {question} and {options}, one a line."""
    texts = {each.key: fill_prompt(template, {"question": each.text, "options": "\n".join(each.options)}) for each in questions}
    return lambda query: texts[query.key]


def by_score(model: Chooser, prompt: Prompt) -> Ask:
    """The likeliest letter after "Answer:", as published."""
    return choosing(model, prompt, PREFIX)


def by_reply(model: Answerer, prompt: Prompt) -> Ask:
    """What a model writes, for models whose probabilities are not known."""
    return answering(model, prompt, LETTER_TOKENS)


def read_responses(path: str | Path, questions: Iterable[Question], bad: BadLines) -> dict[str, str]:
    """Responses by the key of the question: a run's folder, its file, or the published list of videos with their questions.

    Raises:
        InputError: an answer without response, a second one, or one to no question of `questions`.
    """
    path = local_path(path)
    known = {question.key for question in questions}
    responses: dict[str, str] = {}

    def parse(record: dict[str, Any], source: str) -> None:
        if "questions" not in record:
            members = [(require(record, "key", str, source), record)]
        else:
            video = require(record, "video_id", str, source)
            members = [(_published_key(video, each, source), each) for each in require(record, "questions", list, source)]
        for key, member in members:
            add_answer(responses, known, key, require(member, "response", str, source), source)

    read(path / ANSWERS if path.is_dir() else path, "answers to LiveSports-3K QA", parse, bad)
    return responses


def _published_key(video: str, member: Any, source: str) -> str:
    if not isinstance(member, dict):
        raise InputError(f"{source} questions", f"{member!r:.40}", "objects", "mend the line, or leave it out")
    kind = str if isinstance(member.get("question_id"), str) else int
    return f"{video}_{require(member, 'question_id', kind, source)}"


def chosen(question: Question, response: str) -> str | None:
    """The letter that a response names: of the option that it repeats, or read strictly. None is wrong."""
    if response in question.options:
        return answers.LETTERS[question.options.index(response)]
    return answers.letter(response, question.options)


def score(questions: Sequence[Question], responses: Mapping[str, str], label: str) -> tuple[Result, dict[str, Any]]:
    """Accuracy over all questions, over those with text on screen, and of each type. A question without an answer is wrong, and
    listed. Intervals are over videos. "overall_compat" is the published rule: the first character of the response."""
    marks = {question.key: _mark(question, responses.get(question.key)) for question in questions}
    every, types = list(marks.values()), sorted({question.q_type for question in questions})
    metrics = (
        accuracy("overall", every),
        accuracy("overall_compat", every, "official"),
        accuracy("OCR", [marks[each.key] for each in questions if each.ocr]),
        *(accuracy(name, [mark for mark in every if mark.task == name]) for name in types),
    )
    details = {**summary(every), "per_type": task_details(every, types), **not_counted(every)}
    return Result("livesports-qa", label, metrics), details


def _mark(question: Question, response: str | None) -> Mark:
    letter = None if response is None else chosen(question, response)
    official = answers.official_first(response, question.answer)
    return Mark(
        question.key,
        question.video_id,
        question.q_type,
        letter == question.answer,
        official,
        letter is not None,
        response is not None,
    )


def published_answers(questions: Iterable[Question], responses: Mapping[str, str]) -> list[dict[str, Any]]:
    """The published form of answered questions: one entry a video. A letter becomes its option, which begins with it."""
    videos: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in questions:
        if each.key in responses:
            response = responses[each.key]
            if (letter := chosen(each, response)) is not None:
                response = each.options[answers.LETTERS.index(letter)]
            entry = {"question_id": each.question_id, "q_type": each.q_type, "OCR": int(each.ocr), "question": each.text}
            entry |= {"options": list(each.options), "answer": each.answer, "response": response}
            videos[each.video_id].append(entry)
    return [{"video_id": video, "questions": entries} for video, entries in videos.items()]


def default_prompt() -> str:
    """Our wording; the published one is not copied."""
    return read_prompt(PROMPT)
