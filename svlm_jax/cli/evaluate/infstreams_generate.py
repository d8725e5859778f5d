"""The verb `generate` of `svlm evaluate infstreams`: its flags, and what it does with them."""

import argparse
import sys
from pathlib import Path
from typing import Any

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
from svlm_jax.errors import InputError
from svlm_jax.eval import infstreams_generate as generation
from svlm_jax.eval.commentator import Job
from svlm_jax.eval.infstreams import START, Game, read_games
from svlm_jax.eval.lines import BadLines, digest
from svlm_jax.eval.run_directory import open_run

MODES = {
    "infinite": "one stream a game, which lives with its own words",
    "chunk": "a stream every --chunk seconds, which begins with the true words until then",
    "recent": "no memory: each second the query and the newest --frames alone",
    "window": "all is forgotten every --window-chunks chunks",
}


def add_flags(parser: Parser) -> None:
    """Flags of `generate`."""
    data = parser.add_argument_group("games")
    data.add_argument("--games", type=Path, required=True, metavar="GAMES.jsonl", help="eval_all_metadata.jsonl")
    data.add_argument("--videos", type=Path, required=True, metavar="DIR", help="folder that the games' videos are in")
    data.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of answers; a killed run goes on in it")
    # `mode` is a field of StreamConfig, and `stream_settings` takes those from the flags
    modes = "; ".join(f"{name}: {text}" for name, text in MODES.items())
    data.add_argument("--mode", dest="protocol", choices=MODES, required=True, help=modes)
    data.add_argument(
        "--chunk",
        type=number(1),
        metavar="S",
        help=f"with --mode chunk: seconds of a stream (default {generation.CHUNK:g})",
    )
    recent_flag(data)
    data.add_argument("--start", type=number(0), default=START, metavar="S", help=f"where streams begin (default {START})")
    data.add_argument("--shard", metavar="K/N", default="1/1", help="this process takes every N-th game, from the K-th on")
    bad = "bad lines, broken times of words and videos that cannot be watched to their end that are allowed (default 0)"
    data.add_argument("--bad", type=integer(0), default=0, metavar="N", help=bad)
    query_flags(data)
    commentator_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Have a model comment on games."""
    bad = BadLines(args.bad)
    shard, protocol = generation.shard_of(args.shard), _protocol(args)
    games = read_games(args.games, bad)
    jobs = [generation.game_jobs(game, args.videos, protocol) for game in games]
    _check_length(games, jobs, protocol.start)
    mine = [job for game_jobs in jobs[shard[0] - 1 :: shard[1]] for job in game_jobs]
    told = _look(mine, bad)
    state = args.out / generation.STATE / f"streams_{shard[0]}_of_{shard[1]}.state"
    recent = (args.frames or RECENT_FRAMES) if args.protocol == "recent" else None
    stream: dict[str, Any] = {"mode": "window"} if args.protocol == "window" else {}
    count = sum(map(len, jobs))
    commentator = make_commentator(args, num_jobs=count, recent_frames=recent, state=state, **stream)
    settings = {"benchmark": "infstreams", "mode": args.protocol, **protocol._asdict(), "data": {"games": digest(args.games)}}
    folder = open_run(args.out, {**settings, **commentator.settings()})
    run = generation.Generation(folder, games, jobs, shard)
    todo = [job for job in mine if job.key not in run.done]
    what = "streams" if args.protocol == "chunk" else "games"
    already = f" ({len(mine) - len(todo)} done before)" if len(todo) < len(mine) else ""
    seconds = sum(job.end - job.start for job in todo)
    print(estimate(len(todo), seconds, commentator.num_streams, what) + already, file=sys.stderr, flush=True)
    with stopping(commentator):
        for finished in run.run(commentator):
            for note in finished.notes:
                print(f"{finished.job.key}: {note}", file=sys.stderr)
    print(f"{run.complete} of {len(run.mine)} games -> {folder}")
    for key, error in run.errors:
        if str(run.job[key].path) not in told:
            told.add(str(run.job[key].path))
            remedy = "replace the video and run again, or allow it with --bad"
            bad.add(InputError(key, error, "all of it watched", remedy), "kept as far as it was watched")


def _protocol(args: argparse.Namespace) -> generation.Protocol:
    if args.chunk and args.protocol != "chunk":
        raise InputError("--chunk", f"{args.chunk:g} with --mode {args.protocol}", "--mode chunk with it", "leave it out")
    if args.frames and args.protocol != "recent":
        raise InputError("--frames", f"{args.frames} with --mode {args.protocol}", "--mode recent with it", "leave it out")
    chunk = (args.chunk or generation.CHUNK) if args.protocol == "chunk" else None
    from svlm_jax.cli.stream_flags import stream_settings

    has_turn = args.protocol != "recent" and stream_settings(args)[0].previous_text_turn
    return generation.Protocol(args.start, chunk, query_of(args), args.seed, has_turn)


def _check_length(games: list[Game], jobs: list[list[Job]], start: float) -> None:
    """Games that end before streams begin are told, and are an error where there is no other."""
    short = [game for game, game_jobs in zip(games, jobs, strict=True) if not game_jobs]
    if len(short) == len(games):
        longest = max(game.words[-1].end for game in games)
        raise InputError("--start", f"{start:g}", f"less than {longest:g}, where the longest game ends", "lower it")
    for game in short:
        print(f"{game.video}: left out, it ends before second {start:g}", file=sys.stderr)


def _look(jobs: list[Job], bad: BadLines) -> set[str]:
    """Videos that cannot be watched to their end, as far as that shows before a model is loaded; each is told to `bad`."""
    from svlm_jax.eval.job_video import look

    told = set()
    for path, video in look(jobs).items():
        if video.error:
            outcome = "watched as far as it goes" if video.size else "left out"
            bad.add(InputError(path, video.error, "a video of the whole game", "replace it, or allow it with --bad"), outcome)
            told.add(path)
    return told
