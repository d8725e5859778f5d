"""Flags of benchmarks that a model behind a server can be run on, in place of one of this library."""

import argparse
from pathlib import Path

from svlm_jax.cli.flags import integer, number
from svlm_jax.errors import InputError
from svlm_jax.remote.chat_client import ChatClient
from svlm_jax.remote.connection import KEY_ENV, TIMEOUT

CONCURRENCY = 8


def captioner_flags(parser: argparse.ArgumentParser) -> None:
    """What `captioner_client` reads."""
    group = parser.add_argument_group("a model behind a server, in place of --model")
    group.add_argument("--captioner-url", metavar="URL", help="a server of OpenAI's chat protocol: http://HOST:PORT/v1")
    group.add_argument("--captioner-model", metavar="NAME", help="as the server calls it")
    key_help = "environment variable with the key (default: %(default)s)"
    group.add_argument("--captioner-key-env", default=KEY_ENV, metavar="NAME", help=key_help)
    concurrency_help = "requests at a time (default: %(default)s)"
    group.add_argument("--concurrency", type=integer(1, 256), default=CONCURRENCY, metavar="N", help=concurrency_help)
    group.add_argument("--cache", type=Path, metavar="DIR", help="where answers are kept (default: cache, in --out)")
    timeout_help = "of one try (default: %(default)g)"
    group.add_argument("--captioner-timeout", type=number(1), default=TIMEOUT, metavar="SECONDS", help=timeout_help)


def captioner_client(args: argparse.Namespace, out: Path) -> ChatClient | None:
    """The model of --captioner-url, for `eval.captioner`, or None without it; nothing is asked or written yet.

    Raises:
        InputError: a URL without a model, or the other way round; no such address; the package openai is not there.
    """
    if not args.captioner_url and not args.captioner_model:
        return None
    for flag, value in (("--captioner-url", args.captioner_url), ("--captioner-model", args.captioner_model)):
        if not value:
            raise InputError(flag, "nothing", "--captioner-url URL --captioner-model NAME", "name it")
    options = {"key_env": args.captioner_key_env, "timeout": args.captioner_timeout, "flag": "--captioner"}
    return ChatClient(args.captioner_url, args.captioner_model, cache=args.cache or out / "cache", **options)
