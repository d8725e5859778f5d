"""Flags of benchmarks in which a model watches videos: which model, how it streams, and the commentator that they make.

A flag of streams is named, and means, what it does in `svlm stream`; one that is not given leaves the setting that the model
comes with.
"""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svlm_jax.cli.flags import MAX_SEED, integer, number
from svlm_jax.cli.model_flags import load, model_flags
from svlm_jax.cli.progress import Progress, compiling, span
from svlm_jax.cli.run import INTERRUPTED
from svlm_jax.cli.stream_flags import (
    frame_flags,
    preset_flag,
    resize_flag,
    retention_flags,
    sampling_flags,
    settings_line,
    stream_settings,
)
from svlm_jax.errors import InputError
from svlm_jax.files import read_text
from svlm_jax.presets import PRESETS

if TYPE_CHECKING:
    from svlm_jax.eval.stream_commentator import StreamCommentator

STREAMS = 4
SAVE_MINUTES = 5.0
RECENT_FRAMES = 4  # of SimpleStream
# Our words for what the published query asks for.
LIVE_QUERY = (
    "You are the live commentator of this broadcast. Call the action as it happens, in short lines and in the present tense; "
    "add one thought when there is time. Let your voice rise and fall with the play. Name score and clock when they can "
    "be read, use positions or shirt numbers for players whose names you do not know, say nothing that cannot be seen, and "
    "correct yourself at once when the scoreboard says otherwise."
)


def commentator_flags(parser: argparse.ArgumentParser) -> None:
    """The model, how it streams, and how many videos at a time: what `make_commentator` reads."""
    model_flags(parser)
    preset_flag(parser)
    resize_flag(parser)
    frame_flags(parser.add_argument_group("video"))
    sampling_flags(parser.add_argument_group("words"))
    retention_flags(parser, mode=False)
    run = parser.add_argument_group("run")
    streams = f"videos at a time, in one batch (default {STREAMS}); on some devices words depend on it"
    run.add_argument("--streams", type=integer(1), default=STREAMS, metavar="N", help=streams)
    run.add_argument("--seed", type=integer(0, MAX_SEED), default=0, help="of what is drawn, unless greedy (default 0)")
    minutes = f"how often streams are saved, so that a killed run goes on (default {SAVE_MINUTES:g})"
    run.add_argument("--save-every-minutes", type=number(0), default=SAVE_MINUTES, metavar="M", help=minutes)


def recent_flag(parser: Any) -> None:
    """--frames: of --mode recent."""
    description = f"with --mode recent: newest frames, the model's whole memory (default {RECENT_FRAMES})"
    parser.add_argument("--frames", type=integer(2), metavar="N", help=description)


def query_flags(parser: Any) -> None:
    """--query and --query-file: what `query_of` reads."""
    default = "that of --preset, of the shipped model's game, or else a live commentator's instruction"
    parser.add_argument("--query", help=f"what is asked for in the first turn (default: {default})")
    parser.add_argument("--query-file", type=Path, metavar="FILE", help="the same, in a text file")


def query_of(args: argparse.Namespace) -> str:
    """The query of a stream.

    Raises:
        InputError: both flags, or a file that is no text.
    """
    if args.query is not None and args.query_file is not None:
        raise InputError("--query-file", "with --query", "one of the two", "leave one out")
    if args.query_file is not None:
        return read_text(args.query_file, "--query-file", "a text file").strip()
    if args.query is not None:
        return args.query
    if args.preset:
        return PRESETS[args.preset].query
    from svlm_jax.pretrained import SHIPPED
    from svlm_jax.touchline.film import QUERY

    return QUERY if args.model in SHIPPED else LIVE_QUERY


def make_commentator(
    args: argparse.Namespace,
    *,
    num_jobs: int,
    recent_frames: int | None = None,
    exact_seed: bool = False,
    state: Path | None = None,
    **stream: Any,
) -> "StreamCommentator":
    """The model, loaded, as a commentator that shows its progress on stderr.

    Args:
        num_jobs: of the whole benchmark: no more streams than that.
        recent_frames, exact_seed, state: as of `StreamCommentator`.
        stream: fields of `StreamConfig` that the benchmark sets.
    """
    from dataclasses import replace

    from svlm_jax.eval.stream_commentator import StreamCommentator, recent_config

    config, sampling = stream_settings(args)
    config = replace(config, **stream)
    if recent_frames is not None:
        recent_config(config, recent_frames)  # raises for a wrong number before the model is loaded
    vlm = load(args, "the videos", progress=Progress("load"))
    commentator = StreamCommentator(
        vlm,
        args.model,
        config=config,
        sampling=sampling,
        num_streams=min(args.streams, max(1, num_jobs)),
        recent_frames=recent_frames,
        exact_seed=exact_seed,
        resize_on=args.resize_on,
        state=state,
        save_minutes=args.save_every_minutes,
        compiling=compiling,
        watched=Progress("watched", "chunks"),
    )
    print(settings_line(commentator.config, sampling), file=sys.stderr, flush=True)
    return commentator


@contextmanager
def stopping(commentator: "StreamCommentator") -> Iterator[None]:
    """Inside, a first SIGINT or SIGTERM ends the run after the current chunk, saved; a second one ends it at once. Leaves with
    exit code 130 when it was stopped."""

    def stop(number: int, _: Any) -> None:
        if commentator.stopped:
            raise KeyboardInterrupt
        print(f"{signal.Signals(number).name}: stopping after this chunk", file=sys.stderr, flush=True)
        commentator.stop()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if commentator.stopped:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)


def estimate(jobs: int, seconds: float, streams: int, unit: str = "videos") -> str:
    """What a run is about to do, in one line."""
    ticks = seconds / min(streams, max(1, jobs))
    return f"{jobs} {unit}, {span(seconds)} of video, {streams} at a time: {span(ticks)} at the speed of the video"
