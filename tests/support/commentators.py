"""A commentator without a model, for tests of benchmarks."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.commentator import Answer, Finished, Job


class FakeCommentator:
    """Says `say(job, second)` for the second that begins there, and answers `answer(job, question)`. errors: by key of the job.
    It writes down the jobs that it has watched."""

    def __init__(
        self,
        say: Callable[[Job, float], str] = lambda job, second: "",
        answer: Callable[[Job, str], str] = lambda job, question: "",
        errors: dict[str, str] | None = None,
    ) -> None:
        self.say, self.answer, self.errors = say, answer, errors or {}
        self.watched: list[Job] = []

    def settings(self) -> dict[str, Any]:
        return {"model": "fake"}

    def run(self, jobs: Sequence[Job], *, skip: Collection[str] = ()) -> Iterator[Finished]:
        for job in jobs:
            if job.key in skip:
                continue
            self.watched.append(job)
            seconds = [job.start + number for number in range(math.ceil(job.end - job.start))]
            utterances = tuple(Utterance(second, second + 1, self.say(job, second)) for second in seconds)
            answers = tuple(Answer(text, math.ceil(second), self.answer(job, text)) for second, text in job.questions)
            yield Finished(job, utterances, answers, self.errors.get(job.key, ""))
