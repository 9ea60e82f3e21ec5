"""A PyTorch network as a function from frame to labels, with the evaluation modes of papers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format

from ..data.classes import IGNORE
from ..data.letterbox import Color, Fit, find_place, find_view
from ..data.transforms import fitting_factor
from ..models import Network, NetworkInfo

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def normalize(frames: Tensor, info: NetworkInfo) -> Tensor:
    """frames (N, H, W, 3) uint8 BGR -> (N, 3, H, W) float32 RGB as `info` says, channels last."""
    rgb = frames.flip(-1).float()
    mean = torch.tensor(info.mean, device=frames.device) * 255
    std = torch.tensor(info.std, device=frames.device) * 255
    return ((rgb - mean) / std).permute(0, 3, 1, 2)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context for `precision` fp32, bf16 or fp16 on `device`."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, AUTOCAST[precision])


class Predictor:
    """frame (H, W, 3) uint8 BGR, any size -> labels (H, W) uint8.

    Args:
        network: Put into eval mode.
        size: (height, width) the frame is brought to first; None: its own, rounded up to what the
            network takes.
        scales: Factors on that size, whose probabilities are averaged.
        flip: The mirrored frame counts as well.
        window: (height, width) of a sliding window with an overlap of a third; None: the whole
            frame at once.
        precision: fp32, bf16 or fp16.
        fit: (short, long) side that the frame is fitted into, keeping its ratio.
        aspect: how a frame of another aspect comes to `size`, as an artifact does it; labels beside
            a crop are 255.
        pad_color: of what is beside a letterboxed frame, in RGB, black by default.
    """

    def __init__(
        self,
        network: Network,
        size: tuple[int, int] | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        window: tuple[int, int] | None = None,
        precision: str = "fp32",
        fit: tuple[int, int] | None = None,
        aspect: Fit = "letterbox",
        pad_color: Color | None = None,
    ):
        self.network = channels_last(network.eval())
        self.device = next(chain(network.parameters(), network.buffers())).device
        self.size, self.scales, self.flip = size, tuple(scales), flip
        self.window, self.precision, self.fit = window, precision, fit
        self.aspect: Fit = aspect
        self.pad_color = pad_color or (0, 0, 0)
        if window is not None:
            network.info.check_size(*window)

    @torch.no_grad()
    def __call__(self, frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        view = find_view((height, width), self.size or (height, width), self.aspect)
        # What a crop leaves out gets no label.
        labels = np.full((height, width), IGNORE, np.uint8)
        labels[view] = self.scores(frame[view]).argmax(dim=1)[0].to(torch.uint8).cpu().numpy()
        return labels

    @torch.no_grad()
    def scores(self, frame: np.ndarray) -> Tensor:
        """(1, K, H, W) float32: logits, or mean probabilities where several views are taken."""
        height, width = frame.shape[:2]
        image = torch.from_numpy(np.ascontiguousarray(frame)).to(self.device)
        image = normalize(image[None], self.network.info)
        views = [
            resize(self._logits(view, flip)[..., rows, columns], (height, width))
            for view, flip, (rows, columns) in self._views(image)
        ]
        # A single view stays in logits: softmax would not change their argmax.
        if len(views) == 1:
            return views[0]
        return torch.stack([view.softmax(dim=1) for view in views]).mean(dim=0)

    def probabilities(self, frame: np.ndarray) -> np.ndarray:
        """(K, H, W) float32 class probabilities of a frame (H, W, 3) uint8 BGR."""
        scores = self.scores(frame)[0]
        if len(self.scales) == 1 and not self.flip:
            scores = scores.softmax(dim=0)
        return np.asarray(scores.cpu().numpy())

    def _views(self, image: Tensor) -> Iterator[tuple[Tensor, bool, tuple[slice, slice]]]:
        """The image at every size, as it is and mirrored, and where in the view it lies."""
        base: Sequence[float] = self.size or image.shape[-2:]
        if self.fit:
            factor = fitting_factor(image.shape[-2:], self.fit)
            base = [round(side * factor) for side in base]
        step = self.network.info.multiple
        for scale in self.scales:
            height, width = (max(1, math.ceil(side * scale / step)) * step for side in base)
            place = find_place(
                (image.shape[-2], image.shape[-1]),
                (height, width),
                self.aspect if self.size else "stretch",
            )
            own = tuple(part.stop - part.start for part in place)
            view = resize(image, own)
            if own != (height, width):
                # Before normalizing, as in the artifact's frame: zeros after it would be the mean
                # color.
                color = image.new_tensor(self.pad_color[::-1])  # BGR, as frames are
                rest = normalize(color.expand(1, height, width, 3), self.network.info)
                rest[(..., *place)] = view
                view = rest
            yield view, False, place
            if self.flip:
                yield view.flip(-1), True, place

    def _logits(self, view: Tensor, mirrored: bool) -> Tensor:
        with autocast(self.device, self.precision):
            logits = self._slid(view) if self.window else self._whole(view)
        # Resizes, means and the argmax are in float32, whatever the network computed in.
        return (logits.flip(-1) if mirrored else logits).float()

    def _whole(self, view: Tensor) -> Tensor:
        logits: Tensor = self.network(view)
        return resize(logits, view.shape[-2:], self.network.info.align_corners)

    def _slid(self, view: Tensor) -> Tensor:
        """Windows are averaged where they overlap; a smaller view is padded in the mean color."""
        assert self.window is not None
        height, width = view.shape[-2:]
        low, wide = (max(w, v) for w, v in zip(self.window, (height, width), strict=True))
        view = F.pad(view, (0, wide - width, 0, low - height))
        total = view.new_zeros(1, self.network.info.num_classes, low, wide)
        seen = view.new_zeros(1, 1, low, wide)
        for top in window_starts(low, self.window[0]):
            for left in window_starts(wide, self.window[1]):
                part = (..., slice(top, top + self.window[0]), slice(left, left + self.window[1]))
                total[part] += self._whole(view[part])
                seen[part] += 1
        return (total / seen)[..., :height, :width]


def channels_last(network: Network) -> Network:
    """The same network with its convolutions' weights in the order that inputs come in."""
    convert_conv2d_weight_memory_format(network, torch.channels_last)
    return network


def window_starts(length: int, window: int) -> list[int]:
    """Where windows begin so that they cover 0..length, each moved by at most two thirds."""
    stride = max(1, window * 2 // 3)
    return [*range(0, length - window, stride), length - window]


def resize(maps: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """(N, C, h, w) -> (N, C, *size), bilinear; as they are where they have that size."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=align_corners)
