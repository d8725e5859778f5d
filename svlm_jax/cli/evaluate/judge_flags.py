"""Flags of benchmarks that are judged: who judges, how it is asked, and what the user sees of it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from svlm_jax.cli.flags import integer, number
from svlm_jax.cli.progress import Progress
from svlm_jax.errors import InputError
from svlm_jax.eval.http_judge import FIELDS, HttpJudge
from svlm_jax.eval.judging import Judge, Judgement, Pair, Question, judge_pairs, unresolved, unresolved_path
from svlm_jax.remote.chat_client import ChatClient
from svlm_jax.remote.connection import KEY_ENV, TIMEOUT
from svlm_jax.remote.prompt import Prompt

CONCURRENCY = 8
UNRESOLVED = 1  # exit code


def judge_flags(parser: argparse.ArgumentParser) -> None:
    """What `http_judge` and `judged` read."""
    group = parser.add_argument_group("judge")
    group.add_argument("--judge-url", metavar="URL", help="a server of OpenAI's chat protocol: http://HOST:PORT/v1")
    group.add_argument("--judge-model", metavar="NAME", help="as the server calls it; a dated version can be repeated")
    group.add_argument(
        "--judge-key-env", default=KEY_ENV, metavar="NAME", help="environment variable with the key (default: %(default)s)"
    )
    group.add_argument("--prompt-file", type=Path, metavar="F", help="another prompt: a text with {reference}, {a} and {b}")
    group.add_argument(
        "--concurrency", type=integer(1, 256), default=CONCURRENCY, help="requests at a time (default: %(default)s)"
    )
    group.add_argument("--cache", type=Path, metavar="DIR", help="where answers are kept (default: cache, in --out)")
    timeout_help = "of one try (default: %(default)g)"
    group.add_argument("--judge-timeout", type=number(1), default=TIMEOUT, metavar="SECONDS", help=timeout_help)


def http_judge(args: argparse.Namespace, style: str, out: Path) -> HttpJudge:
    """The judge of --judge-url, in a style of `eval.http_judge`; nothing is asked or written yet.

    Raises:
        InputError: no URL or model, a prompt that cannot be used, or the package openai is not there.
    """
    for flag, value in (("--judge-url", args.judge_url), ("--judge-model", args.judge_model)):
        if not value:
            raise InputError(flag, "nothing", "a judge: --judge-url URL --judge-model NAME", "name one")
    cache = args.cache or out / "cache"
    prompt = Prompt.read(args.prompt_file, FIELDS) if args.prompt_file else None
    options = {"key_env": args.judge_key_env, "timeout": args.judge_timeout}
    return HttpJudge(ChatClient(args.judge_url, args.judge_model, cache=cache, **options), style, prompt)


def judged(pairs: Sequence[Pair], judge: Judge, path: Path, concurrency: int = CONCURRENCY) -> list[Judgement]:
    """`judge_pairs`, which says what it will cost, how far it is, and what it could not judge."""

    def announce(questions: Sequence[Question]) -> None:
        cost = f": {judge.estimate(questions)}" if isinstance(judge, HttpJudge) and questions else ""
        line = f"{len(questions)} of {2 * len(pairs)} votes are not there yet{cost}"
        print(line, file=sys.stderr, flush=True)

    judgements = judge_pairs(
        pairs, judge, path, concurrency=concurrency, progress=Progress("asked for", "votes"), announce=announce
    )
    if left := unresolved(judgements):
        print(
            f"error: {len(left)} of {len(judgements)} segments were not judged ({left[0].error}); {unresolved_path(path)} "
            "lists them, and the same command again asks for them alone",
            file=sys.stderr,
        )
    return judgements
