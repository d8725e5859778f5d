"""A model of this library watches the jobs of a benchmark: many videos in one batch of streams, as fast as the device can.

A job is a stream of its own; when it has ended, the next one takes its place in the batch. All programs are made for one batch
size and for the largest video of the benchmark, and every step runs them, however many streams have a chunk. So what a job says
does not depend on which others run beside it, on the shard, or on a run that was killed. It may depend on the batch size: other
shapes add up in another order.

Owns the batch. How a video becomes chunks is in `eval.job_video`, how a killed run goes on in `eval.saved_run`.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from svlm_jax.config import ResizeOn, StreamConfig
from svlm_jax.decode.sampling import Sampling
from svlm_jax.errors import InputError
from svlm_jax.eval.commentator import Finished, Job
from svlm_jax.eval.job_video import Chunks, VideoProbe, probe_videos
from svlm_jax.eval.saved_run import SavedRun
from svlm_jax.eval.watching import Watching
from svlm_jax.families.chat import Tokens
from svlm_jax.media.chunks import Chunk as VideoChunk
from svlm_jax.media.chunks import Source
from svlm_jax.media.resize_weights import FrameBox
from svlm_jax.pretrained import Pretrained
from svlm_jax.stream.admission import check_query
from svlm_jax.stream.events import Caption, Ended, Event, Refused
from svlm_jax.stream.frames import frame_box, resizes_on_device
from svlm_jax.stream.playback import Playback, Ready
from svlm_jax.stream.runner import Runner
from svlm_jax.stream.sequence import Chunk
from svlm_jax.stream.session import Session
from svlm_jax.stream.stream_settings import StreamSettings
from svlm_jax.stream.turn_tokenizer import TurnTokenizer, cut_opening, opening_of
from svlm_jax.stream.warmup import OnProgress, warm

SAVE_MINUTES = 5.0
OnWatched = Callable[[int, int], object]  # (chunks watched, chunks of all jobs of this run)


class StreamCommentator:
    """A `Commentator`. One run at a time."""

    def __init__(
        self,
        vlm: Pretrained,
        name: str,
        *,
        config: StreamConfig | None = None,
        sampling: Sampling | None = None,
        num_streams: int = 1,
        recent_frames: int | None = None,
        exact_seed: bool = False,
        resize_on: ResizeOn = "auto",
        state: Path | None = None,
        save_minutes: float = SAVE_MINUTES,
        compiling: Callable[[], AbstractContextManager[OnProgress | None]] = nullcontext,
        watched: OnWatched = lambda done, total: None,
    ) -> None:
        """Args:
        name: of the model, for results.
        config, sampling: how it streams; the model's own by default.
        num_streams: videos at a time.
        recent_frames: no memory at all: each chunk is a fresh prompt of the query and so many of the newest frames.
        exact_seed: all of the previous text is prefilled, and cut before the second chunk, as the original does; by default it
            is cut before the first, as in training. The cache has room for the longest.
        state: where the streams are saved every `save_minutes`, so that a run that was killed goes on from there.
        compiling: entered while programs are compiled; gives what is called with (programs compiled, all of them).
        watched: called with (chunks watched, all of them).
        """
        self.vlm, self.name, self.num_streams, self.recent_frames = vlm, name, num_streams, recent_frames
        self.config = config or vlm.stream
        if recent_frames is not None:
            self.config = recent_config(self.config, recent_frames)
        self.sampling = sampling or vlm.sampling
        self.exact_seed = exact_seed
        self.on_device = resizes_on_device(resize_on, vlm.processor, self.config)
        self.state, self.save_minutes, self.compiling, self.watched = state, save_minutes, compiling, watched
        self.stopped = False

    def settings(self) -> dict[str, Any]:
        model = self.vlm.model.config
        return {
            "model": self.name,
            "dtype": model.dtype,
            "weights": model.weights,
            "stream": asdict(self.config),
            "sampling": asdict(self.sampling),
            "streams": self.num_streams,
            "recent_frames": self.recent_frames,
            "exact_seed": self.exact_seed,
        }

    def stop(self) -> None:
        """End the run after this chunk, with what was watched saved; may be called from a signal handler."""
        self.stopped = True

    def run(self, jobs: Sequence[Job], *, skip: Collection[str] = ()) -> Iterator[Finished]:
        """As `Commentator.run`. With `state`, what an earlier run has saved there goes on, and is removed when all is done.

        Raises:
            InputError: a state of other settings, a query that no stream of these settings can have.
        """
        probes = probe_videos(jobs)
        openings, refused = self._openings(jobs)
        playable = []
        for job in jobs:
            video = probes[os.fspath(job.path)]
            error = refused.get(job.key) or (str(video.error) if video.size is None else "")
            if error and job.key not in skip:
                yield Watching(job, self._chunks(job)).finished(str(error))
            elif job.key not in skip:
                playable.append(job)
        if not playable:
            SavedRun.discard(self.state)
        elif not self.stopped:
            session, clip = self._session(probes.values(), openings.values())
            with Playback(self.vlm.processor, on_device=self.on_device, upload=session.upload) as playback:
                yield from _Batch(self, session, clip, playback, openings).run(playable)

    def _chunks(self, job: Job) -> Chunks:
        return Chunks(job, self.config, self.recent_frames)

    def _openings(self, jobs: Sequence[Job]) -> tuple[dict[str, Tokens], dict[str, InputError]]:
        """By previous text: the turns with which a stream begins; and by key of a job why it cannot begin.

        Raises:
            InputError: none of them can, all for one reason: it is that of the run.
        """
        turns = TurnTokenizer.of(self.vlm.tokenizer, self.vlm.model.config)
        openings, errors = {}, {}
        for text in dict.fromkeys(job.previous for job in jobs):
            try:
                opening = opening_of(text, self.config, turns)
                openings[text] = opening if self.exact_seed else cut_opening(opening, self.config)
            except InputError as error:
                errors["previous", text] = error
        for text in dict.fromkeys(job.query for job in jobs):
            try:
                check_query(text, self.config, turns)
            except InputError as error:
                errors["query", text] = error
        first_errors = {job.key: errors.get(("previous", job.previous)) or errors.get(("query", job.query)) for job in jobs}
        refused = {key: error for key, error in first_errors.items() if error is not None}
        if len(refused) == len(jobs) and len(reasons := set(refused.values())) == 1:
            raise reasons.pop()
        return openings, refused

    def _session(self, probes: Iterable[VideoProbe], openings: Iterable[Tokens]) -> tuple[Session, Any]:
        """For every video of the benchmark, so that no result depends on which of them are watched here."""
        vlm, count = self.vlm, self.recent_frames or self.config.chunk_frames
        clips = []
        for height, width in sorted({video.size for video in probes if video.size}):
            black = VideoChunk(0, 0.0, 1.0, np.zeros((count, height, width, 3), np.uint8))
            clips.append(Playback(vlm.processor, on_device=self.on_device).clip(black, self.config.fps))
        largest = max(clips, key=lambda clip: math.prod(clip.grid))
        boxes = [frame_box(clip, vlm.model.config.vision) for clip in clips]
        box = None if None in boxes else FrameBox(*(max(sides) for sides in zip(*boxes, strict=True)))  # pyright: ignore
        longest = max(openings, key=lambda opening: len(opening.ids))
        options = {"sampling": self.sampling, "num_streams": self.num_streams, "previous": longest, "frame_box": box}
        session = Session(vlm.model, vlm.tokenizer, self.config, largest.grid, **options)
        session.batch_sizes = (self.num_streams,)
        return session, largest


def recent_config(config: StreamConfig, frames: int) -> StreamConfig:
    """Streams that forget everything before each chunk.

    Raises:
        InputError: no whole number of pairs of frames, which is what models take.
    """
    if frames < 2 or frames % 2:
        raise InputError("frames", frames, "an even number, 2 or more", "models take pairs of frames")
    forget = {"mode": "window", "window_chunks": 1, "previous_text_turn": False, "first_chunk_seconds": None}
    return replace(config, **forget)


class _Batch:
    """One run: which jobs are in the batch, and what is still to come."""

    def __init__(
        self, commentator: StreamCommentator, session: Session, clip: Any, playback: Playback, openings: dict[str, Tokens]
    ) -> None:
        self.commentator, self.playback, self.openings = commentator, playback, openings
        self.runner = Runner(session)
        with commentator.compiling() as progress:
            self.runner.state = warm(session, self.runner.state, clip, progress=progress)
        self.watching: dict[str, Watching] = {}
        self.sources: dict[str, Source] = {}
        self.done = 0  # chunks

    def run(self, jobs: Sequence[Job]) -> Iterator[Finished]:
        commentator = self.commentator
        total = sum(commentator._chunks(job).total for job in jobs)
        # The longest first: at the end no place is free for long. A cache that grows is to grow late.
        queue = deque(sorted(jobs, key=lambda job: job.end - job.start, reverse=commentator.config.bounded))
        with SavedRun(commentator.state, self.runner, commentator.save_minutes) as saved:
            for watching in saved.resume(jobs, commentator._chunks):
                self.open(watching)
                queue.remove(watching.job)
            while not commentator.stopped:
                yield from self.fill(queue)
                if not self.watching:
                    return saved.remove()
                yield from self.tick()
                commentator.watched(self.done + sum(len(each.utterances) for each in self.watching.values()), total)
                saved.save_now_and_then(self.watching)
            saved.save(self.watching)

    def fill(self, queue: deque[Job]) -> Iterator[Finished]:
        """Jobs for the free places of the batch."""
        while queue and len(self.watching) < self.commentator.num_streams:
            job = queue.popleft()
            watching = Watching(job, self.commentator._chunks(job))
            try:
                self.runner.join(job.key, StreamSettings(query=job.query, previous=self.openings[job.previous], seed=job.seed))
                self.open(watching)
            except InputError as error:
                yield self.finish(watching, str(error))

    def open(self, watching: Watching) -> None:
        """Read its video from the chunk on with which it goes on."""
        source, chunks = watching.chunks.open(len(watching.utterances))
        self.playback.open(watching.job.key, source, chunks)
        self.watching[watching.job.key], self.sources[watching.job.key] = watching, source

    def finish(self, watching: Watching, error: str = "") -> Finished:
        key = watching.job.key
        self.playback.close(key)
        self.runner.leave(key)
        self.watching.pop(key, None)
        self.sources.pop(key, None)
        self.done += watching.chunks.total
        return watching.finished(error)

    def tick(self) -> Iterator[Finished]:
        """Watch the next chunk of every stream."""
        self.playback.wait()
        ready, events = self.playback.poll()
        chunks = {key: self.chunk(key, item) for key, item in ready.items()}
        for event in [*self.runner.tick(chunks), *events]:
            watching = self.watching.get(event.stream)
            if watching is None:
                continue
            take(watching, event)
            if watching.is_complete:
                yield self.finish(watching)
            elif isinstance(event, Ended):
                watching.notes += [text for _, text in self.sources[event.stream].notes]  # of what comes after its last chunk
                yield self.finish(watching, str(event.error) if event.error else _short(watching))

    def chunk(self, key: str, item: Ready) -> Chunk:
        watching = self.watching[key]
        if item.note:
            watching.notes.append(f"{watching.chunks.span(len(watching.utterances))[0]:g} s: {item.note}")
        return Chunk(item.start, item.end, item.clip, watching.question())


def take(watching: Watching, event: Event) -> None:
    """Add the reply to a chunk, or the refusal of its question."""
    match event:
        case Refused():
            watching.add_refusal(event.question, str(event.error))
        case Caption():
            watching.add_reply(event.text, event.question)


def _short(watching: Watching) -> str:
    """A video that ended before its job."""
    job, number = watching.job, len(watching.utterances)
    end = watching.chunks.span(number - 1)[1] if number else job.start
    reason = f" ({watching.notes[-1]})" if watching.notes else ""
    return f"video {os.fspath(job.path)}: ends at {end:g} s, {job.end - end:g} s before the end of {job.key}{reason}"
