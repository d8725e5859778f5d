"""The scores of OVO-Bench: a task is the mean of its questions, a category that of its tasks, the total that of the categories.

Strict parses first, the rules of the published scorer beside them as `compat`. A question without an answer is wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from svlm_jax.eval import answers
from svlm_jax.eval.marks import Mark, accuracy, macro_accuracy, not_counted, task_details
from svlm_jax.eval.ovo import CATEGORIES, TASKS, Question
from svlm_jax.eval.result import Metric, Result

TOTALS = {**{name: (tasks,) for name, tasks in CATEGORIES.items()}, "total": tuple(CATEGORIES.values())}


def mark(question: Question, reply: str | None, answered: bool = True) -> Mark:
    """Right by the strict parse, and by the official rule. A reply of None (the published form of a failure) is no answer."""
    ground_truth = question.ground_truth
    if question.kind == "choice":
        parsed: str | int | bool | None = answers.letter(reply, question.options)
        official = answers.official_contains(reply, str(ground_truth))
    elif question.kind == "count":
        parsed, official = answers.number(reply), answers.official_count(reply, int(ground_truth))
    else:
        parsed, official = answers.yes_no(reply), answers.official_yes_no(reply, bool(ground_truth))
    answered = answered and reply is not None
    return Mark(question.key, question.video, question.task, parsed == ground_truth, official, parsed is not None, answered)


def marks_of(questions: Sequence[Question], replies: Mapping[str, str | None]) -> list[Mark]:
    return [mark(question, replies.get(question.key)) for question in questions]


def score(questions: Sequence[Question], replies: Mapping[str, str | None], label: str) -> tuple[Result, dict[str, Any]]:
    """(metrics of tasks, categories and total; details for the result's file)."""
    marks = marks_of(questions, replies)
    by_task = {task: [each for each in marks if each.task == task] for task in TASKS}
    metrics = [accuracy(task, chosen) for task, chosen in by_task.items() if chosen]
    metrics += [macro_accuracy(name, marks, groups) for name, groups in TOTALS.items()]
    compat = [macro_accuracy(f"{name}_compat", marks, groups, "official") for name, groups in TOTALS.items()]
    details = {
        "tasks": task_details(marks, TASKS),
        "categories": {name: _rates(name, metrics, compat) for name in CATEGORIES},
        "total": _rates("total", metrics, compat),
        **not_counted(marks),
    }
    return Result("ovo", label, (*metrics, *compat)), details


def _rates(name: str, metrics: Sequence[Metric], compat: Sequence[Metric]) -> dict[str, Any]:
    strict = next(metric for metric in metrics if metric.name == name)
    official = next(metric for metric in compat if metric.name == f"{name}_compat")
    return {"accuracy": strict.value, "ci95": strict.ci95, "compat": official.value, "questions": strict.count}
