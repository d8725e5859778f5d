"""StreamingBench: real-time, sequential and proactive questions.

    svlm evaluate streamingbench generate --items questions_real.json --videos DIR --model M --context 60 --out runs/real
    svlm evaluate streamingbench generate --items questions_sqa.json --videos DIR --model M --history own --out runs/sqa
    svlm evaluate streamingbench generate --items questions_proactive.json --videos DIR --mode native --out runs/native
    svlm evaluate streamingbench score --items questions_real.json --answers runs/real --out runs/real/result.json

Which questions a file has shows in the file. Proactive ones are polled, as published, or with --mode native played as a stream,
which says the expected words of its own accord or not. Files have the published names and keys: docs/evaluation.md.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from svlm_jax.cli.evaluate.commentator_flags import query_of
from svlm_jax.cli.evaluate.question_flags import (
    FRAMES,
    Run,
    answers_flags,
    ask_all,
    check,
    collect,
    concurrency,
    label_of,
    question_flags,
    report,
    run_of,
    score_flag,
    view_of,
)
from svlm_jax.cli.flags import Parser, number
from svlm_jax.errors import InputError
from svlm_jax.eval import proactive, streamingbench, streamingbench_score
from svlm_jax.eval.asking import Query
from svlm_jax.eval.result import write_result
from svlm_jax.files import report_write_errors
from svlm_jax.json_lines import BadLines
from svlm_jax.remote import templates

NATIVE = "native"  # a mode of proactive questions
ITEMS = "questions_real.json, _sqa, _omni or _proactive, or the _stream form of one"


def main() -> None:
    parser = Parser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser, metavar="VERB")
    generate = verbs.add_parser("generate", help="have a model answer")
    group = question_flags(generate, ITEMS, (*FRAMES, NATIVE))
    context_help = (
        f"seconds before a question that are shown; 0: all from the beginning (default {streamingbench.CONTEXT:g}); with "
        "--mode native those before the request (default 0)"
    )
    group.add_argument("--context", type=number(0), metavar="S", help=context_help)
    history_help = (
        "what a sequential question is told of the earlier ones: the right answers, as published, or the model's own "
        "(default truth)"
    )
    group.add_argument("--history", choices=("truth", "own"), help=history_help)
    score_flag(group)
    score = verbs.add_parser("score", help="score answers: by task and in all")
    answers_flags(score, ITEMS, "a file in the published shape, with the answers of --model in it")
    score.add_argument("--model", default="", metavar="NAME", help="with a published file: whose answers")
    args = parser.parse_args()
    {"generate": _generate, "score": _score}[args.verb](args)


def _generate(args: argparse.Namespace) -> None:
    check(args)
    bad, texts = BadLines(args.bad), templates.read_templates(args.prompt_file, streamingbench.PROMPTS, (NATIVE,))
    tree = streamingbench.read_tree(args.items)
    if streamingbench.is_proactive(tree):
        return _generate_proactive(args, texts, bad)
    if args.protocol == NATIVE:
        raise InputError("--mode", "native with questions that have options", "proactive questions", "take --online")
    data = streamingbench.read_questions(args.items, bad)
    if args.history and data.subset != "sqa":
        raise InputError("--history", f"{args.history} with {data.subset} questions", "sequential ones", "leave it out")
    history = args.history or "truth"
    if history == "own" and args.online:
        raise InputError("--history", "own with --online", "--history truth", "a stream knows what it said itself")
    if data.subset == "omni":
        print("the sound is part of these questions, and the model hears none")
    questions = {question.key: question for question in data.questions}
    context = streamingbench.CONTEXT if args.context is None else args.context
    queries = [question.query(context) for question in questions.values()]
    settings = {"subset": data.subset, "context": context, "score": args.score}
    settings |= {"history": history} if data.subset == "sqa" else {}
    run = Run.open(args, "streamingbench", len(queries), settings, texts)
    own: dict[str, str] = {}

    def prompt(query: Query) -> str:
        question = questions[query.key]
        if data.subset != "sqa":
            return question.prompt(texts)
        earlier = streamingbench.earlier_of(question, data.questions)
        answers = [(each, each.answer if history == "truth" else own.get(each.key, "")) for each in earlier]
        return question.prompt(texts, answers)

    records = ask_all(args, run, queries, prompt, bad, answered=own if history == "own" else None)
    _publish(run, data.tree, {key: record["response"] for key, record in records.items()})


def _generate_proactive(args: argparse.Namespace, texts: Mapping[str, str], bad: BadLines) -> None:
    native = args.protocol == NATIVE
    for flag, is_set, remedy in (
        ("--history", args.history, "leave it out"),
        ("--score", args.score == "options", "leave it out"),
        ("--online", args.online, "--mode native plays a stream"),
        ("--context", args.context and not native, "polls see all since the request, and no more"),
    ):
        if is_set:
            raise InputError(flag, "proactive questions with it", "questions with options", remedy)
    args.online = native
    check(args)
    context = args.context or 0.0
    tree, questions = proactive.read_questions(args.items, bad)
    queries = [question.query() for question in questions]
    settings: dict[str, Any] = {"subset": "proactive", "protocol": NATIVE if native else "polled", "context": context}
    settings |= {"mode": NATIVE} if native else {}
    run = Run.open(args, "streamingbench", len(queries), settings, texts)

    def answers(done: Mapping[str, Any]) -> Any:
        if native:
            options = {"context": context, "request": query_of(args), "seed": args.seed, "skip": done}
            return proactive.play_all(questions, args.videos, run.model, texts, **options)
        todo = [question for question in questions if question.key not in done]
        return proactive.poll_all(todo, args.videos, view_of(args), run.model, texts, concurrency(args))

    records = collect(args, run, queries, answers, bad)
    shape = {each.key: proactive.published_answer(each, records[each.key], texts) for each in questions if each.key in records}
    _publish(run, tree, shape)


def _publish(run: Run, tree: list[Any], answers: Mapping[str, Any]) -> None:
    name = str(run.model.settings()["model"])
    path = run.folder / "published" / "answers.json"
    with report_write_errors(path):
        path.parent.mkdir(exist_ok=True)
    streamingbench.write_tree(path, streamingbench.published(tree, name, answers))
    print(f"in the published shape, as the answers of {name} -> {path}")


def _score(args: argparse.Namespace) -> None:
    run, bad = run_of(args, "streamingbench"), BadLines(args.bad)
    label = label_of(args, run)
    if streamingbench.is_proactive(streamingbench.read_tree(args.items)):
        _, questions = proactive.read_questions(args.items, bad)
        records = proactive.read_records(args.answers, questions, args.model, bad)
        result, details = proactive.score(questions, records, label)
        details["protocol"] = run.get("protocol", "polled")
    else:
        data = streamingbench.read_questions(args.items, bad)
        keys = {question.key for question in data.questions}
        replies = streamingbench.read_replies(args.answers, keys, args.model, bad)
        result, details = streamingbench_score.score(data, replies, label)
    details["context_seconds"] = run.get("context", "unknown")  # of all from the beginning 0
    write_result(args.out, result, {**details, "bad": bad.errors, "run": run})
    report(result, details, args.out)
