"""Flags of benchmarks of questions: what is shown, whether it is played as a stream, and who answers; and the run itself."""

import argparse
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from svlm_jax.cli.evaluate.captioner_flags import captioner_client, captioner_flags
from svlm_jax.cli.evaluate.commentator_flags import (
    commentator_flags,
    estimate,
    make_commentator,
    query_flags,
    query_of,
    stopping,
)
from svlm_jax.cli.flags import integer
from svlm_jax.cli.model_flags import load
from svlm_jax.cli.progress import Progress
from svlm_jax.cli.stream_flags import SAMPLING_FIELDS, STREAM_FIELDS
from svlm_jax.errors import InputError, shortened
from svlm_jax.eval import asking
from svlm_jax.eval.asking import Query, View
from svlm_jax.eval.models import Answerer
from svlm_jax.eval.result import Result
from svlm_jax.eval.run_directory import RUN, open_run, read_run
from svlm_jax.eval.table import cell
from svlm_jax.json_lines import BadLines, digest
from svlm_jax.remote import templates

FRAMES = {"prefix": 64, "recent": 4}
FPS = 2.0
MAX_NEW_TOKENS = 128
STREAM_SAMPLING = ("silence", "silence_threshold", "silence_threshold_step")
STATE = Path("state") / "streams.state"

Record = dict[str, Any]
Answers = Iterator[tuple[Query, Record | InputError]]


def question_flags(parser: argparse.ArgumentParser, items: str, modes: Sequence[str]) -> Any:
    """Flags of `generate`; returns the group for those of the benchmark. modes: those of FRAMES, and the benchmark's own."""
    data = parser.add_argument_group("questions")
    data.add_argument("--items", type=Path, required=True, metavar="F", help=items)
    data.add_argument("--videos", type=Path, required=True, metavar="DIR", help="folder that the items' videos are in")
    data.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of answers; a killed run goes on in it")
    mode_help = "what is shown: all until the question, thinned to --frames, or the newest --frames alone (default prefix)"
    # `mode` is a field of StreamConfig, and `stream_settings` takes those from the flags
    data.add_argument("--mode", dest="protocol", choices=modes, default="prefix", help=mode_help)
    frames_help = ", ".join(f"{count} with {name}" for name, count in FRAMES.items())
    data.add_argument("--frames", type=integer(1), metavar="N", help=f"shown at most (default {frames_help})")
    online_help = "play the video as a stream, and ask with its last chunk; the stream is asked for --query"
    data.add_argument("--online", action="store_true", help=online_help)
    prompt_help = "JSON with other prompts, by the names that docs/evaluation.md lists"
    data.add_argument("--prompt-file", type=Path, metavar="F", help=prompt_help)
    bad_flag(data)
    query_flags(data)
    commentator_flags(parser)
    captioner_flags(parser)
    return data


def bad_flag(parser: Any) -> None:
    help_text = "items, videos and answers that may be bad; each is named (default 0)"
    parser.add_argument("--bad", type=integer(0), default=0, metavar="N", help=help_text)


def score_flag(parser: Any) -> None:
    """--score: of `generate`, for questions whose replies can be listed."""
    score_help = "what a reply is: what the model writes, or the likeliest of the options (default reply)"
    parser.add_argument("--score", choices=("reply", "options"), default="reply", help=score_help)


def check(args: argparse.Namespace) -> None:
    """Raises InputError for flags that contradict each other, before anything is loaded."""
    with_server = bool(args.captioner_url or args.captioner_model)
    by_options = getattr(args, "score", "reply") == "options"
    for flag, is_first_set, other, is_second_set in (
        ("--online", args.online, "--mode recent", args.protocol == "recent"),
        ("--online", args.online, "--frames", args.frames is not None),
        ("--online", args.online, "--score options", by_options),
        ("--online", args.online, "--captioner-url", with_server),
        ("--score options", by_options, "--captioner-url", with_server),
    ):
        if is_first_set and is_second_set:
            raise InputError(flag, f"{other} with it", "one of the two", "leave one out")
    for name in _idle(args, with_server):
        flag, expected = "--" + name.replace("_", "-"), "a server decides" if with_server else "--online with it"
        raise InputError(flag, "a setting that nothing depends on", expected, "leave it out")
    if not args.videos.is_dir():
        raise InputError("--videos", f"{shortened(args.videos)} (no such folder)", "the folder of videos", "check the path")


def _idle(args: argparse.Namespace, with_server: bool) -> list[str]:
    """Flags without effect: of streams where none is played, of sampling where a server samples."""
    if args.online:
        return []
    idle = {*STREAM_FIELDS, *(SAMPLING_FIELDS if with_server else STREAM_SAMPLING)} - {"fps", "max_new_tokens"}
    return sorted(name for name in idle if name in args)


def view_of(args: argparse.Namespace) -> View:
    return View(args.protocol, args.frames or FRAMES[args.protocol], getattr(args, "fps", FPS))


@dataclass
class Run:
    """A run: the model that answers, and the folder."""

    folder: Path
    model: Any  # an Answerer or a StreamCommentator

    @classmethod
    def open(
        cls, args: argparse.Namespace, benchmark: str, num_queries: int, settings: Mapping[str, Any], texts: Mapping[str, str]
    ) -> "Run":
        """Load the model and open the folder.

        Args:
            settings: of the benchmark: what its numbers depend on.
            texts: the prompts.
        """
        if args.online:
            model: Any = make_commentator(args, num_jobs=num_queries, state=args.out / STATE)
            view_settings: dict[str, Any] = {"mode": "online", "query": query_of(args), "seed": args.seed}
        else:
            model, view = _answerer(args), view_of(args)
            view_settings = {**view._asdict(), "max_new_tokens": max_new_tokens(args)}
        shared = {
            "benchmark": benchmark,
            **view_settings,
            "prompts": templates.digest(texts),
            "data": {"items": digest(args.items)},
        }
        return cls(open_run(args.out, {**shared, **settings, **model.settings()}), model)


def _answerer(args: argparse.Namespace) -> Answerer:
    if client := captioner_client(args, args.out):
        from svlm_jax.eval.captioner import ChatModel

        return ChatModel(client)
    from svlm_jax.eval.models import LocalModel

    vlm = load(args, "the videos", progress=Progress("load"))
    overrides = {name: getattr(args, name) for name in SAMPLING_FIELDS if name in args}
    sampling = replace(vlm.generation, **{"temperature": 0.0, **overrides})
    return LocalModel(vlm, args.model, sampling=sampling, seed=args.seed)


def max_new_tokens(args: argparse.Namespace) -> int:
    return getattr(args, "max_new_tokens", MAX_NEW_TOKENS)


def concurrency(args: argparse.Namespace) -> int:
    """Questions at a time: a local model takes one."""
    return args.concurrency if args.captioner_url else 1


def ask_all(
    args: argparse.Namespace,
    run: Run,
    queries: Sequence[Query],
    prompt: Callable[[Query], str],
    bad: BadLines,
    *,
    answered: dict[str, str] | None = None,
) -> dict[str, Record]:
    """Have all questions answered; returns lines by key.

    Args:
        answered: gets each reply, by its key, before the next question is asked; questions are then asked one at a time.
    """

    def offline(todo: list[Query]) -> Answers:
        if getattr(args, "score", "reply") == "options":
            ask = asking.choosing(run.model, prompt)
        else:
            ask = asking.answering(run.model, prompt, max_new_tokens(args))
        at_a_time = 1 if answered is not None else concurrency(args)
        return asking.ask_offline(todo, args.videos, view_of(args), ask, concurrency=at_a_time)

    def online(todo: Collection[str]) -> Answers:
        request, skip = query_of(args), {query.key for query in queries} - set(todo)
        return asking.ask_online(queries, args.videos, run.model, prompt, request=request, seed=args.seed, skip=skip)

    def answers(done: Mapping[str, Record]) -> Answers:
        todo = [query for query in queries if query.key not in done]
        if answered is not None:
            answered.update((key, record["response"]) for key, record in done.items())
        for query, answer in online([query.key for query in todo]) if args.online else offline(todo):
            if answered is not None and not isinstance(answer, InputError):
                answered[query.key] = answer["response"]
            yield query, answer

    return collect(args, run, queries, answers, bad)


def collect(
    args: argparse.Namespace,
    run: Run,
    queries: Sequence[Query],
    answers: Callable[[Mapping[str, Record]], Answers],
    bad: BadLines,
) -> dict[str, Record]:
    """Write what is answered, with progress on stderr; returns lines by key."""
    videos = len({query.video for query in queries})
    print(f"{len(queries)} questions about {videos} videos -> {run.folder}", file=sys.stderr, flush=True)
    if not args.online:
        records = asking.write_answers(run.folder, queries, answers, bad, Progress("answered", "questions"))
    else:
        seconds = sum(query.end - query.start for query in queries)
        print(estimate(len(queries), seconds, run.model.num_streams, "streams"), file=sys.stderr, flush=True)
        with stopping(run.model):
            records = asking.write_answers(run.folder, queries, answers, bad)
    print(f"{len(records)} of {len(queries)} questions answered -> {run.folder / asking.ANSWERS}")
    return records


def answers_flags(parser: argparse.ArgumentParser, items: str, published: str) -> None:
    """Flags of `score`."""
    parser.add_argument("--items", type=Path, required=True, metavar="F", help=items)
    answers_help = f"folder of a run, or its answers.jsonl, or {published}"
    parser.add_argument("--answers", type=Path, required=True, metavar="F", help=answers_help)
    parser.add_argument("--out", type=Path, required=True, metavar="JSON", help="result to write")
    parser.add_argument("--label", metavar="NAME", help="of the result in tables (default: model and mode of the run)")
    bad_flag(parser)


def run_of(args: argparse.Namespace, benchmark: str) -> dict[str, Any]:
    """The run.json of the answers; {} where they have none.

    Raises:
        InputError: a run of another benchmark, or of another file of items.
    """
    folder = args.answers if args.answers.is_dir() else args.answers.parent
    if not (folder / RUN).is_file() or args.answers.suffix == ".json":
        return {}
    run = read_run(folder)
    if run.get("benchmark") != benchmark:
        got = f"a run of {run.get('benchmark')!s:.40}"
        raise InputError("--answers", got, f"a run of {benchmark}", "name the run of this benchmark")
    if run.get("data", {}).get("items") != digest(args.items):
        expected = "the file that the run was made with"
        raise InputError("--items", f"{args.items.name}, another file than the run's", expected, "name that file")
    return run


def label_of(args: argparse.Namespace, run: Mapping[str, Any]) -> str:
    """How a table names the result."""
    if args.label:
        return args.label
    if not run:
        return args.answers.stem
    frames = f" {run['frames']}" if "frames" in run else ""
    return f"{run['model']}, {run['mode']}{frames}"


def report(result: Result, details: Mapping[str, Any], path: Path) -> None:
    """Print the numbers, and what was not counted as an answer."""
    for metric in result.metrics:
        print(f"{metric.name:>24}  {cell(metric)}")
    for name in ("missing", "not_parsed", "never_said"):
        if keys := details.get(name, ()):
            print(f"{len(keys)} questions {name.replace('_', ' ')}, which is wrong: {shortened(', '.join(keys), 120)}")
    print(f"-> {path}")
