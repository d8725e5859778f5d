"""The verb `generate` of `svlm evaluate infstreams`: its flags, and what it does with them."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from svlm_jax.cli.evaluate.captioner_flags import captioner_client, captioner_flags
from svlm_jax.cli.evaluate.commentator_flags import (
    RECENT_FRAMES,
    commentator_flags,
    estimate,
    make_commentator,
    query_flags,
    query_of,
    recent_flag,
    stopping,
)
from svlm_jax.cli.flags import Parser, integer, number
from svlm_jax.cli.progress import Progress
from svlm_jax.errors import InputError
from svlm_jax.eval import infstreams_generate as generation
from svlm_jax.eval.commentator import Commentator, Job
from svlm_jax.eval.infstreams import START, Game, read_games, read_segments
from svlm_jax.eval.run_directory import open_run
from svlm_jax.json_lines import BadLines, digest

MODES = {
    "infinite": "one stream a game, which lives with its own words",
    "chunk": "a stream every --chunk seconds, which begins with the true words until then",
    "recent": "no memory: each second the query and the newest --frames alone",
    "window": "all is forgotten every --window-chunks chunks",
}
RUN_AGAIN = "mend it and run again, or allow it with --bad"


def add_flags(parser: Parser) -> None:
    """Flags of `generate`."""
    data = parser.add_argument_group("games")
    data.add_argument("--games", type=Path, metavar="GAMES.jsonl", help="eval_all_metadata.jsonl")
    data.add_argument("--videos", type=Path, required=True, metavar="DIR", help="folder that the games' videos are in")
    data.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of answers; a killed run goes on in it")
    # `mode` is a field of StreamConfig, and `stream_settings` takes those from the flags
    modes = "; ".join(f"{name}: {text}" for name, text in MODES.items())
    data.add_argument("--mode", dest="protocol", choices=MODES, help=modes)
    data.add_argument(
        "--chunk",
        type=number(1),
        metavar="S",
        help=f"with --mode chunk: seconds of a stream (default {generation.CHUNK:g})",
    )
    recent_flag(data)
    data.add_argument("--start", type=number(0), default=START, metavar="S", help=f"where streams begin (default {START})")
    exact = "prefill all that was said before a stream, as the original does (default: cut to sink and window first)"
    data.add_argument("--exact-seed", action="store_true", help=exact)
    data.add_argument("--shard", metavar="K/N", default="1/1", help="this process takes every N-th game, from the K-th on")
    bad = "bad lines, broken times of words and videos that cannot be watched to their end that are allowed (default 0)"
    data.add_argument("--bad", type=integer(0), default=0, metavar="N", help=bad)
    query_flags(data)
    commentator_flags(parser)
    captioner_flags(parser)
    parser.add_argument(
        "--clips", type=Path, metavar="CLIPS.jsonl", help="with --captioner-url: segments, each shown as a whole"
    )


def run(args: argparse.Namespace) -> None:
    """Have a model comment on games."""
    if args.captioner_url or args.captioner_model:
        _caption(args)
    else:
        _stream(args)


def _stream(args: argparse.Namespace) -> None:
    bad, shard = BadLines(args.bad), generation.shard_of(args.shard)
    protocol = _protocol(args)
    games = read_games(args.games, bad)
    jobs = {game.video: generation.game_jobs(game, args.videos, protocol) for game in games}
    _check_length(games, jobs, protocol.start)
    shard_jobs = [job for video in list(jobs)[shard[0] - 1 :: shard[1]] for job in jobs[video]]
    reported_paths = _check_videos(shard_jobs, bad)
    state = args.out / generation.STATE / f"streams_{shard[0]}_of_{shard[1]}.state"
    recent = (args.frames or RECENT_FRAMES) if args.protocol == "recent" else None
    stream: dict[str, Any] = {"mode": "window"} if args.protocol == "window" else {}
    count = sum(map(len, jobs.values()))
    options = {"recent_frames": recent, "exact_seed": args.exact_seed, "state": state}
    commentator = make_commentator(args, num_jobs=count, **options, **stream)
    settings = {"benchmark": "infstreams", "mode": args.protocol, **protocol._asdict(), "data": {"games": digest(args.games)}}
    folder = open_run(args.out, {**settings, **commentator.settings()})
    answer_files = generation.Generation(folder, jobs, shard)
    pending = [job for job in shard_jobs if job.key not in answer_files.done]
    seconds = sum(job.end - job.start for job in pending)
    unit = "streams" if args.protocol == "chunk" else "games"
    already = f" ({len(shard_jobs) - len(pending)} done before)" if len(pending) < len(shard_jobs) else ""
    print(estimate(len(pending), seconds, commentator.num_streams, unit) + already, file=sys.stderr, flush=True)
    with stopping(commentator):
        _watch(answer_files, commentator)
    _report(answer_files, bad, reported_paths)


def _caption(args: argparse.Namespace) -> None:
    from svlm_jax.eval.captioner import ChatCommentator, num_frames

    for flag, value in (("--mode", args.protocol), ("--chunk", args.chunk), ("--frames", args.frames)):
        if value:
            raise InputError(flag, f"{value} with --captioner-url", "none: segments are shown as a whole", "leave it out")
    if args.clips is None:
        raise InputError("--clips", "nothing", "the segments that a captioner is shown", "give --clips CLIPS.jsonl")
    bad, shard = BadLines(args.bad), generation.shard_of(args.shard)
    query = query_of(args) if args.query or args.query_file else ""
    jobs = generation.segment_jobs(read_segments(args.clips, bad), args.videos, query)
    shard_jobs = [job for video in list(jobs)[shard[0] - 1 :: shard[1]] for job in jobs[video]]
    reported_paths = _check_videos(shard_jobs, bad)
    client = captioner_client(args, args.out)
    assert client is not None
    commentator = ChatCommentator(client, concurrency=args.concurrency)
    settings = {"benchmark": "infstreams", "mode": "captioner", "query": query, "data": {"clips": digest(args.clips)}}
    folder = open_run(args.out, {**settings, **commentator.settings()})
    answer_files = generation.Generation(folder, jobs, shard, a_line_a_game=True)
    pending = [job for job in shard_jobs if job.key not in answer_files.done]
    frames = sum(num_frames(job.end - job.start) for job in pending)
    print(f"{len(pending)} of {len(shard_jobs)} segments to ask for, {frames} frames", file=sys.stderr, flush=True)
    _watch(answer_files, commentator, Progress("asked", "segments"), len(pending))
    _report(answer_files, bad, reported_paths)


def _watch(
    answer_files: generation.Generation, commentator: Commentator, progress: Progress | None = None, total: int | None = None
) -> None:
    for done, finished in enumerate(answer_files.run(commentator), 1):
        if progress is not None:
            progress(done, total or done)
        for note in finished.notes:
            print(f"{finished.job.key}: {note}", file=sys.stderr)


def _report(answer_files: generation.Generation, bad: BadLines, reported_paths: set[str]) -> None:
    """Print the number of games that are complete, and report each video that was not watched to its end, once.

    Raises:
        InputError: more than is allowed.
    """
    print(f"{answer_files.complete} of {len(answer_files.shard_videos)} games -> {answer_files.folder}")
    for job, error in answer_files.errors:
        if str(job.path) not in reported_paths:
            reported_paths.add(str(job.path))
            bad.add(InputError(job.key, error, "all of it", RUN_AGAIN), "kept as far as it goes")


def _protocol(args: argparse.Namespace) -> generation.Protocol:
    from svlm_jax.cli.stream_flags import stream_settings

    for flag, value in (("--games", args.games), ("--mode", args.protocol)):
        if value is None:
            raise InputError(flag, "nothing", "a value, or --captioner-url and --clips", "add it")
    for flag, value, mode in (("--chunk", args.chunk, "chunk"), ("--frames", args.frames, "recent")):
        if value and args.protocol != mode:
            raise InputError(flag, f"{value:g} with --mode {args.protocol}", f"--mode {mode} with it", "leave it out")
    if args.clips is not None:
        raise InputError("--clips", "segments for a model that is not asked for", "--captioner-url with it", "leave it out")
    chunk = (args.chunk or generation.CHUNK) if args.protocol == "chunk" else None
    has_turn = args.protocol != "recent" and stream_settings(args)[0].previous_text_turn
    return generation.Protocol(args.start, chunk, query_of(args), args.seed, has_turn)


def _check_length(games: Sequence[Game], jobs: Mapping[str, Sequence[Job]], start: float) -> None:
    """Games that end before streams begin are reported; an error if all do."""
    short = [game for game in games if not jobs[game.video]]
    if len(short) == len(games):
        longest = max(game.words[-1].end for game in games)
        raise InputError("--start", f"{start:g}", f"less than {longest:g}, where the longest game ends", "lower it")
    for game in short:
        print(f"{game.video}: left out, it ends before second {start:g}", file=sys.stderr)


def _check_videos(jobs: Sequence[Job], bad: BadLines) -> set[str]:
    """Videos that cannot be watched to their end, as far as that shows before a model is loaded; each is added to `bad`."""
    from svlm_jax.eval.job_video import probe_videos

    reported_paths = set()
    for path, video in probe_videos(jobs).items():
        if video.error:
            outcome = "watched as far as it goes" if video.size else "left out"
            bad.add(video.error, outcome)
            reported_paths.add(path)
    return reported_paths
