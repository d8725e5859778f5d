"""Routes and sockets: the page, /ws, /streams/NAME.vtt, /health, /metrics.

Owns HTTP: headers, who may come in (`access`), how the server starts and stops. Knows streams only through the hub. Starlette
and uvicorn are imported inside functions: the package works without them.
"""

import asyncio
import errno
import json
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any

from svlm_jax.errors import InputError
from svlm_jax.serve.access import COOKIE, Access
from svlm_jax.serve.allowance import Allowance
from svlm_jax.serve.connections import ACCEPTED, Connections, room
from svlm_jax.serve.guard import HEADERS, guarded
from svlm_jax.serve.hub import Hub
from svlm_jax.serve.protocols import ABORT, protocols
from svlm_jax.serve.viewer import Viewer

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

FILES = {"page.css": "text/css", "page.js": "text/javascript", "capture.js": "text/javascript", "draw.js": "text/javascript"}
ASK = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Token</title><form><label>Token
<input name="token" type="password" autocomplete="off" autofocus></label> <button>Watch</button></form></html>"""
BUFFER = 256 * 1024  # bytes that the kernel holds for a socket which does not read
QUEUE = 128  # connections that wait in the kernel
SWEPT = 1.0  # seconds between two looks at what is overdue
PIECE = 64 * 1024  # characters of a long answer that wait for their reader at a time


class Site:
    """Handlers around a hub."""

    def __init__(self, hub: Hub, access: Access) -> None:
        self.hub, self.access = hub, access
        self.connections = Connections(hub.limits, hub.metrics)
        page = resources.files("svlm_jax.serve") / "page"
        self.files = {name: (page / name).read_bytes() for name in ("index.html", *FILES)}

    def application(self) -> Any:
        """The ASGI application; its lifespan tends the hub and the connections."""
        from starlette.applications import Starlette
        from starlette.routing import Route, WebSocketRoute

        routes = [
            Route("/", self.page),
            Route("/{name:str}", self.file),
            Route("/streams/{name:str}.vtt", self.vtt),
            WebSocketRoute("/ws", self.socket),
        ]
        routes[1:1] = [Route("/health", self.health), Route("/metrics", self.metrics)]
        inside = Starlette(routes=routes, lifespan=self._lifespan)
        inside.router.redirect_slashes = False  # its Location would name any Host
        return guarded(inside, self.connections)

    @asynccontextmanager
    async def _lifespan(self, app: Any):
        self.hub.loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(self.hub.tend()), asyncio.create_task(self._sweep())]
        yield
        for task in tasks:
            task.cancel()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(SWEPT, self.hub.limits.request / 4))
            self.connections.sweep()

    async def _refused(self, asking: "HTTPConnection", *, token: bool = True) -> tuple[int, str] | None:
        """Why a request may not come in: (status, one line). A wrong token is answered late."""
        if not self.access.host(asking.headers.get("host", "")):
            return 421, "Host: expected localhost; name others with --origin"
        if token and not self.access.known(asking.headers, asking.cookies, asking.query_params):
            if self.access.named(asking.headers, asking.cookies, asking.query_params):
                await asyncio.sleep(self.hub.limits.wrong_token)
            return 401, "token: expected the one that the server was started with"
        return None

    def _answer(self, body: bytes | str, kind: str, status: int = 200, headers: dict[str, str] | None = None) -> "Response":
        from starlette.responses import Response

        return Response(body, status, headers, media_type=kind)

    def _refusal(self, refused: tuple[int, str]) -> "Response":
        self.hub.metrics.count("svlm_refused_total", label="token" if refused[0] == 401 else "host")
        return self._answer(refused[1] + "\n", "text/plain", refused[0])

    async def page(self, request: "Request") -> "Response":
        refused = await self._refused(request)
        if refused and refused[0] == 401:
            self.hub.metrics.count("svlm_refused_total", label="token")
            return self._answer(ASK, "text/html", 401)
        if refused:
            return self._refusal(refused)
        if "token" not in request.query_params:
            return self._answer(self.files["index.html"], "text/html")
        answer = self._answer("", "text/plain", 303, {"Location": "/"})  # so that it stays in no address bar
        if self.access.token:
            secure = self.access.secure(request.scope["scheme"], request.headers)
            answer.set_cookie(COOKIE, self.access.cookie, httponly=True, samesite="strict", secure=secure)
        return answer

    async def file(self, request: "Request") -> "Response":
        name = request.path_params["name"]
        if name not in FILES:
            return self._answer("nothing here\n", "text/plain", 404)
        refused = await self._refused(request, token=False)  # the same for all servers: no secret in it
        return self._refusal(refused) if refused else self._answer(self.files[name], FILES[name])

    async def vtt(self, request: "Request") -> "Response":
        if refused := await self._refused(request):
            return self._refusal(refused)
        name = request.path_params["name"]
        if (text := await self.hub.vtt(name)) is None:
            return self._answer("no stream of that name\n", "text/plain", 404)
        from starlette.responses import StreamingResponse

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(text), PIECE):
                yield text[start : start + PIECE].encode()

        told = {"Content-Disposition": f'attachment; filename="{name}.vtt"'}
        return StreamingResponse(pieces(), headers=told, media_type="text/vtt; charset=utf-8")

    async def health(self, request: "Request") -> "Response":
        """Without the token: it tells counts only, and no text that comes from elsewhere."""
        if refused := await self._refused(request, token=False):
            return self._refusal(refused)
        engine, hub = self.hub.engine, self.hub
        told = {
            "ok": engine.healthy,
            "streams": len(engine.running),
            "rows": engine.rows,
            "viewers": len(hub.viewers),
            "seconds_since_last_step": round(time.monotonic() - engine.stepped, 3),
            "error": "" if engine.healthy else "the engine broke" if engine.error else "the engine hangs",
        }
        return self._answer(json.dumps(told) + "\n", "application/json", 200 if told["ok"] else 503)

    async def metrics(self, request: "Request") -> "Response":
        if refused := await self._refused(request):
            return self._refusal(refused)
        engine, hub = self.hub.engine, self.hub
        gauges = {
            "svlm_up": ("Whether the engine lives and does not hang.", float(engine.healthy)),
            "svlm_streams": ("Streams that run.", float(len(engine.running))),
            "svlm_rows": ("Streams that can run.", float(engine.rows)),
            "svlm_viewers": ("Sockets that are open.", float(len(hub.viewers))),
            "svlm_connections": ("Connections that are open, sockets and others.", float(len(self.connections.open))),
            "svlm_seconds_since_last_step": ("Of the engine.", time.monotonic() - engine.stepped),
        }
        return self._answer(hub.metrics.text(gauges), "text/plain; version=0.0.4; charset=utf-8")

    async def socket(self, socket: "WebSocket") -> None:
        limits, address = self.hub.limits, socket.client.host if socket.client else ""
        refused, why = await self._refused(socket), "token"
        if refused and refused[0] == 421:
            why = "host"
        elif not self.access.origin(socket.headers.get("origin"), socket.headers.get("host", "")):
            refused, why = (403, "Origin: another site's page; name it with --origin"), "origin"
        elif not refused and len(self.hub.viewers) >= limits.viewers:
            refused, why = (503, f"{limits.viewers} viewers are here already; come back later"), "viewers"
        if not refused and not self.access.enter(address, limits.sockets_an_address):
            refused, why = (429, f"{limits.sockets_an_address} sockets of your address are open; close one"), "address"
        if refused:
            from starlette.responses import PlainTextResponse

            self.hub.metrics.count("svlm_refused_total", label=why)
            await socket.send_denial_response(PlainTextResponse(refused[1] + "\n", refused[0]))
            return
        abort = socket.scope.get("extensions", {}).get(ABORT, lambda: None)
        viewer = Viewer(socket, limits, self.hub.metrics, abort)
        try:
            await socket.accept()
            self.hub.greet(viewer)
            await viewer.serve(self.hub.hear)
        finally:
            self.hub.forget(viewer)
            self.access.exit(address)


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that a port in use is told before a model is loaded.

    Raises:
        InputError: it cannot be bound.
    """
    if not 0 <= port < 65536:
        raise InputError("--port", port, "0 to 65535", "choose another")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError("--host", f"{host} ({error.strerror})", "an address of this machine", "use 127.0.0.1") from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)  # sockets that are accepted have it too
    try:
        bound.bind(where)
        bound.listen(QUEUE)
    except OSError as error:
        bound.close()
        raise InputError("--port", f"{port} ({error.strerror})", "a free port", "choose another, or 0 for any") from None
    return bound


class Serving:
    """A site on a bound socket. `run` returns when `stop` is called, from any thread, or at SIGINT and SIGTERM."""

    def __init__(self, site: Site, bound: socket.socket) -> None:
        """Raises:
        InputError: the system has too few open files for it.
        """
        import uvicorn

        self.site, self.bound, self.stopping = site, bound, False
        self.complaints = Allowance(1 / 60, 1)
        site.connections.most = room(site.hub.limits)
        requests, sockets = protocols(site.connections, HEADERS)
        config = uvicorn.Config(
            site.application(),
            http=requests,
            ws=sockets,
            ws_ping_interval=site.hub.limits.ping,
            ws_ping_timeout=site.hub.limits.ping,
            backlog=ACCEPTED,
            ws_max_size=site.hub.limits.message_bytes,
            ws_per_message_deflate=False,  # memory for each socket, and pictures do not get smaller
            log_level="critical",
            log_config=None,
            access_log=False,  # it would show tokens
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
            lifespan="on",
        )
        self.server = uvicorn.Server(config)

    @property
    def address(self) -> str:
        """http://HOST:PORT/"""
        host, port = self.bound.getsockname()[:2]
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def stop(self) -> None:
        self.stopping = True

    async def run(self, *, signals: bool = False) -> None:
        """Serve until told to stop; viewers are told first."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._failed)
        async with AsyncExitStack() as things:
            for number in (signal.SIGINT, signal.SIGTERM) if signals else ():
                loop.add_signal_handler(number, self._signalled, number)
                things.callback(loop.remove_signal_handler, number)
            self.server.capture_signals = _no_signals
            farewell = asyncio.create_task(self._farewell())
            things.callback(farewell.cancel)
            await self.server.serve(sockets=[self.bound])

    def _signalled(self, number: int) -> None:
        print(f"{signal.Signals(number).name}: stopping", file=sys.stderr, flush=True)
        self.server.force_exit = self.stopping
        self.stopping = True

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Without open files asyncio tells of every connection that waits, again and again: counted, and told once a minute."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            loop.default_exception_handler(context)
            return
        self.site.hub.metrics.count("svlm_refused_total", label="files")
        if self.complaints.take():
            print(f"connections wait: {error.strerror}; raise ulimit -n", file=sys.stderr, flush=True)

    async def _farewell(self) -> None:
        while not self.server.started and not self.stopping:
            await asyncio.sleep(0.01)
        if not self.stopping:
            self.bound.listen(QUEUE)  # uvicorn's `backlog` is also how many asyncio takes at once, before any can be refused
        while not self.stopping and not self.server.should_exit:
            await asyncio.sleep(0.05)
        self.site.hub.farewell("the server is stopping")
        await asyncio.sleep(0.2)
        self.server.should_exit = True


@contextmanager
def _no_signals() -> Iterator[None]:
    """In place of uvicorn's handling, which ends the process by the signal: a server that was asked to stop exits with 0."""
    yield
