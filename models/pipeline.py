"""Pipeline: the whole job as one module, camera frame in, class ids out."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .layers import BilinearUpsample
from .network import Network, copy_to_meta


class FrameToLabels(nn.Module):
    """frame (N, H, W, 3) uint8 BGR -> labels (N, H, W) uint8, and the network's logits.

    Normalization, channel order, upsampling and argmax are inside. Where one convolution alone
    reads the image, it takes scale, channel order and the mean over, exactly.

    Args:
        network: copied.
        outputs: of "labels", "logits" (N, K, h, w) and "coarse" (what the last upsampling reads),
            in the order they are to be given.
        size: (height, width) of the frames, for a network that takes no other.
    """

    mean: Tensor
    scale: Tensor
    edge: Tensor

    def __init__(
        self,
        network: Network,
        outputs: tuple[str, ...] = ("labels",),
        size: tuple[int, int] | None = None,
    ):
        super().__init__()
        # A copy: folding scale and mean into the first convolution changes it.
        self.network: Network = copy.deepcopy(network).eval()
        self.outputs = outputs
        # Reversed: frames are BGR, papers give RGB.
        mean = torch.tensor(network.info.mean[::-1]) * 255
        scale = 1 / (torch.tensor(network.info.std[::-1]) * 255)
        first = _first_convolution(self.network, size)
        self.folded = first is not None
        if first is not None:
            # A pixel less a whole number is exact even in bfloat16's 8 bits, where the rounding of
            # a pixel less the mean changed more labels than that of all weights.
            whole = mean.round()
            self.padding = int(first.padding[0])
            _fold(first, whole - mean, scale)
            self.register_buffer("edge", (mean - whole).view(1, 3, 1, 1), persistent=False)
            mean = whole
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", scale.view(1, 3, 1, 1), persistent=False)

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        self.network.info.check_size(frame.shape[1], frame.shape[2])
        height, width = frame.shape[1:3]
        head = self.network.forward_logits(self.normalize(frame))
        coarse, how = run_to_last_upsample(self.network, head, height, width)
        results = []
        for output in self.outputs:
            if output == "labels":
                results.append(self.labels(coarse, how, height, width))
            else:
                results.append(coarse if output == "coarse" else self.network.upsample_logits(head))
        return tuple(results)

    def normalize(self, frame: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 BGR -> (N, 3, H, W) as the network takes it."""
        # TensorRT converts uint8 to float only, and moves axes of floats only: cast first.
        image = frame.to(self.mean.dtype).permute(0, 3, 1, 2) - self.mean
        return self._pad(image) if self.folded else (image * self.scale).flip(1)

    def _pad(self, image: Tensor) -> Tensor:
        """The convolution's padding, by hand: zeros would no longer stand for the mean color."""
        n, _, height, width = image.shape
        p = self.padding
        if p == 0:
            return image
        side, end = (self.edge.expand(n, 3, *size) for size in ((height, p), (p, width + 2 * p)))
        return torch.cat([end, torch.cat([side, image, side], dim=3), end], dim=2)

    def labels(self, coarse: Tensor, how: str | None, height: int, width: int) -> Tensor:
        """What `run_to_last_upsample` gave -> (N, height, width) uint8: per pixel, the first of
        the largest logits."""
        shuffle = self.network.upsample_logits
        if isinstance(shuffle, nn.PixelShuffle):
            # A shuffle only moves values: the maximum is taken first, on a plane a pixel position.
            per_pixel = coarse.unflatten(1, (-1, shuffle.upscale_factor**2))
            labels = shuffle(_to_float(per_pixel.argmax(1), coarse))[:, 0]
            return labels.to(torch.uint8)
        logits = coarse
        if how is not None:
            corners = how == "bilinear_aligned"
            logits = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=corners)
        return _to_float(logits.argmax(1), coarse).to(torch.uint8)


def run_to_last_upsample(
    network: Network, head: Tensor, height: int, width: int
) -> tuple[Tensor, str | None]:
    """Run a network's upsampling up to its last step before the argmax.

    Args:
        network: whose `upsample_logits` is run.
        head: what its `forward_logits` gave.
        height: of the frame, in pixels.
        width: of the frame, in pixels.

    Returns:
        What that last step reads, and which one it is. "shuffle": a pixel shuffle, of
        (N, K * factor^2, h, w). "bilinear", "bilinear_aligned" (with corners aligned): a resize of
        (N, K, h, w) to the frame. None: there is none, it has the frame's size.
    """
    upsample = network.upsample_logits
    if isinstance(upsample, nn.PixelShuffle):
        return head, "shuffle"
    *first, last = upsample if isinstance(upsample, nn.Sequential) else [upsample]
    for step in first:
        head = step(head)
    upsampled = tuple(side * getattr(last, "factor", 0) for side in head.shape[-2:])
    if isinstance(last, BilinearUpsample) and upsampled == (height, width):
        return head, _resize_name(last.align_corners)
    head = last(head)
    if head.shape[-2:] == (height, width):
        return head, None
    return head, _resize_name(network.info.align_corners)


def find_last_upsample(network: Network, size: tuple[int, int]) -> str | None:
    """The last upsampling at a frame's (height, width), as `run_to_last_upsample` names it."""
    shadow = copy_to_meta(network)
    with torch.no_grad():
        head = shadow.forward_logits(torch.empty(1, 3, *size, device="meta"))
        return run_to_last_upsample(shadow, head, *size)[1]


def normalize_frame(frame: NDArray[np.uint8], network: Network) -> Tensor:
    """frame (H, W, 3) uint8 BGR -> the network's input (1, 3, H, W) float32, as papers write it."""
    rgb = frame[..., ::-1].astype(np.float32) / 255
    mean, std = (np.array(each, np.float32) for each in (network.info.mean, network.info.std))
    rgb = (rgb - mean) / std
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))[None]


def _resize_name(align_corners: bool) -> str:
    return "bilinear_aligned" if align_corners else "bilinear"


def _fold(first: nn.Conv2d, shift: Tensor, scale: Tensor) -> None:
    """Make `first` take unpadded BGR less `shift + mean` as it took normalized RGB."""
    weight = first.weight.data.flip(1) * scale.view(1, 3, 1, 1)
    bias = (weight * shift.view(1, 3, 1, 1)).sum(dim=(1, 2, 3))
    if first.bias is not None:
        bias += first.bias.data
    first.weight.data = weight
    first.bias = nn.Parameter(bias, requires_grad=False)
    # The frame is padded by hand from now on, see `_pad`.
    first.padding = (0, 0)


def _to_float(labels: Tensor, like: Tensor) -> Tensor:
    """TensorRT's uint8 comes from floats only; ids up to 255 are exact in half precision too."""
    return labels.to(like.dtype)


def _first_convolution(network: Network, size: tuple[int, int] | None = None) -> nn.Conv2d | None:
    """The convolution that alone reads the image, if there is one."""
    shadow = copy_to_meta(network)
    side = max(256, 32 * network.info.multiple)  # below 256 some networks have nothing left to pool
    image = torch.empty(1, 3, *(size or (side, side)), device="meta")
    with torch.no_grad(), _Readers(image) as readers:
        shadow.forward_logits(image)
    if len(readers.weights) != 1:  # another one, or a function such as a resize, reads it too
        return None
    for name, module in shadow.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight is readers.weights[0]:
            first = network.get_submodule(name)
            assert isinstance(first, nn.Conv2d)
            # A subclass may pad by itself, and a grouped one has no channels to reorder.
            plain = type(first).forward is nn.Conv2d.forward and first.groups == 1
            square = len(set(first.padding)) == 1
            return first if plain and square and first.in_channels == 3 else None
    return None


class _Readers(TorchDispatchMode):
    """Collects, of each operation that takes `tensor`, its second argument: a convolution's weight,
    whether a module or a function calls it."""

    def __init__(self, tensor: Tensor):
        super().__init__()
        self.tensor = tensor
        self.weights: list[object] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[object, ...] = (), kwargs: Any = None
    ) -> object:
        if any(argument is self.tensor for argument in args):
            self.weights.append(args[1] if len(args) > 1 else None)
        return func(*args, **(kwargs or {}))
