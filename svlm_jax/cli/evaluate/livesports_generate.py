"""The verb `generate` of `svlm evaluate livesports`: its flags, and what it does with them."""

import argparse
import hashlib
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from svlm_jax.cli.evaluate.captioner_flags import captioner_client, captioner_flags
from svlm_jax.cli.evaluate.commentator_flags import RECENT_FRAMES, commentator_flags, estimate, make_commentator, stopping
from svlm_jax.cli.flags import Parser, integer
from svlm_jax.cli.model_flags import load
from svlm_jax.cli.progress import Progress
from svlm_jax.errors import InputError
from svlm_jax.eval.asking import View
from svlm_jax.eval.livesports_cc import PREDICTIONS, Event, default_prompt, read_events
from svlm_jax.eval.livesports_generate import STYLES, Outcome, captioned, find_videos, predict, stream_jobs, streamed
from svlm_jax.eval.run_directory import open_run
from svlm_jax.files import read_text
from svlm_jax.json_lines import BadLines, digest

MODES = {
    "stream": "as a stream, from the begin of the event on",
    "recent": "as a stream without memory: each second the query and the newest --frames alone",
    "offline": "the whole event at once, --frames of it evenly thinned",
}
OFFLINE_FRAMES = 64
STATE = "streams.state"


def add_flags(parser: Parser) -> None:
    """Flags of `generate`."""
    data = parser.add_argument_group("events")
    data.add_argument("--events", type=Path, required=True, metavar="FILE", help="LiveSports-3K-CC.json, or as lines")
    data.add_argument("--videos", type=Path, required=True, metavar="DIR", help="folder that the events' videos are in")
    data.add_argument(
        "--out", type=Path, required=True, metavar="RUN", help="folder of the predictions; a killed run goes on in it"
    )
    data.add_argument("--limit", type=integer(1), metavar="N", help="the first N events of the file alone")
    bad = "bad events and videos that cannot be watched that are allowed (default 0)"
    data.add_argument("--bad", type=integer(0), default=0, metavar="N", help=bad)
    # `mode` is a field of StreamConfig, and `stream_settings` takes those from the flags
    modes = "; ".join(f"{name}: {text}" for name, text in MODES.items())
    data.add_argument("--mode", dest="way", choices=MODES, default="stream", help=f"{modes} (default stream)")
    frames = f"with --mode recent (default {RECENT_FRAMES}) or offline (default {OFFLINE_FRAMES})"
    data.add_argument("--frames", type=integer(1), metavar="N", help=frames)
    style = "where the words before the event stand and which clock the model is told: those of this model's published script "
    data.add_argument("--style", choices=STYLES, help=f"{style}(default: livecc with its --preset, else streamingvlm)")
    prompt = 'sections parted by lines "---", with {title}, {previous} or {context}; one whose value is empty is left out'
    data.add_argument("--prompt-file", type=Path, metavar="FILE", help=f"{prompt} (default: our own)")
    commentator_flags(parser)
    captioner_flags(parser)


def run(args: argparse.Namespace) -> None:
    """Have a model comment on events."""
    bad = BadLines(args.bad)
    if args.captioner_url or args.captioner_model:
        args.way = "offline"
    if args.frames and args.way == "stream":
        raise InputError("--frames", f"{args.frames} with --mode stream", "--mode recent or offline with it", "leave it out")
    template = prompt_file(args) or _default_prompt(args.model)
    events = read_events(args.events, bad)[: args.limit]
    videos = find_videos(events, args.videos, bad)
    events = [event for event in events if event.key in videos]
    settings = {
        "benchmark": "livesports-cc",
        "mode": args.way,
        "limit": args.limit,
        "prompt_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "data": {"events": digest(args.events)},
    }
    watch = _offline if args.way == "offline" else _streaming
    target = watch(args, events, videos, template, settings, bad)
    print(f"{len(events)} events -> {target}")


def prompt_file(args: argparse.Namespace) -> str | None:
    """The template of --prompt-file, None without the flag.

    Raises:
        InputError: a file that is no text, or has none.
    """
    if args.prompt_file is None:
        return None
    text = read_text(args.prompt_file, "--prompt-file", "a text file")
    if not text.strip():
        raise InputError("--prompt-file", "an empty file", "a text", "check its path")
    return text


def _default_prompt(model: str) -> str:
    """A shipped model knows no other query than that of its game."""
    from svlm_jax.pretrained import SHIPPED
    from svlm_jax.touchline.film import QUERY

    return QUERY if model in SHIPPED else default_prompt()


def _streaming(
    args: argparse.Namespace,
    events: Sequence[Event],
    videos: Mapping[str, Path],
    template: str,
    settings: dict[str, Any],
    bad: BadLines,
) -> Path:
    name = args.style or ("livecc" if (args.preset or "").startswith("livecc") else "streamingvlm")
    style, recent = STYLES[name], None
    for field, value in style.settings.items():
        if field not in args:
            setattr(args, field, value)
    if args.way == "recent":
        style, recent = style._replace(previous="query"), args.frames or RECENT_FRAMES
    jobs = stream_jobs(events, videos, template, style, args.seed)
    commentator = make_commentator(args, num_jobs=len(jobs), recent_frames=recent, state=args.out / STATE)
    settings |= {"style": name, "seed": args.seed, **commentator.settings()}
    folder = open_run(args.out, settings)

    def run(done: Collection[str]) -> Iterator[Outcome]:
        seconds = sum(job.end - job.start for job in jobs if job.key not in done)
        print(estimate(len(jobs) - len(done), seconds, commentator.num_streams, "events"), file=sys.stderr, flush=True)
        return streamed(events, jobs, commentator, style, done)

    with stopping(commentator):
        return predict(folder / PREDICTIONS, events, run, bad)


def _offline(
    args: argparse.Namespace,
    events: Sequence[Event],
    videos: Mapping[str, Path],
    template: str,
    settings: dict[str, Any],
    bad: BadLines,
) -> Path:
    view, client = View("prefix", args.frames or OFFLINE_FRAMES), captioner_client(args, args.out)
    answerer, concurrency = answerer_of(args, client), args.concurrency if client else 1
    folder = open_run(args.out, {**settings, "frames": view.frames, **answerer.settings()})

    def run(done: Collection[str]) -> Iterator[Outcome]:
        return captioned(events, videos, answerer, template, view, done, concurrency)

    return predict(folder / PREDICTIONS, events, run, bad, Progress("captioned", "events"))


def answerer_of(args: argparse.Namespace, client: Any) -> Any:
    """An `Answerer`: the captioner of a `ChatClient`, or without one the model of --model, loaded."""
    from svlm_jax.eval.captioner import ChatModel
    from svlm_jax.eval.models import LocalModel

    return ChatModel(client) if client else LocalModel(load(args, "the videos", progress=Progress("load")), args.model)
