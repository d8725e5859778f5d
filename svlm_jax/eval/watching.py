"""A job in progress: its next chunk, the question that goes with it, and the replies so far.

Owns what a killed run must know to go on with a job (`record`). Does not know the model. Host side, never jax.
"""

from collections.abc import Mapping
from typing import Any

from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.commentator import Answer, Finished, Job
from svlm_jax.eval.job_video import Chunks


class Watching:
    """utterances: one for each chunk that was watched. answers: in the order in which questions fall due. notes: what was
    unusual about the video."""

    def __init__(self, job: Job, chunks: Chunks) -> None:
        self.job, self.chunks = job, chunks
        self.due = sorted(range(len(job.questions)), key=lambda number: job.questions[number][0])
        self.utterances: list[Utterance] = []
        self.answers: list[Answer] = []
        self.notes: list[str] = []

    @property
    def is_complete(self) -> bool:
        return len(self.utterances) == self.chunks.total

    def question(self) -> str:
        """The question that goes with the next chunk, or ""."""
        if len(self.answers) == len(self.due):
            return ""
        second, text = self.job.questions[self.due[len(self.answers)]]
        number = len(self.utterances)
        return text if second <= self.chunks.span(number)[1] or number == self.chunks.total - 1 else ""

    def add_refusal(self, question: str, reason: str) -> None:
        """The question of the next chunk, which is watched without it."""
        self.answers.append(Answer(question, refused=reason))

    def add_reply(self, text: str, question: str = "") -> None:
        """The reply to the next chunk; question: asked with it."""
        start, end = self.chunks.span(len(self.utterances))
        self.utterances.append(Utterance(start, end, text))
        if question:
            self.answers.append(Answer(question, end, text))

    def finished(self, error: str = "") -> Finished:
        """error: why it was not watched to its end."""
        answers = [Answer(text, refused=error or "the video ended before its turn came") for _, text in self.job.questions]
        for number, answer in zip(self.due, self.answers, strict=False):
            answers[number] = answer
        return Finished(self.job, tuple(self.utterances), tuple(answers), error, tuple(self.notes))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"utterances": list(self.utterances), "answers": list(self.answers), "notes": list(self.notes)}

    @classmethod
    def of_record(cls, job: Job, chunks: Chunks, record: Mapping[str, Any]) -> "Watching":
        watching = cls(job, chunks)
        watching.utterances = [Utterance(*each) for each in record["utterances"]]
        watching.answers = [Answer(*each) for each in record["answers"]]
        watching.notes = list(record["notes"])
        return watching
