"""Marks of answered questions, and their means with intervals over videos.

Owns what a mark is and the means. A question without an answer has a mark as any other: it is wrong. Host side, never jax.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from svlm_jax.eval.intervals import macro_interval, ratio_interval
from svlm_jax.eval.result import Metric


class Mark(NamedTuple):
    """Of one question.

    Attributes:
        correct: by the strict parse of the reply.
        official: by the rule of the published scorer.
        parsed: the reply says one thing, right or wrong.
        answered: there is a reply, even an empty one.
    """

    key: str
    video: str
    task: str
    correct: bool
    official: bool
    parsed: bool = True
    answered: bool = True


def accuracy(name: str, marks: Sequence[Mark], rule: str = "correct") -> Metric:
    """The share of questions that are right (micro mean). rule: "correct" or "official"."""
    correct, total = _table(marks, rule, {mark.task: 0 for mark in marks})
    if not marks:
        return Metric(name, None)
    return Metric(name, float(correct.sum() / total.sum()), ratio_interval(correct[:, 0], total[:, 0]), len(marks))


def macro_accuracy(name: str, marks: Sequence[Mark], groups: Sequence[Sequence[str]], rule: str = "correct") -> Metric:
    """The mean over groups of the mean over tasks of the share of right answers. No value where a group has no question."""
    tasks = [task for group in groups for task in group]
    counted = [mark for mark in marks if mark.task in tasks]
    correct, total = _table(counted, rule, {task: column for column, task in enumerate(tasks)})
    present = total.sum(axis=0) > 0
    columns = [[tasks.index(task) for task in group if present[tasks.index(task)]] for group in groups]
    if not all(columns):
        return Metric(name, None)
    rates = correct.sum(axis=0) / np.maximum(total.sum(axis=0), 1)
    value = float(np.mean([np.mean(rates[group]) for group in columns]))
    return Metric(name, value, macro_interval(correct, total, columns), len(counted))


def _table(marks: Sequence[Mark], rule: str, columns: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """(right answers, questions), float64 [videos, columns]."""
    videos = {video: row for row, video in enumerate(dict.fromkeys(mark.video for mark in marks))}
    correct = np.zeros((len(videos), 1 + max(columns.values(), default=0)))
    total = np.zeros_like(correct)
    for mark in marks:
        cell = videos[mark.video], columns[mark.task]
        correct[cell] += getattr(mark, rule)
        total[cell] += 1
    return correct, total


def task_details(marks: Sequence[Mark], tasks: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Of each task that has a question: counts, both rates, and the interval of the strict one."""
    details = {}
    for task in tasks:
        chosen = [mark for mark in marks if mark.task == task]
        if chosen:
            details[task] = summary(chosen)
    return details


def summary(marks: Sequence[Mark]) -> dict[str, Any]:
    """Counts of some questions, and the share that is right by both rules."""
    strict, official = accuracy("", marks), accuracy("", marks, "official")
    return {
        "questions": len(marks),
        "correct": sum(mark.correct for mark in marks),
        "accuracy": strict.value,
        "ci95": strict.ci95,
        "compat": official.value,
        "not_parsed": sum(mark.answered and not mark.parsed for mark in marks),
        "missing": sum(not mark.answered for mark in marks),
    }


def not_counted(marks: Sequence[Mark]) -> dict[str, list[str]]:
    """Which questions were wrong for want of an answer, or of one that says one thing."""
    return {
        "missing": [mark.key for mark in marks if not mark.answered],
        "not_parsed": [mark.key for mark in marks if mark.answered and not mark.parsed],
    }
