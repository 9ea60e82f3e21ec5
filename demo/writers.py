"""Picture output: a video, a GIF, PNGs or a window. An unfinished file never has its final name."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import cv2

from ..data.files import write_atomically
from ..data.images import write_png
from ..data.lettering import Picture
from ..data.video_file import CODECS, VideoFile
from ..errors import UsageError

GIF_COLORS = 128
ESCAPE, NO_KEY = 27, 255  # as OpenCV gives them, of which the last byte counts


class Writer(Protocol):
    """Takes pictures of one size; they count only once `finish` was called."""

    def add(self, picture: Picture, name: str) -> bool:
        """Whether more are wanted. name: of the frame, for writers that make a file of each."""
        ...

    def finish(self) -> list[str]:
        """The files that are now there."""
        ...

    def abandon(self) -> None:
        """Give no file its name; of a video what there is stays, as NAME.partial."""
        ...


def open_writer(out: Path | None, fps: float) -> Writer:
    """By the ending of `out`: .mp4, .webm, .mkv, .avi, .gif, .png (one frame); no ending is a
    folder of PNGs; None is a window.

    Raises:
        UsageError: if it has another ending, or there is no display or no Pillow.
    """
    if out is None:
        return Window(fps)
    ending = out.suffix.lower()
    if ending in CODECS:
        return Video(out, fps)
    if ending == ".gif":
        return Gif(out, fps)
    if ending == ".png":
        return Single(out)
    if ending == "":
        return FolderOfPngs(out)
    raise UsageError(
        f"{out} has an ending that the demo does not write: take {', '.join(CODECS)}, .gif, .png, "
        "or a folder for one PNG a frame"
    )


class Video:
    """A video that gets its name when it is whole; one that is cut short stays NAME.partial.

    Args:
        path: Its ending says the codec; its size is that of the first picture.
        fps: Frames a second.
    """

    def __init__(self, path: Path, fps: float):
        self.path, self.fps = path, fps
        self.file: VideoFile | None = None

    def add(self, picture: Picture, name: str = "") -> bool:
        if self.file is None:
            size = (picture.shape[1], picture.shape[0])
            self.file = VideoFile(self.path, size, self.fps, replaces=True)
        self.file.write(picture)
        return True

    def finish(self) -> list[str]:
        return [str(self.file.finish())] if self.file else []

    def abandon(self) -> None:
        if self.file is not None:
            self.file.abandon()


class Gif:
    """An animated GIF of a palette per frame, through Pillow."""

    def __init__(self, path: Path, fps: float):
        if importlib.util.find_spec("PIL") is None:
            raise UsageError("a GIF needs Pillow: pip install pillow, or take .mp4 or .webm")
        self.path, self.fps = path, fps
        self.pictures: list[Any] = []  # a byte a pixel

    def add(self, picture: Picture, name: str = "") -> bool:
        from PIL import Image

        rgb = Image.fromarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        self.pictures.append(rgb.quantize(GIF_COLORS, dither=Image.Dither.NONE))
        return True

    def finish(self) -> list[str]:
        import io

        if not self.pictures:
            return []
        file = io.BytesIO()
        first, *rest = self.pictures
        hundredths = max(2, round(100 / self.fps))  # browsers slow down anything faster
        first.save(file, "GIF", save_all=True, append_images=rest, duration=10 * hundredths, loop=0)
        write_atomically(self.path, file.getvalue())
        return [str(self.path)]

    def abandon(self) -> None:
        self.pictures.clear()


class Single:
    """One picture in one PNG."""

    def __init__(self, path: Path):
        self.path, self.written = path, False

    def add(self, picture: Picture, name: str = "") -> bool:
        write_png(self.path, picture)
        self.written = True
        return False

    def finish(self) -> list[str]:
        return [str(self.path)] if self.written else []

    def abandon(self) -> None:
        pass


class FolderOfPngs:
    """A PNG a frame, each whole as soon as it is there; so nothing is taken back."""

    def __init__(self, path: Path):
        self.path = path
        self.names: list[str] = []

    def add(self, picture: Picture, name: str) -> bool:
        path = self.path / f"{name}.png"
        write_png(path, picture)
        self.names.append(str(path))
        return True

    def finish(self) -> list[str]:
        return self.names

    def abandon(self) -> None:
        pass


class Window:
    """A window that plays the pictures at their rate, or as fast as they come. Space halts and goes
    on; q, Escape or closing it ends. A single picture stays until a key is pressed."""

    TITLE = "rtseg demo"

    def __init__(self, fps: float):
        if not has_display():
            raise UsageError(
                "there is no display to open a window on: name a file with -o, such as -o demo.mp4"
            )
        self.period_s, self.shown, self.ended, self.next_s = 1 / fps, 0, False, 0.0
        # Its fonts, which nothing here shows, are missing from OpenCV's wheels.
        os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")

    def add(self, picture: Picture, name: str = "") -> bool:
        if not self.shown:
            look = cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL
            cv2.namedWindow(self.TITLE, look)
            cv2.resizeWindow(self.TITLE, picture.shape[1], picture.shape[0])
        cv2.imshow(self.TITLE, picture)
        self.shown += 1
        if self._key() == ord(" "):
            self._wait_for_key()
        return not self.ended

    def _key(self) -> int:
        """What is pressed until the next picture is due."""
        now = time.monotonic()
        # From the last due time, not from now: what a picture took is not added to its pause.
        self.next_s = max(now, self.next_s) + self.period_s
        return self._pressed(max(1, round(1000 * (self.next_s - self.period_s - now))))

    def _wait_for_key(self) -> None:
        while not self.ended and self._pressed(100) == NO_KEY:
            pass

    def _pressed(self, limit_ms: int) -> int:
        key = cv2.waitKey(limit_ms) & 0xFF
        closed = cv2.getWindowProperty(self.TITLE, cv2.WND_PROP_VISIBLE) < 1
        self.ended |= closed or key in (ord("q"), ESCAPE)
        return key

    def finish(self) -> list[str]:
        if self.shown == 1:
            self._wait_for_key()
        cv2.destroyAllWindows()
        return []

    def abandon(self) -> None:
        cv2.destroyAllWindows()


def has_display() -> bool:
    """Whether a window can be opened. OpenCV's window library ends the process where it cannot."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
