"""The live page's server: Starlette in a thread of its own, guarded by address or token."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..data.camera import is_camera
from ..data.descriptors import NONE_LEFT, RESERVE
from ..data.playback import open_drive_source
from ..errors import UsageError
from ..runtime import Drive, DriveLimits
from ..runtime.drive.page_server import check_token, is_loopback
from ..runtime.drive.report import DriveReport
from .live import LivePage, header

PAGE = Path(__file__).with_name("page")
WAIT_S = 2.0  # that a request for the next frame may hang; each holds a thread
MOST_CONNECTIONS = 48
COOKIE = "rtseg_token"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def application(pages: Sequence[LivePage], token: str | None, any_host: bool) -> ASGIApp:
    """pages: one a camera, of which viewers choose by `?camera=`. token: what viewers must bring,
    None where only this machine can connect. any_host: whether the page may be asked for by names
    other than this machine's own."""
    cameras = {page.camera or "": page for page in pages}

    def chosen(request: Request) -> LivePage:
        name = request.query_params.get("camera", "")
        if name and name not in cameras:
            raise HTTPException(404, "no camera of that name is here")
        return cameras[name] if name else pages[0]

    async def frame(request: Request) -> Response:
        page = chosen(request)
        try:
            after = int(request.query_params.get("after", -1))
        except ValueError:
            return PlainTextResponse("after is a frame's number", 400)
        picture = await run_in_threadpool(page.newer_than, after, WAIT_S)
        if picture is None:
            return Response(status_code=204)
        return Response(
            picture.body,
            media_type="application/octet-stream",
            headers={"X-Frame": header(picture)},
        )

    def status(request: Request) -> Response:
        return JSONResponse(chosen(request).status())

    def classes(request: Request) -> Response:
        return JSONResponse(pages[0].about() | {"cameras": [*filter(None, cameras)]})

    files = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
    routes = [Route(path, _file(PAGE / name)) for path, name in files.items()]
    routes += [Route("/frame", frame), Route("/status", status), Route("/classes", classes)]
    return Guard(Starlette(routes=routes), token, any_host)


def _file(path: Path) -> Any:
    def answer(request: Request) -> Response:
        return FileResponse(path)

    return answer


class Guard:
    """Lets in who may look, and adds the headers that keep a browser from doing more."""

    def __init__(self, app: ASGIApp, token: str | None, any_host: bool):
        self.app, self.token, self.any_host = app, token, any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # No web sockets, and no start-up messages of the server.
        if scope["type"] != "http":
            return
        answer = self._refusal(scope) or self._welcome(scope)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await (answer or self.app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self.any_host and not is_loopback(_hostname(headers.get("host", ""))):
            # Another site's name that was made to point here (DNS rebinding).
            return PlainTextResponse("this page is served to this machine alone", 421)
        if self.token is None or self._known(headers) or self._in_query(scope):
            return None
        return PlainTextResponse(
            "a token is needed: open the address that rtseg printed, with its ?token=...", 401
        )

    def _known(self, headers: Headers) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._equal(bearer):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and self._equal(cookie.value)

    def _in_query(self, scope: Scope) -> bool:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])
        return self._equal(given[0])

    def _equal(self, given: str) -> bool:
        # In constant time, so that a token cannot be guessed letter by letter.
        return hmac.compare_digest(given.encode(), (self.token or "").encode())

    def _welcome(self, scope: Scope) -> Response | None:
        """A token in the address moves into a cookie, and out of sight."""
        if self.token is None or scope["path"] != "/" or not self._in_query(scope):
            return None
        answer = Response(status_code=303, headers={"Location": "./"})
        # Out of reach of scripts, and not sent along by other sites.
        answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
        return answer


class Connection(H11Protocol):
    """One of few: one more closes the oldest that waits without a request, else the oldest, so that
    idle connections neither lock viewers out nor use up the process's descriptors."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.loop.time()
        others = cast("set[Connection]", self.connections)
        if len(others) > MOST_CONNECTIONS:
            oldest = min(others, key=lambda each: (not each.idle, each.since))
            others.discard(oldest)  # it ends later, and may be counted out but once
            oldest.transport.abort()

    @property
    def idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete


class _PageServer(uvicorn.Server):
    """Without descriptors asyncio would accept nobody, and try again every second."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        refuse = functools.partial(self._make_room, sockets or [])
        asyncio.get_running_loop().set_exception_handler(refuse)
        await super().startup(sockets)

    def _make_room(
        self,
        listening: list[socket.socket],
        loop: asyncio.AbstractEventLoop,
        context: dict[str, Any],
    ) -> None:
        """End the connections that wait without a request; where there are none, take the new one
        with a descriptor in reserve, and refuse it."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in NONE_LEFT):
            loop.default_exception_handler(context)
            return
        others = cast("set[Connection]", self.server_state.connections)
        if idle := [each for each in others if each.idle]:
            for each in idle:
                each.transport.abort()
            return
        for line in listening:
            with contextlib.suppress(OSError), RESERVE.lend(), line.accept()[0] as refused:
                refused.sendall(BUSY)


class Server:
    """Serves a LivePage, or one for each camera, from a thread until it is closed; a context
    manager.

    host: beyond this machine's own addresses a token is needed, and made up where none is given.
    port: 0 takes a free one. url: what to open, token included.

    Raises:
        UsageError: if the token is too short.
        OSError: if the address cannot be had.
    """

    def __init__(
        self,
        page: LivePage | Sequence[LivePage],
        host: str = "127.0.0.1",
        port: int = 8017,
        token: str | None = None,
    ):
        pages = [page] if isinstance(page, LivePage) else page
        if token is not None:
            check_token(token)
        if not 0 <= port <= 65535:
            raise UsageError(f"a port is 0 to 65535, not {port}")
        only_here = is_loopback(host)
        if token is None and not only_here:
            token = secrets.token_urlsafe(18)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family)
        self.port = int(self._socket.getsockname()[1])
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}/" + (f"?token={token}" if token else "")
        config = uvicorn.Config(
            application(pages, token, any_host=not only_here),
            log_config=None,
            access_log=False,
            log_level="critical",  # else a line for every request that is none
            lifespan="off",
            ws="none",
            http=Connection,
            backlog=MOST_CONNECTIONS,  # as many are accepted at once, before any is closed
            limit_concurrency=MOST_CONNECTIONS + 16,  # while the oldest are being closed
            timeout_graceful_shutdown=1,
            server_header=False,
        )
        RESERVE.hold()
        self._server = _PageServer(config)
        run = functools.partial(self._server.run, sockets=[self._socket])
        self._thread = threading.Thread(target=run, name="live page", daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(3)
        self._socket.close()


def serve_drive(
    source: str,
    artifacts: Sequence[Path],
    *,
    topic: str | None = None,
    rate_hz: float | None = None,
    deadline_ms: float = 100.0,
    address: tuple[str, int, str | None] = ("127.0.0.1", 8017, None),
    backend: str | None = None,
    device: str | None = None,
    steady: bool = False,
    opened: Callable[[str], None] = lambda url: None,
) -> DriveReport:
    """The drive loop behind a live page, until it is stopped.

    Args:
        source: what `open_drive_source` takes; a recording is played again and again.
        artifacts: several are the levels of the loop's ladder, largest first.
        topic: of an MCAP log.
        rate_hz: of a recording; by default its own.
        deadline_ms: results that are older count as missed.
        address: host, port and token of the page, as `Server` takes them.
        backend: what runs them; by default what their files suggest.
        device: "cpu" or "cuda[:N]".
        steady: hold uncertain pixels for a few frames.
        opened: called with the page's address.

    Returns:
        The drive's report.
    """
    page = LivePage.of(artifacts[0], deadline_ms)
    # For viewers, not planners: later masks are shown too, and counted as missed.
    limits = DriveLimits(max_age_ms=max(500.0, 5 * deadline_ms), deadline_ms=deadline_ms)
    frames = open_drive_source(source, rate_hz, loops=not is_camera(source), topic=topic)
    drive = Drive(
        frames, artifacts, [page], limits=limits, backend=backend, device=device, steady=steady
    )
    with Server(page, *address) as server:
        opened(server.url)
        return drive.run()


def _hostname(header: str) -> str:
    """A Host header's value without its port."""
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0]
