"""Flags of `svlm serve`: what can be watched and by whom, and the limits that they set.

Owns their names and defaults. Units: seconds, pixels.
"""

import argparse
import ipaddress
import os
import re
from typing import Any

from svlm_jax.cli.chat_flags import chat_flags
from svlm_jax.cli.flags import Parser, integer, number
from svlm_jax.cli.model_flags import model_flags
from svlm_jax.cli.operation_flags import operation_flags
from svlm_jax.cli.speaking_flags import speaking_flags
from svlm_jax.cli.stream_flags import (
    frame_flags,
    preset_flag,
    reconnect_flag,
    resize_flag,
    retention_flags,
    sampling_flags,
)
from svlm_jax.errors import InputError
from svlm_jax.serve.limits import Limits

SIZE = "672x448"


def serve_parser(description: str | None) -> argparse.ArgumentParser:
    parser, defaults = Parser(description=description), Limits()
    model_flags(parser)
    parser.add_argument("--num-streams", type=integer(1, 1024), default=4, help="streams at a time, in one batch (default 4)")
    parser.add_argument("--query", help="of a stream that is started without one (default: that of --preset, or of the game)")
    sources = parser.add_argument_group("what can be watched")
    sources.add_argument(
        "--source", action="append", default=[], metavar="NAME", help="file, folder, webcam or URL; repeatable"
    )
    sources.add_argument(
        "--allow-addresses", action="store_true", help="viewers may name files and URLs of this machine: trust them"
    )
    keep = "play every --source from the start and for ever, whether or not anybody watches, and begin anew what ends"
    sources.add_argument("--keep", action="store_true", help=keep)
    reconnect_flag(sources)
    sources.add_argument("--size", default=SIZE, metavar="WxH", help=f"largest frame in pixels (default {SIZE})")
    preset_flag(parser)
    frame_flags(sources)
    resize_flag(sources)
    words = parser.add_argument_group("words")
    sampling_flags(words)
    max_top_k = "largest --top-k that a client may choose; 0: any, which sorts the vocabulary for each token (default 50)"
    words.add_argument("--max-top-k", type=integer(0), default=50, metavar="K", help=max_top_k)
    speaking_flags(parser)
    retention_flags(parser)
    _access_flags(parser.add_argument_group("who may watch"), defaults)
    chat_flags(parser.add_argument_group("chat completions"))
    operation_flags(parser.add_argument_group("operation"))
    return parser


def _access_flags(group: Any, defaults: Limits) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to bind (default 127.0.0.1: this machine only)")
    group.add_argument("--port", type=integer(0, 65535), default=8000, help="0: any that is free (default 8000)")
    token = "secret that viewers must send: 12 characters or more (or $SVLM_TOKEN)"
    group.add_argument("--token", default=os.environ.get("SVLM_TOKEN", ""), help=token)
    group.add_argument("--insecure", action="store_true", help="bind other addresses without a token")
    origin = "of a proxy in front, https://name; repeatable"
    group.add_argument("--origin", action="append", default=[], metavar="URL", help=origin)
    for flag, default, description in (
        ("--max-viewers", defaults.max_viewers, "in all"),
        ("--max-viewers-per-stream", defaults.max_viewers_per_stream, "of one stream"),
        ("--max-viewers-per-address", defaults.max_viewers_per_address, "from one client address; behind a proxy all have its"),
    ):
        group.add_argument(flag, type=integer(1), default=default, metavar="N", help=f"{description} (default {default})")
    timeout = f"seconds until a stream without viewers ends (default {defaults.unwatched_timeout:g})"
    group.add_argument("--unwatched-timeout", type=number(0), default=defaults.unwatched_timeout, metavar="S", help=timeout)


def limits_of(args: argparse.Namespace) -> Limits:
    """Those of the flags, else the defaults."""
    names = ("max_viewers", "max_viewers_per_stream", "max_viewers_per_address", "unwatched_timeout")
    return Limits(**{name: getattr(args, name) for name in names})


def check_access(args: argparse.Namespace) -> None:
    """Refuse a token that is none, and an address that others reach without one.

    Raises:
        InputError: in one line.
    """
    from svlm_jax.serve.http.access import check_token

    if args.token:
        check_token(args.token)
    elif not is_loopback(args.host) and not args.insecure:
        remedy = "set SVLM_TOKEN, or pass --insecure to let everybody in who can reach it"
        raise InputError("--host", f"{args.host} without a token", "a token", remedy)


def check_keep(args: argparse.Namespace) -> None:
    """Refuse to keep no sources, or more than there are places for.

    Raises:
        InputError: in one line.
    """
    if args.keep and not 1 <= len(args.source) <= args.num_streams:
        expected = f"1 to {args.num_streams}, the streams at a time"
        raise InputError("--keep", f"{len(args.source)} sources", expected, "name them with --source, or raise --num-streams")


def picture_size(text: str) -> tuple[int, int]:
    """Width and height of --size."""
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    if match is None or min(int(match[1]), int(match[2])) < 28:
        raise InputError("--size", text, "WIDTHxHEIGHT in pixels, each 28 to 9999", f"for example {SIZE}")
    return int(match[1]), int(match[2])


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
