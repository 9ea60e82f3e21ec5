"""ROS 2 bags, sqlite3 and MCAP, raw and compressed images; ROS messages in our own logs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rtseg.data.frames import Frame, Unreadable
from rtseg.data.images import blend
from rtseg.data.playback import open_drive_source, open_recording
from rtseg.data.ros.ros_bag import RosBag
from rtseg.data.ros.ros_messages import CompressedImage, Header, Image
from rtseg.errors import UsageError
from rtseg.runtime.drive.messages import StatusKind
from rtseg.runtime.sinks.mcap_writer import McapRecorder
from test_sinks import result, status

pytest.importorskip("rosbags", reason='needs rosbags: pip install "rtseg[ros2]"')
AT_NS = 10**18


def pictures() -> Iterator[np.ndarray[Any, Any]]:
    for number in range(3):
        yield np.full((4, 6, 3), 40 * number, np.uint8)


def write_bag(path: Path, storage: str = "SQLITE3", topics: tuple[str, ...] = ("/image",)) -> None:
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(path, version=9, storage_plugin=StoragePlugin[storage]) as writer:
        for topic in topics:
            compressed = topic.endswith("compressed")
            kind = (CompressedImage if compressed else Image).TYPE.name
            connection = writer.add_connection(topic, kind, typestore=store)
            for number, picture in enumerate(pictures()):
                header = Header(AT_NS + number, "front")
                message: Any = Image(header, 4, 6, "bgr8", 18, picture.tobytes())
                if compressed:
                    content = cv2.imencode(".png", picture)[1].tobytes()
                    message = CompressedImage(header, "png", content)
                writer.write(connection, AT_NS + number * 10**8, message.encode())
        text = writer.add_connection("/note", "std_msgs/msg/String", typestore=store)
        writer.write(text, AT_NS, b"\0\1\0\0\1\0\0\0\0\0\0\0")


@pytest.mark.parametrize("storage", ["SQLITE3", "MCAP"])
@pytest.mark.parametrize("topic", ["/image", "/image/compressed"])
def test_a_bag(storage: str, topic: str, tmp_path: Path) -> None:
    path = tmp_path / "drive"
    write_bag(path, storage, (topic,))
    bag = open_recording(str(path))
    assert (bag.count, round(bag.fps)) == (3, 10)
    frames: list[Any] = list(bag)
    assert [frame.image[0, 0, 0] for frame in frames] == [0, 40, 80]
    assert [frame.wall_ns - AT_NS for frame in frames] == [0, 10**8, 2 * 10**8]
    assert (frames[1].name, frames[1].coordinate_frame) == ("drive_000001", "front")
    played = [each.index for each in open_drive_source(str(path), 0.0) if isinstance(each, Frame)]
    assert played == [0, 1, 2]


def test_a_bag_by_its_database_and_a_topic(tmp_path: Path) -> None:
    path = tmp_path / "drive"
    write_bag(path, topics=("/left", "/right"))
    (database,) = path.glob("*.db3")
    with pytest.raises(UsageError, match="images on /left, /right: name one with --topic"):
        open_recording(str(database))
    with pytest.raises(UsageError, match="no images on /note: they are on /left, /right"):
        RosBag(database, "/note")
    assert len(list(RosBag(database, "/right"))) == 3


@pytest.mark.parametrize("change", ["digest", "count"])
def test_images_that_are_missing_are_told(change: str, tmp_path: Path) -> None:
    path = tmp_path / "drive"
    write_bag(path, "SQLITE3", ("/image",))
    text = (path / "metadata.yaml").read_text()
    spoiled = (
        text.replace("RIHS01_", "RIHS01_0")
        if change == "digest"
        else text.replace("message_count: 3", "message_count: 5")
    )
    assert spoiled != text
    (path / "metadata.yaml").write_text(spoiled)
    *frames, last = RosBag(path, "/image")
    assert len(frames) == (0 if change == "digest" else 3)
    assert isinstance(last, Unreadable)
    assert "images that its metadata.yaml says" in last.reason


def test_what_is_no_bag(tmp_path: Path) -> None:
    path = tmp_path / "drive"
    write_bag(path)
    (database,) = path.glob("*.db3")
    alone = tmp_path / "alone.db3"
    shutil.copy(database, alone)
    with pytest.raises(UsageError, match="`ros2 bag reindex"):
        open_recording(str(alone))
    (path / "metadata.yaml").write_text("{nothing")
    with pytest.raises(UsageError, match="damaged or no ROS 2 bag"):
        open_recording(str(path))
    write_bag(tmp_path / "texts", topics=())
    with pytest.raises(UsageError, match="no topic with images"):
        open_recording(str(tmp_path / "texts"))


def test_damage_in_the_database_is_one_clear_error(tmp_path: Path) -> None:
    path, random = tmp_path / "drive", np.random.default_rng(0)
    write_bag(path)
    (database,) = path.glob("*.db3")
    whole = database.read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 50):
            damaged[at] ^= 0xFF
        database.write_bytes(damaged)
        try:
            assert all(isinstance(each, (Frame, Unreadable)) for each in RosBag(path))
        except UsageError as error:
            assert str(path) in str(error)  # noqa: PT017


def test_our_logs_hold_ros_messages_that_rosbags_reads(tmp_path: Path) -> None:
    pytest.importorskip("mcap", reason='needs mcap: pip install "rtseg[drive]"')
    path = tmp_path / "drive.mcap"
    recorder = McapRecorder(path, ("road", "sky"), [(0, 0, 0), (9, 9, 9)], blend, True)
    for frame_id in range(2):
        recorder(result(frame_id))
    recorder(status(StatusKind.STALE))
    recorder.close()
    found: dict[str, list[Any]] = {}
    with path.open("rb") as file:
        from mcap.reader import make_reader
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore

        store = get_typestore(Stores.ROS2_JAZZY)
        for schema, channel, message in make_reader(file).iter_messages():
            if channel.message_encoding != "cdr":
                continue
            assert schema is not None
            types = get_types_from_msg(schema.data.decode(), schema.name)
            store.register({k: v for k, v in types.items() if k not in store.fielddefs})
            read = store.deserialize_cdr(message.data, schema.name)
            found.setdefault(channel.topic, []).append(read)
    labels = found["/rtseg/ros/labels"]
    assert len(labels) == 2
    assert np.array_equal(labels[1].data.reshape(48, 64), result(1).labels)
    stamp = labels[1].header.stamp
    assert stamp.sec * 10**9 + stamp.nanosec == result(1).captured_wall_ns
    (info,) = found["/rtseg/ros/label_info"]
    assert [(each.class_id, each.class_name) for each in info.class_map] == [
        (0, "road"),
        (1, "sky"),
    ]
    (note,) = found["/rtseg/ros/diagnostics"]
    assert (note.status[0].level, note.status[0].message[:5]) == (3, "STALE")
    assert found["/rtseg/ros/overlay"][0].format == "jpeg"
