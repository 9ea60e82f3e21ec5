"""The state of a drive with its reasons, and who may ask for it: a file, a port, systemd."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ...data.files import write_atomically
from .loop import Loop
from .messages import Health, State

RECENT_NS = 2_000_000_000  # trouble counts for that long
DEAD_LOOP_S = 2.0  # without a step
EVERY_S = 0.5  # the file is written
MASKLESS_S = 3.0  # without a mask while frames come, at least max_age
MASKS_COME = ("running", "degraded")


def assess_health(loop: Loop) -> Health:
    """What a loop's state is now, worst reasons first."""
    if (stalled_s := (loop.clock.now_ns() - loop.stepped_ns) / 1e9) > DEAD_LOOP_S:
        return Health(State.failed, (f"the loop has not turned for {stalled_s:.0f} s",))
    if loop.capture.gone:
        return Health(State.failed, (f"the source is lost for good ({loop.capture.lost})",))
    unserved = loop.supervisor.serving() is None
    if unserved and (loop.ages.count or loop.supervisor.exhausted()):
        return Health(State.failed, (f"no inference serves: {_last_failure(loop)}", *_recent(loop)))
    if not loop.ages.count:
        return Health(State.starting, _starting(loop))
    if camera := _camera(loop):
        return Health(State.stale, (camera,))
    if (masked_s := _maskless_s(loop)) > 0:
        return Health(State.failed, (f"no mask for {masked_s:.0f} s", *_recent(loop)))
    reasons = (*_inference(loop), *_recent(loop), *_sinks(loop))
    return Health(State.degraded if reasons else State.running, reasons)


def _starting(loop: Loop) -> tuple[str, ...]:
    waits = [] if loop.supervisor.serving() else ["inference is not ready yet"]
    if loop.supervisor.failures:
        waits.append(_last_failure(loop))
    if not loop.capture.last_ns and not loop.capture.waits:
        waits.append(": ".join(filter(None, ("no frame has come yet", loop.capture.lost))))
    return tuple(waits) or ("no mask has been published yet",)


def _last_failure(loop: Loop) -> str:
    failures = loop.supervisor.failures
    return failures[-1].reason if failures else "it is not ready yet"


def _maskless_s(loop: Loop) -> float:
    """For how long frames have come and none was answered, if that is too long; else 0."""
    if loop.limits.max_age_ms is None:
        return 0.0
    since_ns = max(loop.published_ns, loop.capture.resumed_ns)
    maskless_s = (loop.clock.now_ns() - since_ns) / 1e9
    return maskless_s if maskless_s > max(MASKLESS_S, loop.limits.max_age_ms / 1e3) else 0.0


def _camera(loop: Loop) -> str:
    if loop.capture.lost:
        return f"the camera is lost: {loop.capture.lost}"
    if loop.capture.ended or loop.capture.every_frame or loop.silent_s() <= loop.limits.silence_s:
        return ""
    return "the camera is silent"


def _inference(loop: Loop) -> tuple[str, ...]:
    serving = loop.supervisor.serving()
    if serving is loop.supervisor.primary:
        return ()
    return (f"the fallback serves: {_last_failure(loop)}",)


def _recent(loop: Loop) -> tuple[str, ...]:
    now = loop.clock.now_ns()
    reasons = [
        f"{cause}: {text}"
        for cause, (at_ns, text) in loop.trouble.items()
        if now - at_ns < RECENT_NS
    ]
    if loop.ladder is not None and loop.ladder.overwhelmed:
        reasons.append("the smallest artifact misses the deadline")
    return tuple(reasons)


def _sinks(loop: Loop) -> tuple[str, ...]:
    now, reasons = loop.clock.now_ns(), []
    for queue in loop.queues:
        if queue.blocked_s():
            reasons.append(f"the sink {queue.name} is blocked")
        if queue.failed_ns and now - queue.failed_ns < RECENT_NS:
            reasons.append(f"the sink {queue.name} failed: {queue.last_error}")
    return tuple(reasons)


@dataclass(frozen=True)
class StateChange:
    """at_s: seconds since the start of the drive; reasons: why, one sentence each."""

    at_s: float
    state: str
    reasons: tuple[str, ...] = ()


class History:
    """The states that a drive went through. Other reasons make an entry too; other numbers in them
    do not."""

    def __init__(self) -> None:
        self.entries: deque[StateChange] = deque(maxlen=1000)
        self._last = Health(State.starting), ""

    def note(self, at_s: float, health: Health) -> bool:
        """Whether the state is another than before."""
        before, told = self._last
        if self.entries and health == before:
            return False
        gist = re.sub(r"\d+", "", "; ".join(health.reasons))
        changed = not self.entries or health.state is not before.state
        if changed or gist != told:
            self.entries.append(StateChange(round(at_s, 3), health.state.value, health.reasons))
        self._last = health, gist
        return changed


class HealthFile:
    """Writes `snapshot()` as JSON, twice a second and at the end, from a thread of its own: a slow
    disk delays nothing. A file that is older than a few seconds tells of a dead process."""

    def __init__(self, path: Path, snapshot: Callable[[], dict[str, Any]]):
        self.path, self.snapshot = path, snapshot
        self._stop = threading.Event()
        self._write()  # a path that cannot be written is told at once
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            with contextlib.suppress(OSError):  # a full disk does not end the drive
                self._write()

    def _write(self) -> None:
        write_atomically(self.path, (json.dumps(self.snapshot()) + "\n").encode())

    def close(self) -> None:
        self._stop.set()
        self._thread.join(0.2)
        with contextlib.suppress(OSError):
            self._write()


class HealthServer:
    """Answers GET /health on a port of this machine with `snapshot()` as JSON: status 200 while
    masks come (running, degraded), else 503."""

    def __init__(self, port: int, snapshot: Callable[[], dict[str, Any]], host: str = "127.0.0.1"):
        self._server = ThreadingHTTPServer((host, port), _handler(snapshot))
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(snapshot: Callable[[], dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            if self.path.split("?")[0] != "/health":
                self.send_error(404, "only /health is here")
                return
            facts = snapshot()
            body = json.dumps(facts).encode()
            self.send_response(200 if facts["state"] in MASKS_COME else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Silent: only the front door prints."""

    return Handler


class Systemd:
    """The service manager's side of `Type=notify` and `WatchdogSec=`; silent where there is none.

    Called by the loop itself, so that a loop that stands still misses its pings and is restarted.
    """

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "").replace("@", "\0", 1)
        interval_us = int(os.environ.get("WATCHDOG_USEC", "0") or 0)
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
            line.setblocking(False)
            line.sendto(text.encode(), self._address)
