"""Frames from a ROS 2 image topic."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import count

from ...errors import DataError
from ..frames import Frame, Unreadable
from .links import Subscription, open_link, parse_address
from .pixels import read_picture
from .ros_messages import CompressedImage, Image

log = logging.getLogger("rtseg")
SILENCE_S = 0.8  # a drive would open a source anew after 1 s, with a thread that hangs left behind
SLICE_S = 0.1
# A stamp this far from now is no capture time of this machine's clock.
FUTURE_NS, PAST_NS = 5_000_000, 10_000_000_000


class RosCamera:
    """A topic of sensor_msgs/Image or CompressedImage as an iterable of Frames, newest only.

    It subscribes once, when it is first iterated. Iterating raises OSError after 0.8 s without a
    message, and can begin again at once; a damaged message gives an Unreadable.

    A frame's age counts from its header's stamp, as long as stamps are this machine's: from the
    first that is more than 5 ms in the future or 10 s in the past on, it counts from arrival, and
    the log says so. With `?stamp=arrival` it does so from the beginning.

    Args:
        where: "ros2:/camera/image_raw" or "zenoh:/camera/image_raw", with options as
            `parse_address` knows them. A topic that ends in `compressed` has CompressedImage.

    Raises:
        UsageError: it is no address of a topic.
    """

    def __init__(self, where: str):
        self.address = parse_address(where)
        options = self.address.options
        ends = "compressed" if self.address.topic.endswith("/compressed") else "raw"
        compressed = options.get("type", ends) == "compressed"
        self.kind = CompressedImage.TYPE if compressed else Image.TYPE
        self.stamps = options.get("stamp", "header") == "header"
        self._subscription: Subscription | None = None

    def __iter__(self) -> Iterator[Frame | Unreadable]:
        subscription = self._subscribe()
        for index in count():
            message = self._wait(subscription)
            arrived_ns = time.monotonic_ns()
            name = f"{index:08d}"
            try:
                header, picture = read_picture(self.kind.name, message, name)
            except DataError as error:
                yield Unreadable(name, f"{self.address} sent {error}")
                continue
            captured_ns = self._captured_ns(header.stamp_ns, arrived_ns)
            yield Frame(picture, index, captured_ns, name, header.stamp_ns, header.frame_id)

    def _subscribe(self) -> Subscription:
        if self._subscription is None:
            reliable = self.address.options.get("reliability") == "reliable"
            link = open_link(self.address)
            self._subscription = link.subscribe(self.address.topic, self.kind, reliable)
        return self._subscription

    def _wait(self, subscription: Subscription) -> bytes | memoryview:
        end = time.monotonic() + SILENCE_S
        while (left_s := end - time.monotonic()) > 0:
            if (message := subscription.take(min(left_s, SLICE_S))) is not None:
                return message
        known = subscription.publishers()
        who = f"{known} publish to it" if known else "nobody publishes to it"
        raise OSError(
            f"{self.address} (domain {self.address.domain}) is silent: {who} as {self.kind.name}"
        )

    def _captured_ns(self, stamp_ns: int, arrived_ns: int) -> int:
        now_ns, age_ns = time.monotonic_ns(), time.time_ns() - stamp_ns
        if self.stamps and not -FUTURE_NS <= age_ns <= PAST_NS:
            self.stamps = False
            log.warning(
                "ages count from arrival: a header's stamp is no time of this machine's clock",
                extra={"topic": str(self.address), "stamp_age_ms": round(age_ns / 1e6)},
            )
        return now_ns - max(0, age_ns) if self.stamps else arrived_ns

    def close(self) -> None:
        """Leave the topic."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
