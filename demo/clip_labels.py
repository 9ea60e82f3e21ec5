"""Labels of a recording's frames in order, held steady along each clip where that is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from ..data.frames import Frame, split_name
from ..errors import UsageError
from ..runtime import Segmenter
from ..runtime.steadiness import SteadyLabels


class ClipLabels:
    """Labels frame after frame.

    A clip is of frames whose names differ in the number at their end alone and which come in its
    order, as those of a video do. Another name, or a frame that cannot be read, begins a new one.

    Args:
        segmenter: Labels the frames.
        steady: Hold uncertain pixels along a clip, see `SteadyLabels`.

    Raises:
        UsageError: if labels shall be held steady, and the segmenter takes a camera's own format.
    """

    def __init__(self, segmenter: Segmenter, steady: bool = False):
        self.segmenter = segmenter
        self._steady = SteadyLabels(segmenter) if steady else None
        self._last: tuple[str, int] | None = None
        if steady and segmenter.card.takes_camera:
            raise UsageError(
                "--steady takes artifacts of pictures: export without --input, or drive with "
                "`rtseg drive --steady`"
            )

    def __call__(self, frame: Frame) -> NDArray[np.uint8]:
        """(H, W) uint8 of the frame's own size.

        Raises:
            UsageError: if labels shall be held steady, and the artifact gives no confidence.
        """
        if self._steady is None:
            return self.segmenter.label_picture(frame.image)
        last, self._last = self._last, split_name(frame.name)
        if last is None or last[0] != self._last[0] or last[1] >= self._last[1]:
            self._steady.reset()
        return self._steady(frame.image)

    def stream(self, frames: Iterable[Frame]) -> Iterator[NDArray[np.uint8]]:
        """The labels of each, in order; as `Segmenter.stream_pictures` where nothing is held."""
        if self._steady is None:
            yield from self.segmenter.stream_pictures(frame.image for frame in frames)
            return
        for frame in frames:
            yield self(frame)

    def cut(self) -> None:
        """The next frame begins a clip."""
        self._last = None
