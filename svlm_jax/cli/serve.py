"""The live page: streams that several people watch in a browser, with captions, questions and a picture of the KV cache.

svlm serve --model DIR                                        # http://127.0.0.1:8000/: generated matches, webcams
svlm serve --model DIR --source match.mp4 --source rtsp://camera/1 --num-streams 8
svlm serve --model DIR --source rtsp://camera/1 --source rtsp://camera/2 --keep        # watched or not: docs/cameras.md
SVLM_TOKEN=$(openssl rand -hex 12) svlm serve --model DIR --host 0.0.0.0       # for others too: http://HOST:8000/?token=...

Without a token only this machine can watch. Lines about the server go to stderr. SIGTERM and SIGINT stop it, after a message to
the viewers, with exit code 0. What happens when: docs/serve.md.
"""

import argparse
import asyncio
import sys
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from svlm_jax.cli.chat_flags import start_chat
from svlm_jax.cli.model_flags import check_source, load
from svlm_jax.cli.operation_flags import check_operation, start_webhooks
from svlm_jax.cli.progress import Progress, compiling
from svlm_jax.cli.serve_flags import check_access, check_keep, is_loopback, limits_of, picture_size, serve_parser
from svlm_jax.cli.source_titles import with_titles
from svlm_jax.cli.speaking_flags import alert_of, pacing_of
from svlm_jax.cli.stream_flags import reconnect_policy, settings_line, stream_settings
from svlm_jax.config import StreamConfig
from svlm_jax.errors import InputError
from svlm_jax.presets import PRESETS
from svlm_jax.touchline.film import QUERY

# Seconds after which Python takes the interpreter lock from a busy thread (its default is 5 ms). A step gives the lock up some
# twenty times; while the event loop is busy it waits this long each time to get it back.
SWITCH_INTERVAL = 0.001


def parser() -> argparse.ArgumentParser:
    return serve_parser(__doc__)


def main() -> None:
    args = parser().parse_args()
    warnings.filterwarnings("ignore", r"image of \d+x\d+ px is smaller")  # of clients, who could fill the log with it
    if args.query is None:
        args.query = PRESETS[args.preset].query if args.preset else QUERY
    for source in args.source:
        check_source(source)
    config, sampling = stream_settings(args)
    speaking = {"pacing": pacing_of(args), "alert": alert_of(args)}
    check_access(args)
    check_keep(args)
    check_operation(args)
    _check_extra()
    from svlm_jax.serve.server import Server, listen
    from svlm_jax.stream.stream_settings import StreamSettings

    bound = listen(args.host, args.port)
    hub = _hub(args, config, sampling)
    vlm = load(args, "what clients send", progress=Progress("load"))
    print(settings_line(config, sampling), file=sys.stderr)
    start = time.monotonic()
    engine = _engine(args, vlm, hub, config, sampling)
    hub.attach(engine, StreamSettings(**speaking))
    engine.start()
    with ExitStack() as stack:
        for webhook in start_webhooks(args, hub):  # closed after the engine, whose last events they tell
            stack.callback(webhook.stop)
        stack.callback(engine.stop)
        server = Server(_site(args, vlm, hub, stack), bound, drain_seconds=args.drain_seconds)
        sys.setswitchinterval(SWITCH_INTERVAL)
        seconds = f"compiled in {time.monotonic() - start:.1f} s"
        slots = f"{args.num_streams} streams, {engine.session.capacity} cache slots each"
        print(f"{server.url}  {slots}, {seconds}; for {_audience(args)}", file=sys.stderr, flush=True)
        asyncio.run(server.run(handle_signals=True))


def _check_extra() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise InputError("svlm serve", f"no {error.name}", "the serve extra", "pip install 'svlm-jax[serve]'") from None


def _hub(args: argparse.Namespace, config: StreamConfig, sampling: Any) -> Any:
    from svlm_jax.serve.hub import Hub
    from svlm_jax.serve.metrics import Metrics
    from svlm_jax.serve.sources.catalog import SourceCatalog
    from svlm_jax.serve.sources.feed import FeedConfig
    from svlm_jax.serve.sources.images import Box
    from svlm_jax.touchline.source import SCHEMES, random_match

    options = {"allow_addresses": args.allow_addresses, "reconnect": reconnect_policy(args.reconnect_seconds)}
    catalog = SourceCatalog(with_titles(args.source), schemes=SCHEMES, new_match=random_match, **options)
    page_info = {
        "model": Path(args.model).name,
        "is_game_model": _is_shipped(args.model),
        "settings": _settings(args, config, sampling),
    }
    feeds = FeedConfig(config.fps, config.chunk_seconds, Box(*picture_size(args.size)), config.first_chunk_seconds)
    options = {"default_query": args.query, "page_info": page_info, "replica": args.replica}
    return Hub(feeds, limits=limits_of(args), metrics=Metrics(), catalog=catalog, **options)


def _engine(args: argparse.Namespace, vlm: Any, hub: Any, config: StreamConfig, sampling: Any) -> Any:
    from svlm_jax.serve.engine.engine import Engine
    from svlm_jax.serve.engine.session import session_for

    with compiling() as progress:
        options = {"resize_on": args.resize_on, "max_top_k": args.max_top_k, "progress": progress}
        session, clip = session_for(vlm, config, hub.config.box, args.num_streams, sampling, **options)
    options = {"limits": hub.limits, "metrics": hub.metrics, "wants_tokens": hub.wants_tokens}
    return Engine(vlm.processor, session, clip, publish=hub.publish, **options)


def _site(args: argparse.Namespace, vlm: Any, hub: Any, stack: ExitStack) -> Any:
    """All routes; what they need beside the hub is closed by the stack."""
    from svlm_jax.serve.always_on import AlwaysOnSources
    from svlm_jax.serve.chat.routes import ChatRoutes
    from svlm_jax.serve.http.access import Access
    from svlm_jax.serve.rest.routes import Rest
    from svlm_jax.serve.site import Site

    chat = start_chat(args, vlm, hub)
    stack.callback(chat.close)
    access = Access(token=args.token, loopback=is_loopback(args.host), origins=args.origin)
    always_on = AlwaysOnSources(hub, range(len(args.source)) if args.keep else ())
    routes = [*ChatRoutes(chat, Path(args.model).name).routes(), *Rest(hub, access).routes()]
    return Site(hub, access, routes, tasks=[always_on.run])


def _audience(args: argparse.Namespace) -> str:
    if is_loopback(args.host):
        return "this machine only"
    return "whoever has the token" if args.token else "everybody who can reach it"


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
    if sampling.silence is not None:
        pairs.append(("silence", f"{sampling.silence:g}"))
    if sampling.silence_threshold is not None:
        pairs.append(("silence threshold", f"{sampling.silence_threshold:g} + {sampling.silence_threshold_step:g} a token"))
    return [(name, str(value)) for name, value in pairs]
