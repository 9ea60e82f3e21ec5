"""SFNet: semantic flow for fast and accurate scene parsing.

Li et al., ECCV 2020, and "SFNet: Faster and Accurate Semantic Segmentation via Semantic Flow" (the
Lite form), IJCV 2023. Reference implementations: an mmsegmentation one, and the authors' own at
github.com/lxtGH/SFSegNets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.resnet import ResNet, deep_stem_keys, resnet18, resnet50, stage_keys
from ..heads import head_keys
from ..layers import (
    BINS,
    BilinearUpsample,
    Constant,
    ConvNorm,
    Head,
    TrainingOnly,
    Warp,
    bias_of,
    he_normal,
    keep_unused,
    make_pointwise,
    pooling_matrix,
    resize,
    spreading_matrix,
)
from ..network import Network
from ..variant import CITYSCAPES, PUBLISHED, REPOSITORY, Keys, Row, Score, Variant, conv_norm_keys

CELLS = [rows * columns for rows, columns in BINS]


class PPM(nn.Module):
    """PPM: the map beside averages of itself at four scales, then one convolution.

    (N, inputs, h, w) -> (N, width, h, w)
    """

    def __init__(self, inputs: int, width: int, dropout: float = 0.0):
        super().__init__()
        self.levels = nn.ModuleList(ConvNorm(inputs, width, kernel=1, act=False) for _ in BINS)
        self.bottleneck = ConvNorm(inputs + len(BINS) * width, width, kernel=1)
        self.dropout = nn.Dropout2d(dropout)
        self.pooling = Constant(partial(pooling_matrix, BINS))

    def forward(self, x: Tensor) -> Tensor:
        cells = (x.flatten(2) @ self.pooling(*x.shape[-2:], like=x)).split(CELLS, dim=2)
        pooled = [
            resize(level(c.unflatten(2, bins)), like=x, align_corners=True)
            for level, c, bins in zip(self.levels, cells, BINS, strict=True)
        ]
        return self.dropout(self.bottleneck(torch.cat([*pooled, x], dim=1)))

    def to_deployed(self) -> DeployedPPM:
        return DeployedPPM(self)


class DeployedPPM(nn.Module):
    """PPM with each level's two convolutions merged into one of a few cells, and all levels
    enlarged by one matrix product."""

    def __init__(self, plain: PPM):
        super().__init__()
        last, dtype = plain.bottleneck.conv, plain.bottleneck.conv.weight.dtype
        firsts = [level.conv for level in plain.levels if isinstance(level, ConvNorm)]
        width, inputs = last.out_channels, firsts[0].in_channels
        weights = last.weight.detach().flatten(1).double()
        *parts, own = weights.split([width] * len(firsts) + [inputs], dim=1)
        bias = bias_of(last).double()
        self.levels = nn.ModuleList()
        for part, first in zip(parts, firsts, strict=True):
            merged = nn.Conv1d(inputs, width, 1, bias=False)
            weight = part @ first.weight.detach().flatten(1).double()
            merged.weight = nn.Parameter(weight[..., None].to(dtype))
            self.levels.append(merged)
            # The weights of a bilinear resize add up to one, so that a bias passes through it.
            bias = bias + part @ bias_of(first).double()
        self.own = make_pointwise(own, bias, dtype)
        self.pooling = plain.pooling
        self.spreading = Constant(partial(spreading_matrix, BINS))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        cells = (x.flatten(2) @ self.pooling(*size, like=x)).split(CELLS, dim=2)
        levels = [level(c) for level, c in zip(self.levels, cells, strict=True)]
        # After the convolutions, not before: a 1x1 convolution and a bilinear resize commute, and
        # there are fifty cells in place of all positions.
        spread = torch.cat(levels, dim=2) @ self.spreading(*size, like=x)
        return F.relu(self.own(x) + spread.unflatten(2, size))


class FAM(nn.Module):
    """FAM: the deep map is moved by a flow, learned from both maps, and laid over the shallow one.

    shallow (N, inputs, 2h, 2w), deep (N, width, h, w) -> (N, width, 2h, 2w)
    """

    def __init__(self, inputs: int, width: int, align_corners: bool):
        super().__init__()
        # A bias before a norm does nothing, but the official checkpoints have it.
        self.lateral = ConvNorm(inputs, width, kernel=1, bias=True)
        self.shallow_down = nn.Conv2d(width, width // 2, 1, bias=False)
        self.deep_down = nn.Conv2d(width, width // 2, 1, bias=False)
        self.flow = nn.Conv2d(width, 2, 3, padding=1, bias=False)
        self.warp = Warp(align_corners)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        shallow = self.lateral(shallow)
        reduced = resize(self.deep_down(deep), like=shallow, align_corners=True)
        flow = self.flow(torch.cat([reduced, self.shallow_down(shallow)], dim=1))
        return shallow + self.warp(deep, flow)

    def to_deployed(self) -> DeployedFAM:
        return DeployedFAM(self)


class DeployedFAM(nn.Module):
    """FAM with the linear chain to the flow merged, see `FlowTaps`: the same maps in and out."""

    def __init__(self, plain: FAM):
        super().__init__()
        self.lateral, self.warp = plain.lateral, plain.warp
        self.flow = FlowTaps(plain.flow, plain.deep_down, plain.shallow_down)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        shallow = self.lateral(shallow)
        return shallow + self.warp(deep, self.flow(shallow, deep))


class FlowTaps(nn.Module):
    """`flow(cat(resize(deep_down(deep)), shallow_down(shallow)))`, at a fraction of its cost.

    The 3x3 convolution has few outputs, so that its nine taps are each taken by a 1x1 convolution,
    merged with the one in front: for the deep map before the resize. What is left is to add each
    tap's map at its own place, a 3x3 convolution of zeros and ones.
    """

    def __init__(self, flow: nn.Conv2d, deep_down: nn.Conv2d, shallow_down: nn.Conv2d):
        super().__init__()
        outputs = flow.out_channels
        halves = flow.weight.detach().double().chunk(2, dim=1)
        taps = []
        for half, down in zip(halves, (deep_down, shallow_down), strict=True):
            weight = torch.einsum("okyx,kc->oyxc", half, down.weight.detach().flatten(1).double())
            taps.append(make_pointwise(weight.flatten(0, 2), None, flow.weight.dtype))
        self.deep, self.shallow = taps
        self.gather = nn.Conv2d(9 * outputs, outputs, 3, padding=1, bias=False)
        # Tap t of output o moves to its place in the 3x3 window, and to output o alone.
        ones = torch.einsum("op,st->opst", torch.eye(outputs), torch.eye(9))
        weight = ones.reshape(outputs, 9 * outputs, 3, 3)
        self.gather.weight = nn.Parameter(weight.to(flow.weight.dtype))

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        taps = self.shallow(shallow) + resize(self.deep(deep), like=shallow, align_corners=True)
        return self.gather(taps)


class SFNet(Network):
    """image (N, 3, H, W) -> logits (N, classes, H/4, W/4).

    From the deepest map up, each stage's map takes the one below it through an alignment; all four
    results, enlarged to stride 4, go into the head. `supervised`: heads on the three aligned maps
    give auxiliary logits. `official`: as in the authors' own code, which warps with corners
    aligned, drops channels after the pooling instead of in the head, and upsamples itself.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: ResNet,
        width: int,
        supervised: bool = False,
        official: bool = False,
        head: str = "plain",
    ):
        super().__init__()
        self.backbone = backbone
        *shallow, deep = backbone.outputs
        self.pooling = PPM(deep, width, dropout=0.1 if official else 0.0)
        self.align = nn.ModuleList(FAM(inputs, width, official) for inputs in shallow)
        self.smooth = nn.ModuleList(ConvNorm(width, width) for _ in shallow)
        self.head = Head(4 * width, width, num_classes, 0.0 if official else 0.1, kind=head)
        self.extra = TrainingOnly()
        if supervised:
            for stride in (16, 8, 4):
                self.extra[f"stride{stride}"] = Head(width, width, num_classes, 0.1, bias=official)
        self.upsample_logits = (
            BilinearUpsample(4, align_corners=True) if official else nn.Identity()
        )
        he_normal(self)
        # Classes nearly equal at the start, as MMSegmentation does.
        nn.init.normal_(self.head.classifier.weight, std=0.01)

    def forward_logits(self, image: Tensor) -> Tensor:
        return self.fuse(self.pyramid(image))

    def forward_auxiliary(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        maps = self.pyramid(image)
        by_stride = dict(zip(("stride4", "stride8", "stride16"), maps, strict=False))
        extra = {name: head(by_stride[name]) for name, head in self.extra.items()}
        return self.fuse(maps), extra

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """Aligned maps (N, width, h, w) at strides 4, 8 and 16, and the one at 32."""
        *shallow, deep = self.backbone(image)
        maps = [self.pooling(deep)]
        for align, x in zip(reversed(self.align), reversed(shallow), strict=True):
            maps.insert(0, align(x, maps[0]))
        return maps

    def fuse(self, maps: list[Tensor]) -> Tensor:
        """All maps, the aligned ones smoothed, at stride 4 -> logits (N, classes, H/4, W/4)."""
        first, *smooth = (layer(x) for layer, x in zip(self.smooth, maps, strict=False))
        enlarged = [resize(x, like=first, align_corners=True) for x in (*smooth, maps[-1])]
        return self.head(torch.cat([first, *enlarged], dim=1))


class SFNetLite(Network):
    """image (N, 3, H, W) -> logits (N, classes, H, W): one flow module from stride 32 to stride 4.

    The pooled deepest map and the stride-4 one are moved by a flow each and mixed by a gate; beside
    them the stride-16 map goes into the head.
    """

    WIDTH = 128

    def __init__(self, num_classes: int, backbone: ResNet):
        super().__init__()
        width = self.WIDTH
        self.backbone = backbone
        shallow, _, middle, deep = backbone.outputs
        self.pooling = PPM(deep, width, dropout=0.1)
        self.shallow = ConvNorm(shallow, width, kernel=1, bias=True)
        self.middle = ConvNorm(middle, width, kernel=1, bias=True)
        self.gated = GatedFlow(width)
        self.head = Head(2 * width, width, num_classes)
        self.upsample_logits = BilinearUpsample(4, align_corners=True)
        self.unused = keep_unused(
            lateral=ConvNorm(deep, width, kernel=1, bias=True),
            head=Head(width, width, num_classes, bias=True),
        )
        he_normal(self)

    def forward_logits(self, image: Tensor) -> Tensor:
        shallow, _, middle, deep = self.backbone(image)
        mixed = self.gated(self.shallow(shallow), self.pooling(deep))
        middle = resize(self.middle(middle), like=mixed, align_corners=True)
        return self.head(torch.cat([mixed, middle], dim=1))


class GatedFlow(nn.Module):
    """shallow (N, width, H/4, W/4), deep (N, width, H/32, W/32) -> (N, width, H/4, W/4)."""

    def __init__(self, width: int):
        super().__init__()
        self.shallow_down = nn.Conv2d(width, width // 2, 1, bias=False)
        self.deep_down = nn.Conv2d(width, width // 2, 1, bias=False)
        self.flow = nn.Conv2d(width, 4, 3, padding=1, bias=False)
        self.gate = nn.Conv2d(4, 1, 3, padding=1, bias=False)
        self.warp = Warp(align_corners=True)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        reduced = resize(self.deep_down(deep), like=shallow, align_corners=True)
        flows = self.flow(torch.cat([reduced, self.shallow_down(shallow)], dim=1))
        deep_flow, shallow_flow = flows.split(2, dim=1)
        means = [x.mean(1, keepdim=True) for x in (reduced, shallow)]
        largest = [x.amax(1, keepdim=True) for x in (reduced, shallow)]
        gate = torch.sigmoid(self.gate(torch.cat([*means, *largest], dim=1)))
        return self.warp(deep, deep_flow) * gate + self.warp(shallow, shallow_flow) * (1 - gate)


DILATED: dict[str, object] = {"dilations": (1, 1, 2, 4)}


def _sfnet(num_classes: int, depth: int, **options: Any) -> SFNet:
    if depth == 18:
        return SFNet(num_classes, resnet18("deep", **DILATED), 128, **options)
    return SFNet(num_classes, resnet50(64, depth, **DILATED), 256, **options)


def _sfnet_lite(num_classes: int) -> SFNetLite:
    return SFNetLite(num_classes, resnet18("deep", **DILATED))


KEYS = (
    *deep_stem_keys("backbone.stem"),
    *stage_keys("backbone."),
    *conv_norm_keys("neck.ppm.{i}.1", "pooling.levels.{i}"),
    *conv_norm_keys("neck.bottleneck", "pooling.bottleneck"),
    *conv_norm_keys("neck.fams.{i}.low_conv", "align.{i}.lateral"),
    ("neck.fams.{i}.low_down_conv", "align.{i}.shallow_down"),
    ("neck.fams.{i}.high_down_conv", "align.{i}.deep_down"),
    ("neck.fams.{i}.flow_conv", "align.{i}.flow"),
    *conv_norm_keys("neck.convs.{i}", "smooth.{i}"),
    *head_keys("decode_head", "head"),
    *head_keys("auxiliary_head.0", "extra.stride16"),
    *head_keys("auxiliary_head.1", "extra.stride8"),
    *head_keys("auxiliary_head.2", "extra.stride4"),
)


def _sequence_keys(theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        *conv_norm_keys(theirs, f"{ours}.hidden", ("0", "1")),
        (f"{theirs}.4", f"{ours}.classifier"),
    )


_OFFICIAL = (  # what all networks of the authors' own repository share
    *deep_stem_keys("layer0.0", "layer0.1"),
    *stage_keys(""),
    *conv_norm_keys("head.ppm.stages.{i}", "pooling.levels.{i}", ("1", "2")),
    *conv_norm_keys("head.ppm.bottleneck", "pooling.bottleneck", ("0", "1")),
    *conv_norm_keys("head.conv_last.0", "head.hidden", ("0", "1")),
    ("head.conv_last.1", "head.classifier"),
)
OFFICIAL_KEYS = (
    *_OFFICIAL,
    *conv_norm_keys("head.fpn_in.{i}", "align.{i}.lateral", ("0", "1")),
    ("head.fpn_out_align.{i}.down_l", "align.{i}.shallow_down"),
    ("head.fpn_out_align.{i}.down_h", "align.{i}.deep_down"),
    ("head.fpn_out_align.{i}.flow_make", "align.{i}.flow"),
    *conv_norm_keys("head.fpn_out.{i}.0", "smooth.{i}", ("0", "1")),
    *_sequence_keys("head.dsn.0", "extra.stride4"),
    *_sequence_keys("head.dsn.1", "extra.stride8"),
    *_sequence_keys("head.dsn.2", "extra.stride16"),
)
LITE_KEYS = (
    *_OFFICIAL,
    *conv_norm_keys("head.fpn_in.0", "shallow", ("0", "1")),
    *conv_norm_keys("head.fpn_in.1", "middle", ("0", "1")),
    *conv_norm_keys("head.fpn_in.2", "unused.lateral", ("0", "1")),
    ("head.flow_align_module.down_l", "gated.shallow_down"),
    ("head.flow_align_module.down_h", "gated.deep_down"),
    ("head.flow_align_module.flow_make", "gated.flow"),
    ("head.flow_align_module.flow_gate.0", "gated.gate"),
    *_sequence_keys("head.dsn", "unused.head"),
)


def _variant(
    make: Callable[..., Network],
    keys: Keys = KEYS,
    miou: float | None = None,  # in % on Cityscapes val
    source: str = REPOSITORY,
    paper: str = "Li et al., ECCV 2020",
    reference: str = "an mmsegmentation one",
) -> Variant:
    return Variant(
        make,
        keys,
        size=(1024, 2048),
        paper=paper,
        reference=reference,
        scores=() if miou is None else (Score(CITYSCAPES, miou, source=source),),
        multiple=32,
        align_corners=True,
    )


_OWN = "github.com/lxtGH/SFSegNets"
VARIANTS = {
    "sfnet_r18": _variant(partial(_sfnet, depth=18), miou=78.03),
    "sfnet_r18_dsn": _variant(partial(_sfnet, depth=18, supervised=True), miou=78.31),
    "sfnet_r50": _variant(partial(_sfnet, depth=50), miou=80.17),
    "sfnet_r101": _variant(partial(_sfnet, depth=101), miou=81.01),
    "sfnet_r18_rep": _variant(partial(_sfnet, depth=18, head="rep")),
    "sfnet_r18_official": _variant(
        partial(_sfnet, depth=18, official=True), OFFICIAL_KEYS, 78.4, PUBLISHED, reference=_OWN
    ),
    "sfnet_lite_r18": _variant(
        _sfnet_lite, LITE_KEYS, paper="Li et al., IJCV 2023", reference=_OWN
    ),
}
