"""What a model is to watch for a benchmark, and what comes of it: jobs in, commentaries and answers out.

Owns the interface between benchmarks and whoever watches: `StreamCommentator` (`eval.stream_commentator`) is a model of this
library, tests have another. Does not know benchmarks, nor how a video is watched. Host side, never jax.
Units: seconds of the video.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from svlm_jax.eval.commentary import Utterance

Clock = Literal["video", "clip"]


class Job(NamedTuple):
    """A part of a video that is watched by a stream of its own, from its first chunk to its last.

    Attributes:
        key: its permanent name, in files and in the list of finished jobs.
        path: of the video.
        start, end: as many chunks as it takes to reach `end`; the last may go beyond it.
        query: the text of the first turn.
        previous: commentary that came before.
        questions: (second, text): each is asked with the first chunk that ends at that second or later, one a chunk.
        seed: of what is drawn: `job_seed`.
        clock: the times in the prompts: seconds of the "video", or of the "clip", which begins at 0. Results are always in
            those of the video.
    """

    key: str
    path: str | Path
    start: float
    end: float
    query: str = ""
    previous: str = ""
    questions: tuple[tuple[float, str], ...] = ()
    seed: int = 0
    clock: Clock = "video"


class Answer(NamedTuple):
    """The reply to a question, whose chunk ended at second `time`. refused: why it was not asked; time and text are then of
    no meaning."""

    question: str
    time: float = 0.0
    text: str = ""
    refused: str = ""


class Finished(NamedTuple):
    """What came of a job.

    Attributes:
        utterances: one a chunk, in order; "" for silence.
        answers: one a question, in order.
        error: why not all of it was watched; utterances and answers are then of what was. "": it was watched to its end.
        notes: what was unusual about the video.
    """

    job: Job
    utterances: tuple[Utterance, ...]
    answers: tuple[Answer, ...] = ()
    error: str = ""
    notes: tuple[str, ...] = ()


class Commentator(Protocol):
    """Watches videos. `settings`: JSON, what a result needs to be repeated (model, windows, sampling)."""

    def settings(self) -> dict[str, Any]: ...

    def run(self, jobs: Sequence[Job], *, skip: Collection[str] = ()) -> Iterator[Finished]:
        """Watch jobs, several at a time; each comes as it is finished, in any order. What it says depends on the job alone, not
        on the order, on `skip` or on a run that was killed before.

        Args:
            jobs: all of the benchmark, so that no result depends on which part of it is run where.
            skip: keys of jobs that are not to be watched: finished before, or another shard's.
        """
        ...


def job_seed(seed: int, key: str) -> int:
    """The seed of a job, of 32 bits: of the run's seed and the job's key alone, so that order and sharding do not matter."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:4], "big")
