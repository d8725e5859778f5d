"""The video of a job: whether it can be watched, at what size, and its chunks with the times in the prompts.

Owns which second is which chunk, so that a job that goes on in the middle has the same chunks as one that did not stop. Does
not know the model. Host side, never jax. Units: seconds of the video. Axes: F frames, H, W pixels.
"""

import math
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError, shortened
from svlm_jax.eval.commentator import Job
from svlm_jax.eval.frames import end_within
from svlm_jax.media.chunks import Chunk, Source
from svlm_jax.media.sources import open_source
from svlm_jax.media.video import SLACK, sample_video


class VideoProbe(NamedTuple):
    """size: height and width of the frames of a video; error: why it cannot be watched to the end of its jobs.
    Without a size it cannot be watched at all."""

    size: tuple[int, int] | None
    error: InputError | None = None


def probe_videos(jobs: Iterable[Job]) -> dict[str, VideoProbe]:
    """The videos of some jobs, by path: decodes a frame of each, and reads how long it is."""
    spans: dict[str, tuple[float, float]] = {}
    for job in jobs:
        path = os.fspath(job.path)
        start, end = spans.get(path, (job.start, job.end))
        spans[path] = min(start, job.start), max(end, job.end)
    return {path: _probe(path, start, end) for path, (start, end) in spans.items()}


def _probe(path: str, start: float, end: float) -> VideoProbe:
    try:
        length = end_within(path, end)
        _, frame = next(iter(sample_video(path, 1.0, start, 1.0, lambda second, text: None)))
    except InputError as error:
        return VideoProbe(None, error)
    height, width = frame.shape[:2]
    if length <= math.ceil(end) - 1:
        got, expected = f"{length:.1f} s of video", f"{end:g} s, to the end of what is watched"
        return VideoProbe((height, width), InputError(f"video {shortened(path, 100)}", got, expected, "replace it"))
    return VideoProbe((height, width))


class Chunks:
    """The chunks of a job.

    recent_frames: how many of the newest frames the model sees with each chunk, those of the chunk among them; None: those of
    the chunk.
    """

    def __init__(self, job: Job, config: StreamConfig, recent_frames: int | None = None) -> None:
        self.job, self.fps, self.seconds, self.recent_frames = job, config.fps, config.chunk_seconds, recent_frames
        first = config.first_chunk_seconds
        self.first_seconds = self.seconds if first is None else first
        length = job.end - job.start - self.first_seconds
        self.total = 1 + max(0, math.ceil(length / self.seconds - SLACK))

    def span(self, number: int) -> tuple[float, float]:
        """Start and end of a chunk, as exact as floats are, wherever the job goes on."""
        start = self.job.start if number == 0 else self.span(0)[1] + (number - 1) * self.seconds
        return start, start + (self.seconds if number else self.first_seconds)

    def open(self, first: int = 0) -> tuple[Source, Iterator[Chunk]]:
        """The source of the job's chunks from a number on, and these chunks.

        Raises:
            InputError: a video that is not there; later, when it is read, one that cannot be decoded.
        """
        start, before = self.span(first)[0], self._before(first)
        timing = {"fps": self.fps, "chunk_seconds": self.seconds, "start": start - before * self.seconds}
        timing["duration"] = self.span(self.total - 1)[1] - timing["start"]
        timing["first_chunk_seconds"] = None if first else self.first_seconds
        source = open_source(self.job.path, **timing)
        return source, self._chunks(source, first, before)

    def _before(self, first: int) -> int:
        """Chunks whose frames are still among the newest when a job begins. A clip has none before its beginning."""
        if self.recent_frames is None:
            return 0
        own = round(self.fps * self.seconds)
        needed_chunks = math.ceil((self.recent_frames - own) / own)
        earliest_second = self.job.start if self.job.clock == "clip" else 0.0
        return max(0, min(needed_chunks, math.floor((self.span(first)[0] - earliest_second) / self.seconds + SLACK)))

    def _chunks(self, source: Source, first: int, before: int) -> Iterator[Chunk]:
        origin = self.job.start if self.job.clock == "clip" else 0
        newest_frames: list[np.ndarray] = []
        for number, chunk in enumerate(source, first - before):
            frames = chunk.frames
            if self.recent_frames is not None:
                newest_frames = [*newest_frames, *frames][-self.recent_frames :]
                frames = np.stack(newest_frames)
            if number < first:
                continue
            start, end = self.span(number)
            start = start if self.recent_frames is None else end - len(frames) / self.fps
            yield Chunk(number, start - origin, end - origin, frames, chunk.note)
