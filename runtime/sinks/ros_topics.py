"""Results as ROS 2 topics: label maps, class names and diagnostics."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...data.ros.links import RosAddress, open_link
from ...data.ros.ros_messages import Diagnostic, DiagnosticArray, Header, Image, LabelInfo
from ..drive.messages import Message, Result, Status

if TYPE_CHECKING:
    from ..artifact import Card
    from ..drive.report import DriveSnapshot

log = logging.getLogger("rtseg")
DIAGNOSTICS = "/diagnostics"  # where ROS' aggregator and rqt look
PERIOD_S = 1.0
SOONEST_S = 0.1  # between two diagnostics
LEVELS = {  # ROS' own
    "running": 0, "starting": 1, "degraded": 1, "failed": 2, "stale": 3, "ended": 3,
}  # fmt: skip


class RosTopics:
    """Publishes to ROS 2, over DDS or Zenoh.

    * `TOPIC/labels`, sensor_msgs/Image: mono8, a class id a pixel, with the stamp and the frame_id
      of the picture that it is of.
    * `TOPIC/certified` and `TOPIC/confidence`, likewise, where results have them: 255 where a label
      is certified and 0 where not; confidence in 255ths.
    * `TOPIC/label_info`, vision_msgs/LabelInfo: the classes' names, once, kept for later readers.
    * `/diagnostics`, diagnostic_msgs/DiagnosticArray: state, reasons, ages and counters once a
      second, and within a tenth of one when a mask is missing.

    Args:
        address: what the topics begin with.
        card: of the artifact whose classes the results are in.
        certify: results will say which pixels are certified.

    Attributes:
        watch: the drive's `snapshot`, which the drive sets.

    Raises:
        MissingPackage: the transport's package is not installed.
        OSError: the ROS domain cannot be joined.
    """

    def __init__(self, address: RosAddress, card: Card, certify: bool = False):
        self.name = f"ROS topics {address}"
        self.watch: Callable[[], DriveSnapshot] | None = None
        self._card, self._address = card, address
        link = open_link(address)
        self._labels = link.advertise(f"{address.topic}/labels", Image.TYPE)
        self._maps = {
            name: link.advertise(f"{address.topic}/{name}", Image.TYPE)
            for name in (("certified", "confidence") if certify else ())
        }
        self._info = link.advertise(f"{address.topic}/label_info", LabelInfo.TYPE, latched=True)
        self._diagnostics = link.advertise(DIAGNOSTICS, DiagnosticArray.TYPE)
        self._info.send(LabelInfo(Header(time.time_ns()), card.classes).encode())
        self._trouble: Status | None = None
        self._news, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._diagnose, name="ROS diagnostics", daemon=True)
        self._thread.start()

    def __call__(self, message: Message) -> None:
        if isinstance(message, Result):
            self._labels.send(label_image(message).encode())
            for name, picture in message.maps().items():
                if name in self._maps:
                    self._maps[name].send(gray_image(message, picture).encode())
        else:
            self._trouble = message
            self._news.set()

    def _diagnose(self) -> None:
        while not self._closed:
            self._news.wait(PERIOD_S)
            self._news.clear()
            try:
                self.send_diagnostics()
            except OSError as error:
                log.warning("no diagnostics were published", extra={"error": str(error)})
            time.sleep(SOONEST_S)

    def send_diagnostics(self) -> None:
        """Publish the state of the moment."""
        trouble, self._trouble = self._trouble, None
        snapshot = self.watch() if self.watch else None
        if snapshot is None or self._closed:  # not in a drive, or no more
            return
        name = f"{self._address.topic.strip('/')}: segmentation"
        diagnostic = describe_state(snapshot, trouble, name, self._card.model)
        self._diagnostics.send(DiagnosticArray(Header(snapshot.at_wall_ns), [diagnostic]).encode())

    def close(self) -> None:
        self._closed = True
        self._news.set()
        self._thread.join(2 * SOONEST_S)
        for publication in (self._labels, *self._maps.values(), self._info, self._diagnostics):
            publication.close()


def label_image(result: Result) -> Image:
    """A result's labels as sensor_msgs/Image."""
    return gray_image(result, result.labels)


def gray_image(result: Result, picture: NDArray[np.uint8]) -> Image:
    """A map (H, W) of a result's pixels as sensor_msgs/Image."""
    height, width = picture.shape
    header = Header(result.captured_wall_ns, result.coordinate_frame)
    pixels = np.ascontiguousarray(picture).data.cast("B")
    return Image(header, height, width, "mono8", width, pixels)


def describe_state(
    snapshot: DriveSnapshot, trouble: Status | None, name: str, hardware: str
) -> Diagnostic:
    """A drive's state for diagnostic_msgs.

    Args:
        snapshot: of the drive.
        trouble: why the last mask is missing, if one is.
        name: of the component.
        hardware: of the network, ROS' `hardware_id`.
    """
    reasons = "; ".join(snapshot.reasons)
    if trouble is not None:
        reasons = f"{trouble.kind.value} {trouble.cause}: {trouble.text}"
    values = {
        "state": snapshot.state,
        "reasons": "; ".join(snapshot.reasons),
        "artifact": snapshot.level or "",
        "age source": snapshot.age_source,
        "frames captured": str(snapshot.frames.captured),
        "frames answered": str(snapshot.frames.published),
        **{f"dropped, {cause}": str(n) for cause, n in snapshot.frames.dropped.items()},
        **{f"statuses, {kind}": str(n) for kind, n in snapshot.statuses.items()},
        "deadline misses": str(snapshot.deadline_misses),
        "workers replaced": str(snapshot.replaced_workers),
        "source opened again": str(snapshot.reopened_source),
    }
    for what, times in (("age", snapshot.age_ms), ("latency", snapshot.latency_ms)):
        for quantile in ("p50", "p95", "p99", "max"):
            values[f"{what} {quantile} ms"] = f"{getattr(times, quantile):.1f}"
    for stage, times in snapshot.stages_ms.items():
        values[f"age, {stage} p99 ms"] = f"{times.p99:.1f}"
    if (proof := snapshot.proof) is not None:
        last = "" if proof.last_agreement is None else f"{proof.last_agreement:.6f}"
        values |= {
            "frames verified": str(proof.verified),
            "last agreement": last,
            "verification alarms": str(proof.alarms),
        }
    text = f"{snapshot.state}: {reasons}" if reasons else snapshot.state
    return Diagnostic(LEVELS[snapshot.state], name, text, hardware, values)
