"""The live page's sink: it keeps the newest result for the viewers."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data.classes import ClassSet
from ..runtime import Result, Status, read_card
from ..runtime.drive.report import DriveSnapshot
from .palettes import color_blind_safe

WINDOW = 500  # results that the histogram shows
BINS = 40
WIDEST = 1280  # pixels of the picture that is sent
JPEG_QUALITY = 80
RATE_NS = 5_000_000_000  # window of the rate


@dataclass(frozen=True)
class Picture:
    """A result as it is sent: a JPEG of the frame and, behind it, a PNG of class ids; then one of
    what is certified (255 or 0), if that is known."""

    facts: dict[str, object]
    body: bytes


class LivePage:
    """A sink. Taking a message only stores it: pictures are encoded when a viewer asks, once for
    all viewers, and in a server's thread.

    watch: gives the drive's `snapshot()`; without it the page counts what it was given itself.
    camera: of several, the one that it shows.
    """

    name = "live page"
    capacity = 1  # only the newest is shown

    def __init__(
        self,
        classes: ClassSet,
        model: str,
        deadline_ms: float | None = None,
        watch: Callable[[], DriveSnapshot] | None = None,
        camera: str | None = None,
    ):
        self.camera = camera
        self.classes, self.model, self.deadline_ms, self.watch = classes, model, deadline_ms, watch
        self._news = threading.Condition()
        self._newest: Result | None = None
        self._picture: Picture | None = None
        self._encoding = threading.Lock()
        self._ages_ms: deque[float] = deque(maxlen=WINDOW)
        self._published_ns: deque[int] = deque(maxlen=WINDOW)
        self._taken = self._missed = 0
        self._last_status = ""
        self._closed = False

    @classmethod
    def of(cls, artifact: Path, deadline_ms: float | None = None) -> LivePage:
        """The page for a drive whose first artifact is that one."""
        card = read_card(artifact)
        return cls(card.class_table, card.model, deadline_ms)

    def __call__(self, message: Result | Status) -> None:
        with self._news:
            if isinstance(message, Status):
                self._last_status = f"{message.kind.value} ({message.cause}): {message.text}"
                return
            self._newest = message
            self._ages_ms.append(message.age_ms)
            self._published_ns.append(message.published_ns)
            self._taken += 1
            self._missed += self.deadline_ms is not None and message.age_ms > self.deadline_ms
            self._news.notify_all()

    def newer_than(self, frame_id: int, timeout_s: float) -> Picture | None:
        """The newest result if it is another one than `frame_id` and may still be used; waits for
        it."""
        with self._news:
            self._news.wait_for(lambda: self._is_news(frame_id) or self._closed, timeout_s)
            newest = self._newest
            if newest is None or not self._is_news(frame_id):
                return None
        # The page keeps to the rule of all sinks: a mask that is too old is not shown.
        if time.monotonic_ns() > newest.expires_ns:
            return None
        # Encoded once for all viewers: the first one does it, the others wait.
        with self._encoding:
            if self._picture is None or self._picture.facts["frame_id"] != newest.frame_id:
                self._picture = encode(newest)
            return self._picture

    def close(self) -> None:
        """No more results will come: requests that wait are answered now."""
        with self._news:
            self._closed = True
            self._news.notify_all()

    def _is_news(self, frame_id: int) -> bool:
        return self._newest is not None and self._newest.frame_id != frame_id

    def about(self) -> dict[str, object]:
        """What does not change: the model, its classes and two palettes."""
        return {
            "model": self.model,
            "names": self.classes.names,
            "palette": self.classes.palette,
            "safe_palette": color_blind_safe(self.classes).palette,
        }

    def status(self) -> dict[str, object]:
        """The numbers beside the picture."""
        now_ns = time.monotonic_ns()
        with self._news:
            ages = list(self._ages_ms)
            times = [t for t in self._published_ns if t > now_ns - RATE_NS]
            own: dict[str, object] = {
                "state": "running" if self._taken else "starting",
                "reasons": [],
                "level": self._newest.level if self._newest else None,
                "deadline_misses": self._missed,
                "published": self._taken,
                "dropped": {},
                "last_status": self._last_status,
            }
        spent_s = (now_ns - times[0]) / 1e9 if len(times) > 1 else 0.0
        own |= {
            "rate_hz": round((len(times) - 1) / spent_s, 2) if spent_s else 0.0,
            "deadline_ms": self.deadline_ms,
            "latency": histogram(ages, self.deadline_ms),
        }
        return own | (_of_drive(self.watch()) if self.watch else {})


def _of_drive(drive: DriveSnapshot) -> dict[str, object]:
    """What a drive's snapshot knows better than a sink that may have been passed over."""
    return {
        "state": drive.state,
        "reasons": drive.reasons,
        "level": drive.level,
        "deadline_misses": drive.deadline_misses,
        "published": drive.frames.published,
        "dropped": drive.frames.dropped,
    }


def histogram(ages_ms: list[float], deadline_ms: float | None) -> dict[str, object]:
    """Counts in `BINS` bins, to twice the deadline or the largest value; the last bin is open."""
    top = 2 * deadline_ms if deadline_ms else max([*ages_ms, 10.0])
    edges = np.linspace(0, top, BINS + 1)
    # Later ones count in the last bin rather than not at all.
    counts, _ = np.histogram(np.minimum(ages_ms, top), edges)
    return {
        "edges_ms": edges.round(3).tolist(),
        "counts": counts.tolist(),
        "p99_ms": round(float(np.percentile(ages_ms, 99)), 3) if ages_ms else 0.0,
    }


def encode(result: Result) -> Picture:
    """A result at most `WIDEST` pixels wide."""
    image, labels = _fit_width(result.image, result.labels)
    certified = result.maps().get("certified")
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    # Label maps pack well at any level, and a viewer waits for this.
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    png = cv2.imencode(".png", labels, fast)[1].tobytes()
    facts = {
        "frame_id": result.frame_id,
        "age_ms": round(result.age_ms, 3),
        "age_source": result.age_source,
        "level": result.level,
        "jpeg_bytes": len(jpeg),
        "labels_bytes": len(png),
    }
    body = jpeg + png
    if certified is not None:
        small = cv2.resize(certified, labels.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        body += cv2.imencode(".png", small, fast)[1].tobytes()
    return Picture(facts, body)


def _fit_width(
    image: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    height, width = labels.shape
    if width <= WIDEST:
        return image, labels
    size = (WIDEST, round(height * WIDEST / width))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    ids = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(small, np.uint8), np.asarray(ids, np.uint8)


def header(picture: Picture) -> str:
    """The facts as a header's value; ASCII, since headers are."""
    return json.dumps(picture.facts, ensure_ascii=True)
