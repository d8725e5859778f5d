"""The verbs `qa` and `qa-score` of `svlm evaluate livesports`: their flags, and what they do with them."""

import argparse
import hashlib
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from svlm_jax.cli.evaluate.captioner_flags import captioner_client, captioner_flags
from svlm_jax.cli.evaluate.livesports_generate import answerer_of, prompt_file
from svlm_jax.cli.flags import Parser, integer, number
from svlm_jax.cli.model_flags import model_flags
from svlm_jax.cli.progress import Progress
from svlm_jax.errors import InputError
from svlm_jax.eval.asking import ANSWERS, Query, View, ask_offline, write_answers
from svlm_jax.eval.livesports_qa import (
    Question,
    by_reply,
    by_score,
    default_prompt,
    prompts,
    published_answers,
    queries,
    read_questions,
    read_responses,
    score,
)
from svlm_jax.eval.result import Result, write_result
from svlm_jax.eval.run_directory import RUN, open_run, read_run
from svlm_jax.eval.table import percent
from svlm_jax.json_lines import BadLines, digest, write_json

FRAMES = 480  # of the published script, at most
RESULTS = "results.json"
MISSING = 1  # exit code


def add_flags(parser: Parser) -> None:
    """Flags of `qa`."""
    data = parser.add_argument_group("questions")
    _items_flags(data)
    data.add_argument("--videos", type=Path, required=True, metavar="DIR", help="folder that the questions' videos are in")
    out = f"folder of {ANSWERS} and {RESULTS}; a killed run goes on in it"
    data.add_argument("--out", type=Path, required=True, metavar="RUN", help=out)
    data.add_argument("--limit", type=integer(1), metavar="N", help="the first N questions of the file alone")
    scores = (
        "options: the likeliest letter, as published; generate: what the model writes (default options, of a server generate)"
    )
    data.add_argument("--score", choices=("options", "generate"), help=scores)
    frames = f"that are shown at most, thinned evenly (default {FRAMES})"
    data.add_argument("--frames", type=integer(1), default=FRAMES, metavar="N", help=frames)
    data.add_argument("--fps", type=number(0.01, 1000), default=2.0, help="frames a second, where that is fewer (default 2)")
    prompt = "another prompt: a text with {question} and {options}"
    data.add_argument("--prompt-file", type=Path, metavar="FILE", help=prompt)
    model_flags(parser)
    captioner_flags(parser)


def add_score_flags(parser: Parser) -> None:
    """Flags of `qa-score`."""
    _items_flags(parser)
    answers = "a folder of qa, its file, or answers in the published form"
    parser.add_argument("--answers", type=Path, required=True, metavar="FILE", help=answers)
    parser.add_argument("--out", type=Path, required=True, metavar="JSON", help="result to write")


def _items_flags(parser: Any) -> None:
    parser.add_argument("--items", type=Path, required=True, metavar="FILE", help="LiveSports-3K-QA.json, or as lines")
    bad = "bad questions, answers and videos that are allowed (default 0)"
    parser.add_argument("--bad", type=integer(0), default=0, metavar="N", help=bad)


def run(args: argparse.Namespace) -> None:
    """Have a model answer questions, and score it."""
    bad, client = BadLines(args.bad), captioner_client(args, args.out)
    kind = args.score or ("generate" if client else "options")
    if client and kind == "options":
        raise InputError("--score", "options with --captioner-url", "generate", "a server does not tell its probabilities")
    template = prompt_file(args) or default_prompt()
    questions = read_questions(args.items, bad)[: args.limit]
    query_list = queries(questions, args.videos, bad)
    prompt = prompts(questions, template)
    model = answerer_of(args, client)
    ask = by_score(model, prompt) if kind == "options" else by_reply(model, prompt)
    view = View("prefix", args.frames, args.fps)
    settings = {
        "benchmark": "livesports-qa",
        "score": kind,
        "limit": args.limit,
        **view._asdict(),
        "prompt_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "data": {"items": digest(args.items)},
        **model.settings(),
    }
    folder = open_run(args.out, settings)

    def answer_pending(done: Collection[str]) -> Iterable[tuple[Query, Any]]:
        pending = [query for query in query_list if query.key not in done]
        return ask_offline(pending, args.videos, view, ask, concurrency=args.concurrency if client else 1)

    write_answers(folder, query_list, answer_pending, bad, Progress("answered", "questions"))
    responses = read_responses(folder, questions, bad)
    write_json(folder / "published.json", published_answers(questions, responses))
    _write(folder / RESULTS, questions, responses, f"{settings['model']} {kind}", {"run": settings})


def score_file(args: argparse.Namespace) -> None:
    """Score answers that are there."""
    bad = BadLines(args.bad)
    run = read_run(args.answers) if (args.answers / RUN).is_file() else None
    questions = read_questions(args.items, bad)[: run["limit"] if run else None]
    responses = read_responses(args.answers, questions, bad)
    label = f"{run['model']} {run['score']}" if run else args.answers.stem
    answers = args.answers / ANSWERS if args.answers.is_dir() else args.answers
    details = {"run": run, "data": {"items": digest(args.items), "answers": digest(answers)}}
    _write(args.out, questions, responses, label, details)


def _write(path: Path, questions: Sequence[Question], responses: dict[str, str], label: str, about: dict[str, Any]) -> None:
    result, details = score(questions, responses, label)
    write_result(path, result, {**details, **about})
    print(_summary(result))
    print(f"-> {path}", file=sys.stderr)
    if missing := details["missing"]:
        print(f"error: {len(missing)} questions without an answer ({missing[0]}, ...); each is wrong", file=sys.stderr)
        sys.exit(MISSING)


def _summary(result: Result) -> str:
    lines = [result.label]
    for metric in result.metrics:
        interval = f" (95 %: {percent(metric.ci95[0])} to {percent(metric.ci95[1])})" if metric.ci95 else ""
        value = percent(metric.value)
        lines.append(f"{metric.name}: {value}{interval} of {metric.count}")
    return "\n".join(lines)
