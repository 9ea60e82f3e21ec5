"""Camera frames out of MCAP logs: whole ones, damaged ones, and what is none."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rtseg.data.frames import Frame, Unreadable
from rtseg.data.mcap_reader import MAGIC, McapLog
from rtseg.data.playback import open_recording
from rtseg.data.ros.ros_messages import Header, Image
from rtseg.errors import UsageError

pytest.importorskip("mcap", reason='needs the mcap packages: pip install "rtseg[drive]"')
pytest.importorskip("mcap_ros2", reason='needs the mcap packages: pip install "rtseg[drive]"')


def ros2_log(path: Path, topics: tuple[str, ...] = ("/camera/compressed",)) -> None:
    from mcap_ros2.writer import Writer

    schema = """std_msgs/Header header
string format
uint8[] data
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
================================================================================
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""
    with path.open("wb") as file:
        writer = Writer(file)
        known = writer.register_msgdef("sensor_msgs/msg/CompressedImage", schema)
        for topic in topics:
            for number in range(3):
                picture = np.full((4, 6, 3), 40 * number, np.uint8)
                content = cv2.imencode(".png", picture)[1].tobytes()
                header = {"stamp": {"sec": number, "nanosec": 5}, "frame_id": "front"}
                message = {"header": header, "format": "png", "data": content}
                at = 10**18 + number * 10**8
                writer.write_message(topic, known, message, log_time=at, publish_time=at)
        writer.finish()


def test_a_ros2_log(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    ros2_log(path)
    frames: Any = list(McapLog(path))
    assert [frame.image[0, 0, 0] for frame in frames] == [0, 40, 80]
    assert [frame.wall_ns - 10**18 for frame in frames] == [0, 10**8, 2 * 10**8]
    assert frames[1].name == "drive_000001"
    recording = open_recording(str(path))
    assert (recording.count, recording.fps) == (3, pytest.approx(10))


def test_raw_images_of_ros2(tmp_path: Path) -> None:
    from mcap.writer import Writer

    path = tmp_path / "drive.mcap"
    header = Header(5 * 10**9, "front")
    bgr = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    messages = [
        Image(header, 4, 6, "bgr8", 18, bgr.tobytes()),
        Image(header, 4, 6, "rgb8", 18, bgr[..., ::-1].tobytes()),
        Image(header, 4, 6, "bgr8", 17, bgr.tobytes()),
    ]
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        schema = Image.TYPE.schema().encode()
        known = writer.register_schema(Image.TYPE.name, "ros2msg", schema)
        channel = writer.register_channel("/camera/image_raw", "cdr", known)
        for number, message in enumerate(messages):
            at_ns = 10**18 + number * 10**8
            writer.add_message(channel, at_ns, message.encode(), at_ns)
        writer.finish()
    first, second, third = list(McapLog(path))
    assert isinstance(first, Frame)
    assert isinstance(second, Frame)
    assert np.array_equal(first.image, bgr)
    assert np.array_equal(second.image, bgr)
    assert (first.wall_ns, first.coordinate_frame) == (10**18, "front")
    assert isinstance(third, Unreadable)
    assert "rows of 17 bytes" in third.reason


def test_a_log_with_two_cameras_wants_a_topic(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    ros2_log(path, ("/left", "/right"))
    with pytest.raises(ValueError, match="images on /left, /right: name one with --topic"):
        McapLog(path)
    with pytest.raises(ValueError, match="no images on /front: they are on /left, /right"):
        McapLog(path, "/front")
    assert len(list(McapLog(path, "/right"))) == 3


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "does not begin and end"),
        (b"no log", "does not begin and end"),
        (bytes(100), "does not begin and end"),
        (MAGIC, "fewer than the shortest"),
        (2 * MAGIC, "fewer than the shortest"),
        (MAGIC + bytes(20) + MAGIC, "fewer than the shortest"),  # no room for a footer
        (MAGIC + bytes(64) + MAGIC, ""),
    ],
)
def test_what_is_no_log(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"is damaged or not an MCAP log .*{why}.*`mcap recover`"):
        McapLog(path)


def test_a_log_that_was_cut_off_says_how_to_mend_it(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    ros2_log(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        for end in (b"", MAGIC):
            path.write_bytes(whole[:length] + end)
            with pytest.raises(ValueError, match="`mcap recover`"):
                McapLog(path)


def test_damage_anywhere_is_one_clear_error(tmp_path: Path) -> None:
    """At whatever byte, and whatever mcap and its decompressors make of it."""
    path = tmp_path / "drive.mcap"
    ros2_log(path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[random.integers(8, len(whole) - 8)] = random.integers(256)
        path.write_bytes(damaged)
        try:
            list(McapLog(path))
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017


def test_one_damaged_message_costs_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    picture = cv2.imencode(".png", np.zeros((4, 6, 3), np.uint8))[1].tobytes()
    good = json.dumps({"data": base64.b64encode(picture).decode()}).encode()
    json_log(path, [good, b"{}", b"no json", good])
    items: list[Any] = list(McapLog(path))
    assert [type(item) for item in items] == [Frame, Unreadable, Unreadable, Frame]
    assert items[1].reason == "drive_000001 is damaged or not an image"


def json_log(path: Path, messages: list[bytes], encoding: str = "json") -> None:
    from mcap.writer import Writer

    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        known = writer.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
        channel = writer.register_channel("/camera", encoding, known)
        for number, data in enumerate(messages):
            writer.add_message(channel, number * 10**8, data, number * 10**8)
        writer.finish()


def test_an_encoding_that_nobody_knows_is_named(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    json_log(path, [b"data"], encoding="flatbuffer")
    with pytest.raises(ValueError, match="in the encoding 'flatbuffer', which cannot be read"):
        list(McapLog(path))


def test_a_log_of_one_frame_has_no_rate(tmp_path: Path) -> None:
    path = tmp_path / "drive.mcap"
    json_log(path, [b"{}"])
    assert (McapLog(path).count, McapLog(path).fps) == (1, 0.0)


def test_a_chunk_whose_checksum_is_wrong_is_not_believed(tmp_path: Path) -> None:
    """A flipped bit in a picture may decode to another one."""
    path = tmp_path / "drive.mcap"
    rng = np.random.default_rng(0)
    picture = cv2.imencode(".bmp", rng.integers(0, 256, (40, 60, 3), np.uint8))[1].tobytes()
    message = json.dumps({"data": base64.b64encode(picture).decode()}).encode()
    with path.open("wb") as file:
        from mcap.writer import CompressionType, Writer

        writer = Writer(file, compression=CompressionType.NONE)
        writer.start()
        schema = writer.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
        channel = writer.register_channel("/camera", "json", schema)
        writer.add_message(channel, 1, message, 1)
        writer.finish()
    whole = path.read_bytes()
    assert [type(item) for item in McapLog(path)] == [Frame]
    at = whole.index(message) + len(message) // 2
    letter = b"A" if whole[at : at + 1] != b"A" else b"B"
    path.write_bytes(whole[:at] + letter + whole[at + 1 :])
    with pytest.raises(UsageError, match="damaged"):
        list(McapLog(path))
