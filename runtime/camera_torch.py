"""Camera formats in PyTorch: a camera's bytes to the network's frame, on the device that has them.

The same conversion as `export/camera_input.py` puts in front of a graph, in whole numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.camera_formats import PACKED, PLANAR
from ..data.letterbox import find_place, find_view
from .artifact import Card

# Of ITU-R BT.601 in video range, times 2^20, as OpenCV has them: luma, then B, G and R of U and V.
SHIFT = 20
LUMA = 1220542
OF_U, OF_V = (2116026, -409993, 0), (0, -852492, 1673527)


class CameraFrames(nn.Module):
    """Frames (N, *card.frame_shape) uint8 -> (N, H, W, 3) uint8 BGR of the card's size.

    Equal to OpenCV's where the picture has that size; resized, within one level. Nothing but
    PyTorch's operations on the frames' device, so a CUDA graph holds it.
    """

    factors: Tensor
    beside: Tensor
    places: Tensor
    pairs: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, card: Card):
        super().__init__()
        self.card = card
        height, width = card.camera_size or card.size
        facts = {
            "factors": torch.tensor([OF_U, OF_V], dtype=torch.int32),
            "beside": torch.tensor((card.pad_color or (0, 0, 0))[::-1], dtype=torch.uint8),
        }
        if card.input.startswith("bayer_"):
            pattern = card.input.removeprefix("bayer_")
            cell = torch.tensor([[letter == own for own in pattern] for letter in "bgr"])
            facts["places"] = cell.view(3, 2, 2).int().repeat(1, height // 2, width // 2)
            # Where a missing color has two neighbors of it, else four.
            facts["pairs"] = _sum_around(facts["places"]) == 2
            # OpenCV gives the outermost pixels the colors of their inner neighbors.
            facts["rows"], facts["columns"] = (
                torch.arange(side).clamp(1, side - 2) for side in (height, width)
            )
        for name, value in facts.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, frame: Tensor) -> Tensor:
        kind = self.card.input
        if kind == "bgr":
            return self._fit(frame)
        convert = self._of_yuv if kind in (*PLANAR, *PACKED) else self._of_bayer
        return self._fit(convert(frame.int()).clamp(0, 255).to(torch.uint8))

    def _of_yuv(self, frame: Tensor) -> Tensor:
        height, width = self.card.camera_size or self.card.size
        kind = self.card.input
        if kind in PLANAR:
            luma = frame[:, :height]
            pairs = frame[:, height:].reshape(-1, height // 2, width // 2, 2)
            chroma = pairs.flip(3) if kind == "nv21" else pairs
            chroma = chroma.repeat_interleave(2, dim=1)
        else:
            luma, chroma = frame.unbind(3) if kind == "yuyv" else frame.flip(3).unbind(3)
            chroma = chroma.reshape(-1, height, width // 2, 2)
        color = ((chroma - 128).unsqueeze(4) * self.factors).sum(3, dtype=torch.int32)
        luma = (luma - 16).clamp(min=0) * LUMA + (1 << (SHIFT - 1))
        return (luma.unsqueeze(3) + color.repeat_interleave(2, dim=2)) >> SHIFT

    def _of_bayer(self, mosaic: Tensor) -> Tensor:
        """Bilinear, as OpenCV: each missing color is the mean of its two or four neighbors."""
        own = mosaic.unsqueeze(1)
        summed = _sum_around(own * self.places)
        # Rounded to the nearest, a half up.
        mean = torch.where(self.pairs, (summed + 1) >> 1, (summed + 2) >> 2)
        colors = torch.where(self.places == 1, own, mean)
        inside = colors.index_select(2, self.rows).index_select(3, self.columns)
        return inside.permute(0, 2, 3, 1)

    def _fit(self, picture: Tensor) -> Tensor:
        """(N, h, w, 3) uint8 at the card's size, as `fit_frame` brings it there."""
        camera, size, fit = self.card.camera_size or self.card.size, self.card.size, self.card.fit
        if camera == size:
            return picture
        rows, columns = find_view(camera, size, fit)
        place = find_place(camera, size, fit)
        inside = tuple(part.stop - part.start for part in place)
        planes = picture[:, rows, columns].permute(0, 3, 1, 2).float()
        resized = nn.functional.interpolate(planes, inside, mode="bilinear", align_corners=False)
        levels = (resized + 0.5).floor().clamp(0, 255)
        fitted = levels.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
        if inside == size:
            return fitted
        whole = self.beside.expand(len(fitted), *size, 3).clone()
        whole[(slice(None), *place)] = fitted
        return whole


def _sum_around(planes: Tensor) -> Tensor:
    """(..., h, w) of whole numbers: the sum of each value and the eight around it."""
    for dim in (-2, -1):
        side = planes.shape[dim]
        zeros = torch.zeros_like(planes.narrow(dim, 0, 1))
        wide = torch.cat([zeros, planes, zeros], dim=dim)
        planes = sum((wide.narrow(dim, start, side) for start in (1, 2)), wide.narrow(dim, 0, side))
    return planes
