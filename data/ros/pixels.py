"""Pictures from ROS 2 image messages, in the encodings that cameras commonly send."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, UsageError
from ..images import decode_image
from ..limits import find_limit
from .ros_messages import CompressedImage, Header, Image

Picture = NDArray[np.uint8]
# Encoding -> bytes a pixel in a row, and OpenCV's conversion to BGR; None: it is BGR.
ENCODINGS: dict[str, tuple[int, int | None]] = {
    "bgr8": (3, None),
    "8UC3": (3, None),
    "rgb8": (3, cv2.COLOR_RGB2BGR),
    "bgra8": (4, cv2.COLOR_BGRA2BGR),
    "rgba8": (4, cv2.COLOR_RGBA2BGR),
    "mono8": (1, cv2.COLOR_GRAY2BGR),
    "8UC1": (1, cv2.COLOR_GRAY2BGR),
    "uyvy": (2, cv2.COLOR_YUV2BGR_UYVY),
    "yuv422": (2, cv2.COLOR_YUV2BGR_UYVY),  # ROS' older name of uyvy
    "yuyv": (2, cv2.COLOR_YUV2BGR_YUY2),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2BGR_YUY2),  # and of yuyv
    "nv12": (1, cv2.COLOR_YUV2BGR_NV12),
    "nv21": (1, cv2.COLOR_YUV2BGR_NV21),
    # OpenCV's short names are those of the second row's second pixel; these are the long ones.
    "bayer_rggb8": (1, cv2.COLOR_BAYER_RGGB2BGR),
    "bayer_bggr8": (1, cv2.COLOR_BAYER_BGGR2BGR),
    "bayer_gbrg8": (1, cv2.COLOR_BAYER_GBRG2BGR),
    "bayer_grbg8": (1, cv2.COLOR_BAYER_GRBG2BGR),
}
IMAGE_TYPES = (CompressedImage.TYPE.name, Image.TYPE.name)


def choose_topic(
    path: Path, topics: Collection[str], asked: str | None, kinds: Iterable[str]
) -> str:
    """The topic to read images from, the only one unless one is asked for.

    Raises:
        UsageError: there is none with images of the `kinds`, not that one, or several.
    """
    if not topics:
        raise UsageError(f"{path} has no topic with images ({', '.join(kinds)})")
    if asked is None and len(topics) > 1:
        raise UsageError(f"{path} has images on {', '.join(topics)}: name one with --topic")
    if asked is not None and asked not in topics:
        raise UsageError(f"{path} has no images on {asked}: they are on {', '.join(topics)}")
    return asked or next(iter(topics))


HALVED = ("nv12", "nv21")  # below the luma, half as many rows of chroma


def read_picture(kind: str, message: bytes | memoryview, name: str) -> tuple[Header, Picture]:
    """A message's header and its picture, (H, W, 3) uint8 BGR of its own memory.

    Args:
        kind: "sensor_msgs/msg/Image" or ".../CompressedImage".
        message: CDR.
        name: for error messages.

    Raises:
        DataError: it is damaged, or in an encoding that is not read.
    """
    if kind == CompressedImage.TYPE.name:
        compressed = CompressedImage.decode(message)
        return compressed.header, decode_image(np.frombuffer(compressed.data, np.uint8), name)
    image = Image.decode(message)
    return image.header, to_bgr(image)


def to_bgr(image: Image) -> Picture:
    """The picture of an Image, (H, W, 3) uint8 BGR of its own memory.

    Raises:
        DataError: its encoding is not read, or its size, step and data do not fit each other.
    """
    height, width, encoding = image.height, image.width, image.encoding
    if encoding not in ENCODINGS:
        raise DataError(f"an image in {encoding!r}: {', '.join(ENCODINGS)} are read")
    channels, conversion = ENCODINGS[encoding]
    most = find_limit("image_pixels")
    if not 0 < height * width <= most:
        raise DataError(f"an image of {width} x {height} pixels, of which 1 to {most} are read")
    if image.step < width * channels:
        raise DataError(f"an image with rows of {image.step} bytes for {width} pixels {encoding}")
    if (width % 2 and channels == 2) or (encoding in HALVED and (width % 2 or height % 2)):
        raise DataError(f"an image of {width} x {height} pixels in {encoding}: it halves the color")
    rows = height * 3 // 2 if encoding in HALVED else height
    if len(image.data) < rows * image.step:
        raise DataError(
            f"an image of {len(image.data)} bytes where {rows} rows of {image.step} are promised"
        )
    flat = np.frombuffer(image.data, np.uint8, rows * image.step).reshape(rows, image.step)
    pixels = flat[:, : width * channels]
    if channels > 1:
        pixels = pixels.reshape(rows, width, channels)
    if conversion is None:
        return pixels.copy()
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), conversion), np.uint8)
