"""LiveSports-3K: commentary on events, generated and judged, and questions with options.

    svlm evaluate livesports generate --events LiveSports-3K-CC.json --videos DIR --model M --out runs/m
    svlm evaluate livesports judge --events LiveSports-3K-CC.json --a runs/m --b captions/GPT-4o.jsonl --out scores \\
        --judge-url URL --judge-model NAME             # or, without a server: --judge exact --truth truth.jsonl
    svlm evaluate livesports qa --items LiveSports-3K-QA.json --videos DIR --model M --out runs/qa
    svlm evaluate livesports qa-score --items LiveSports-3K-QA.json --answers runs/qa --out qa.json

--a and --b are folders of `generate`, or published files of captions. The exit code is 1 if events were not judged, or
questions not answered; what is missing is listed in the result. Files have the published names and keys: docs/evaluation.md.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from svlm_jax import json_lines
from svlm_jax.cli.evaluate import livesports_generate, livesports_qa
from svlm_jax.cli.evaluate.judge_flags import UNRESOLVED, http_judge, judge_flags, judged
from svlm_jax.cli.flags import Parser, integer
from svlm_jax.errors import InputError, shortened
from svlm_jax.eval.judging import Judge, served
from svlm_jax.eval.livesports_cc import PREDICTIONS, Event, Prediction, read_events, read_predictions
from svlm_jax.eval.livesports_judge import compare, pairs, published_judgements
from svlm_jax.eval.result import Result, write_result
from svlm_jax.eval.run_directory import RUN, open_run, read_run
from svlm_jax.eval.table import percent
from svlm_jax.json_lines import BadLines, digest

RESULTS = "results.json"


def main() -> None:
    parser = Parser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser, metavar="VERB")
    livesports_generate.add_flags(verbs.add_parser("generate", help="have a model comment on events"))
    _judge_flags(verbs.add_parser("judge", help="compare two models, event by event"))
    livesports_qa.add_flags(verbs.add_parser("qa", help="have a model answer questions, and score it"))
    livesports_qa.add_score_flags(verbs.add_parser("qa-score", help="score a file of answers"))
    args = parser.parse_args()
    run = {"generate": livesports_generate.run, "judge": _judge, "qa": livesports_qa.run, "qa-score": livesports_qa.score_file}
    run[args.verb](args)


def _judge_flags(parser: Parser) -> None:
    parser.add_argument("--events", type=Path, required=True, metavar="FILE", help="LiveSports-3K-CC.json, or as lines")
    parser.add_argument("--a", type=Path, required=True, metavar="PRED", help="predictions of model A: a folder or a file")
    parser.add_argument("--b", type=Path, required=True, metavar="PRED", help="predictions of model B, the baseline")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=f"folder for {RESULTS} and the votes")
    parser.add_argument("--limit", type=integer(1), metavar="N", help="the first N events of the file alone")
    bad = "bad events and predictions, and events without a prediction, that are allowed (default 0)"
    parser.add_argument("--bad", type=integer(0), default=0, metavar="N", help=bad)
    judge_flags(parser)
    parser.add_argument("--judge", choices=("exact",), help="exact: by --truth, without a server")
    parser.add_argument("--truth", type=Path, metavar="TRUTH.jsonl", help="what happened in each video, for --judge exact")


def _judge(args: argparse.Namespace) -> None:
    bad = BadLines(args.bad)
    events = read_events(args.events, bad)[: args.limit]
    a, b = (_predictions(path, events, bad) for path in (args.a, args.b))
    judge = _judge_of(args)
    names = (_name(args.a), _name(args.b))
    if names[0] == names[1]:
        names = (f"{names[0]} (A)", f"{names[1]} (B)")
    data = {"events": digest(args.events), "a": _origin(args.a), "b": _origin(args.b)}
    settings = {"benchmark": "livesports-cc", "model": " vs ".join(names), "limit": args.limit, "data": data}
    folder = open_run(args.out, {**settings, "judge": judge.settings()})
    judgements = judged(pairs(events, a, b), judge, folder / "votes.jsonl", args.concurrency)
    result, details = compare(events, judgements, " vs ".join(names))
    write_result(folder / RESULTS, result, {**details, "data": data, "judge": {**judge.settings(), **served(judgements)}})
    published = published_judgements(judgements, *names)
    json_lines.write(folder / "{1}_{0}.jsonl".format(*names), published)
    print(_summary(result, details))
    print(f"-> {folder / RESULTS}", file=sys.stderr)
    if details["unresolved"]:
        sys.exit(UNRESOLVED)


def _predictions(path: Path, events: list[Event], bad: BadLines) -> dict[str, Prediction]:
    """Of one model; events that its file lacks are reported."""
    predictions = read_predictions(path, events, bad)
    if silent := [key for key, prediction in predictions.items() if not prediction.text]:
        print(f"note: {path.name}: {len(silent)} events without a word ({silent[0]}, ...): each is lost", file=sys.stderr)
    for event in events:
        if event.key not in predictions:
            remedy = "generate it, or allow it with --bad"
            bad.add(InputError(f"{shortened(path, 60)} {event.key:.60}", "no prediction", "one for each event", remedy))
    return predictions


def _origin(path: Path) -> dict[str, Any]:
    """Which predictions, and the settings of the run that made them where that is known."""
    if not path.is_dir():
        return {"sha256": digest(path)}
    return {"sha256": digest(path / PREDICTIONS), "run": read_run(path) if (path / RUN).is_file() else None}


def _name(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.stem


def _judge_of(args: argparse.Namespace) -> Judge:
    if args.judge is None:
        return http_judge(args, "livesports", args.out)
    if args.truth is None:
        raise InputError("--truth", "nothing", "a file of what happened, for --judge exact", "name it")
    from svlm_jax.eval.exact_judge import ExactJudge
    from svlm_jax.eval.truth import read_truth

    return ExactJudge(read_truth(args.truth, BadLines(args.bad)), digest(args.truth))


def _summary(result: Result, details: dict) -> str:
    events, ballots, position = details["events"], details["ballots"], details["position"]
    published, decided, words_a, words_b, words = (metric.value for metric in result.metrics)
    low, high = result.metrics[0].ci95 or (None, None)
    interval = f" (95 %: {percent(low)} to {percent(high)})" if low is not None else ""
    if published is None:
        return f"{result.label}: no event was judged"
    return "\n".join(
        [
            f"{result.label}: {percent(published)}{interval} of {events['judged']} events, as published: ties are lost by both",
            f"of what is decided: {percent(decided)}",
            "events: " + ", ".join(f"{events[name]} {name}" for name in events if name != "judged"),
            "votes: " + ", ".join(f"{count} {name}" for name, count in ballots.items()),
            f"by position: first both times {position['first_both_times']}, second both times {position['second_both_times']}, "
            f"of {position['decided']}",
            f"words an event: A {words_a:.0f}, B {words_b:.0f}, the human {words:.0f}",
        ]
    )
