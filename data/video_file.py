"""Videos: one gets its name when it is whole, and stays partial when cut short."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .files import ELSEWHERE, RecordingFile
from .frames import opencv_name

CODECS = {".mp4": "mp4v", ".webm": "VP90", ".avi": "MJPG", ".mkv": "mp4v"}
UNCOUNTED = (".webm", ".mkv")  # they store no number of frames, and OpenCV's guess may be one off


class VideoFile:
    """A video of one size; see `RecordingFile` for its name.

    Args:
        path: its ending says the codec.
        size: (width, height) in pixels; a picture of another size is resized.
        fps: frames a second.
        replaces: whether an older video of that name gives way.

    Raises:
        UsageError: OpenCV lacks the encoder here.
        WriteError: the folder cannot be written to.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float, replaces: bool = False):
        opencv_name(path)  # told before there is a file
        self.size, self.count = size, 0
        self._file = RecordingFile(path, replaces)
        code = cv2.VideoWriter.fourcc(*CODECS[path.suffix.lower()])
        with self._file.under_its_ending() as named:
            self._writer = cv2.VideoWriter(opencv_name(named), code, fps, size)
        if not self._writer.isOpened():
            self._file.abandon()
            raise UsageError(
                f"OpenCV cannot write {path} here: it lacks the encoder; try another ending, such "
                "as .avi"
            )

    def write(self, picture: NDArray[np.uint8]) -> None:
        """Add a picture (H, W, 3) uint8 BGR."""
        if picture.shape[1::-1] != self.size:  # VideoWriter would silently skip it
            picture = np.asarray(cv2.resize(picture, self.size), np.uint8)
        self._writer.write(picture)
        self.count += 1

    def finish(self) -> Path:
        """Give it its name.

        Returns:
            The path that it has now.

        Raises:
            OSError: frames are missing in it, such as on a full disk, of which OpenCV says nothing;
                it keeps its partial name.
        """
        self._writer.release()
        partial = self._file.partial
        suffix = self._file.path.suffix
        there = max(0, int(cv2.VideoCapture(str(partial)).get(cv2.CAP_PROP_FRAME_COUNT)))
        if there < max(1, self.count - (suffix.lower() in UNCOUNTED)):
            raise OSError(
                f"{partial} holds {there} of {self.count} frames: the disk may be full, so free "
                f"some space there, {ELSEWHERE}; to play what there is, rename it to end in "
                f"{suffix}"
            )
        self._file.publish()
        return self._file.path

    def abandon(self) -> None:
        """Leave what there is under its partial name."""
        self._writer.release()
        self._file.abandon()
