"""The scores of StreamingBench's questions with options: per task, and over all questions.

Strict parses first, the rule of the published counter beside them as `compat`, over the same questions: a question without an
answer, and one with an empty reply, is wrong; the published counter leaves out the one and stops at the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from svlm_jax.eval import answers
from svlm_jax.eval.marks import Mark, accuracy, not_counted, summary, task_details
from svlm_jax.eval.result import Result
from svlm_jax.eval.streamingbench import Data, Question


def marks_of(questions: Sequence[Question], replies: Mapping[str, str | None]) -> list[Mark]:
    marks = []
    for question in questions:
        reply = replies.get(question.key)
        parsed, official = answers.letter(reply, question.options), answers.official_first(reply, question.answer)
        correct = parsed == question.answer
        marks.append(
            Mark(question.key, question.video, question.task, correct, official, parsed is not None, reply is not None)
        )
    return marks


def score(data: Data, replies: Mapping[str, str | None], label: str) -> tuple[Result, dict[str, Any]]:
    """(metrics; details for the result's file)."""
    marks = marks_of(data.questions, replies)
    tasks = list(dict.fromkeys(question.task for question in data.questions))
    metrics = [accuracy(task, [mark for mark in marks if mark.task == task]) for task in tasks] if len(tasks) > 1 else []
    metrics += [accuracy("total", marks), accuracy("total_compat", marks, "official")]
    details = {"tasks": task_details(marks, tasks), "total": summary(marks), **not_counted(marks)}
    if data.subset == "omni":
        details["note"] = "the sound is part of these questions, and the model heard none"
    return Result(f"streamingbench_{data.subset}", label, tuple(metrics)), details
