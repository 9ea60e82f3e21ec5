"""Frames from a ROS 2 image topic."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import count

from ...errors import DataError
from ..frames import Frame, Unreadable
from ..stamp_clock import Placed, StampClock
from .links import Subscription, open_link, parse_address
from .pixels import read_picture
from .ros_messages import CompressedImage, Image

log = logging.getLogger("rtseg")
SILENCE_S = 0.8  # a drive would open a source anew after 1 s, with a thread that hangs left behind
SLICE_S = 0.1


class RosCamera:
    """A topic of sensor_msgs/Image or CompressedImage as an iterable of Frames, newest only.

    It subscribes once, when it is first iterated. Iterating raises OSError after 0.8 s without a
    message, and can begin again at once; a damaged message gives an Unreadable.

    A frame's age counts from its header's stamp, which sensor_msgs defines as the time of exposure,
    as long as stamps are this machine's: while they are more than 5 ms in the future or 10 s in the
    past, and for 5 s after, it counts from arrival (see `StampClock`), and the log says so. With
    `?stamp=arrival` it always does.

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
        stamps = options.get("stamp", "header") == "header"
        self.clock = StampClock("wall", "exposure") if stamps else None
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
            placed = Placed(arrived_ns, "arrival")
            if self.clock is not None:
                placed = self.clock.place(header.stamp_ns, arrived_ns)
            if placed.notice:
                log.warning("%s: %s", self.address, placed.notice)
            yield Frame(
                picture,
                index,
                placed.captured_ns,
                name,
                header.stamp_ns,
                header.frame_id,
                age_source=placed.age_source,
                received_ns=arrived_ns,
                notice=placed.notice,
            )

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

    def close(self) -> None:
        """Leave the topic."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
