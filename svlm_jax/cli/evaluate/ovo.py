"""OVO-Bench: questions about what a video has shown until a moment, asked at that moment.

    svlm evaluate ovo generate --items ovo_bench_new.json --videos DIR --model M --out runs/ovo
    svlm evaluate ovo generate --items ovo_bench_new.json --videos DIR --model M --online --window 120 --out runs/ovo_online
    svlm evaluate ovo score --items ovo_bench_new.json --answers runs/ovo --out runs/ovo/result.json

Files have the published names and keys: docs/evaluation.md.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from svlm_jax.cli.evaluate.question_flags import (
    FRAMES,
    Run,
    answers_flags,
    ask_all,
    check,
    label_of,
    question_flags,
    report,
    run_of,
    score_flag,
)
from svlm_jax.cli.flags import Parser, number
from svlm_jax.eval import ovo, ovo_score
from svlm_jax.eval.result import write_result
from svlm_jax.json_lines import BadLines, write_json
from svlm_jax.remote import templates

ITEMS = "ovo_bench_new.json"


def main() -> None:
    parser = Parser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser, metavar="VERB")
    generate = verbs.add_parser("generate", help="have a model answer")
    group = question_flags(generate, ITEMS, tuple(FRAMES))
    window_help = "with --online: seconds that are played before a question (default: all from the beginning)"
    group.add_argument("--window", type=number(1), metavar="S", help=window_help)
    score_flag(group)
    _tasks_flag(group)
    score = verbs.add_parser("score", help="score answers: by task, by category, in all")
    answers_flags(score, ITEMS, "results in the published shape (a file, or a folder of them)")
    _tasks_flag(score)
    args = parser.parse_args()
    {"generate": _generate, "score": _score}[args.verb](args)


def _tasks_flag(parser: Any) -> None:
    parser.add_argument(
        "--tasks", nargs="+", choices=ovo.TASKS, metavar="TASK", help=f"of {' '.join(ovo.TASKS)} (default: all)"
    )


def _generate(args: argparse.Namespace) -> None:
    check(args)
    bad, tasks = BadLines(args.bad), tuple(args.tasks or ovo.TASKS)
    items = ovo.read_items(args.items, bad, tasks)
    texts = templates.read_templates(args.prompt_file, ovo.PROMPTS)
    questions = {question.key: question for question in ovo.questions_of(items)}
    queries = [question.query() for question in questions.values()]
    if args.online and args.window:
        queries = [query._replace(start=max(0.0, query.end - args.window)) for query in queries]
    settings = {"tasks": list(tasks), "window": args.window, "score": args.score}
    run = Run.open(args, "ovo", len(queries), settings, texts)
    records = ask_all(args, run, queries, lambda query: questions[query.key].prompt(texts), bad)
    published = run.folder / "published" / "answers.json"
    published.parent.mkdir(exist_ok=True)
    write_json(published, ovo.published(items, {key: record["response"] for key, record in records.items()}))
    print(f"in the shape of results/MODEL/*.json of OVO-Bench -> {published}")


def _score(args: argparse.Namespace) -> None:
    run, bad = run_of(args, "ovo"), BadLines(args.bad)
    tasks: Sequence[str] = args.tasks or run.get("tasks") or ovo.TASKS
    questions = ovo.questions_of(ovo.read_items(args.items, bad, tasks))
    replies = ovo.read_replies(args.answers, questions, bad)
    result, details = ovo_score.score(questions, replies, label_of(args, run))
    write_result(args.out, result, {**details, "bad": bad.errors, "run": run})
    report(result, details, args.out)
