"""Frames from images, folders, globs and videos."""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UsageError
from .camera_formats import CameraFormat
from .images import IMAGES, read_image
from .limits import check_limit

BOXED = (".mp4", ".mov", ".m4v")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")

# Of a motorway; their license is beside them.
SHIPPED_FRAMES = Path(__file__).parents[1] / "demo" / "frames"
NUMBERED = re.compile(r"(.*?)(\d*)", re.DOTALL)  # prefix, and the number that ends a name

# Where a frame's capture time comes from, nearest to the light first: the camera's own stamp of the
# exposure; its driver's; the sender's of a stream; when the picture was read; when a recording was
# due to show it.
AGE_SOURCES = ("exposure", "driver", "sender", "arrival", "playback")


@dataclass(frozen=True)
class Frame:
    """A picture and when it was taken. Times ending in `_ns` are `time.monotonic_ns()`.

    Attributes:
        image: (H, W, 3) uint8 BGR; of another `format`, the camera's bytes.
        index: its place in the source.
        captured_ns: when it was captured, as near to its exposure as the source tells.
        name: that files made of it can have.
        wall_ns: the capture time since 1970, where the source knows it, such as a log.
        coordinate_frame: as ROS calls it; "" where the source does not say.
        age_source: what `captured_ns` comes from, one of AGE_SOURCES.
        sent_ns: when the camera's driver or sender passed it on, None where unknown.
        received_ns: when this process had its data, before it was decoded; None where unknown.
        notice: what is wrong with the source's clock, where that is news.
        format: of the image (`camera_formats.py`).
        waiting: frames of the source that had come and were not decoded yet; None where unknown.
    """

    image: NDArray[np.uint8]
    index: int
    captured_ns: int
    name: str = ""
    wall_ns: int | None = None
    coordinate_frame: str = ""
    age_source: str = "arrival"
    sent_ns: int | None = None
    received_ns: int | None = None
    notice: str = ""
    format: CameraFormat = "bgr"
    waiting: int | None = None


@dataclass(frozen=True)
class Unreadable:
    """A frame that could not be read, and why."""

    name: str
    reason: str


class Recording(Protocol):
    """Frames that lie there in order. count: 0 if unknown; fps: 0 if the recording has no rate."""

    @property
    def count(self) -> int: ...

    @property
    def fps(self) -> float: ...

    def __iter__(self) -> Iterator[Frame | Unreadable]: ...


@dataclass(frozen=True)
class Source:
    """An image, a folder of images, a glob or a video; iterates over its frames in order.

    An unreadable image gives an `Unreadable` in its place, and so does what a damaged video lacks
    at its end. `count`: of frames, 0 if unknown; `fps`: of a video.
    """

    paths: tuple[Path, ...]
    video: Path | None
    count: int
    fps: float = 0.0

    def __iter__(self) -> Iterator[Frame | Unreadable]:
        return self._of_video(self.video) if self.video else self._of_images()

    def _of_images(self) -> Iterator[Frame | Unreadable]:
        names = name_apart(self.paths)
        for index, path in enumerate(self.paths):
            try:
                image = read_image(path)
            except DataError as error:
                yield Unreadable(path.name, str(error))
                continue
            yield Frame(image, index, time.monotonic_ns(), names[index])

    def _of_video(self, path: Path) -> Iterator[Frame | Unreadable]:
        capture = cv2.VideoCapture(opencv_name(path))
        try:
            check_capture(capture, path)
            index = 0
            while True:
                more, image = capture.read()
                if not more:
                    break
                yield Frame(
                    np.asarray(image, np.uint8),
                    index,
                    time.monotonic_ns(),
                    f"{path.stem}_{index:06d}",
                )
                index += 1
        finally:
            capture.release()
        # OpenCV ends a damaged video as it does a whole one. Matroska's count is an estimate.
        if self.count - index > max(1, self.count // 100):
            ended = f"{path} ends after {index} of {self.count} frames: damaged, or cut off"
            yield Unreadable(path.name, ended)


def open_source(where: str | os.PathLike[str]) -> Source:
    """The frames at `where`: an image, a folder (its images, in numeric order), a glob or a video.

    A folder that has no images itself gives those of the folders in it, as Cityscapes lays out its
    sequences (`leftImg8bit_sequence/SPLIT/CITY`, `demoVideo/stuttgart_00`).

    Raises:
        UsageError: if nothing is there, or a video cannot be opened.
    """
    path = Path(where)
    if path.is_dir():
        return _of_paths(_images_in(path), path)
    if path.suffix.lower() in VIDEOS and not glob.has_magic(str(path)):
        if not path.is_file():
            raise UsageError(f"no video at {path}")
        return _open_video(path)
    if path.is_file():
        return Source((path,), None, 1)
    if not glob.has_magic(str(where)):
        raise UsageError(f"no such file or folder: {where}")
    return _of_paths([Path(p) for p in glob.glob(str(where), recursive=True)], path)


def _images_in(folder: Path) -> list[Path]:
    own = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES]
    return own or [path for path in folder.rglob("*") if path.suffix.lower() in IMAGES]


def _of_paths(paths: list[Path], where: Path) -> Source:
    if not paths:
        raise UsageError(
            f"no images at {where}: give an image, a folder of {', '.join(IMAGES[:3])} files, a "
            "quoted glob or a video"
        )
    ordered = sorted((p for p in paths if p.is_file()), key=numeric_order)
    return Source(tuple(ordered), None, len(ordered))


def split_name(name: str) -> tuple[str, int]:
    """What a sequence's names have in common, and the number at their end that orders them, 0
    without one: ("0016E5_", 7959)."""
    match = NUMBERED.fullmatch(name)
    assert match
    prefix, number = match.groups()
    return prefix, int(number or 0)


def name_apart(paths: Sequence[Path]) -> list[str]:
    """A name for what is made of each image, no two alike: its stem; where stems occur twice, its
    folders too, below the one that all share; where that is not enough, its ending.

    Raises:
        UsageError: if two names are alike even so.
    """
    shared = os.path.commonpath([path.parent for path in paths]) if paths else ""
    below = [Path(os.path.relpath(path, shared)) for path in paths]
    for names in (
        [path.stem for path in paths],
        ["_".join(path.with_suffix("").parts) for path in below],
        ["_".join([*path.parts[:-1], path.stem, path.suffix[1:]]) for path in below],
    ):
        if len(set(names)) == len(names):
            return names
    twice = next(name for name in names if names.count(name) > 1)
    raise UsageError(f"two images of {shared} would be called {twice}: rename one")


def numeric_order(path: Path) -> list[tuple[int, str]]:
    """A sort key under which frame 10 comes after frame 9."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def opencv_name(path: Path) -> str:
    """A video's path as OpenCV takes it.

    Raises:
        UsageError: if it is no UTF-8, at which OpenCV would end the process.
    """
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name!r} is not UTF-8, as OpenCV wants a video's name: rename it"
        ) from error
    return name


def _open_video(path: Path) -> Source:
    capture = cv2.VideoCapture(opencv_name(path))
    try:
        if not capture.isOpened():
            raise UsageError(
                f"{path} cannot be opened as a video: damaged, or of a codec that OpenCV lacks here"
            )
        check_capture(capture, path)
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if count <= 0 and path.suffix.lower() in BOXED and not _is_boxed(path):
            # FFmpeg finds pictures in the rest of a file that lost its beginning.
            raise UsageError(f"{path} has lost its beginning: damaged, or cut off")
        # Some containers name no rate.
        return Source((), path, max(0, count), capture.get(cv2.CAP_PROP_FPS) or 25.0)
    finally:
        capture.release()


def _is_boxed(path: Path) -> bool:
    """Whether a file begins as MP4 and its kin do, with a box of a known kind."""
    with path.open("rb") as file:
        return file.read(8)[4:] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")


def check_capture(capture: cv2.VideoCapture, where: object) -> None:
    """Refuse frames that are too large, before the first is decoded.

    Raises:
        UsageError: they are.
    """
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    check_limit("video_pixels", int(width) * int(height), f"a frame of {where}")


def read_folder(folder: Path) -> list[tuple[str, NDArray[np.uint8]]]:
    """(name, image) of every image in `folder`; UsageError if there is none, or a bad one."""
    source = open_source(folder)
    return [(path.stem, read_image(path)) for path in source.paths]
