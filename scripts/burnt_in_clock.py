"""The age that a drive tells, against the time that its pictures show.

A local stream carries the time as a bar code. It is on time, then throttled until it lags by
`--lag` seconds, stays so, and is released:

    python scripts/burnt_in_clock.py -o docs/results/burnt-in-clock.json

Needs PyAV. Over RTP, whose sender reports tell the sender's clock; over RTSP, which carries the
same in one TCP connection; and over MPEG-TS, which tells no clock, so that ages count from arrival.
Writes JSON and a Markdown page beside it; exit code 1 if ages over RTP or RTSP are wrong by more
than 20 ms at the 99th percentile, or any mask was older than `--max-age` by the clock in its
picture.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from barcode_stream import (  # type: ignore[import-not-found]
    MASK,
    Throttle,
    describe_session,
    free_ports,
    read_time,
    send_stream,
)
from rtseg.data.camera import Camera
from rtseg.data.files import write_atomically
from rtseg.data.frames import Frame, Unreadable
from rtseg.reporting import Table
from rtseg.runtime import Drive, DriveLimits, Result, Status
from rtseg.runtime.drive.picture_faults import read_limits
from rtseg.system import read_system
from rtsp_stream import RtspServer  # type: ignore[import-not-found]

WRONG_MS = 20.0
RATE_HZ = 15.0


class Watched:
    """A source, with every frame's age as it is told and as its picture shows it."""

    def __init__(self, where: str):
        self.where = where
        self.ages: list[tuple[float, float]] = []  # told and shown, in ms

    def __iter__(self) -> Iterator[Frame | Unreadable]:
        for frame in Camera(self.where):
            now = time.monotonic_ns()
            shown = read_time(frame.image) if isinstance(frame, Frame) else None
            if isinstance(frame, Frame) and shown is not None:
                told_ms = (now - frame.captured_ns) / 1e6
                self.ages.append((told_ms, float((now // 1_000_000 - shown) & MASK)))
            yield frame


@dataclass
class Outcome:
    """Of one stream; error_ms: age told less age shown, of every frame; oldest_mask_ms: by the
    clock in its picture, when it was published."""

    transport: str
    age_sources: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    largest_lag_ms: float = 0.0
    error_p1_ms: float = 0.0
    error_p50_ms: float = 0.0
    error_p99_ms: float = 0.0
    masks: int = 0
    oldest_mask_ms: float = 0.0
    masks_older_than_max_age: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)


def drive_stream(
    transport: str, max_age_ms: float, lag_s: float, calm_s: float, rate_hz: float = RATE_HZ
) -> Outcome:
    """Drive on the stream: `calm_s` on time, as long behind, as long on time again."""
    near, far = free_ports(), free_ports()
    hold = Hold(lag_s, calm_s)
    relays = [Throttle(near + i, far + i, hold) for i in (0, 1)]
    stopped = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        session = Path(folder) / "clock.sdp"
        session.write_text(describe_session(far))
        server = RtspServer(far, describe_session(far)) if transport == "rtsp" else None
        where = {"rtp": str(session), "mpegts": f"udp://127.0.0.1:{far}"}
        source = Watched(server.address if server else where[transport])
        kind, scheme = ("mpegts", "udp") if transport == "mpegts" else ("rtp", "rtp")
        to = f"{scheme}://127.0.0.1:{near}?pkt_size=1316"
        arguments = (to, kind, stopped, rate_hz)
        threading.Thread(target=send_stream, args=arguments, daemon=True).start()
        found = Masks(max_age_ms)
        labels = lambda image: np.zeros(image.shape[:2], np.uint8)  # noqa: E731
        limits = DriveLimits(max_age_ms=max_age_ms)
        # Bars are no street: they look torn.
        pictures = read_limits(["off"])
        drive = Drive(source, labels, [found], limits=limits, pictures=pictures)
        found.first = hold.begin
        report = drive.run(hold.seconds + 5)
    stopped.set()
    for relay in relays:
        relay.close()
    if server is not None:
        server.close()
    errors = np.array([told - shown for told, shown in source.ages] or [np.nan])
    p1, p50, p99 = (round(float(each), 1) for each in np.percentile(errors, (1, 50, 99)))
    return Outcome(
        transport,
        dict(report.age_sources),
        len(source.ages),
        max((shown for _, shown in source.ages), default=0.0),
        p1,
        p50,
        p99,
        len(found.ages_ms),
        max(found.ages_ms, default=0.0),
        sum(age > max_age_ms for age in found.ages_ms),
        found.causes,
        [
            f"{entry.state}: {'; '.join(entry.reasons)}".replace(f"{folder}/", "")
            for entry in report.states
        ],
    )


class Hold:
    """Seconds by which datagrams are held up, from the first mask on."""

    def __init__(self, lag_s: float, calm_s: float):
        self.lag_s, self.calm_s, self.seconds = lag_s, calm_s, 3 * calm_s + 2 * lag_s
        self._began: float | None = None

    def begin(self) -> None:
        self._began = self._began or time.monotonic()

    def __call__(self) -> float:
        at = 0.0 if self._began is None else time.monotonic() - self._began - self.calm_s
        if not 0 < at < self.calm_s + 2 * self.lag_s:
            return 0.0
        # At half the camera's rate, so that a lag grows as a wire's that is too narrow.
        return min(self.lag_s, at / 2)


class Masks:
    """A sink that keeps every mask's age by its picture, and causes of statuses."""

    name, records, capacity = "masks", True, 1000

    def __init__(self, max_age_ms: float):
        self.max_age_ms = max_age_ms
        self.ages_ms: list[float] = []
        self.causes: dict[str, int] = {}
        self.first: Callable[[], None] = lambda: None

    def __call__(self, message: Result | Status) -> None:
        if isinstance(message, Status):
            key = f"{message.kind.value} {message.cause}"
            self.causes[key] = self.causes.get(key, 0) + 1
            return
        self.first()
        shown = read_time(message.image)
        if shown is not None:
            self.ages_ms.append(float((message.published_ns // 1_000_000 - shown) & MASK))


ROWS = {
    "frames": "frames",
    "masks": "masks",
    "largest_lag_ms": "largest lag, ms",
    "error_p1_ms": "told - shown, ms: p1",
    "error_p50_ms": "p50",
    "error_p99_ms": "p99",
    "oldest_mask_ms": "oldest mask, ms",
    "masks_older_than_max_age": "older than max age",
}


def write_page(path: Path, facts: dict[str, object], outcomes: list[Outcome]) -> None:
    """JSON, and a page beside it."""
    content = facts | {"streams": [asdict(each) for each in outcomes]}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    rows = [[each.transport, *(getattr(each, name) for name in ROWS)] for each in outcomes]
    table = Table(("stream", *ROWS.values()), rows, words=("stream",))
    parts = ["# Ages against a clock in the pictures", f"{facts['what']} {facts['machine']}."]
    parts.append(table.markdown())
    for each in outcomes:
        parts.append(f"## {each.transport}")
        told = ", ".join(f"{count} {cause}" for cause, count in each.statuses.items()) or "none"
        sources = ", ".join(f"{count} {name}" for name, count in each.age_sources.items())
        parts.append(f"Masks by what their age counts from: {sources}. Statuses: {told}. States:")
        parts.append("\n".join(f"* {state}" for state in each.states))
    write_atomically(path.with_suffix(".md"), ("\n\n".join(parts) + "\n").encode())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON file")
    parser.add_argument(
        "--transport", action="append", choices=("rtp", "rtsp", "mpegts"), help="all by default"
    )
    parser.add_argument("--max-age", type=float, default=500.0, help="ms")
    parser.add_argument("--lag", type=float, default=2.0, help="seconds")
    parser.add_argument("--calm", type=float, default=8.0, help="seconds of each part")
    arguments = parser.parse_args()
    outcomes = [
        drive_stream(transport, arguments.max_age, arguments.lag, arguments.calm)
        for transport in arguments.transport or ("rtp", "rtsp", "mpegts")
    ]
    what = (
        f"A stream of {RATE_HZ:g} pictures a second, on time, then throttled to a lag of "
        f"{arguments.lag:g} s, then released; --max-age {arguments.max_age:g} ms. Load average "
        f"{os.getloadavg()[0]:.0f} at the end."
    )
    write_page(arguments.out, {"what": what, "machine": str(read_system())}, outcomes)
    print(arguments.out.with_suffix(".md").read_text())
    return int(
        any(
            max(abs(each.error_p1_ms), abs(each.error_p99_ms)) > WRONG_MS
            or each.masks_older_than_max_age > 0
            for each in outcomes
            if each.transport != "mpegts"
        )
    )


if __name__ == "__main__":
    sys.exit(main())
