"""Flags of chat completions of `svlm serve`, and what they start."""

import argparse
from typing import TYPE_CHECKING, Any

from svlm_jax.cli.flags import integer
from svlm_jax.serve.chat.limits import ChatLimits

if TYPE_CHECKING:
    from svlm_jax.pretrained import Pretrained
    from svlm_jax.serve.chat.completions import Chat
    from svlm_jax.serve.hub import Hub


def chat_flags(group: Any) -> None:
    defaults = ChatLimits()
    urls = "requests may name images and videos by http and https URLs of public hosts; else they send the files"
    group.add_argument("--allow-media-urls", action="store_true", help=urls)
    host = "host of such URLs that may have a private address; repeatable"
    group.add_argument("--media-host", action="append", default=[], metavar="HOST", help=host)
    for flag, default, description in (
        ("--max-chat-requests", defaults.max_requests, "at a time, those that wait included"),
        (
            "--max-chat-requests-per-address",
            defaults.max_requests_per_address,
            "of one client address, those that wait included",
        ),
        ("--max-chat-prompt-tokens", defaults.max_prompt_tokens, "of a prompt, its images and videos included"),
    ):
        group.add_argument(flag, type=integer(1), default=default, metavar="N", help=f"{description} (default {default})")


def chat_limits(args: argparse.Namespace) -> ChatLimits:
    """Those of the flags, else the defaults."""
    return ChatLimits(
        max_requests=args.max_chat_requests,
        max_requests_per_address=args.max_chat_requests_per_address,
        max_prompt_tokens=args.max_chat_prompt_tokens,
    )


def start_chat(args: argparse.Namespace, vlm: "Pretrained", hub: "Hub") -> "Chat":
    """Chat completions by the engine of a hub."""
    from svlm_jax.serve.chat.completions import Chat
    from svlm_jax.serve.chat.fetch import MediaFetcher

    limits, fetch = chat_limits(args), None
    if args.allow_media_urls:
        fetcher = MediaFetcher(max_bytes=limits.max_body_bytes, timeout=limits.media_timeout, hosts=args.media_host)
        fetch = fetcher.fetch
    return Chat.of(vlm, hub.engine.submit, limits, hub.metrics, fetch)
