"""A commentator without a model, for tests of benchmarks."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.commentator import Answer, Finished, Job


class FakeCommentator:
    """Says `say(job, second)` for the second that begins there, and answers `answer(job, question)`.

    errors: by key of the job; watched: seconds of it that are watched, where not all are. `watched` are the jobs so far.
    """

    def __init__(
        self,
        say: Callable[[Job, float], str] = lambda job, second: "",
        answer: Callable[[Job, str], str] = lambda job, question: "",
        errors: dict[str, str] | None = None,
        watched: dict[str, int] | None = None,
    ) -> None:
        self.say, self.answer, self.errors, self.seconds = say, answer, errors or {}, watched or {}
        self.watched: list[Job] = []

    def settings(self) -> dict[str, Any]:
        return {"model": "fake"}

    def run(self, jobs: Sequence[Job], *, skip: Collection[str] = ()) -> Iterator[Finished]:
        for job in jobs:
            if job.key in skip:
                continue
            self.watched.append(job)
            count = self.seconds.get(job.key, math.ceil(job.end - job.start))
            seconds = [job.start + number for number in range(count)]
            utterances = tuple(Utterance(second, second + 1, self.say(job, second)) for second in seconds)
            answers = tuple(Answer(text, math.ceil(second), self.answer(job, text)) for second, text in job.questions)
            yield Finished(job, utterances, answers, self.errors.get(job.key, ""))
