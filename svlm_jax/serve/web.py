"""Routes and sockets: the page, /ws, /streams/NAME.vtt, /health, /metrics.

Owns HTTP: headers, who may come in (`access`), how the server starts and stops. Knows streams only through the hub. Starlette
and uvicorn are imported inside functions: the package works without them.
"""

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any

from svlm_jax.errors import InputError
from svlm_jax.serve.access import COOKIE, Access
from svlm_jax.serve.hub import Hub
from svlm_jax.serve.viewer import Viewer

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

FILES = {"page.css": "text/css", "page.js": "text/javascript", "draw.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
ASK = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Token</title><form><label>Token
<input name="token" type="password" autocomplete="off" autofocus></label> <button>Watch</button></form></html>"""
BUFFER = 256 * 1024  # bytes that the kernel holds for a socket which does not read
ABORT = "svlm.abort"  # in the scope of a socket: drops its connection


class Site:
    """Handlers around a hub."""

    def __init__(self, hub: Hub, access: Access) -> None:
        self.hub, self.access = hub, access
        page = resources.files("svlm_jax.serve") / "page"
        self.files = {name: (page / name).read_bytes() for name in ("index.html", *FILES)}

    def application(self) -> "Starlette":
        """The ASGI application; its lifespan tends the hub."""
        from starlette.applications import Starlette
        from starlette.routing import Route, WebSocketRoute

        routes = [
            Route("/", self.page),
            Route("/{name:str}", self.file),
            Route("/streams/{name:str}.vtt", self.vtt),
            WebSocketRoute("/ws", self.socket),
        ]
        routes[1:1] = [Route("/health", self.health), Route("/metrics", self.metrics)]
        return Starlette(routes=routes, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: Any):
        self.hub.loop = asyncio.get_running_loop()
        tending = asyncio.create_task(self.hub.tend())
        yield
        tending.cancel()

    def _refused(self, asking: "HTTPConnection", *, token: bool = True) -> tuple[int, str] | None:
        """Why a request may not come in: (status, one line)."""
        if not self.access.host(asking.headers.get("host", "")):
            return 421, "Host: expected localhost; name others with --origin"
        if token and not self.access.known(asking.headers, asking.cookies, asking.query_params):
            return 401, "token: expected the one that the server was started with"
        return None

    def _answer(self, body: bytes | str, kind: str, status: int = 200, headers: dict[str, str] | None = None) -> "Response":
        from starlette.responses import Response

        return Response(body, status, {**HEADERS, **(headers or {})}, media_type=kind)

    def _refusal(self, refused: tuple[int, str]) -> "Response":
        self.hub.metrics.count("svlm_refused_total", label="token" if refused[0] == 401 else "host")
        return self._answer(refused[1] + "\n", "text/plain", refused[0])

    async def page(self, request: "Request") -> "Response":
        refused = self._refused(request)
        if refused and refused[0] == 401:
            self.hub.metrics.count("svlm_refused_total", label="token")
            return self._answer(ASK, "text/html", 401)
        if refused:
            return self._refusal(refused)
        if "token" not in request.query_params:
            return self._answer(self.files["index.html"], "text/html")
        answer = self._answer("", "text/plain", 303, {"Location": "/"})  # so that it stays in no address bar
        if self.access.token:
            secure = request.url.scheme == "https"
            answer.set_cookie(COOKIE, self.access.cookie, httponly=True, samesite="strict", secure=secure)
        return answer

    async def file(self, request: "Request") -> "Response":
        name = request.path_params["name"]
        if name not in FILES:
            return self._answer("nothing here\n", "text/plain", 404)
        refused = self._refused(request, token=False)  # the same for all servers: no secret in it
        return self._refusal(refused) if refused else self._answer(self.files[name], FILES[name])

    async def vtt(self, request: "Request") -> "Response":
        if refused := self._refused(request):
            return self._refusal(refused)
        name = request.path_params["name"]
        if (text := await self.hub.vtt(name)) is None:
            return self._answer("no stream of that name\n", "text/plain", 404)
        told = {"Content-Disposition": f'attachment; filename="{name}.vtt"'}
        return self._answer(text, "text/vtt; charset=utf-8", headers=told)

    async def health(self, request: "Request") -> "Response":
        """Without the token: it tells counts only."""
        if refused := self._refused(request, token=False):
            return self._refusal(refused)
        engine, hub = self.hub.engine, self.hub
        told = {
            "ok": engine.healthy,
            "streams": len(engine.running),
            "rows": engine.rows,
            "viewers": len(hub.viewers),
            "seconds_since_last_step": round(time.monotonic() - engine.stepped, 3),
            "error": "" if engine.healthy else engine.error or "the engine hangs",
        }
        return self._answer(json.dumps(told) + "\n", "application/json", 200 if told["ok"] else 503)

    async def metrics(self, request: "Request") -> "Response":
        if refused := self._refused(request):
            return self._refusal(refused)
        engine, hub = self.hub.engine, self.hub
        gauges = {
            "svlm_up": ("Whether the engine lives and does not hang.", float(engine.healthy)),
            "svlm_streams": ("Streams that run.", float(len(engine.running))),
            "svlm_rows": ("Streams that can run.", float(engine.rows)),
            "svlm_viewers": ("Sockets that are open.", float(len(hub.viewers))),
            "svlm_seconds_since_last_step": ("Of the engine.", time.monotonic() - engine.stepped),
        }
        return self._answer(hub.metrics.text(gauges), "text/plain; version=0.0.4; charset=utf-8")

    async def socket(self, socket: "WebSocket") -> None:
        limits, address = self.hub.limits, socket.client.host if socket.client else ""
        refused, why = self._refused(socket), "token"
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
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise InputError("--port", f"{port} ({error.strerror})", "a free port", "choose another, or 0 for any") from None
    return bound


class Serving:
    """A site on a bound socket. `run` returns when `stop` is called, from any thread, or at SIGINT and SIGTERM."""

    def __init__(self, site: Site, bound: socket.socket) -> None:
        import uvicorn
        from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

        class Sockets(WebSocketsSansIOProtocol):
            def handle_connect(self, event: Any) -> None:
                super().handle_connect(event)
                if hasattr(self, "scope"):
                    self.scope["extensions"][ABORT] = self.transport.abort  # type: ignore[typeddict-unknown-key]

        self.site, self.bound, self.stopping = site, bound, False
        config = uvicorn.Config(
            site.application(),
            ws=Sockets,
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

    async def _farewell(self) -> None:
        while not self.stopping and not self.server.should_exit:
            await asyncio.sleep(0.05)
        self.site.hub.farewell("the server is stopping")
        await asyncio.sleep(0.2)
        self.server.should_exit = True


@contextmanager
def _no_signals() -> Iterator[None]:
    """In place of uvicorn's handling, which ends the process by the signal: a server that was asked to stop exits with 0."""
    yield
