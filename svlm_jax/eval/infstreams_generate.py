"""Inf-Streams-Eval: which parts of a game a model watches, what it knows when it begins, and the answer files that come of it.

Owns the published protocol of generation, and what of a run is done already. A game is one stream from second 1000 to its last
word; or many, of 100 s each, that begin anew and know the true words until then. Units: seconds of the video.

Source: eval/model_compete of StreamingVLM's code. What differs: previous text is cut to sink and window before the first chunk
(there all of it is prefilled and cut before the second), all words that ended before the start are in it (there those after the
first later one are missing), seeds do not depend on sharding, and a reply loses nothing but its own " ...".
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from svlm_jax.errors import InputError
from svlm_jax.eval import lines
from svlm_jax.eval.commentator import Commentator, Finished, Job, job_seed
from svlm_jax.eval.infstreams import START, Game, answer_name, answer_record, said_before
from svlm_jax.files import parse_json

CHUNK = 100.0  # seconds of a stream that begins anew
STATE = "state"  # folder of what a killed run goes on with: published scripts read every .jsonl beside run.json
UNKNOWN = "unknown"


class Protocol(NamedTuple):
    """start: second at which streams begin. chunk: seconds of a stream; None: a game is one stream. query: of the first turn.
    previous_text: whether streams are told what was said before."""

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
    return [_job(game, videos, protocol, begin, min(begin + length, end)) for begin in starts]


def _job(game: Game, videos: Path, protocol: Protocol, start: float, end: float) -> Job:
    key = f"{game.video}:{start:g}-{end:g}"
    said = said_before(game.words, start) if protocol.previous_text else ""
    previous = f" {said}" if said else ""  # training has a blank before each word, the first one too
    return Job(key, videos / game.video, start, end, protocol.query, previous, seed=job_seed(protocol.seed, key))


class Generation:
    """The answer files of a run. A file takes its name when its game is complete; until then the rows of its streams are kept
    beside. Several processes may work on one run, each on its own games.

    A stream of which not all was watched has a row with the reason, and is watched again when its video is another file than
    it was.
    """

    def __init__(
        self, folder: Path, games: Sequence[Game], jobs: Sequence[Sequence[Job]], shard: tuple[int, int] = (1, 1)
    ) -> None:
        """Args:
        jobs: of each game.
        shard: (K, N): this process works on every N-th game, from the K-th on.
        """
        self.folder, self.games, self.jobs = folder, games, jobs
        first, count = shard
        self.mine = range(first - 1, len(games), count)
        self.number = {job.key: number for number, game_jobs in enumerate(jobs) for job in game_jobs}
        self.job = {job.key: job for game_jobs in jobs for job in game_jobs}
        self.rows: dict[str, dict[str, Any]] = {}
        self.stamps: dict[str, Any] = {}  # of the video of a row
        state = folder / STATE
        state.mkdir(exist_ok=True)
        self.appender = lines.Appender(state / f"rows_{first}_of_{count}.jsonl")
        self._read_rows(state)
        self.done = {job.key for job in self.job.values() if self._is_done(job)}

    def _read_rows(self, state: Path) -> None:
        for path in sorted(state.glob("rows_*.jsonl")):
            complete = path.read_bytes().rpartition(b"\n")[0]  # another process may be writing the last line
            for text in complete.splitlines():
                line = parse_json(text, path.name, "a line written here")
                self.rows[line["key"]], self.stamps[line["key"]] = line["row"], line["stamp"]
        for number, jobs in enumerate(self.jobs):
            if self._file(number).is_file():
                found = lines.read(self._file(number), "answers written here", lambda record, source: record, lines.BadLines())
                for job, row in zip(jobs, found, strict=True):
                    self.rows.setdefault(job.key, row)

    def _is_done(self, job: Job) -> bool:
        if self.number[job.key] not in self.mine:
            return True
        row = self.rows.get(job.key)
        return row is not None and ("error" not in row or self.stamps.get(job.key, UNKNOWN) in (UNKNOWN, _stamp(job.path)))

    def run(self, commentator: Commentator) -> Iterator[Finished]:
        """Watch what is not done, and write each game when it is; yields the streams as they end."""
        with self.appender:
            for number in self.mine:
                if not self._file(number).is_file():
                    self._write_if_complete(number)
            for finished in commentator.run(list(self.job.values()), skip=self.done):
                self._take(finished)
                yield finished

    def _take(self, finished: Finished) -> None:
        job, number = finished.job, self.number[finished.job.key]
        end = finished.utterances[-1].end if finished.utterances else job.start
        row = answer_record(self.games[number].video, job.start, end, finished.utterances)
        row |= {"error": finished.error} if finished.error else {}
        self.rows[job.key], self.stamps[job.key] = row, _stamp(job.path)
        self.appender.add({"key": job.key, "row": row, "stamp": self.stamps[job.key]})
        self._write_if_complete(number)

    def _write_if_complete(self, number: int) -> None:
        keys = [job.key for job in self.jobs[number]]
        if keys and all(key in self.rows for key in keys):
            lines.write(self._file(number), [self.rows[key] for key in keys])

    def _file(self, number: int) -> Path:
        return self.folder / answer_name(self.games[number].video)

    @property
    def errors(self) -> list[tuple[str, str]]:
        """(key of a stream of this process, why not all of it was watched), those of earlier runs too."""
        mine = [job.key for number in self.mine for job in self.jobs[number]]
        return [(key, self.rows[key]["error"]) for key in mine if "error" in self.rows.get(key, ())]

    @property
    def complete(self) -> int:
        """Games of this process that have their file."""
        return sum(self._file(number).is_file() for number in self.mine)


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
