"""The live page: streams that several people watch in a browser, with captions, questions and a picture of the KV cache.

svlm serve --model DIR                                        # http://127.0.0.1:8000/: generated matches, webcams
svlm serve --model DIR --source match.mp4 --source rtsp://camera/1 --num-streams 8
SVLM_TOKEN=$(openssl rand -hex 12) svlm serve --model DIR --host 0.0.0.0       # for others too: http://HOST:8000/?token=...

Without a token only this machine can watch. Lines about the server go to stderr. SIGTERM and SIGINT stop it, after a message to
the viewers, with exit code 0. What happens when: docs/serve.md.
"""

import argparse
import asyncio
import ipaddress
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from svlm_jax.cli.flags import Parser, integer, number
from svlm_jax.cli.model_flags import check_source, knows_only_its_game, load, model_flags
from svlm_jax.cli.progress import Progress, compiling
from svlm_jax.cli.stream_flags import (
    frame_flags,
    preset_flag,
    resize_flag,
    retention_flags,
    sampling_flags,
    settings_line,
    stream_settings,
)
from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError
from svlm_jax.media.paths import masked
from svlm_jax.presets import PRESETS
from svlm_jax.serve.limits import Limits
from svlm_jax.touchline.film import QUERY

SIZE = "672x448"
# Seconds after which Python takes the interpreter lock from a busy thread (its default is 5 ms). A step gives the lock up some
# twenty times; while the event loop is busy it waits this long each time to get it back.
SWITCH_INTERVAL = 0.001


def parser() -> argparse.ArgumentParser:
    parser, defaults = Parser(description=__doc__), Limits()
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
    sources.add_argument("--size", default=SIZE, metavar="WxH", help=f"largest frame in pixels (default {SIZE})")
    preset_flag(parser)
    frame_flags(sources)
    resize_flag(sources)
    sampling_flags(parser.add_argument_group("words"))
    retention_flags(parser)
    _access_flags(parser.add_argument_group("who may watch"), defaults)
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


def main() -> None:
    args = parser().parse_args()
    if args.query is None:
        args.query = PRESETS[args.preset].query if args.preset else QUERY
    for source in args.source:
        check_source(source)
    (config, sampling), size = stream_settings(args), _size(args.size)
    is_local = _is_loopback(args.host)
    _check_access(args, is_local)
    _check_extra()
    from svlm_jax.serve.access import Access
    from svlm_jax.serve.client_image import Box
    from svlm_jax.serve.engine import Engine, session_for
    from svlm_jax.serve.server import Server, listen
    from svlm_jax.serve.web import Site

    bound = listen(args.host, args.port)
    box = Box(*size)
    hub = _hub(args, config, sampling, box)
    for line in sorted({knows_only_its_game(args.model, source) for source in args.source} - {""}):
        print(line, file=sys.stderr)
    vlm = load(args, progress=Progress("load"))
    print(settings_line(config, sampling), file=sys.stderr)
    start = time.monotonic()
    with compiling() as progress:
        options = {"resize_on": args.resize_on, "progress": progress}
        session, clip = session_for(vlm, config, box, args.num_streams, sampling, **options)
    hub.engine = Engine(vlm.processor, session, clip, publish=hub.publish, limits=hub.limits, metrics=hub.metrics)
    hub.engine.start()
    site = Site(hub, Access(token=args.token, loopback=is_local, origins=args.origin))
    server = Server(site, bound)
    if site.connections.max_connections < hub.limits.max_connections:
        print(f"few open files: {site.connections.max_connections} connections at a time; raise ulimit -n", file=sys.stderr)
    audience = "this machine only" if is_local else "whoever has the token" if args.token else "everybody who can reach it"
    sys.setswitchinterval(SWITCH_INTERVAL)
    print(
        f"{server.url}  {args.num_streams} streams, {session.capacity} cache slots each, compiled in "
        f"{time.monotonic() - start:.1f} s; for {audience}",
        file=sys.stderr,
        flush=True,
    )
    asyncio.run(server.run(handle_signals=True))
    hub.engine.stop()


def _check_extra() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise InputError("svlm serve", f"no {error.name}", "the serve extra", "pip install 'svlm-jax[serve]'") from None


def _hub(args: argparse.Namespace, config: StreamConfig, sampling: Any, box: Any) -> Any:
    from svlm_jax.serve.catalog import SourceCatalog
    from svlm_jax.serve.feed import FeedConfig
    from svlm_jax.serve.hub import Hub
    from svlm_jax.serve.metrics import Metrics
    from svlm_jax.touchline.source import SCHEMES, random_match

    limits = Limits(
        max_viewers=args.max_viewers,
        max_viewers_per_stream=args.max_viewers_per_stream,
        max_viewers_per_address=args.max_viewers_per_address,
        unwatched_timeout=args.unwatched_timeout,
    )
    catalog = SourceCatalog(
        with_titles(args.source), allow_addresses=args.allow_addresses, schemes=SCHEMES, new_match=random_match
    )
    page_info = {
        "model": Path(args.model).name,
        "is_game_model": _is_shipped(args.model),
        "settings": _settings(args, config, sampling),
    }
    feeds = FeedConfig(config.fps, config.chunk_seconds, box, config.first_chunk_seconds)
    return Hub(feeds, limits=limits, metrics=Metrics(), catalog=catalog, default_query=args.query, page_info=page_info)


def _check_access(args: argparse.Namespace, is_local: bool) -> None:
    from svlm_jax.serve.access import check_token

    if args.token:
        check_token(args.token)
    elif not is_local and not args.insecure:
        remedy = "set SVLM_TOKEN, or pass --insecure to let everybody in who can reach it"
        raise InputError("--host", f"{args.host} without a token", "a token", remedy)


def _is_shipped(model: str) -> bool:
    """Whether the model comes with the package: such models know the generated game and nothing else."""
    from svlm_jax.pretrained import SHIPPED, local_directory

    return local_directory(model).resolve() in {path.resolve() for path in SHIPPED.values()}


def _settings(args: argparse.Namespace, config: StreamConfig, sampling: Any) -> list[tuple[str, str]]:
    """The settings in force, for people who read the page: (plain words, value)."""
    sink, text_window = ("all of them" if count is None else count for count in (config.sink, config.text_window))
    pairs = [
        ("frames a second", f"{config.fps:g}"),
        ("seconds a step", f"{config.chunk_seconds:g}"),
        ("mode", config.mode),
        ("steps whose pictures are kept", config.vision_window),
        ("steps whose comments are kept in place", config.text_rounds),
        ("first words kept of older comments", sink),
        ("last words kept of older comments", text_window),
        ("longest comment, in tokens", config.max_new_tokens),
        ("temperature", f"{sampling.temperature:g}"),
        ("top k", sampling.top_k or "off"),
        ("top p", f"{sampling.top_p:g}"),
        ("repetition penalty", f"{sampling.repetition_penalty:g}"),
        ("weights", args.weights),
        ("largest picture", args.size),
    ]
    if sampling.silence_threshold is not None:
        pairs.append(("silence threshold", f"{sampling.silence_threshold:g} + {sampling.silence_threshold_step:g} a token"))
    return [(name, str(value)) for name, value in pairs]


def with_titles(names: list[str]) -> list[tuple[str, str]]:
    """(title for viewers, source) of each source. A title has no folder, and of a URL no user, password or key.

    Raises:
        InputError: a file or folder that does not play.
    """
    from svlm_jax.media.sources import open_source, scheme_of
    from svlm_jax.touchline.source import SCHEMES

    pairs = []
    for name in names:
        title, scheme = Path(name).name, scheme_of(name, SCHEMES)
        if scheme == "url":
            title = _url_title(name)
        elif scheme == "webcam":
            title = f"camera {name}"
        else:
            with open_source(name, schemes=SCHEMES) as source:
                next(iter(source), None)
        pairs.append((title, name))
    return pairs


def _url_title(url: str) -> str:
    """Host and path of a URL: without user, port and query, and without the secrets that some cameras take in the path
    ("/user=admin_password=secret_channel=1")."""
    host_and_path = re.split(r"[?#]", masked(url).partition("://")[2].rpartition("@")[2])[0]
    return re.sub(r"^([^/]*?):\d+(?=/|$)", r"\1", host_and_path)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    if match is None or min(int(match[1]), int(match[2])) < 28:
        raise InputError("--size", text, "WIDTHxHEIGHT in pixels, each 28 to 9999", f"for example {SIZE}")
    return int(match[1]), int(match[2])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
