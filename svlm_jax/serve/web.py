"""Routes and sockets: the page, /ws, /streams/NAME.vtt, /health, /metrics.

Owns the routes and who may use them (`access`); `server` runs it. Knows streams only through the hub. Starlette is imported
inside functions: the package works without it.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import TYPE_CHECKING, Any

from svlm_jax.serve.access import COOKIE, Access
from svlm_jax.serve.connections import Connections
from svlm_jax.serve.hub import Hub
from svlm_jax.serve.middleware import protect
from svlm_jax.serve.protocols import ABORT_EXTENSION
from svlm_jax.serve.viewer import Viewer

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

FILES = {"page.css": "text/css", "page.js": "text/javascript", "capture.js": "text/javascript", "draw.js": "text/javascript"}
TOKEN_FORM = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Token</title><form><label>Token
<input name="token" type="password" autocomplete="off" autofocus></label> <button>Watch</button></form></html>"""
SWEEP_INTERVAL = 1.0  # seconds between two looks for overdue connections
VTT_PART_CHARS = 64 * 1024  # of a long file that wait for their reader at a time


class Site:
    """HTTP and WebSocket handlers around a hub."""

    def __init__(self, hub: Hub, access: Access) -> None:
        self.hub, self.access = hub, access
        self.connections = Connections(hub.limits, hub.metrics)
        page = resources.files("svlm_jax.serve") / "page"
        self.files = {name: (page / name).read_bytes() for name in ("index.html", *FILES)}

    def application(self) -> Any:
        """The ASGI application; while it runs, it also runs the hub's housekeeping and closes overdue connections."""
        from starlette.applications import Starlette
        from starlette.routing import Route, WebSocketRoute

        routes = [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/{name:str}", self.file),  # after the names above: the first route that matches counts
            Route("/streams/{name:str}.vtt", self.vtt),
            WebSocketRoute("/ws", self.socket),
        ]
        starlette = Starlette(routes=routes, lifespan=self._lifespan)
        starlette.router.redirect_slashes = False  # the redirect would go to whatever Host the request names
        return protect(starlette, self.connections)

    @asynccontextmanager
    async def _lifespan(self, app: Any):
        self.hub.loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(self.hub.run_housekeeping()), asyncio.create_task(self._close_overdue())]
        yield
        for task in tasks:
            task.cancel()

    async def _close_overdue(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_INTERVAL, self.hub.limits.request_timeout / 4))
            self.connections.close_overdue()

    async def _check_access(self, request: "HTTPConnection", *, needs_token: bool = True) -> tuple[int, str] | None:
        """Why a request is refused, as (status, one line); None: it is not. A wrong token is answered late."""
        if not self.access.allows_host(request.headers.get("host", "")):
            return 421, "Host: expected localhost; name others with --origin"
        if needs_token and not self.access.has_token(request.headers, request.cookies, request.query_params):
            if self.access.has_credentials(request.headers, request.cookies, request.query_params):
                await asyncio.sleep(self.hub.limits.wrong_token_delay)  # slows down guessing
            return 401, "token: expected the one that the server was started with"
        return None

    def _response(self, body: bytes | str, media: str, status: int = 200, headers: dict[str, str] | None = None) -> "Response":
        from starlette.responses import Response

        return Response(body, status, headers, media_type=media)

    def _refusal(self, status: int, line: str) -> "Response":
        self.hub.metrics.count("svlm_refused_total", label="token" if status == 401 else "host")
        return self._response(line + "\n", "text/plain", status)

    async def page(self, request: "Request") -> "Response":
        refusal = await self._check_access(request)
        if refusal and refusal[0] == 401:  # a person in a browser gets a form instead of a line
            self.hub.metrics.count("svlm_refused_total", label="token")
            return self._response(TOKEN_FORM, "text/html", 401)
        if refusal:
            return self._refusal(*refusal)
        if "token" not in request.query_params:
            return self._response(self.files["index.html"], "text/html")
        response = self._response("", "text/plain", 303, {"Location": "/"})  # so that the token leaves the address bar
        if self.access.token:
            is_secure = self.access.is_secure(request.scope["scheme"], request.headers)
            response.set_cookie(COOKIE, self.access.cookie, httponly=True, samesite="strict", secure=is_secure)
        return response

    async def file(self, request: "Request") -> "Response":
        name = request.path_params["name"]
        if name not in FILES:
            return self._response("not found\n", "text/plain", 404)
        refusal = await self._check_access(request, needs_token=False)  # the files are public: part of the package
        return self._refusal(*refusal) if refusal else self._response(self.files[name], FILES[name])

    async def vtt(self, request: "Request") -> "Response":
        if refusal := await self._check_access(request):
            return self._refusal(*refusal)
        name = request.path_params["name"]
        if (text := await self.hub.vtt(name)) is None:
            return self._response("no stream of that name\n", "text/plain", 404)
        from starlette.responses import StreamingResponse

        async def parts() -> AsyncIterator[bytes]:
            for start in range(0, len(text), VTT_PART_CHARS):
                yield text[start : start + VTT_PART_CHARS].encode()

        headers = {"Content-Disposition": f'attachment; filename="{name}.vtt"'}
        return StreamingResponse(parts(), headers=headers, media_type="text/vtt; charset=utf-8")

    async def health(self, request: "Request") -> "Response":
        """Needs no token, so it gives counts only and no text from a stream, a source or an exception."""
        if refusal := await self._check_access(request, needs_token=False):
            return self._refusal(*refusal)
        engine, hub = self.hub.engine, self.hub
        report = {
            "ok": engine.is_healthy,
            "streams": len(engine.running),
            "num_streams": engine.num_streams,
            "viewers": len(hub.viewers),
            "seconds_since_last_step": round(time.monotonic() - engine.last_step, 3),
            "error": "" if engine.is_healthy else "the engine broke" if engine.error else "the engine hangs",
        }
        return self._response(json.dumps(report) + "\n", "application/json", 200 if report["ok"] else 503)

    async def metrics(self, request: "Request") -> "Response":
        if refusal := await self._check_access(request):
            return self._refusal(*refusal)
        engine, hub = self.hub.engine, self.hub
        gauges = {
            "svlm_up": ("1 while the engine works; 0 when it broke or hangs.", float(engine.is_healthy)),
            "svlm_running_streams": ("Streams that run.", float(len(engine.running))),
            "svlm_num_streams": ("Streams that can run at a time: --num-streams.", float(engine.num_streams)),
            "svlm_viewers": ("Open sockets.", float(len(hub.viewers))),
            "svlm_connections": ("Open connections, sockets included.", float(len(self.connections.open))),
            "svlm_last_step_age_seconds": ("Time since the engine's last step.", time.monotonic() - engine.last_step),
        }
        return self._response(hub.metrics.text(gauges), "text/plain; version=0.0.4; charset=utf-8")

    async def socket(self, socket: "WebSocket") -> None:
        limits, address = self.hub.limits, socket.client.host if socket.client else ""
        refusal = await self._check_socket(socket, address)
        if refusal is not None:
            from starlette.responses import PlainTextResponse

            status, line, label = refusal
            self.hub.metrics.count("svlm_refused_total", label=label)
            await socket.send_denial_response(PlainTextResponse(line + "\n", status))
            return
        abort = socket.scope.get("extensions", {}).get(ABORT_EXTENSION, lambda: None)
        viewer = Viewer(socket, limits, self.hub.metrics, abort)
        try:  # from `add_socket` on everything must be undone, whatever fails
            await socket.accept()
            self.hub.add(viewer)
            await viewer.serve(self.hub.handle)
        finally:
            self.hub.remove(viewer)
            self.access.remove_socket(address)

    async def _check_socket(self, socket: "WebSocket", address: str) -> tuple[int, str, str] | None:
        """Why a socket is refused, as (status, one line, label of the metric); None: it is accepted and counted."""
        limits, refusal = self.hub.limits, await self._check_access(socket)
        if refusal is not None and refusal[0] == 421:
            return (*refusal, "host")
        if not self.access.allows_origin(socket.headers.get("origin"), socket.headers.get("host", "")):
            return 403, "Origin: a page of another site; name it with --origin", "origin"
        if refusal is not None:
            return (*refusal, "token")
        if len(self.hub.viewers) >= limits.max_viewers:
            return 503, f"{limits.max_viewers} viewers are connected already; come back later", "max_viewers"
        if not self.access.add_socket(address, limits.max_viewers_per_address):
            line = f"{limits.max_viewers_per_address} sockets of your address are open; close one"
            return 429, line, "max_viewers_per_address"
        return None
