"""LiveSports-3K QA (arXiv 2504.16030): questions with options about a sports video, answered by the likeliest letter.

Owns questions, answers and their score. The published protocol generates nothing: after "Answer:" the likeliest of " A", " B",
... counts. A question's key is `VIDEO_ID_QUESTION_ID`. Units: seconds of the whole video.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from svlm_jax.errors import InputError, shortened
from svlm_jax.eval import answers
from svlm_jax.eval.frames import FrameSet, prefix
from svlm_jax.eval.intervals import ratio_interval
from svlm_jax.eval.lines import BadLines, read, require
from svlm_jax.eval.livesports_cc import fill_prompt
from svlm_jax.eval.models import Answerer, Request
from svlm_jax.eval.result import Metric, Result
from svlm_jax.media.container import declared_length
from svlm_jax.media.paths import existing_file

PROMPT = "livesports_qa.txt"
ANSWERS = "answers.jsonl"
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


class Chooser(Protocol):
    """A model that says which of some replies is likeliest (`models.LocalModel`)."""

    def choose(self, request: Request, options: Sequence[str]) -> tuple[int, list[float]]: ...


Respond = Callable[[str, Question, FrameSet], dict[str, Any]]


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


def by_score(model: Chooser) -> Respond:
    """The likeliest letter after "Answer:", as published. Beside it stand the log-probabilities, less that of the likeliest."""

    def respond(prompt: str, question: Question, frames: FrameSet) -> dict[str, Any]:
        letters = answers.LETTERS[: len(question.options)]
        index, log_probs = model.choose(Request(prompt, frames), [PREFIX + letter for letter in letters])
        most = max(log_probs)
        return {"response": question.options[index], "log_probs": [round(each - most, 4) for each in log_probs]}

    return respond


def by_reply(model: Answerer) -> Respond:
    """What a model writes, for models whose probabilities are not known."""

    def respond(prompt: str, question: Question, frames: FrameSet) -> dict[str, Any]:
        return {"response": model.answer(Request(prompt, frames, max_new_tokens=LETTER_TOKENS))}

    return respond


def ask(
    questions: Iterable[Question],
    videos: Mapping[str, str | Path],
    template: str,
    frames: int,
    respond: Respond,
    done: Collection[str],
) -> Iterator[tuple[str, dict[str, Any] | InputError]]:
    """(key, the line of an answer or why there is none) of each question that is not done. `frames` at most are shown, 2 a
    second, thinned evenly.

    Args:
        videos: by the question's key; a question without one is left out.
    """
    for question in questions:
        if question.key in done or question.key not in videos:
            continue
        values = {"question": question.text, "options": "\n".join(question.options)}
        try:
            shown = _shown(videos[question.key], question, frames)
            record = respond(fill_prompt(template, values), question, shown)
        except InputError as error:
            yield question.key, error.within(f"question {shortened(question.key, 60)}")
            continue
        yield question.key, {"video_id": question.video_id, "question_id": question.question_id, **record}


def _shown(path: str | Path, question: Question, frames: int) -> FrameSet:
    end = question.end or declared_length(existing_file(path, "video"))
    if end is None:
        raise InputError(f"video {shortened(path, 80)}", "no length in its header", "a length, or video_end", "remux the video")
    return prefix(path, end, max_frames=frames, start=question.start)


def key_of(record: dict[str, Any]) -> str:
    return f"{record['video_id']}_{record['question_id']}"


def read_answers(path: str | Path, questions: Iterable[Question], bad: BadLines) -> dict[str, str]:
    """Responses by the key of the question: lines of ours, or the published list of videos with their questions.

    Raises:
        InputError: an answer without response, a second one, or one to no question of `questions`.
    """
    known = {question.key for question in questions}
    responses: dict[str, str] = {}

    def parse(record: dict[str, Any], source: str) -> None:
        video = require(record, "video_id", str, source)
        for member in require(record, "questions", list, source, [record]):
            if not isinstance(member, dict):
                raise InputError(f"{source} questions", f"{member!r:.40}", "objects", "mend the line, or leave it out")
            kind = str if isinstance(member.get("question_id"), str) else int
            key = f"{video}_{require(member, 'question_id', kind, source)}"
            response = require(member, "response", str, source)
            if key not in known:
                expected = "a question of the items"
                raise InputError(f"{source} answer", f"one to {shortened(key, 60)}", expected, "take the same items")
            if key in responses:
                got = f"{shortened(key, 60)} a second time"
                raise InputError(f"{source} answer", got, "each answer once", "leave one out")
            responses[key] = response

    read(path, "answers to LiveSports-3K QA", parse, bad)
    return responses


def chosen(question: Question, response: str) -> str | None:
    """The letter that a response names: of the option that it repeats, or read strictly. None is wrong."""
    if response in question.options:
        return answers.LETTERS[question.options.index(response)]
    return answers.letter(response, question.options)


def score(questions: Sequence[Question], responses: Mapping[str, str], label: str) -> tuple[Result, dict[str, Any]]:
    """Accuracy over all questions, over those with text on screen, and of each type. A question without an answer is wrong, and
    listed. Intervals are over videos. "overall, compat" is the published rule: the first character of the response."""
    letters = {each.key: chosen(each, responses[each.key]) for each in questions if each.key in responses}

    def is_right(question: Question) -> bool:
        return letters.get(question.key) == question.answer

    def is_right_compat(question: Question) -> bool:
        return answers.official_first(responses.get(question.key), question.answer)

    types = sorted({question.q_type for question in questions})
    metrics = (
        _accuracy("overall", questions, is_right),
        _accuracy("overall, compat", questions, is_right_compat),
        _accuracy("OCR", [each for each in questions if each.ocr], is_right),
        *(_accuracy(name, [each for each in questions if each.q_type == name], is_right) for name in types),
    )
    details = {
        "questions": len(questions),
        "right": sum(map(is_right, questions)),
        "missing": [each.key for each in questions if each.key not in responses],
        "unclear": [key for key, letter in letters.items() if letter is None],
    }
    return Result("livesports-qa", label, metrics), details


def _accuracy(name: str, questions: Sequence[Question], is_right: Callable[[Question], bool]) -> Metric:
    right: dict[str, int] = defaultdict(int)
    every: dict[str, int] = defaultdict(int)
    for question in questions:
        right[question.video_id] += is_right(question)
        every[question.video_id] += 1
    value = sum(right.values()) / len(questions) if questions else None
    interval = ratio_interval(list(right.values()), list(every.values()))
    return Metric(name, value, interval, len(questions))


def published_answers(questions: Iterable[Question], responses: Mapping[str, str]) -> list[dict[str, Any]]:
    """The published form of answered questions: one entry a video."""
    videos: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in questions:
        if each.key in responses:
            entry = {"question_id": each.question_id, "q_type": each.q_type, "OCR": int(each.ocr), "question": each.text}
            entry |= {"options": list(each.options), "answer": each.answer, "response": responses[each.key]}
            videos[each.video_id].append(entry)
    return [{"video_id": video, "questions": entries} for video, entries in videos.items()]
