"""Results as viewable files: label PNGs, an overlay video."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ...data.files import check_writable, new_folder, write_atomically
from ...data.video_file import VideoFile
from ...errors import UsageError
from ..drive.messages import Message, Result

Picture = NDArray[np.uint8]
Colors = Sequence[tuple[int, int, int]]
FASTEST_HZ = 240.0
Paint = Callable[[Picture, Picture, Colors], Picture]  # image, labels, palette -> overlay


class LabelPngs:
    """Writes `FOLDER/FRAME_ID_NAME.png`: (H, W) uint8 class ids. Statuses leave no file.

    Args:
        folder: made with the first result; numbered where it holds files already, since frame ids
            begin anew.

    Raises:
        OSError: the folder above cannot be written to.
    """

    name = "label PNGs"
    capacity = 64
    records = True

    def __init__(self, folder: Path):
        check_writable(folder.parent)
        self.wished = folder
        self.folder: Path | None = None

    def __call__(self, message: Message) -> None:
        if isinstance(message, Result):
            self.folder = self.folder or new_folder(self.wished)
            file = "_".join(filter(None, (f"{message.frame_id:08d}", message.name))) + ".png"
            write_atomically(self.folder / file, encode_picture(".png", message.labels))


class OverlayVideo:
    """Writes an MP4 of the results, see `RecordingFile`.

    A video knows no gaps: frames that were not answered are not in it.

    Args:
        path: the file's name.
        palette: a BGR color a class.
        paint: makes the picture, (H, W, 3) uint8 BGR.
        fps: None takes that of the first results.

    Raises:
        OSError: the folder cannot be written to; later, if OpenCV cannot write it here.
    """

    name = "video"
    capacity = 64
    records = True
    LEARNS_FROM = 10  # results, before a rate is settled

    def __init__(self, path: Path, palette: Colors, paint: Paint, fps: float | None = None):
        check_writable(path.parent)
        self.path, self.palette, self.paint, self.fps = path, palette, paint, fps
        self._waiting: list[tuple[int, Picture]] = []
        self._video: VideoFile | None = None

    def __call__(self, message: Message) -> None:
        if not isinstance(message, Result):
            return
        picture = self.paint(message.image, message.labels, self.palette)
        if self._video is not None:
            self._video.write(picture)
            return
        self._waiting.append((message.captured_ns, picture))
        if self.fps or len(self._waiting) == self.LEARNS_FROM:
            self._open()

    def _open(self) -> VideoFile:
        times = [captured_ns for captured_ns, _ in self._waiting]
        # The median: a frame that was dropped makes a double step.
        step_ns = float(np.median(np.diff(times))) if len(times) > 1 else 1e8
        pictures = [picture for _, picture in self._waiting]
        self._waiting.clear()
        height, width = pictures[0].shape[:2]
        # Two decimals: MPEG-4 takes no finer ones.
        fps = round(min(max(self.fps or 1e9 / step_ns, 1.0), FASTEST_HZ), 2)
        self._video = VideoFile(self.path, (width, height), fps)
        for picture in pictures:
            self._video.write(picture)
        return self._video

    def close(self) -> None:
        """Finish the video.

        Raises:
            OSError: frames are missing in it, such as on a full disk, of which OpenCV says nothing;
                it keeps its partial name.
        """
        video = self._video or (self._open() if self._waiting else None)
        if video is not None:
            video.finish()


def encode_picture(suffix: str, picture: Picture) -> bytes:
    """The picture as a file's content. Raises ValueError where OpenCV cannot encode it."""
    done, content = cv2.imencode(suffix, picture)
    if not done:
        raise UsageError(f"a picture of shape {picture.shape} cannot be written as {suffix}")
    return content.tobytes()
