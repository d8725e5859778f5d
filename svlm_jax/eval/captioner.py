"""A model behind OpenAI's chat protocol that is shown frames: GPT, or any server that takes pictures, run on our benchmarks.

It answers questions (`ChatModel`, an `Answerer`) and comments on segments (`ChatCommentator`, a `Commentator`), by the protocol
of the GPT baseline of Inf-Streams-Eval: a frame every 4 s with both ends, 60 at most, 360 pixels high at most, JPEG of quality
85. Every answer is in the client's cache. Units: seconds of the video, pixels.
"""

import base64
import hashlib
import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from svlm_jax.errors import InputError
from svlm_jax.eval.commentary import Utterance
from svlm_jax.eval.commentator import Answer, Finished, Job
from svlm_jax.eval.frames import FrameSet, prefix
from svlm_jax.eval.models import Request
from svlm_jax.remote.chat_client import ChatClient
from svlm_jax.remote.connection import RequestError
from svlm_jax.remote.workers import Workers

SECONDS_PER_FRAME = 4.0
MAX_FRAMES = 60
MAX_HEIGHT = 360
JPEG_QUALITY = 85
QUERY = "Comment on this video."
SYSTEM = Path(__file__).with_name("prompts") / "captioner.txt"
_PICTURES = {"max_height": MAX_HEIGHT, "jpeg_quality": JPEG_QUALITY}


class ChatModel:
    """An `Answerer`: pictures, then the question, at temperature 0 where the model takes one."""

    def __init__(self, client: ChatClient) -> None:
        self.client = client

    def settings(self) -> dict[str, Any]:
        return {"model": self.client.model, "server": "chat", "temperature": 0.0, **_PICTURES}

    def answer(self, request: Request) -> str:
        """Raises:
        InputError: no answer after all retries; what was answered before is in the cache.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": request.text}]
        if request.frames is not None:
            content = [_text(_caption(request.frames)), *_pictures(request.frames), *content]
        messages = _messages(request.system, content)
        try:
            reply = self.client.complete(messages, temperature=0.0, max_tokens=request.max_new_tokens)
            if not reply.text and reply.details.get("finish_reason") == "length":  # spent on thoughts
                reply = self.client.complete(messages, temperature=0.0)
        except RequestError as error:
            field, remedy = f"{self.client.flag}-url", "run again: what was answered is kept"
            raise InputError(field, f"no answer ({error})", "a server that answers", remedy) from None
        return reply.text


class ChatCommentator:
    """A `Commentator` that says one thing about each job as a whole, from its frames: a job is a segment.

    A job that the server did not answer comes with an error and without utterances. Questions in mid-stream are refused.
    """

    def __init__(self, client: ChatClient, *, concurrency: int = 8, with_previous: bool = False) -> None:
        """
        Args:
            with_previous: the commentary before the segment is shown too, as offline captioners of LiveSports-3K are; the GPT
                baseline of Inf-Streams-Eval is not.
        """
        self.client, self.concurrency, self.with_previous = client, concurrency, with_previous
        self.system = SYSTEM.read_text(encoding="utf-8").strip()

    def settings(self) -> dict[str, Any]:
        return {
            "model": self.client.model,
            "server": "chat",
            "seconds_per_frame": SECONDS_PER_FRAME,
            "max_frames": MAX_FRAMES,
            "with_previous": self.with_previous,
            "system_sha256": hashlib.sha256(self.system.encode()).hexdigest(),
            **_PICTURES,
        }

    def run(self, jobs: Sequence[Job], *, skip: Collection[str] = ()) -> Iterator[Finished]:
        """Each job as it is finished.

        Raises:
            InputError: nothing can be asked at all (a wrong key, an unknown model).
        """
        workers = Workers(self.comment, [job for job in jobs if job.key not in skip], self.concurrency)
        try:
            for _, finished in workers:
                if isinstance(finished, Exception):
                    raise finished
                yield finished
        finally:
            for _ in workers.stop():
                pass  # in the cache

    def comment(self, job: Job) -> Finished:
        """One utterance from the start of a job to its end."""
        refused = tuple(Answer(text, refused="a captioner is not asked in mid-stream") for _, text in job.questions)
        try:
            frames = segment_frames(job.path, job.start, job.end)
        except InputError as error:
            return Finished(job, (), refused, error=str(error))
        try:
            reply = self.client.complete(_messages(self.system, [_text(self._request(job, frames)), *_pictures(frames)]))
        except RequestError as error:
            return Finished(job, (), refused, error=f"no answer ({error})")
        return Finished(job, (Utterance(job.start, job.end, reply.text),), refused)

    def _request(self, job: Job, frames: FrameSet) -> str:
        offset = job.start if job.clock == "clip" else 0.0
        lines = [job.query or QUERY]
        if self.with_previous and job.previous.strip():
            lines.append(f"What was said before:\n{job.previous.strip()}")
        lines.append(f"The frames are of second {job.start - offset:g} to {job.end - offset:g}, {_rate(frames)}.")
        return "\n".join(lines)


def num_frames(seconds: float) -> int:
    """How many frames of a segment are shown."""
    return min(MAX_FRAMES, max(2, round(seconds / SECONDS_PER_FRAME) + 1))


def segment_frames(path: str | Path, start: float, end: float) -> FrameSet:
    """Frames of a segment, evenly spaced from its start to its end.

    Raises:
        InputError: a file that cannot be read, or that ends before `start`.
    """
    return prefix(path, end, start=start, max_frames=num_frames(end - start))


def _caption(frames: FrameSet) -> str:
    return f"{len(frames.pixels)} frames of a video from second {frames.start:g} on, {_rate(frames)}:"


def _rate(frames: FrameSet) -> str:
    return f"one every {1 / frames.fps:.2g} s" if frames.fps < 1 else f"{frames.fps:.2g} a second"


def _messages(system: str, content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": content}]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _pictures(frames: FrameSet) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": jpeg_url(pixels)}} for pixels in frames.pixels]


def jpeg_url(pixels: np.ndarray) -> str:
    """uint8 [H, W, 3] as a data: address of a JPEG, at most MAX_HEIGHT high."""
    image = Image.fromarray(pixels)
    if image.height > MAX_HEIGHT:
        width = max(1, round(image.width * MAX_HEIGHT / image.height))
        image = image.resize((width, MAX_HEIGHT), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
