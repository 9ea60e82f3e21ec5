"""ROS 2 messages: their bytes beside rosbags' own, pictures in every encoding, damaged ones."""

from __future__ import annotations

import contextlib
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rtseg.data.ros.links import is_ros_address, parse_address
from rtseg.data.ros.pixels import read_picture, to_bgr
from rtseg.data.ros.ros_messages import (
    CompressedImage,
    Diagnostic,
    DiagnosticArray,
    Header,
    Image,
    LabelInfo,
    RosMessage,
)
from rtseg.errors import DataError, UsageError

STAMP_NS = 1_700_000_000_123_456_789
HEADER = Header(STAMP_NS, "front_camera")
PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
MESSAGES: list[RosMessage] = [
    Image(HEADER, 5, 7, "bgr8", 21, PIXELS.tobytes()),
    Image(Header(5, ""), 1, 1, "mono8", 1, b"\1"),
    CompressedImage(HEADER, "jpeg", b"some bytes"),
    CompressedImage(Header(), "", b""),
    LabelInfo(HEADER, ["road", "sky", "traffic light"], 0.5),
    LabelInfo(HEADER, []),
    DiagnosticArray(HEADER, [Diagnostic(2, "name", "text", "gpu", {"age": "1", "état": "ü"})]),
    DiagnosticArray(HEADER, [Diagnostic(0, "a", ""), Diagnostic(1, "", "b", values={"": ""})]),
    DiagnosticArray(HEADER, []),
]


@pytest.fixture(scope="module")
def store() -> Any:
    """rosbags' types of Jazzy, and those of vision_msgs from our definitions."""
    pytest.importorskip("rosbags", reason='needs rosbags: pip install "rtseg[ros2]"')
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    found = get_typestore(Stores.ROS2_JAZZY)
    name = "vision_msgs/msg/VisionClass"
    found.register(get_types_from_msg(LabelInfo.TYPE.uses[name], name))
    found.register(get_types_from_msg(LabelInfo.TYPE.definition, LabelInfo.TYPE.name))
    return found


def as_rosbags(message: RosMessage, store: Any) -> Any:
    """The same message as an object of rosbags."""
    types = store.types
    seconds, nanoseconds = divmod(message.header.stamp_ns, 10**9)
    stamp = types["builtin_interfaces/msg/Time"](seconds, nanoseconds)
    header = types["std_msgs/msg/Header"](stamp, message.header.frame_id)
    make = types[message.TYPE.name]
    if isinstance(message, Image):
        facts = message.height, message.width, message.encoding, message.is_bigendian, message.step
        return make(header, *facts, np.frombuffer(message.data, np.uint8))
    if isinstance(message, CompressedImage):
        return make(header, message.format, np.frombuffer(message.data, np.uint8))
    if isinstance(message, LabelInfo):
        entry = types["vision_msgs/msg/VisionClass"]
        return make(
            header, [entry(*each) for each in enumerate(message.classes)], message.threshold
        )
    pair, status = (
        types["diagnostic_msgs/msg/KeyValue"],
        types["diagnostic_msgs/msg/DiagnosticStatus"],
    )
    return make(
        header,
        [
            status(s.level, s.name, s.message, s.hardware_id, [pair(*v) for v in s.values.items()])
            for s in message.statuses
        ],
    )


@pytest.mark.parametrize("message", MESSAGES, ids=lambda each: type(each).__name__)
def test_bytes_are_those_of_rosbags(message: RosMessage, store: Any) -> None:
    theirs = bytes(store.serialize_cdr(as_rosbags(message, store), message.TYPE.name))
    ours = message.encode()
    assert ours == theirs[: len(ours)]
    assert not any(theirs[len(ours) :])  # padding
    assert type(message).decode(theirs) == message
    big = store.serialize_cdr(as_rosbags(message, store), message.TYPE.name, little_endian=False)
    assert type(message).decode(big) == message


@pytest.mark.parametrize("kind", [Image, CompressedImage, LabelInfo, DiagnosticArray])
def test_hashes_are_those_of_the_definitions(kind: type[RosMessage], store: Any) -> None:
    from rosbags.typesys import get_types_from_msg

    digest = store.hash_rihs01(kind.TYPE.name)
    assert digest == kind.TYPE.digest
    defined: dict[str, Any] = get_types_from_msg(kind.TYPE.schema(), kind.TYPE.name)
    for name in (kind.TYPE.name, *kind.TYPE.uses):
        assert defined[name] == store.fielddefs[name]


def test_wire_names_are_as_rmw_makes_them() -> None:
    assert Image.TYPE.wire_name == "sensor_msgs::msg::dds_::Image_"
    assert LabelInfo.TYPE.wire_name == "vision_msgs::msg::dds_::LabelInfo_"


def gradient(height: int = 8, width: int = 12) -> NDArray[np.uint8]:
    """(H, W, 3) BGR that is gray, so that color subsampling loses nothing."""
    rows = np.linspace(20, 220, height * width).reshape(height, width)
    return np.repeat(rows.astype(np.uint8)[..., None], 3, axis=2)


def packed(first: int, step: int) -> NDArray[np.uint8]:
    """YUV 4:2:2 of `gradient`, luma at `first`, `first` + `step`."""
    gray = cv2.cvtColor(gradient(), cv2.COLOR_BGR2YUV)[..., 0]
    pairs = np.full((8, 12, 2), 128, np.uint8)
    pairs[..., first] = (gray.astype(float) * 219 / 255 + 16).round()
    return pairs


def luma_and_chroma() -> NDArray[np.uint8]:
    luma = packed(0, 2)[..., 0]
    return np.concatenate([luma, np.full((4, 12), 128, np.uint8)])


RED = np.zeros((8, 12, 3), np.uint8)
RED[..., 2] = 200


def mosaic(pattern: str) -> NDArray[np.uint8]:
    """What a sensor with that pattern sees of RED."""
    found = np.zeros((8, 12), np.uint8)
    place = pattern.index("r")
    found[place // 2 :: 2, place % 2 :: 2] = 200
    return found


@pytest.mark.parametrize(
    ("encoding", "pixels", "expected", "tolerance"),
    [
        ("bgr8", gradient(), gradient(), 0),
        ("rgb8", RED[..., ::-1], RED, 0),
        ("bgra8", np.dstack([RED, RED[..., 0]]), RED, 0),
        ("rgba8", np.dstack([RED[..., ::-1], RED[..., 0]]), RED, 0),
        ("mono8", gradient()[..., 0], gradient(), 0),
        ("yuv422", packed(1, 2), gradient(), 3),
        ("uyvy", packed(1, 2), gradient(), 3),
        ("yuv422_yuy2", packed(0, 2), gradient(), 3),
        ("yuyv", packed(0, 2), gradient(), 3),
        ("nv12", luma_and_chroma(), gradient(), 3),
        ("nv21", luma_and_chroma(), gradient(), 3),
        *((f"bayer_{p}8", mosaic(p), RED, 0) for p in ("rggb", "bggr", "gbrg", "grbg")),
    ],
)
@pytest.mark.parametrize("padding", [0, 5])
def test_every_encoding(
    encoding: str,
    pixels: NDArray[np.uint8],
    expected: NDArray[np.uint8],
    tolerance: int,
    padding: int,
) -> None:
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    message = Image(HEADER, 8, 12, encoding, padded.shape[1], padded.tobytes()).encode()
    header, found = read_picture(Image.TYPE.name, message, "frame")
    assert header == HEADER
    assert found.flags.writeable  # memory of its own
    inner = found[2:-2, 2:-2] if "bayer" in encoding else found  # borders are guessed
    wanted = expected[2:-2, 2:-2] if "bayer" in encoding else expected
    assert np.abs(inner.astype(int) - wanted).max() <= tolerance


def test_chroma_of_nv12_and_nv21_is_not_swapped() -> None:
    rows = np.concatenate([np.full((2, 4), 81, np.uint8), np.array([[90, 240] * 2], np.uint8)])
    red = to_bgr(Image(HEADER, 2, 4, "nv12", 4, rows.tobytes()))
    blue = to_bgr(Image(HEADER, 2, 4, "nv21", 4, rows.tobytes()))
    assert red[0, 0].argmax() == 2
    assert blue[0, 0].argmax() == 0


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (Image(HEADER, 4, 4, "32FC1", 16, bytes(64)), "an image in '32FC1'"),
        (Image(HEADER, 4, 4, "bgr8", 11, bytes(48)), "rows of 11 bytes for 4 pixels bgr8"),
        (Image(HEADER, 4, 4, "bgr8", 12, bytes(47)), "47 bytes where 4 rows of 12"),
        (Image(HEADER, 4, 4, "nv12", 4, bytes(16)), "16 bytes where 6 rows of 4"),
        (Image(HEADER, 4, 3, "uyvy", 6, bytes(24)), "it halves the color"),
        (Image(HEADER, 3, 4, "nv12", 4, bytes(24)), "it halves the color"),
        (Image(HEADER, 0, 4, "bgr8", 12, b""), "4 x 0 pixels"),
        (Image(HEADER, 2**31, 2**31, "mono8", 2**31, bytes(9)), "pixels, of which 1 to"),
        (Image(HEADER, 9, 9, "bgr8", 2**32 - 1, bytes(99)), "99 bytes where 9 rows of"),
    ],
)
def test_images_that_do_not_fit_themselves(image: Image, why: str) -> None:
    with pytest.raises(DataError, match=why):
        read_picture(Image.TYPE.name, image.encode(), "frame")


def test_a_message_cut_anywhere_or_of_noise_is_one_clear_error() -> None:
    random = np.random.default_rng(0)
    for message in MESSAGES:
        whole = message.encode()
        for length in range(len(whole)):
            with pytest.raises(DataError):
                type(message).decode(whole[:length])
        for _ in range(300):
            damaged = bytearray(whole)
            damaged[random.integers(len(whole))] = random.integers(256)
            with contextlib.suppress(DataError):
                type(message).decode(bytes(damaged))
            with contextlib.suppress(DataError):
                read_picture(message.TYPE.name, bytes(damaged), "frame")


@pytest.mark.parametrize("head", [b"\0\2\0\0", b"\0\x0b\0\0", b"\xff\xff\0\0"])
def test_other_encapsulations_are_refused(head: bytes) -> None:
    with pytest.raises(DataError, match="which is no plain CDR"):
        Image.decode(head + MESSAGES[0].encode()[4:])


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROS_DOMAIN_ID", raising=False)
    known = parse_address("ros2:/camera/image_raw?domain=7&stamp=arrival")
    assert (known.topic, known.domain, known.options["stamp"]) == (
        "/camera/image_raw",
        7,
        "arrival",
    )
    assert parse_address("zenoh:camera/image").topic == "/camera/image"
    monkeypatch.setenv("ROS_DOMAIN_ID", "42")
    assert parse_address("ros2:/a").domain == 42
    assert is_ros_address("ros2:/a")
    assert not is_ros_address("rtsp://camera")
    assert not is_ros_address("ros2")


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("ros2:", "is no ROS 2 topic"),
        ("ros2:/a b", "is no ROS 2 topic"),
        ("ros2:/camera/*", "is no ROS 2 topic"),
        ("zenoh:/a/2b", "is no ROS 2 topic"),
        ("ros2:/a?speed=3", "has the option 'speed': there are domain"),
        ("ros2:/a?stamp=now", "stamp is one of header, arrival"),
        ("ros2:/a?connect=tcp/host:1", "go with zenoh: only"),
        ("ros2:/a?domain=999", "a number from 0 to 232"),
        ("ros2:/a?domain=x", "a number from 0 to 232"),
    ],
)
def test_addresses_that_are_none(where: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_address(where)
