"""A ROS 2 node as another program would be one, which shares no code with rtseg: messages are
serialized by Cyclone DDS' own classes, or by rosbags for Zenoh.

python ros_peer.py publish|listen dds|zenoh DOMAIN [ENDPOINT]
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 96, 128  # of the pictures that the program publishes
HZ = 20.0
CAMERA, FRAME_ID = "/camera/image_raw", "front_camera"


@dataclass
class Labels:
    """A label map as it came: stamp in ns since 1970, frame_id, encoding, (H, W) uint8."""

    stamp_ns: int
    frame_id: str
    encoding: str
    labels: NDArray[np.uint8]


def pictures(count: int = 4) -> list[NDArray[np.uint8]]:
    """(H, W, 3) uint8 BGR, a few that differ."""
    random = np.random.default_rng(7)
    small = random.integers(0, 176, (count, 6, 8, 3), np.uint8)
    blocks = [np.kron(each, np.ones((16, 16, 1), np.uint8)) for each in small]
    # With texture, and no row that repeats itself to the lower edge: else they are told as faulty.
    return [each + random.integers(0, 80, each.shape, np.uint8) for each in blocks]


class DdsPeer:
    """Over DDS, with classes as Cyclone's compiler of IDL writes them."""

    def __init__(self, domain: int, out: str = "/rtseg"):
        from cyclonedds.domain import DomainParticipant
        from cyclonedds.idl import make_idl_struct
        from cyclonedds.idl.types import byte, float32, int32, sequence, uint8, uint16, uint32
        from cyclonedds.qos import Policy, Qos

        def struct(name: str, /, **fields: Any) -> Any:
            package, short = name.split("/")
            return make_idl_struct(f"{short}_", f"{package}::msg::dds_::{short}_", fields)

        self.time = struct("builtin_interfaces/Time", sec=int32, nanosec=uint32)
        self.header = struct("std_msgs/Header", stamp=self.time, frame_id=str)
        self.image = struct(
            "sensor_msgs/Image", header=self.header, height=uint32, width=uint32, encoding=str,
            is_bigendian=uint8, step=uint32, data=sequence[uint8],
        )  # fmt: skip
        entry = struct("vision_msgs/VisionClass", class_id=uint16, class_name=str)
        info = struct(
            "vision_msgs/LabelInfo", header=self.header, class_map=sequence[entry],
            threshold=float32,
        )  # fmt: skip
        pair = struct("diagnostic_msgs/KeyValue", key=str, value=str)
        status = struct(
            "diagnostic_msgs/DiagnosticStatus", level=byte, name=str, message=str, hardware_id=str,
            values=sequence[pair],
        )  # fmt: skip
        array = struct(
            "diagnostic_msgs/DiagnosticArray", header=self.header, status=sequence[status]
        )
        self.participant = DomainParticipant(domain)
        # As rclpy's defaults: reliable, keep last 10.
        usual = Policy.Reliability.Reliable(10**8), Policy.History.KeepLast(10)
        self._qos = Qos(*usual, Policy.Durability.Volatile)
        self._latched = Qos(*usual, Policy.Durability.TransientLocal)
        self._info, self._array, self._out = info, array, out
        self._readers: dict[str, Any] = {}
        self._writer = self._entity("DataWriter", CAMERA, self.image, self._qos)

    def _entity(self, what: str, topic: str, kind: Any, qos: Any) -> Any:
        from cyclonedds.pub import DataWriter
        from cyclonedds.sub import DataReader
        from cyclonedds.topic import Topic

        make: Any = {"DataWriter": DataWriter, "DataReader": DataReader}[what]
        return make(self.participant, Topic(self.participant, f"rt{topic}", kind), qos)

    def send(
        self, stamp_ns: int, picture: NDArray[np.uint8], encoding: str = "bgr8", step: int = 0
    ) -> None:
        """Publish a picture; `step` in place of the right one."""
        height, width = picture.shape[:2]
        stamp = self.time(*divmod(stamp_ns, 10**9))
        header = self.header(stamp, FRAME_ID)
        facts = height, width, encoding, 0, step or picture.nbytes // height
        self._writer.write(self.image(header, *facts, list(picture.tobytes())))

    def _take(self, topic: str, kind: Any, qos: Any) -> list[Any]:
        if topic not in self._readers:
            self._readers[topic] = self._entity("DataReader", topic, kind, qos)
        return [each for each in self._readers[topic].take(N=100) if isinstance(each, kind)]

    def labels(self, name: str = "labels") -> list[Labels]:
        """Label maps, or maps of another name, since the last call."""
        return [
            Labels(
                each.header.stamp.sec * 10**9 + each.header.stamp.nanosec,
                each.header.frame_id,
                each.encoding,
                np.array(each.data, np.uint8).reshape(each.height, each.step)[:, : each.width],
            )
            for each in self._take(f"{self._out}/{name}", self.image, self._qos)
        ]

    def classes(self) -> dict[int, str]:
        """Class names by id, once they came."""
        found = self._take(f"{self._out}/label_info", self._info, self._latched)
        return {each.class_id: each.class_name for info in found for each in info.class_map}

    def diagnostics(self) -> list[tuple[int, str, dict[str, str]]]:
        """(level, message, values) of each status since the last call."""
        return [
            (int(each.level), each.message, {pair.key: pair.value for pair in each.values})
            for array in self._take("/diagnostics", self._array, self._qos)
            for each in array.status
        ]

    def close(self) -> None:
        del self._writer, self._readers, self.participant


class ZenohPeer:
    """Over Zenoh as rmw_zenoh does it, a client of the router at `endpoint`."""

    def __init__(self, domain: int, endpoint: str, out: str = "/rtseg"):
        import zenoh
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore

        self.store = get_typestore(Stores.ROS2_JAZZY)
        for name, text in (
            ("VisionClass", "uint16 class_id\nstring class_name\n"),
            ("LabelInfo", "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\n"
             "float32 threshold\n"),
        ):  # fmt: skip
            self.store.register(get_types_from_msg(text, f"vision_msgs/msg/{name}"))
        config = zenoh.Config()
        config.insert_json5("mode", '"client"')
        config.insert_json5("connect/endpoints", f'["{endpoint}"]')
        self.session = zenoh.open(config)
        self._zenoh, self._domain, self._out = zenoh, domain, out
        self._publisher = self.session.declare_publisher(self.key(CAMERA, "sensor_msgs/msg/Image"))
        self._subscribers: dict[str, Any] = {}
        self.attachments: list[bytes] = []

    def key(self, topic: str, name: str) -> str:
        package, _, short = name.split("/")
        wire = f"{package}::msg::dds_::{short}_"
        return f"{self._domain}{topic}/{wire}/{self.store.hash_rihs01(name)}"

    def send(
        self, stamp_ns: int, picture: NDArray[np.uint8], encoding: str = "bgr8", step: int = 0
    ) -> None:
        """Publish a picture; `step` in place of the right one."""
        types, (height, width) = self.store.types, picture.shape[:2]
        stamp = types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 10**9))
        header = types["std_msgs/msg/Header"](stamp, FRAME_ID)
        facts = height, width, encoding, 0, step or picture.nbytes // height
        image = types["sensor_msgs/msg/Image"](header, *facts, picture.reshape(-1))
        attachment = b"\1" + bytes(7) + bytes(8) + b"\x10" + bytes(16)
        content = bytes(self.store.serialize_cdr(image, "sensor_msgs/msg/Image"))
        self._publisher.put(content, attachment=attachment)

    def _take(self, topic: str, name: str, latched: bool = False) -> list[Any]:
        from zenoh import ext, handlers

        if topic not in self._subscribers:
            # What rmw_zenoh declares, too.
            history = ext.HistoryConfig(detect_late_publishers=True, max_samples=1)
            options = {"history": history, "subscriber_detection": True} if latched else {}
            self._subscribers[topic] = ext.declare_advanced_subscriber(
                self.session, self.key(topic, name), handlers.FifoChannel(100), **options
            )
        found = []
        while (sample := self._subscribers[topic].try_recv()) is not None:
            self.attachments.append(bytes(sample.attachment))
            found.append(self.store.deserialize_cdr(bytes(sample.payload), name))
        return found

    def labels(self, name: str = "labels") -> list[Labels]:
        """Label maps, or maps of another name, since the last call."""
        return [
            Labels(
                each.header.stamp.sec * 10**9 + each.header.stamp.nanosec,
                each.header.frame_id,
                each.encoding,
                each.data.reshape(each.height, each.step)[:, : each.width],
            )
            for each in self._take(f"{self._out}/{name}", "sensor_msgs/msg/Image")
        ]

    def classes(self) -> dict[int, str]:
        """Class names by id, once they came."""
        found = self._take(f"{self._out}/label_info", "vision_msgs/msg/LabelInfo", latched=True)
        return {each.class_id: each.class_name for info in found for each in info.class_map}

    def diagnostics(self) -> list[tuple[int, str, dict[str, str]]]:
        """(level, message, values) of each status since the last call."""
        return [
            (int(each.level), each.message, {pair.key: pair.value for pair in each.values})
            for array in self._take("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray")
            for each in array.status
        ]

    def close(self) -> None:
        self.session.close()


def open_peer(transport: str, domain: int, endpoint: str = "") -> DdsPeer | ZenohPeer:
    return DdsPeer(domain) if transport == "dds" else ZenohPeer(domain, endpoint)


def main() -> None:
    task, transport, domain, *endpoint = sys.argv[1:]
    peer = open_peer(transport, int(domain), *endpoint)
    frames = pictures()
    count = 0
    while True:
        if task == "publish":
            peer.send(time.time_ns(), frames[count % len(frames)])
        elif peer.labels():
            print("got labels", flush=True)
        count += 1
        time.sleep(1 / HZ)


if __name__ == "__main__":
    main()
