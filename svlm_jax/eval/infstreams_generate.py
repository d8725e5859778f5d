"""Inf-Streams-Eval: which parts of a game a model watches, its previous text, and the answer files.

Owns the published protocol of generation, and which jobs of a run are done. A game is one stream from second 1000 to its last
word; or many, of 100 s each, that begin anew and know the true words until then. Units: seconds of the video.

Source: eval/model_compete of StreamingVLM's code. What differs: previous text is cut to sink and window before the first chunk
(there all of it is prefilled and cut before the second), all words that ended before the start are in it (there those after the
first later one are missing), seeds do not depend on sharding, and a reply loses nothing but its own " ...".
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from svlm_jax import json_lines
from svlm_jax.errors import InputError
from svlm_jax.eval.commentator import Commentator, Finished, Job, job_seed
from svlm_jax.eval.infstreams import START, Game, Segment, answer_name, answer_record, said_before
from svlm_jax.files import parse_json

CHUNK = 100.0  # seconds of a stream that begins anew
STATE = "state"  # folder of what a killed run goes on with: published scripts read every .jsonl beside run.json


class Protocol(NamedTuple):
    """start: second at which streams begin. chunk: seconds of a stream; None: a game is one stream. query: of the first turn.
    previous_text: whether streams start with the words before them."""

    start: float = START
    chunk: float | None = None
    query: str = ""
    seed: int = 0
    previous_text: bool = True


def game_jobs(game: Game, videos: Path, protocol: Protocol) -> list[Job]:
    """The streams of a game, in order; none where it ends before they begin."""
    start, end = protocol.start, int(game.words[-1].end)
    length = protocol.chunk or max(end - start, 1)
    starts = [start + number * length for number in range(math.ceil((end - start) / length))]
    return [_job(game, videos, protocol, start, min(start + length, end)) for start in starts]


def _job(game: Game, videos: Path, protocol: Protocol, start: float, end: float) -> Job:
    key = f"{game.video}:{start:g}-{end:g}"
    text = said_before(game.words, start) if protocol.previous_text else ""
    previous = f" {text}" if text else ""  # training has a blank before each word, the first one too
    return Job(key, videos / game.video, float(start), float(end), protocol.query, previous, seed=job_seed(protocol.seed, key))


def segment_jobs(segments: Sequence[Segment], videos: Path, query: str = "") -> dict[str, list[Job]]:
    """By video: the segments as jobs, for a model that is shown one as a whole (`eval.captioner`)."""
    jobs: dict[str, list[Job]] = {}
    for each in segments:
        jobs.setdefault(each.video, []).append(Job(each.key, videos / each.video, each.start, each.end, query))
    return jobs


class Generation:
    """The answer files of a run. A file takes its name when its game is complete; until then the rows of its jobs are kept
    beside. Several processes may work on one run, each on its own games.

    A job of which not all was watched has a row with the reason. It is watched again if nothing of it was, or if its video is
    another file now.
    """

    def __init__(
        self, folder: Path, jobs: Mapping[str, Sequence[Job]], shard: tuple[int, int] = (1, 1), *, a_line_a_game: bool = False
    ) -> None:
        """Args:
        jobs: of each game, by its video.
        shard: (K, N): this process works on every N-th game, from the K-th on.
        a_line_a_game: jobs are segments, and the answer to one is an item; otherwise a job is a line.
        """
        self.folder, self.jobs, self.a_line_a_game = folder, jobs, a_line_a_game
        first, count = shard
        self.shard_videos = list(jobs)[first - 1 :: count]
        self.game = {job.key: video for video, game_jobs in jobs.items() for job in game_jobs}
        self.job = {job.key: job for game_jobs in jobs.values() for job in game_jobs}
        self.rows: dict[str, dict[str, Any]] = {}
        self.stamps: dict[str, Any] = {}  # of the video of a row
        state = folder / STATE
        state.mkdir(exist_ok=True)
        self.appender = json_lines.Appender(state / f"rows_{first}_of_{count}.jsonl")
        for path in sorted(state.glob("rows_*.jsonl")):
            complete = path.read_bytes().rpartition(b"\n")[0]  # another process may be writing the last line
            for text in complete.splitlines():
                line = parse_json(text, path.name, "a line written here")
                self.rows[line["key"]], self.stamps[line["key"]] = line["row"], line["stamp"]
        self.done = {job.key for job in self.job.values() if self._is_done(job)}

    def _is_done(self, job: Job) -> bool:
        if self.game[job.key] not in self.shard_videos:
            return True
        if (row := self.rows.get(job.key)) is None:
            return self._file(self.game[job.key]).is_file()  # complete, and what it was made of is removed
        return bool("error" not in row or (row["items"] and self.stamps[job.key] == _stamp(job.path)))

    def run(self, commentator: Commentator) -> Iterator[Finished]:
        """Watch what is not done, and write each game when it is; yields the jobs as they end."""
        with self.appender:
            for video in self.shard_videos:
                self._write_if_complete(video)
            for finished in commentator.run(list(self.job.values()), skip=self.done):
                self._take(finished)
                yield finished

    def _take(self, finished: Finished) -> None:
        job, utterances = finished.job, finished.utterances
        row = answer_record(self.game[job.key], job.start, utterances[-1].end if utterances else job.start, utterances)
        row |= {"error": finished.error} if finished.error else {}
        self.rows[job.key], self.stamps[job.key] = row, _stamp(job.path)
        self.appender.add({"key": job.key, "row": row, "stamp": self.stamps[job.key]})
        self._write_if_complete(self.game[job.key])

    def _write_if_complete(self, video: str) -> None:
        jobs = self.jobs[video]
        if jobs and all(job.key in self.rows for job in jobs):
            rows = [self.rows[job.key] for job in jobs]
            json_lines.write(self._file(video), [_as_one(jobs, rows)] if self.a_line_a_game else rows)

    def _file(self, video: str) -> Path:
        return self.folder / answer_name(video)

    @property
    def errors(self) -> list[tuple[Job, str]]:
        """Jobs of this process of which not all was watched, and why, those of earlier runs too."""
        shard_jobs = [job for video in self.shard_videos for job in self.jobs[video]]
        return [(job, self.rows[job.key]["error"]) for job in shard_jobs if "error" in self.rows.get(job.key, ())]

    @property
    def complete(self) -> int:
        """Games of this process that have their file."""
        return sum(self._file(video).is_file() for video in self.shard_videos)


def _as_one(jobs: Sequence[Job], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Answers to segments as the published ones of GPT: a line a game, an item a segment without a start. A segment that was
    not answered has no item."""
    items = [{"response": item["response"], "end_time": int(item["end_time"])} for row in rows for item in row["items"]]
    names = {key: rows[0][key] for key in ("video", "path")}
    return {**names, "chunk_start": int(jobs[0].start), "chunk_end": int(max(job.end for job in jobs)), "items": items}


def _stamp(path: str | Path) -> list[int] | None:
    """Another one when a file was replaced; None: there is none."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def shard_of(text: str) -> tuple[int, int]:
    """ "K/N" as (K, N), K from 1 to N.

    Raises:
        InputError: anything else.
    """
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise InputError("--shard", repr(text), "K/N, K from 1 to N", "write 1/8, 2/8 ... 8/8, one a process")
    return int(first), int(last)
