"""Camera formats: what a camera's bytes look like, and OpenCV's conversions from and to BGR."""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

Size = tuple[int, int]  # (height, width) of the picture in pixels
Bytes = NDArray[np.uint8]
CameraFormat = Literal[
    "bgr", "nv12", "nv21", "yuyv", "uyvy",
    "bayer_rggb", "bayer_bggr", "bayer_gbrg", "bayer_grbg",
]  # fmt: skip
FORMATS: tuple[CameraFormat, ...] = get_args(CameraFormat)
PLANAR = ("nv12", "nv21")  # below the luma, half as many rows of chroma
PACKED = ("yuyv", "uyvy")  # two pixels in four bytes
TO_BGR: dict[CameraFormat, int] = {
    "nv12": cv2.COLOR_YUV2BGR_NV12,
    "nv21": cv2.COLOR_YUV2BGR_NV21,
    "yuyv": cv2.COLOR_YUV2BGR_YUY2,
    "uyvy": cv2.COLOR_YUV2BGR_UYVY,
    # OpenCV's short names are those of the second row's second pixel; these are the long ones.
    "bayer_rggb": cv2.COLOR_BAYER_RGGB2BGR,
    "bayer_bggr": cv2.COLOR_BAYER_BGGR2BGR,
    "bayer_gbrg": cv2.COLOR_BAYER_GBRG2BGR,
    "bayer_grbg": cv2.COLOR_BAYER_GRBG2BGR,
}


def frame_shape(kind: CameraFormat, size: Size) -> tuple[int, ...]:
    """The shape of a frame of a picture of `size`, uint8."""
    height, width = size
    if kind in PLANAR:
        return height * 3 // 2, width
    if kind in PACKED:
        return height, width, 2
    return (height, width, 3) if kind == "bgr" else (height, width)


def picture_size(kind: CameraFormat, shape: tuple[int, ...]) -> Size:
    """The size of the picture in a frame of `shape`."""
    return (shape[0] * 2 // 3 if kind in PLANAR else shape[0]), shape[1]


def check_format(kind: str, size: Size) -> None:
    """Raises UsageError for a format that is unknown, or cannot have pictures of this size."""
    if kind not in FORMATS:
        raise UsageError(f"input is {', '.join(FORMATS)}, not {kind!r}")
    height, width = size
    # A Bayer pattern has 2 x 2 pixels, and the others share chroma between neighbors.
    if kind != "bgr" and (width % 2 or (kind not in PACKED and height % 2)):
        raise UsageError(f"a picture in {kind} has even sides, not {height}x{width}")


def to_bgr(frame: Bytes, kind: CameraFormat) -> Bytes:
    """A frame as a picture (H, W, 3) uint8 BGR, by OpenCV; the frame itself if it is one."""
    return frame if kind == "bgr" else np.asarray(cv2.cvtColor(frame, TO_BGR[kind]), np.uint8)


def from_bgr(picture: Bytes, kind: CameraFormat) -> Bytes:
    """A picture (H, W, 3) uint8 BGR as a camera would give it, of the shape of `frame_shape`.

    YUV has a quarter or half of the chroma, in its video range; Bayer one color a pixel.
    """
    height, width = picture.shape[:2]
    check_format(kind, (height, width))
    if kind == "bgr":
        return picture
    if kind in PACKED:
        code = cv2.COLOR_BGR2YUV_YUY2 if kind == "yuyv" else cv2.COLOR_BGR2YUV_UYVY
        return np.asarray(cv2.cvtColor(picture, code), np.uint8)
    if kind in PLANAR:
        planes = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), np.uint8)
        chroma = planes[height:].reshape(2, -1)
        pairs = (chroma if kind == "nv12" else chroma[::-1]).T.reshape(height // 2, width)
        return np.concatenate([planes[:height], pairs])
    mosaic = np.empty((height, width), np.uint8)
    for place, color in enumerate(kind.removeprefix("bayer_")):
        rows, columns = slice(place // 2, None, 2), slice(place % 2, None, 2)
        mosaic[rows, columns] = picture[rows, columns, "bgr".index(color)]
    return mosaic
