"""Flags of a language model behind a server that a step asks: which one, how fast, and with which prompt."""

import argparse
from pathlib import Path

from svlm_jax.cli.flags import integer, number
from svlm_jax.errors import InputError
from svlm_jax.remote.chat_client import ChatClient
from svlm_jax.remote.connection import KEY_ENV, TIMEOUT
from svlm_jax.remote.estimate import Estimate
from svlm_jax.remote.rate_limit import RateLimit

CONCURRENCY = 8
MAX_RATE = 1e9  # a minute


def chat_flags(parser: argparse.ArgumentParser, flag: str, fields: str) -> None:
    """What `chat_client` reads.

    Args:
        flag: "--editor": how the model's flags begin.
        fields: that a prompt has, for the help.
    """
    group = parser.add_argument_group("a language model behind a server")
    group.add_argument(f"{flag}-url", metavar="URL", help="a server of OpenAI's chat protocol: http://HOST:PORT/v1")
    group.add_argument(f"{flag}-model", metavar="NAME", help="as the server calls it; a dated version can be repeated")
    key = "environment variable with the key (default: %(default)s)"
    group.add_argument(f"{flag}-key-env", default=KEY_ENV, metavar="NAME", help=key)
    timeout = "without a byte, of one try (default: %(default)g)"
    group.add_argument(f"{flag}-timeout", type=number(1), default=TIMEOUT, metavar="SECONDS", help=timeout)
    prompt = f"another prompt: a text with {fields}; lines [system] and [user] begin its two messages"
    group.add_argument("--prompt-file", type=Path, metavar="F", help=prompt)
    concurrency = "requests at a time (default: %(default)s)"
    group.add_argument("--concurrency", type=integer(1, 256), default=CONCURRENCY, metavar="N", help=concurrency)
    rate = "at most so many; with shards, each has its own (default: no limit)"
    group.add_argument("--requests-per-minute", type=number(0.01, MAX_RATE), metavar="N", help=rate)
    group.add_argument("--tokens-per-minute", type=number(1, MAX_RATE), metavar="N", help="of requests and answers, as well")


def chat_client(args: argparse.Namespace, flag: str, cache: Path) -> ChatClient | None:
    """The model of the flags; None where none is named. Nothing is asked or written yet.

    Raises:
        InputError: an address without a model, or the other way round; no such address, no key, no package openai.
    """
    name = flag.removeprefix("--")
    values = {part: getattr(args, f"{name}_{part}") for part in ("url", "model", "key_env", "timeout")}
    if not values["url"] and not values["model"]:
        return None
    for part in ("url", "model"):
        if not values[part]:
            raise InputError(f"{flag}-{part}", "nothing", f"{flag}-url URL {flag}-model NAME", "name both")
    return ChatClient(
        values["url"], values["model"], key_env=values["key_env"], timeout=values["timeout"], cache=cache, flag=flag,
        limit=RateLimit(args.requests_per_minute, args.tokens_per_minute),
    )  # fmt: skip


def cost_flags(parser: argparse.ArgumentParser) -> None:
    """--dry-run, and what `print_estimate` reads."""
    group = parser.add_argument_group("cost")
    group.add_argument("--dry-run", action="store_true", help="say what a model will be asked and stop")
    for name, subject in (("in", "what is asked"), ("out", "answers")):
        price = f"of a million tokens of {subject}, for --dry-run"
        group.add_argument(f"--price-{name}", type=number(0, 1e6), metavar="PRICE", help=price)


def print_estimate(args: argparse.Namespace, estimate: Estimate, work: str, assumption: str) -> None:
    """
    Args:
        work: what is asked about: "12 videos".
        assumption: what the numbers rest on.
    """
    cached = f"; {estimate.cached} more are answered by the cache" if estimate.cached else ""
    print(f"{work}: {estimate.requests} requests{cached}")
    print(f"about {estimate.tokens_in:,} tokens in and {estimate.tokens_out:,} out, {assumption}")
    if args.price_in is not None or args.price_out is not None:
        print(f"about {estimate.cost(args.price_in or 0, args.price_out or 0):,.2f} at these prices, thinking not counted")
