"""Labels on a device brought back to a frame's size there, in PyTorch."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ..data.classes import IGNORE
from ..data.letterbox import Fit, Size, find_place, find_view


def restore_on_device(labels: Any, frame: Size, fit: Fit) -> Tensor:
    """As `restore_labels`, which gives the same on the host.

    Args:
        labels: (H, W) or (N, H, W) uint8, an object with DLPack, finished.
        frame: (height, width) to bring them to.
        fit: how the frame came to the labels' size.

    Returns:
        (*frame) or (N, *frame) uint8 on the labels' device, finished.
    """
    taken = labels if isinstance(labels, Tensor) else from_dlpack(labels)
    size = (taken.shape[-2], taken.shape[-1])
    with torch.cuda.device_of(taken):  # type: ignore[no-untyped-call]
        rows, columns = _find_places(size, frame, fit, taken.device)
        back = taken.index_select(-2, rows).index_select(-1, columns)
        if tuple(back.shape[-2:]) != frame:
            seen, back = back, taken.new_full((*taken.shape[:-2], *frame), IGNORE)
            back[(..., *find_view(frame, size, fit))] = seen
        if back.is_cuda:
            torch.cuda.current_stream().synchronize()
    return back


@lru_cache(maxsize=16)  # of a camera's frames they are the same every time
def _find_places(
    labels: Size, frame: Size, fit: Fit, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The rows and the columns of the labels that those of the frame are taken of."""
    sides = zip(find_place(frame, labels, fit), find_view(frame, labels, fit), strict=True)
    # By OpenCV itself, so that its rule for the nearest pixel is not written down twice.
    rows, columns = (
        cv2.resize(
            np.arange(place.start, place.stop, dtype=np.float32)[:, None],
            (1, part.stop - part.start),
            interpolation=cv2.INTER_NEAREST_EXACT,
        ).astype(np.int64)[:, 0]
        for place, part in sides
    )
    return torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)
