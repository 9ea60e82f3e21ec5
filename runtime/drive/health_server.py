"""Health of a drive, served as a file, on a port, and to systemd."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from ...data.files import write_atomically
from .health import MASKS_COME
from .messages import Health
from .page_server import UNIX, PageServer
from .report import DriveSnapshot

EVERY_S = 0.5  # the file is written
JSON = "application/json"

TakeSnapshot = Callable[[], DriveSnapshot]


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


def serve_health(
    snapshot: TakeSnapshot, where: int | str, host: str = "127.0.0.1", token: str | None = None
) -> PageServer:
    """Serve /health, the snapshot as JSON, with status 200 while masks come, else 503; /ready, the
    same status with the state alone; /live, 503 only where the loop has stopped, which a
    restart would fix.

    Args:
        snapshot: `Drive.snapshot`.
        where: a port or "unix:PATH", as `PageServer` takes it.
        host: the address that the port is of.
        token: for /health where other machines can connect.

    Raises:
        UsageError: the port is no port, or others can connect and there is no token.
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

    pages = {"/health": health, "/ready": ready, "/live": live}
    return PageServer(pages, where, host, token)


def _status(now: DriveSnapshot) -> int:
    return 200 if now.state in MASKS_COME else 503


class HealthPoint:
    """Where a drive's health can be asked from now on: `starting` until a drive takes it over,
    `failed` if none will.

    Args:
        where: a file to write the state to, or a port or "unix:PATH" to serve it on.
        host: the address that the port is of.
        token: for /health where other machines can connect.

    Raises:
        UsageError: the port is no port, or others can connect and there is no token.
        OSError: it is taken, or the file cannot be written.
    """

    def __init__(
        self,
        where: str | os.PathLike[str] | int,
        host: str = "127.0.0.1",
        token: str | None = None,
    ):
        self._began_ns = time.monotonic_ns()
        self._now = DriveSnapshot()
        self.snapshot: TakeSnapshot = self._before

        def take() -> DriveSnapshot:
            return self.snapshot()  # whoever's it is by then

        self._watcher: HealthFile | PageServer | None
        if isinstance(where, int) or (isinstance(where, str) and where.startswith(UNIX)):
            self._watcher = serve_health(take, where, host, token)
        else:
            self._watcher = HealthFile(Path(where), take)

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
            why = str(error) or repr(error)
            try:
                last = self.snapshot()  # with what it counted until then
            except Exception:  # a drive that is half built
                last = self._now
            self._now = replace(last, state="failed", reasons=(why,), ended=why)
            self.snapshot = self._before  # a drive that was ended by it tells nothing of it
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
