"""HTTP of a drive's health and metrics: a port or a Unix socket, for those who may ask."""

from __future__ import annotations

import contextlib
import errno
import hmac
import ipaddress
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from ...data.descriptors import NONE_LEFT, RESERVE
from ...errors import UsageError

log = logging.getLogger("rtseg")
MOST_CONNECTIONS = 16
UNIX = "unix:"  # before the path of a socket
ANYBODY = ("/live", "/ready")  # a word each, for probes that can bring no token

Page = Callable[[], tuple[int, str, bytes]]  # status, content type, body


class PageServer(ThreadingHTTPServer):
    """Answers GET with `pages`, by path, from threads of its own.

    At most `MOST_CONNECTIONS` are open; one more closes the oldest, so that idle ones neither use
    up the process's descriptors nor keep anybody out. Where something else used those up, a new
    connection takes one in reserve, and the others end.

    Args:
        pages: what is at each path.
        where: a port, of which 0 takes a free one that the attribute `port` says, or "unix:PATH", a
            socket that this user and group may use.
        host: of this machine, to listen on. On a loopback address only requests that name this
            machine are answered, so that no web page can read them through a browser.
        token: what others must bring where they can connect, as `Authorization: Bearer TOKEN`;
            `/live` and `/ready` need none.

    Raises:
        UsageError: the port is no port, or others can connect and there is no token for them.
        OSError: it is taken.
    """

    daemon_threads = True
    # Python's 5 are soon used up where many probes come at once.
    request_queue_size = 64

    def __init__(
        self,
        pages: Mapping[str, Page],
        where: int | str,
        host: str = "127.0.0.1",
        token: str | None = None,
    ):
        self.pages, self.path = pages, _socket_path(where)
        self.local = not self.path and is_loopback(host)
        self.token = check_place(where, host, token)
        self._open: list[socket.socket] = []
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        address: Any = host, where
        if self.path:
            self.address_family, address = socket.AF_UNIX, self.path
            _remove_abandoned(self.path)
        RESERVE.hold()
        try:
            super().__init__(address, _Handler)
        except OSError as error:
            place = self.path or f"port {where} of {host}"
            raise OSError(error.errno, f"{error.strerror}: {place}") from error
        self.port = 0 if self.path else int(self.server_address[1])
        name = self.path or f"port {self.port}"
        threading.Thread(target=self.serve_forever, name=name, daemon=True).start()

    def server_bind(self) -> None:
        if not self.path:
            HTTPServer.server_bind(self)
            return
        TCPServer.server_bind(self)  # HTTP's asks for the name of a host
        os.chmod(self.path, 0o660)

    def get_request(self) -> tuple[socket.socket, object]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno not in NONE_LEFT:
                raise
        try:
            with RESERVE.lend():
                self._end_all_but(0)
                return super().get_request()
        except OSError:  # not even those: asking again at once would take a whole core
            time.sleep(0.1)
            raise

    def process_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        self._end_all_but(MOST_CONNECTIONS - 1)
        self._open.append(request)
        super().process_request(request, client_address)

    def _end_all_but(self, most: int) -> None:
        while len(self._open) > most:
            with contextlib.suppress(OSError, IndexError):
                self._open.pop(0).shutdown(socket.SHUT_RDWR)  # its thread ends by that

    def shutdown_request(self, request: object) -> None:
        with contextlib.suppress(ValueError):
            self._open.remove(request)  # type: ignore[arg-type]
        super().shutdown_request(request)  # type: ignore[arg-type]
        RESERVE.hold()

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("a connection from %s broke", client_address, exc_info=True)

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        if self.path:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


class _Handler(BaseHTTPRequestHandler):
    timeout = 2
    server: PageServer

    def do_GET(self) -> None:
        named = [_host_in(each) for each in self.headers.get_all("Host", ["localhost"])]
        # DNS rebinding: a web page may point a name of its own at 127.0.0.1, and read what is
        # there.
        if self.server.local and not all(map(is_loopback, named)):
            self.send_error(403, "only this machine may ask")
            return
        path = self.path.split("?")[0]
        if not (path in ANYBODY or self._brings_token()):
            self.send_error(401, "bring the token, as Authorization: Bearer TOKEN")
            return
        page = self.server.pages.get(path)
        if page is None:
            self.send_error(404, f"here are {', '.join(self.server.pages)}")
            return
        self._answer(*page())

    def _brings_token(self) -> bool:
        if self.server.token is None:
            return True
        kind, _, given = self.headers.get("Authorization", "").partition(" ")
        # In constant time, so that a token cannot be guessed letter by letter.
        same = hmac.compare_digest(given.strip().encode(), self.server.token.encode())
        return same and kind.lower() == "bearer"

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A line of plain text, where Python would send a page of HTML."""
        self._answer(code, "text/plain", f"{message or self.responses[code][0]}\n".encode())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: only the command line prints."""


def _host_in(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:  # a bracket that stays open
        return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_token(token: str) -> str:
    """`token`, if it can be one.

    Raises:
        UsageError: it is too short, or a header cannot carry it.
    """
    if not (len(token) >= 8 and token.isascii() and token.isprintable()):
        raise UsageError("a token is 8 or more printable ASCII characters")
    return token


def check_place(where: int | str, host: str, token: str | None) -> str | None:
    """The token that those must bring who ask at a port or a Unix socket; None if only this
    machine can.

    Raises:
        UsageError: nothing can be served there, or there must be a token and is none.
    """
    if _socket_path(where) or is_loopback(host):
        return None
    if token is None:
        raise UsageError(
            f"other machines can connect to {host}, so health and metrics need a token there: "
            f"--token TOKEN, or RTSEG_TOKEN in the environment; or take {UNIX}PATH for a port"
        )
    return check_token(token)


def _socket_path(where: int | str) -> str:
    """The path of a Unix socket; "" for a port."""
    if isinstance(where, int):
        if not 0 <= where <= 65535:
            raise UsageError(f"a port is 0 to 65535, not {where}")
        return ""
    path = where.removeprefix(UNIX)
    if path == where or not path:
        raise UsageError(f"a place to serve at is a port or {UNIX}PATH, not {where!r}")
    return path


def _remove_abandoned(path: str) -> None:
    """A socket that nobody listens at any more, as a killed process leaves it; binding fails at
    all else that lies there."""
    with contextlib.suppress(OSError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(1.0)  # its holder may hang
            if line.connect_ex(path) == errno.ECONNREFUSED:
                os.unlink(path)
