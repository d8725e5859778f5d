"""Routes of the site: the page, /streams/NAME.vtt, /metrics, and /health with /health/live and /health/ready.

Owns these routes; `http.routes` checks who may use them, `server` runs the site. `realtime.session` has the route of the
sockets; other packages hand in routes of their own. Knows streams only through the hub. Starlette is imported inside
functions: the package works without it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svlm_jax.serve.http.access import COOKIE, Access
from svlm_jax.serve.http.connections import Connections
from svlm_jax.serve.http.middleware import protect
from svlm_jax.serve.http.routes import Gate, HttpRoute, SocketRoute, expects_socket, respond, respond_json, unrouted
from svlm_jax.serve.hub import Hub
from svlm_jax.serve.realtime.session import RealtimeSockets

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript"}  # of the page's files but index.html, which needs the token
TOKEN_FORM = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Token</title><form><label>Token
<input name="token" type="password" autocomplete="off" autofocus></label> <button>Watch</button></form></html>"""
SWEEP_INTERVAL = 1.0  # seconds between two looks for overdue connections
VTT_PART_CHARS = 64 * 1024  # of a long file that wait for their reader at a time


class Site:
    """HTTP and WebSocket handlers around a hub."""

    def __init__(
        self,
        hub: Hub,
        access: Access,
        routes: Sequence[HttpRoute | SocketRoute] = (),
        *,
        tasks: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
    ) -> None:
        """Args:
        routes: of other modules; they come before those here.
        tasks: run while the site does, and are cancelled at its end.
        """
        self.other_tasks = tasks
        self.hub, self.access, self.other_routes = hub, access, routes
        self.gate = Gate(access, hub.limits, hub.metrics, lambda: hub.is_draining)
        self.connections = Connections(hub.limits, hub.metrics)
        page = resources.files("svlm_jax.serve") / "page"
        self.index = (page / "index.html").read_bytes()
        self.files = {path.name: path.read_bytes() for path in page.iterdir() if Path(path.name).suffix in MEDIA_TYPES}

    def routes(self) -> list[HttpRoute | SocketRoute]:
        """All routes; the first that matches counts."""
        return [
            *self.other_routes,
            HttpRoute("/", self.page, needs_token=False),  # it asks for a token with a form
            HttpRoute("/health", self.health, needs_token=False),
            HttpRoute("/health/live", self.live, needs_token=False),
            HttpRoute("/health/ready", self.ready, needs_token=False),
            HttpRoute("/metrics", self.metrics),
            HttpRoute("/{name:str}", self.file, needs_token=False),  # public: part of the package
            HttpRoute("/streams/{name:str}.vtt", self.vtt),
            *RealtimeSockets(self.hub, self.gate, self.access).routes(),
        ]

    def application(self) -> Any:
        """The ASGI application; while it runs, it also runs the hub's housekeeping and closes overdue connections."""
        from starlette.applications import Starlette

        gate = self.gate
        routes = [gate.http(route) if isinstance(route, HttpRoute) else gate.socket(route) for route in self.routes()]
        sockets = [route.path for route in self.routes() if isinstance(route, SocketRoute)]
        routes += [gate.http(HttpRoute(path, expects_socket)) for path in sockets]
        handlers: Any = {404: unrouted, 405: unrouted}
        starlette = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=handlers)
        starlette.router.redirect_slashes = False  # the redirect would go to whatever Host the request names
        return protect(starlette, self.connections)

    @asynccontextmanager
    async def _lifespan(self, app: Any):
        self.hub.loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(self.hub.run_housekeeping()), asyncio.create_task(self._close_overdue())]
        tasks += [asyncio.create_task(task()) for task in self.other_tasks]
        yield
        for task in tasks:
            task.cancel()

    async def _close_overdue(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_INTERVAL, self.hub.limits.request_timeout / 4))
            self.connections.close_overdue()

    async def page(self, request: "Request") -> "Response":
        refusal = await self.gate.check(request)
        if refusal is not None:  # of the token: a person in a browser gets a form instead of a line
            self.gate.count(refusal)
            return respond(TOKEN_FORM, "text/html", refusal.status)
        if "token" not in request.query_params:
            return respond(self.index, "text/html")
        response = respond("", "text/plain", 303, {"Location": "/"})  # so that the token leaves the address bar
        if self.access.token:
            is_secure = self.access.is_secure(request.scope["scheme"], request.headers)
            response.set_cookie(COOKIE, self.access.cookie, httponly=True, samesite="strict", secure=is_secure)
        return response

    async def file(self, request: "Request") -> "Response":
        name = request.path_params["name"]
        if name not in self.files:
            return respond("not found\n", "text/plain", 404)
        return respond(self.files[name], MEDIA_TYPES[Path(name).suffix])

    async def vtt(self, request: "Request") -> "Response":
        name = request.path_params["name"]
        if (text := await self.hub.vtt(name)) is None:
            return respond("no stream of that name\n", "text/plain", 404)
        from starlette.responses import StreamingResponse

        async def parts() -> AsyncIterator[bytes]:
            for start in range(0, len(text), VTT_PART_CHARS):
                yield text[start : start + VTT_PART_CHARS].encode()

        headers = {"Content-Disposition": f'attachment; filename="{name}.vtt"'}
        return StreamingResponse(parts(), headers=headers, media_type="text/vtt; charset=utf-8")

    async def health(self, request: "Request") -> "Response":
        """Needs no token, so it gives counts only and no text from a stream, a source or an exception."""
        engine, hub = self.hub.engine, self.hub
        report = {
            "ok": engine.is_healthy,
            "ready": self.is_ready,
            "streams": len(engine.running),
            "num_streams": engine.num_streams,
            "viewers": len(hub.viewers),
            "seconds_since_last_step": round(time.monotonic() - engine.last_step, 3),
            "error": "" if engine.is_healthy else "the engine broke" if engine.error else "the engine hangs",
        }
        return respond_json(report, 200 if report["ok"] else 503)

    @property
    def is_ready(self) -> bool:
        """Whether new clients should be sent here. A server whose streams are all in use is: they can be watched."""
        return self.hub.engine.is_healthy and not self.hub.is_draining

    async def live(self, request: "Request") -> "Response":
        """Whether the process works; if not, only a restart helps."""
        is_live = self.hub.engine.is_healthy
        return respond("ok\n" if is_live else "the engine broke or hangs\n", "text/plain", 200 if is_live else 503)

    async def ready(self, request: "Request") -> "Response":
        """Whether new clients should be sent here."""
        if not self.is_ready:
            line = "about to stop\n" if self.hub.is_draining else "the engine broke or hangs\n"
            return respond(line, "text/plain", 503)
        return respond("ok\n", "text/plain")

    async def metrics(self, request: "Request") -> "Response":
        engine, hub = self.hub.engine, self.hub
        gauges = {
            "svlm_up": ("1 while the engine works; 0 when it broke or hangs.", float(engine.is_healthy)),
            "svlm_ready": ("1 while new clients should be sent here; 0 also while the server drains.", float(self.is_ready)),
            "svlm_running_streams": ("Streams that run.", float(len(engine.running))),
            "svlm_num_streams": ("Streams that can run at a time: --num-streams.", float(engine.num_streams)),
            "svlm_viewers": ("Open sockets.", float(len(hub.viewers))),
            "svlm_connections": ("Open connections, sockets included.", float(len(self.connections.open))),
            "svlm_last_step_age_seconds": ("Time since the engine's last step.", time.monotonic() - engine.last_step),
        }
        return respond(hub.metrics.text(gauges), "text/plain; version=0.0.4; charset=utf-8")
