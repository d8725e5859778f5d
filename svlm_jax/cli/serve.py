"""The live page: streams that several people watch in a browser, with captions, questions and a picture of the cache.

svlm serve --model DIR                                        # http://127.0.0.1:8000/: generated matches, webcams
svlm serve --model DIR --source match.mp4 --source rtsp://camera/1 --rows 8
SVLM_TOKEN=$(openssl rand -hex 12) svlm serve --model DIR --host 0.0.0.0       # for others too: http://HOST:8000/?token=...

Without a token only this machine can watch. Lines about the server go to stderr. SIGTERM and SIGINT tell the viewers and end it
with exit code 0. What happens when: docs/serve.md.
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

from svlm_jax.cli.common import (
    Parser,
    Progress,
    check_source,
    compiling,
    in_force,
    load,
    model_flags,
    outside_its_game,
    rate_flags,
    reply_flags,
    retained_flags,
    settings,
)
from svlm_jax.cli.flags import real, whole
from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError
from svlm_jax.media.paths import masked
from svlm_jax.serve.limits import Limits
from svlm_jax.touchline.film import QUERY

SIZE = "672x448"
SWITCH = 0.001  # seconds after which a busy event loop lets the engine go on: a step takes turns with it some twenty times


def parser() -> argparse.ArgumentParser:
    made = Parser(description=__doc__)
    usual = Limits()
    model_flags(made)
    made.add_argument("--rows", type=whole(1, 1024), default=4, help="streams at a time, in one batch (default 4)")
    made.add_argument("--query", default=QUERY, help="what a stream is asked for, unless who starts it says otherwise")
    shown = made.add_argument_group("what can be watched")
    shown.add_argument("--source", action="append", default=[], metavar="NAME", help="file, folder, webcam or URL; repeatable")
    shown.add_argument(
        "--allow-sources", action="store_true", help="viewers may name files and URLs of this machine: trust them"
    )
    shown.add_argument("--size", default=SIZE, metavar="WxH", help=f"largest picture in pixels (default {SIZE})")
    rate_flags(shown)
    reply_flags(made.add_argument_group("words"))
    retained_flags(made)
    who = made.add_argument_group("who may watch")
    who.add_argument("--host", default="127.0.0.1", help="address to bind (default 127.0.0.1: this machine only)")
    who.add_argument("--port", type=whole(0, 65535), default=8000, help="0: any that is free (default 8000)")
    who.add_argument(
        "--token",
        default=os.environ.get("SVLM_TOKEN", ""),
        help="what viewers must know: 12 characters or more (or $SVLM_TOKEN)",
    )
    who.add_argument("--insecure", action="store_true", help="bind other addresses without a token")
    who.add_argument(
        "--origin", action="append", default=[], metavar="URL", help="of a proxy in front, https://name; repeatable"
    )
    who.add_argument("--viewers", type=whole(1), default=usual.viewers, help=f"at a time (default {usual.viewers})")
    who.add_argument(
        "--viewers-a-stream", type=whole(1), default=usual.viewers_a_stream, help=f"default {usual.viewers_a_stream}"
    )
    who.add_argument(
        "--sockets-an-address",
        type=whole(1),
        default=usual.sockets_an_address,
        help=f"viewers of one address (default {usual.sockets_an_address}); behind a proxy all have its",
    )
    who.add_argument("--grace", type=real(0), default=usual.grace, metavar="S", help="a stream nobody watches (default 30 s)")
    return made


def main() -> None:
    args = parser().parse_args()
    for source in args.source:
        check_source(source)
    (config, draws), size = settings(args), _size(args.size)
    limits = Limits(
        viewers=args.viewers,
        viewers_a_stream=args.viewers_a_stream,
        sockets_an_address=args.sockets_an_address,
        grace=args.grace,
    )
    local = _is_loopback(args.host)
    _check_access(args, local)
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise InputError("svlm serve", f"no {error.name}", "the serve extra", "pip install 'svlm-jax[serve]'") from None
    from svlm_jax.serve.access import Access
    from svlm_jax.serve.engine import Engine
    from svlm_jax.serve.feed import Box, Clock
    from svlm_jax.serve.hub import Hub
    from svlm_jax.serve.metrics import Metrics
    from svlm_jax.serve.web import Serving, Site, listen
    from svlm_jax.touchline.source import SCHEMES, random_match

    bound = listen(args.host, args.port)
    box, metrics = Box(*size), Metrics()
    sources = titled(args.source)
    told = {"model": Path(args.model).name, "game": _is_shipped(args.model), "settings": _settings(args, config, draws)}
    clock = Clock(config.fps, config.chunk_seconds, box)
    options = {"limits": limits, "metrics": metrics, "sources": sources, "addresses": args.allow_sources}
    hub = Hub(clock, **options, schemes=SCHEMES, new_match=random_match, query=args.query, told=told)
    for line in sorted({outside_its_game(args.model, source) for source in args.source} - {""}):
        print(line, file=sys.stderr)
    vlm = load(args, progress=Progress("load"))
    print(in_force(vlm, config, draws), file=sys.stderr)
    started = time.monotonic()
    engine = {"rows": args.rows, "publish": hub.publish, "limits": limits, "metrics": metrics, "sampling": draws}
    with compiling():
        hub.engine = Engine(vlm, config, box, **engine)
        hub.engine.start()
    serving = Serving(Site(hub, Access(token=args.token, loopback=local, origins=args.origin)), bound)
    if serving.site.connections.most < limits.connections:
        print(f"open files are few: {serving.site.connections.most} connections at a time; ulimit -n", file=sys.stderr)
    shared = "this machine only" if local else "whoever has the token" if args.token else "everybody who can reach it"
    sys.setswitchinterval(SWITCH)
    print(
        f"{serving.address}  {args.rows} rows, {hub.engine.session.capacity} slots each, compiled in "
        f"{time.monotonic() - started:.1f} s; for {shared}",
        file=sys.stderr,
        flush=True,
    )
    asyncio.run(serving.run(signals=True))
    hub.engine.stop()


def _check_access(args: argparse.Namespace, local: bool) -> None:
    from svlm_jax.serve.access import check_token

    if args.token:
        check_token(args.token)
    elif not local and not args.insecure:
        remedy = "set SVLM_TOKEN, or say --insecure to let everybody in who can reach it"
        raise InputError("--host", f"{args.host} without a token", "a token", remedy)


def _is_shipped(model: str) -> bool:
    """Whether it is a model that comes with the package: those know the generated game, and nothing else."""
    from svlm_jax.pretrained import SHIPPED, local_directory

    return local_directory(model).resolve() in {path.resolve() for path in SHIPPED.values()}


def _settings(args: argparse.Namespace, config: StreamConfig, draws: Any) -> list[tuple[str, str]]:
    """What is in force, for the page: (in plain words, value)."""
    sink, text_window = ("all of them" if count is None else count for count in (config.sink, config.text_window))
    rows = [
        ("frames a second", f"{config.fps:g}"),
        ("seconds a step", f"{config.chunk_seconds:g}"),
        ("mode", config.mode),
        ("steps whose pictures are kept", config.vision_window),
        ("steps whose comments are kept in place", config.text_rounds),
        ("first words kept of older comments", sink),
        ("last words kept of older comments", text_window),
        ("longest comment, in tokens", config.max_new_tokens),
        ("temperature", f"{draws.temperature:g}"),
        ("top k", draws.top_k or "off"),
        ("top p", f"{draws.top_p:g}"),
        ("repetition penalty", f"{draws.repetition_penalty:g}"),
        ("weights", args.weights),
        ("largest picture", args.size),
    ]
    return [(name, str(value)) for name, value in rows]


def titled(names: list[str]) -> list[tuple[str, str]]:
    """(what viewers see, source) of the operator's sources: no folder, and of a URL no user, no password and no key is shown.

    Raises:
        InputError: a file or folder that does not play.
    """
    from svlm_jax.media.sources import open_source, scheme_of
    from svlm_jax.touchline.source import SCHEMES

    result = []
    for name in names:
        title, scheme = Path(name).name, scheme_of(name, SCHEMES)
        if scheme == "url":
            title = _place(name)
        elif scheme == "webcam":
            title = f"camera {name}"
        else:
            with open_source(name, schemes=SCHEMES) as source:
                next(iter(source), None)
        result.append((title, name))
    return result


def _place(url: str) -> str:
    """Host and path of an address: without user, port and query, and without what cameras are told in a path
    ("/user=admin_password=secret_channel=1")."""
    rest = re.split(r"[?#]", masked(url).partition("://")[2].rpartition("@")[2])[0]
    return re.sub(r"^([^/]*?):\d+(?=/|$)", r"\1", rest)


def _size(text: str) -> tuple[int, int]:
    parts = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    if parts is None or min(int(parts[1]), int(parts[2])) < 28:
        raise InputError("--size", text, "WIDTHxHEIGHT in pixels, each 28 to 9999", f"for example {SIZE}")
    return int(parts[1]), int(parts[2])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
