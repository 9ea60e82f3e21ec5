"""FDDWNet: depthwise convolutions cut in two strips, with ever larger dilation, and a decoder.

Liu et al., "FDDWNet: A Lightweight Convolutional Neural Network for Real-Time Semantic
Segmentation", ICASSP 2020. Reference implementation: github.com/lj107024/FDDWNet.

Checked: parameters, 0.80 M in the paper's table 3; with random weights the logits are those of a
forward pass that is written from the checkpoint's names alone. Not checked: outputs of the
reference, its weights and so the scores, or whether its pixels are normalized as here, which is
taken from the training code that it is built on.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ..layers import he_normal
from ..network import Network
from ..variant import CAMVID, CITYSCAPES_TEST, Keys, Score, Variant

BatchNorm = partial(nn.BatchNorm2d, eps=1e-3)


class StripConv(nn.Module):
    """Depthwise 3x1 and 1x3 convolution, then a 1x1 one, each with its norm, without activations
    between: (N, C, H, W) -> the same."""

    def __init__(self, width: int, dilation: int):
        super().__init__()
        strip = partial(nn.Conv2d, width, width, groups=width)
        self.down = strip(kernel_size=(3, 1), padding=(dilation, 0), dilation=(dilation, 1))
        self.down_norm = BatchNorm(width)
        self.across = strip(kernel_size=(1, 3), padding=(0, dilation), dilation=(1, dilation))
        self.across_norm = BatchNorm(width)
        self.mix = nn.Conv2d(width, width, 1)
        self.mix_norm = BatchNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.across_norm(self.across(self.down_norm(self.down(x))))
        return self.mix_norm(self.mix(x))

    def to_deployed(self) -> nn.Sequential:
        """Norms folded, in sequence."""
        fuse = nn.utils.fusion.fuse_conv_bn_eval
        return nn.Sequential(
            fuse(self.down, self.down_norm),
            fuse(self.across, self.across_norm),
            fuse(self.mix, self.mix_norm),
        )


class ResidualModule(nn.Module):
    """Two StripConvs beside a shortcut, the second dilated: (N, C, H, W) -> the same."""

    def __init__(self, width: int, dilation: int = 1, dropout: float = 0.0):
        super().__init__()
        self.first = StripConv(width, 1)
        self.second = StripConv(width, dilation)
        self.dropout = nn.Dropout2d(dropout)
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.dropout(self.second(self.act(self.first(x)))))


class Halving(nn.Module):
    """A strided convolution beside max pooling: (N, inputs, H, W) -> (N, outputs, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs - inputs, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.norm = BatchNorm(outputs)
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(torch.cat([self.conv(x), self.pool(x)], dim=1)))


class Doubling(nn.Module):
    """A transposed convolution: (N, inputs, H, W) -> (N, outputs, 2H, 2W)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv: nn.Module = nn.ConvTranspose2d(
            inputs, outputs, 3, stride=2, padding=1, output_padding=1
        )
        self.norm: nn.Module = BatchNorm(outputs)
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))

    def to_deployed(self) -> Doubling:
        """The norm goes into the convolution."""
        assert isinstance(self.conv, nn.ConvTranspose2d)
        assert isinstance(self.norm, nn.BatchNorm2d)
        self.conv = nn.utils.fusion.fuse_conv_bn_eval(self.conv, self.norm, transpose=True)
        self.norm = nn.Identity()
        return self


DILATIONS = (1, 2, 5, 9, 1, 2, 5, 9, 2, 5, 9, 17, 2, 5, 9, 17)  # of the modules at stride 8


class FDDWNet(Network):
    """image (N, 3, H, W) -> logits (N, classes, H, W)."""

    def __init__(self, num_classes: int):
        super().__init__()
        module = ResidualModule
        self.down = nn.ModuleList([Halving(3, 16), Halving(16, 64), Halving(64, 128)])
        self.fine = nn.Sequential(*(module(64, dropout=0.03) for _ in range(5)))
        self.deep = nn.Sequential(*(module(128, d, dropout=0.3) for d in DILATIONS))
        self.up = nn.ModuleList([Doubling(128, 64), Doubling(64, 16)])
        self.refine = nn.ModuleList(
            nn.Sequential(module(width), module(width)) for width in (64, 16)
        )
        # The map at stride 4 joins the decoder twice, as it is and enlarged.
        self.skip = nn.ModuleList([module(64), module(16)])
        self.skip_up = Doubling(64, 16)
        self.act = nn.ReLU6()
        self.classifier = nn.ConvTranspose2d(16, num_classes, 2, stride=2)
        self.upsample_logits = nn.Identity()
        he_normal(self)

    def forward_logits(self, image: Tensor) -> Tensor:
        fine = self.fine(self.down[1](self.down[0](image)))
        x = self.up[0](self.deep(self.down[2](fine)))
        x = self.up[1](self.refine[0](self.act(x + self.skip[0](fine))))
        x = self.refine[1](self.act(x + self.skip[1](self.skip_up(fine))))
        return self.classifier(x)


def _module_keys(theirs: str, ours: str) -> Keys:
    parts = (("_1", "down"), ("_2", "across"), ("", "mix"))
    return tuple(
        row
        for number, own in ((1, "first"), (2, "second"))
        for suffix, part in parts
        for row in (
            (f"{theirs}.conv{number}{suffix}", f"{ours}.{own}.{part}"),
            (f"{theirs}.conv{number}{suffix}_bn", f"{ours}.{own}.{part}_norm"),
        )
    )


# The reference's modules at stride 8, in the order in which they are passed.
_DEEP = [
    f"{number}{suffix}"
    for part in (range(6, 10), range(10, 14))
    for suffix in ("", "_1")
    for number in part
]
_MODULES = {
    **{f"FDDWC_{i + 1}": f"fine.{i}" for i in range(5)},
    **{f"FDDWC_{name}": f"deep.{i}" for i, name in enumerate(_DEEP)},
    **{f"FDDWC_up_{i + 1}": f"refine.{i // 2}.{i % 2}" for i in range(4)},
    "FDDWC_up_low_2": "skip.0",
    "FDDWC_up_low_3": "skip.1",
}
_LAYERS = {
    **{f"down_{i + 1}": f"down.{i}" for i in range(3)},
    "up_1": "up.0",
    "up_2": "up.1",
    "up_0": "skip_up",
}
KEYS: Keys = (
    *(row for theirs, ours in _MODULES.items() for row in _module_keys(theirs, ours)),
    *(
        row
        for theirs, ours in _LAYERS.items()
        for row in ((f"{theirs}.conv", f"{ours}.conv"), (f"{theirs}.bn", f"{ours}.norm"))
    ),
    ("output_conv", "classifier"),
)
VARIANTS = {
    "fddwnet": Variant(
        FDDWNet,
        keys=KEYS,
        size=(512, 1024),
        paper="Liu et al., ICASSP 2020",
        reference="github.com/lj107024/FDDWNet",
        scores=(Score(CITYSCAPES_TEST, 71.5), Score(CAMVID, 66.9)),
        # Cityscapes' mean color is taken off the pixels, which are not scaled: by the loader of
        # DABNet, whose training code the reference is built on.
        mean=(73.158325 / 255, 82.90902 / 255, 72.39239 / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
    ),
}
