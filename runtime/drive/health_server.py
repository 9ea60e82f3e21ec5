"""Health of a drive, served as a file, on a port, and to systemd."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from ...data.descriptors import NONE_LEFT, RESERVE
from ...data.files import write_atomically
from ...errors import UsageError
from .health import MASKS_COME
from .messages import Health
from .report import DriveSnapshot

log = logging.getLogger("rtseg")
EVERY_S = 0.5  # the file is written
MOST_CONNECTIONS = 16
LOCAL = ("127.0.0.1", "::1", "localhost")
JSON = "application/json"

TakeSnapshot = Callable[[], DriveSnapshot]
Page = Callable[[], tuple[int, str, bytes]]  # status, content type, body


class HealthFile:
    """Writes `snapshot()` as JSON, twice a second and at the end, from a thread of its own: a slow
    disk delays nothing. A file older than a few seconds means that the process is dead."""

    def __init__(self, path: Path, snapshot: TakeSnapshot):
        self.path, self.snapshot = path, snapshot
        self._stop = threading.Event()
        self._write()  # now, so that a path that cannot be written raises before the drive starts
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            with contextlib.suppress(OSError):  # a full disk does not end the drive
                self._write()

    def _write(self) -> None:
        text = json.dumps(self.snapshot().to_dict()) + "\n"
        write_atomically(self.path, text.encode())

    def close(self) -> None:
        self._stop.set()
        self._thread.join(0.2)
        with contextlib.suppress(OSError):
            self._write()


class PageServer(ThreadingHTTPServer):
    """Answers GET with `pages`, by path, from threads of its own.

    At most `MOST_CONNECTIONS` are open; one more closes the oldest, so that idle ones neither use
    up the process's descriptors nor keep anybody out. Where something else used those up, a new
    connection takes one in reserve, and the others end.

    Args:
        pages: what is at each path.
        port: 0 takes a free one; the attribute `port` says which.
        host: of this machine, to listen on. On a loopback address only requests that name this
            machine are answered, so that no web page can read them through a browser.

    Raises:
        UsageError: the port is no port.
        OSError: it is taken.
    """

    daemon_threads = True
    # Python's 5 are soon used up where many probes come at once.
    request_queue_size = 64

    def __init__(self, pages: Mapping[str, Page], port: int, host: str = "127.0.0.1"):
        if not 0 <= port <= 65535:
            raise UsageError(f"a port is 0 to 65535, not {port}")
        self.pages, self.local = pages, host in LOCAL
        self._open: list[socket.socket] = []
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        RESERVE.hold()
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: port {port} of {host}") from error
        self.port = int(self.server_address[1])
        threading.Thread(target=self.serve_forever, name=f"port {port}", daemon=True).start()

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


class _Handler(BaseHTTPRequestHandler):
    timeout = 2
    server: PageServer

    def do_GET(self) -> None:
        named = {_host_in(each) for each in self.headers.get_all("Host", ["localhost"])}
        # DNS rebinding: a web page may point a name of its own at 127.0.0.1, and read what is
        # there.
        if self.server.local and not named <= set(LOCAL):
            self.send_error(403, "only this machine may ask")
            return
        page = self.server.pages.get(self.path.split("?")[0])
        if page is None:
            self.send_error(404, f"here are {', '.join(self.server.pages)}")
            return
        self._answer(*page())

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """A line of plain text, where Python would send a page of HTML."""
        self._answer(code, "text/plain", f"{message or self.responses[code][0]}\n".encode())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: only the command line prints."""


def _host_in(header: str) -> str | None:
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:  # a bracket that stays open
        return None


def serve_health(snapshot: TakeSnapshot, port: int, host: str = "127.0.0.1") -> PageServer:
    """Serve /health, the snapshot as JSON, with status 200 while masks come, else 503; /ready, the
    same status with the state alone; /live, 503 only where the loop has stopped, which a
    restart would fix.

    Raises:
        UsageError: the port is no port.
        OSError: it is taken.
    """

    def health() -> tuple[int, str, bytes]:
        now = snapshot()
        return _status(now), JSON, json.dumps(now.to_dict()).encode()

    def ready() -> tuple[int, str, bytes]:
        now = snapshot()
        return _status(now), "text/plain", now.state.encode()

    def live() -> tuple[int, str, bytes]:
        stalled = any("the loop has not turned" in reason for reason in snapshot().reasons)
        return 503 if stalled else 200, "text/plain", b"stalled" if stalled else b"live"

    return PageServer({"/health": health, "/ready": ready, "/live": live}, port, host)


def _status(now: DriveSnapshot) -> int:
    return 200 if now.state in MASKS_COME else 503


class HealthPoint:
    """Where a drive's health can be asked from now on: `starting` until a drive takes it over,
    `failed` if none will.

    Args:
        where: a file to write the state to, or a port to serve it on.
        host: the address that the port is of.

    Raises:
        UsageError: the port is no port.
        OSError: it is taken, or the file cannot be written.
    """

    def __init__(self, where: str | os.PathLike[str] | int, host: str = "127.0.0.1"):
        self._began_ns = time.monotonic_ns()
        self._now = DriveSnapshot()
        self.snapshot: TakeSnapshot = self._before

        def take() -> DriveSnapshot:
            return self.snapshot()  # whoever's it is by then

        self._watcher: HealthFile | PageServer | None = (
            serve_health(take, where, host)
            if isinstance(where, int)
            else HealthFile(Path(where), take)
        )

    @property
    def port(self) -> int | None:
        """The port that is served, if it is one."""
        return getattr(self._watcher, "port", None)

    def tell(self, what: str, share: float = 0.0) -> None:
        """Give the reason for `starting`."""
        self._now = replace(self._now, reasons=(what,))

    def _before(self) -> DriveSnapshot:
        seconds = (time.monotonic_ns() - self._began_ns) / 1e9
        return replace(self._now, at_wall_ns=time.time_ns(), seconds=round(seconds, 3))

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
        self._watcher = None

    def __enter__(self) -> HealthPoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._now = replace(self._now, state="failed", reasons=(str(error) or repr(error),))
        self.close()


class Systemd:
    """The service manager's side of `Type=notify` and `WatchdogSec=`; silent where there is none.

    Called by the loop itself, so that a loop that stands still misses its pings and is restarted.
    """

    def __init__(self) -> None:
        # systemd writes @ for the zero byte that begins an abstract socket's name.
        self._address = os.environ.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        interval_us = int(os.environ.get("WATCHDOG_USEC", "0") or 0)
        # A third of the interval: systemd recommends half, and a ping may come late.
        self._every_ns = interval_us * 1000 // 3
        self._pinged_ns = 0
        self._told = ""
        self._ready = False

    def tell(self, now_ns: int, health: Health) -> None:
        """After every step: the state where it changed, and a ping where one is due."""
        if not self._address:
            return
        lines = []
        if not self._ready and health.state.value in MASKS_COME:
            self._ready = True
            lines.append("READY=1")
        status = "; ".join((health.state.value, *health.reasons))
        if status != self._told:
            self._told = status
            lines.append(f"STATUS={status}".replace("\n", " "))
        if self._every_ns and now_ns - self._pinged_ns >= self._every_ns:
            self._pinged_ns = now_ns
            lines.append("WATCHDOG=1")
        if lines:
            self._send("\n".join(lines))

    def stopping(self) -> None:
        if self._address:
            self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line,
        ):
            # A manager that does not read must not hold the loop.
            line.setblocking(False)
            line.sendto(text.encode(), self._address)
