"""SFANet: stage-aware feature alignment.

Weng et al.: "Stage-Aware Feature Alignment Network for Real-Time Semantic Segmentation of Street
Scenes", IEEE Transactions on Circuits and Systems for Video Technology 32, 2022. Reference
implementation: the model zoo of github.com/kaigelee/CSFCN.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.resnet import resnet18, stage_keys
from ..layers import BilinearUpsample, ConvNorm, TrainingOnly, Warp, global_mean, he_normal, resize
from ..network import Network
from ..variant import Row, Variant, conv_norm_keys


class SCA(nn.Module):
    """SCA: a map times the sum of a gate for each position and one for each channel.

    (N, C, h, w) -> the same
    """

    def __init__(self, channels: int, kernel: int = 3):
        super().__init__()
        self.spatial = nn.Conv2d(channels, 1, 1, bias=False)
        self.channel = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # The convolution runs along the channels: they become the one axis that Conv1d slides over.
        means = x.mean((2, 3)).unsqueeze(1)
        channel = torch.sigmoid(self.channel(means)).transpose(1, 2).unsqueeze(3)
        return x * (torch.sigmoid(self.spatial(x)) + channel)

    def to_deployed(self) -> DeployedSCA:
        return DeployedSCA(self)


class DeployedSCA(nn.Module):
    """SCA with the convolution along the channels as a 1x1 convolution of a banded matrix, which
    spares moving the channels to another axis and back."""

    def __init__(self, plain: SCA):
        super().__init__()
        self.spatial = plain.spatial
        taps, channels = plain.channel.weight.detach().flatten(), plain.spatial.in_channels
        reach = len(taps) // 2
        band = sum(
            tap * torch.diag(torch.ones(channels - abs(shift), dtype=taps.dtype), shift)
            for shift, tap in zip(range(-reach, reach + 1), taps, strict=True)
        )
        self.channel = nn.Conv2d(channels, channels, 1, bias=False)
        self.channel.weight = nn.Parameter(torch.as_tensor(band)[..., None, None])

    def forward(self, x: Tensor) -> Tensor:
        channel = torch.sigmoid(self.channel(global_mean(x)))
        return x * (torch.sigmoid(self.spatial(x)) + channel)


class SeparableBoost(nn.Module):
    """FEB of the deep stages: two depthwise convolutions in a row, mixed, (N, C, h, w) -> same."""

    def __init__(self, channels: int, dilations: tuple[int, int]):
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(channels, channels, 3, 1, d, d, groups=channels, bias=False)
            for d in dilations
        )
        self.norm = nn.BatchNorm2d(channels)
        self.mix = ConvNorm(2 * channels, channels, kernel=1, act=False)
        self.attention = SCA(channels)

    def forward(self, x: Tensor) -> Tensor:
        near = self.first(x)
        far = self.second(self.norm(near))
        return self.attention(F.relu(x + self.mix(torch.cat([near, far], dim=1))))


class DenseBoost(nn.Module):
    """FEB of the stride-8 stage: two 3x3 convolutions, (N, C, h, w) -> the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = ConvNorm(channels, channels, act=False)
        self.second = ConvNorm(channels, channels, act=False)
        self.attention = SCA(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(F.relu(x + self.second(self.first(x))))


class FAA(nn.Module):
    """FAA: the deeper map, moved by a learned flow, is added to the shallower one.

    high (N, C, h, w), low (N, inputs, h', w') -> (N, C, h, w)
    """

    def __init__(self, inputs: int, channels: int, boost: nn.Module):
        super().__init__()
        self.reduce = ConvNorm(inputs, channels, kernel=1)
        self.boost = boost
        self.offset = nn.Conv2d(2 * channels, 2, 3, padding=1, bias=False)
        self.warp = Warp(align_corners=True)
        self.attention = SCA(channels)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        low = resize(self.reduce(low), like=high, align_corners=True)
        high = self.boost(high)
        flow = self.offset(torch.cat([high, low], dim=1))
        return self.attention(high + self.warp(low, flow))


def _head(inputs: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNorm(inputs, 64, kernel=1), nn.Conv2d(64, num_classes, 3, padding=1, bias=False)
    )


class SFANet(Network):
    """image (N, 3, H, W) -> logits (N, classes, H, W); auxiliary logits from all four stages."""

    WIDTH = 128

    def __init__(self, num_classes: int):
        super().__init__()
        width = self.WIDTH
        self.backbone = resnet18("bare")
        first, *others = self.backbone.outputs
        for stage, channels in enumerate(others, start=2):
            blocks = self.backbone.get_submodule(f"layer{stage}")
            assert isinstance(blocks, nn.Sequential)
            # Between the two blocks of each deeper stage, where the reference's checkpoints have
            # it.
            blocks.insert(1, SCA(channels))
        self.project = nn.ModuleList(ConvNorm(inputs, width) for inputs in others)
        self.align = nn.ModuleList(
            [
                FAA(width, first, nn.Identity()),
                FAA(width, width, DenseBoost(width)),
                FAA(width, width, SeparableBoost(width, dilations=(1, 1))),
                FAA(others[-1], width, SeparableBoost(width, dilations=(2, 5))),
            ]
        )
        self.head = _head(2 * first, num_classes)
        self.extra = TrainingOnly(
            {
                f"aux{stride}": _head(first if stride == 4 else width, num_classes)
                for stride in (4, 8, 16, 32)
            }
        )
        self.upsample_logits = BilinearUpsample(4, align_corners=True)
        for module in self.align.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=1)
        he_normal(self.backbone)

    def forward_logits(self, image: Tensor) -> Tensor:
        shallow, aligned = self.stages(image)
        return self.head(torch.cat([shallow, aligned[0]], dim=1))

    def forward_auxiliary(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        shallow, aligned = self.stages(image)
        extra = {}
        for i, (name, head) in enumerate(self.extra.items()):
            extra[name] = BilinearUpsample(4 * 2**i, align_corners=True)(head(aligned[i]))
        return self.head(torch.cat([shallow, aligned[0]], dim=1)), extra

    def stages(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(the backbone's stride-4 map, the aligned maps at strides 4, 8, 16 and 32)."""
        shallow, *others = self.backbone(image)
        projected = [unit(x) for unit, x in zip(self.project, others, strict=True)]
        # The deepest alignment has no map below it: it takes the whole map's mean.
        x = global_mean(others[-1])
        aligned: list[Tensor] = []
        for align, high in zip(reversed(self.align), [*projected[::-1], shallow], strict=True):
            x = align(high, x)
            aligned.insert(0, x)
        return shallow, aligned


def sca_keys(theirs: str, ours: str) -> tuple[Row, ...]:
    """Of an SCA."""
    return (
        (f"{theirs}.spatial.0", f"{ours}.spatial"),
        (f"{theirs}.channel.conv", f"{ours}.channel"),
    )


def _head_keys(theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        *conv_norm_keys(f"{theirs}.block.0.conv", f"{ours}.0", ("0", "1")),
        (f"{theirs}.block.1", f"{ours}.1"),
    )


def _alignment_keys(stage: int) -> tuple[Row, ...]:
    theirs, ours = f"sfa{stage}", f"align.{stage - 1}"
    rows = (
        *conv_norm_keys(f"{theirs}.cbr.conv", f"{ours}.reduce", ("0", "1")),
        (f"{theirs}.faa.offset", f"{ours}.offset"),
        *sca_keys(f"{theirs}.faa.sca", f"{ours}.attention"),
        *sca_keys(f"{theirs}.feb.sca", f"{ours}.boost.attention"),
    )
    if stage == 2:
        return (
            *rows,
            *conv_norm_keys(f"{theirs}.feb", f"{ours}.boost.first", ("conv_1", "bn_1")),
            *conv_norm_keys(f"{theirs}.feb", f"{ours}.boost.second", ("conv_2", "bn_2")),
        )
    return (
        *rows,
        (f"{theirs}.feb.dw_conv_1", f"{ours}.boost.first"),
        (f"{theirs}.feb.bn_1", f"{ours}.boost.norm"),
        (f"{theirs}.feb.dw_conv_2", f"{ours}.boost.second"),
        *conv_norm_keys(f"{theirs}.feb", f"{ours}.boost.mix", ("conv_1x1", "bn_2")),
    )


KEYS = (
    ("resnet.stem", "backbone.stem.0"),
    *sca_keys("resnet.layer{stage}.1", "backbone.layer{stage}.1"),
    *stage_keys("resnet."),
    *conv_norm_keys("resnet.cbr1.conv", "project.0", ("0", "1")),
    *conv_norm_keys("resnet.cbr2.conv", "project.1", ("0", "1")),
    *conv_norm_keys("resnet.cbr3.conv", "project.2", ("0", "1")),
    *(row for stage in (1, 2, 3, 4) for row in _alignment_keys(stage)),
    *_head_keys("conv_out", "head"),
    *_head_keys("conv_out1", "extra.aux4"),
    *_head_keys("conv_out2", "extra.aux8"),
    *_head_keys("conv_out3", "extra.aux16"),
    *_head_keys("conv_out4", "extra.aux32"),
)
VARIANTS = {
    "sfanet": Variant(
        SFANet,
        KEYS,
        size=(1024, 2048),
        paper="Weng et al., TCSVT 2022",
        reference="github.com/kaigelee/CSFCN",
        license="MIT",
        multiple=32,
        align_corners=True,
    )
}
