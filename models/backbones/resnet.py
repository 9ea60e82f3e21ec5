"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import ConvNorm, set_norm_scale
from ..variant import Row, conv_norm_keys


class Residual(nn.Module, ABC):
    """A chain of convolutions beside a shortcut: (N, inputs, H, W) -> (N, outputs, H/s, W/s).

    `act=False` leaves the sum without its ReLU.
    """

    EXPANSION = 1  # output channels per `width`
    # Random branches as strong as the shortcut let rounding errors grow from block to block.
    untrained_gain = 0.5  # strength of the branch while untrained

    def __init__(self, inputs: int, outputs: int, stride: int, act: bool):
        super().__init__()
        plain = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if plain
            else ConvNorm(inputs, outputs, kernel=1, stride=stride, act=False)
        )
        # Without its ReLU a stage's output can be a skip connection before it (SwiftNet, DDRNet).
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()

    def init_untrained(self) -> None:
        """For untrained weights: the branch at `untrained_gain`, the shortcut at one."""
        last = [m for m in self.modules() if isinstance(m, ConvNorm) and m is not self.shortcut][-1]
        set_norm_scale(last, self.untrained_gain)

    @abstractmethod
    def branch(self, x: Tensor) -> Tensor:
        """The convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x) + self.shortcut(x))


class BasicBlock(Residual):
    """Two 3x3 convolutions: (N, inputs, H, W) -> (N, width, H/s, W/s).

    The first has the stride, the second the dilation.
    """

    def __init__(
        self, inputs: int, width: int, stride: int = 1, dilation: int = 1, act: bool = True
    ):
        super().__init__(inputs, width, stride, act)
        self.conv1 = ConvNorm(inputs, width, stride=stride)
        self.conv2 = ConvNorm(width, width, dilation=dilation, act=False)

    def branch(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class Bottleneck(Residual):
    """1x1, 3x3 and 1x1 convolution: (N, inputs, H, W) -> (N, EXPANSION * width, H/s, W/s).

    The 3x3 convolution has the stride and the dilation.
    """

    EXPANSION = 4

    def __init__(
        self, inputs: int, width: int, stride: int = 1, dilation: int = 1, act: bool = True
    ):
        super().__init__(inputs, self.EXPANSION * width, stride, act)
        self.conv1 = ConvNorm(inputs, width, kernel=1)
        self.conv2 = ConvNorm(width, width, stride=stride, dilation=dilation)
        self.conv3 = ConvNorm(width, self.EXPANSION * width, kernel=1, act=False)

    def branch(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


def blocks(
    kind: type[BasicBlock] | type[Bottleneck],
    inputs: int,
    width: int,
    depth: int,
    stride: int = 1,
    dilations: Sequence[int] = (1, 1),  # of the first block, and of the others
    last_act: bool = True,
) -> nn.Sequential:
    """`depth` blocks in a row, the first with the stride; `last_act`: the last with its ReLU."""
    stage = nn.Sequential()
    for i in range(depth):
        act = last_act or i < depth - 1
        # Only the first block has the stride, and a dilation of its own where it is contracted.
        stage.append(kind(inputs, width, stride, dilations[min(i, 1)], act))
        inputs, stride = kind.EXPANSION * width, 1
    return stage


class ResNet(nn.Module):
    """A stem to stride 4 and four stages, by default at strides 4, 8, 16 and 32.

    image (N, 3, H, W) -> the outputs of its first `stages` stages, shallow to deep, of `outputs`
    channels. `widths` are those of the blocks; the first stage may be of depth 0. `strides` and
    `dilations` are per stage; with `contract_dilation` the first block of a dilated stage has half
    of its dilation.

    skip_act: whether stage outputs have gone through the last block's ReLU; the next stage reads
    them after it either way.
    """

    def __init__(
        self,
        stem: nn.Module,
        stem_width: int,
        widths: Sequence[int],
        depths: Sequence[int],
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        contract_dilation: bool = False,
        skip_act: bool = True,
    ):
        super().__init__()
        self.stem = stem
        self.outputs = [block.EXPANSION * width for width in widths]
        self.skip_act = skip_act
        inputs = stem_width
        for index, (width, depth, stride, dilation) in enumerate(
            zip(widths, depths, strides, dilations, strict=True)
        ):
            # Half at the stage's first block, whose input still has the denser sampling.
            first = dilation // 2 if contract_dilation and dilation > 1 else dilation
            pair = (first, dilation)
            stage = blocks(block, inputs, width, depth, stride, pair, last_act=skip_act)
            setattr(self, f"layer{index + 1}", stage)
            inputs = block.EXPANSION * width if depth else inputs
        for module in self.modules():
            # So scaled, all branches together have the variance of one.
            if isinstance(module, Residual):
                module.untrained_gain = sum(depths) ** -0.5

    def forward(self, image: Tensor, stages: int = 4) -> list[Tensor]:
        features, x = [], self.stem(image)
        for index in range(1, stages + 1):
            x = self.get_submodule(f"layer{index}")(x)
            features.append(x)
            if not self.skip_act:
                x = F.relu(x)
        return features


WIDTHS = (64, 128, 256, 512)


def plain_stem(width: int = 64) -> nn.Sequential:
    """One 7x7 convolution, then max pooling: stride 4."""
    return nn.Sequential(
        ConvNorm(3, width, kernel=7, stride=2), nn.MaxPool2d(3, stride=2, padding=1)
    )


def bare_stem(width: int = 64) -> nn.Sequential:
    """The same without norm and ReLU."""
    conv = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.MaxPool2d(3, stride=2, padding=1))


def deep_stem(width: int = 64, outputs: int = 128) -> nn.Sequential:
    """Three 3x3 convolutions in place of one 7x7, then max pooling: stride 4."""
    return nn.Sequential(
        ConvNorm(3, width, stride=2),
        ConvNorm(width, width),
        ConvNorm(width, outputs),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def resnet18(stem: str = "plain", **options: object) -> ResNet:
    """ResNet-18: the "plain" or "bare" stem of 64 channels, or the "deep" one of 128."""
    make, width = {"plain": (plain_stem, 64), "bare": (bare_stem, 64), "deep": (deep_stem, 128)}[
        stem
    ]
    return ResNet(make(), width, WIDTHS, (2, 2, 2, 2), **options)  # type: ignore[arg-type]


def resnet50(stem_width: int = 32, depth: int = 50, **options: object) -> ResNet:
    """ResNet-50 or, by `depth`, ResNet-101, with a deep stem of widths w, w and 2w (32: "V1c")."""
    depths = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    stem = deep_stem(stem_width, 2 * stem_width)
    return ResNet(stem, 2 * stem_width, WIDTHS, depths, Bottleneck, **options)  # type: ignore[arg-type]


# Keys: a row is the reference's name and ours; `{x}` stands for one dotted part or a piece of one.


def block_keys(theirs: str, ours: str) -> tuple[Row, ...]:
    """Of a residual block under the name `theirs`, such as "resnet.layer{stage}.{block}"."""
    return (
        (f"{theirs}.conv{{i}}", f"{ours}.conv{{i}}.conv"),
        (f"{theirs}.bn{{i}}", f"{ours}.conv{{i}}.norm"),
        *conv_norm_keys(f"{theirs}.downsample", f"{ours}.shortcut", ("0", "1")),
    )


def stage_keys(theirs: str, ours: str = "backbone.") -> tuple[Row, ...]:
    """Of the four stages: `layer1.0.conv1` and so on under both prefixes, which end in a dot."""
    name = "layer{stage}.{block}"
    return block_keys(theirs + name, ours + name)


def deep_stem_keys(theirs: str, last_norm: str | None = None) -> tuple[Row, ...]:
    """Of a sequence of convolutions, norms and ReLUs, `theirs` its name, such as "backbone.stem";
    `last_norm`: the name of its last norm where that stands outside of the sequence."""
    return tuple(
        (
            last_norm if last_norm and place == 7 else f"{theirs}.{place}",
            f"backbone.stem.{place // 3}.{part}",
        )
        for place, part in zip((0, 1, 3, 4, 6, 7), ("conv", "norm") * 3, strict=True)
    )


DEEP_STEM_KEYS = deep_stem_keys("resnet.conv1", "resnet.bn1")
BASIC_BLOCK_KEYS = stage_keys("resnet.")
