"""EfficientViT: inverted bottlenecks, and attention that is linear in the number of pixels.

Cai et al., "EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction", ICCV
2023. Reference implementation: github.com/mit-han-lab/efficientvit, its B series for Cityscapes.

Checked: parameters (within 2.5 %) and multiply-adds at 1024x2048 (within 1 %) of B0 to B3 as the
reference's README has them; the attention against the map of all pairs of pixels; some entries'
names. Not checked: outputs of the reference, and the released weights, which could not be fetched,
and so the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import ConvNorm, he_normal, set_norm_scale
from ..network import Network
from ..variant import CITYSCAPES, REPOSITORY, Keys, Score, Variant, conv_norm_keys

TINY = 1e-15  # keeps a pixel whose queries are all negative from becoming 0 / 0


def _conv(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    norm: bool = True,
    act: bool = True,
) -> ConvNorm:
    """Convolution, norm or else bias, and hard swish."""
    unit = ConvNorm(inputs, outputs, kernel, stride, groups=groups, bias=not norm)
    if not norm:
        unit.norm = nn.Identity()
    unit.act = nn.Hardswish() if act else nn.Identity()
    return unit


class InvertedBottleneck(nn.Module):
    """Widening, depthwise 3x3 and narrowing convolution, beside a shortcut where shapes allow one:
    (N, inputs, H, W) -> (N, outputs, H/s, W/s).

    Args:
        expand: factor of the widening; 1 leaves that convolution out.
        norms: whether the first convolutions have norms, or biases in their place.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, expand: int = 4, norms: bool = True
    ):
        super().__init__()
        hidden = inputs * expand
        self.widen = _conv(inputs, hidden, norm=norms) if expand > 1 else nn.Identity()
        self.depthwise = _conv(hidden, hidden, 3, stride, groups=hidden, norm=norms)
        self.narrow = _conv(hidden, outputs, act=False)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.depthwise(self.widen(x)))
        return x + y if self.shortcut else y


class LinearAttention(nn.Module):
    """Attention with ReLU in place of softmax, at two scales, beside a shortcut: (N, C, H, W) ->
    the same.

    Without the softmax, keys and values can be multiplied first, which makes one small matrix of
    the whole map: cost and memory grow with the number of pixels, not with its square.
    """

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.dim, heads = dim, width // dim
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        # The second scale: what each pixel's 5x5 neighborhood says, mixed inside each third of a
        # head.
        self.gather = nn.Conv2d(3 * width, 3 * width, 5, padding=2, groups=3 * width, bias=False)
        self.mix = nn.Conv2d(3 * width, 3 * width, 1, groups=3 * heads, bias=False)
        self.proj = _conv(2 * width, width, act=False)

    def init_untrained(self) -> None:
        # Without training all pixels attend to nearly the same, and the norm blows up what little
        # differs from scene to scene: B1's activations reached 2.7 million, beyond float16.
        set_norm_scale(self.proj, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        both = torch.cat([qkv, self.mix(self.gather(qkv))], dim=1)
        # In float32: the sums over all pixels leave half precision's range.
        heads = both.float().flatten(2).unflatten(1, (-1, 3 * self.dim))
        query, key, value = heads.split(self.dim, dim=2)
        query, key = F.relu(query), F.relu(key)
        total = (value @ key.transpose(2, 3)) @ query
        # The reference appends a row of ones to the values; their sum is the keys' alone.
        weight = key.sum(dim=3, keepdim=True).transpose(2, 3) @ query
        # A bound, where the reference adds: exporters take so small a summand for zero and drop it.
        attended = (total / weight.clamp_min(TINY)).flatten(1, 2).unflatten(2, x.shape[-2:])
        return x + self.proj(attended.to(x.dtype))


def _attention_stage(inputs: int, width: int, depth: int, dim: int) -> nn.Sequential:
    stage = nn.Sequential(InvertedBottleneck(inputs, width, stride=2, norms=False))
    for _ in range(depth):
        stage.append(
            nn.Sequential(
                LinearAttention(width, dim), InvertedBottleneck(width, width, norms=False)
            )
        )
    return stage


class EfficientViT(Network):
    """image (N, 3, H, W) -> logits (N, classes, H/8, W/8).

    Args:
        widths, depths: of the stem and the four stages.
        dim: channels of an attention head.
        head_depth: inverted bottlenecks of the head.
    """

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int],
        depths: Sequence[int],
        dim: int,
        head_depth: int,
    ):
        super().__init__()
        self.stem = nn.Sequential(_conv(3, widths[0], 3, stride=2))
        self.stem.extend(
            InvertedBottleneck(widths[0], widths[0], expand=1) for _ in range(depths[0])
        )
        self.stages = nn.ModuleList()
        for inputs, width, depth in zip(widths, widths[1:3], depths[1:3], strict=False):
            stage = nn.Sequential(InvertedBottleneck(inputs, width, stride=2))
            stage.extend(InvertedBottleneck(width, width) for _ in range(depth - 1))
            self.stages.append(stage)
        for inputs, width, depth in zip(widths[2:], widths[3:], depths[3:], strict=False):
            self.stages.append(_attention_stage(inputs, width, depth, dim))
        width = widths[2]
        # The deepest map first, as the reference numbers them.
        self.inlets = nn.ModuleList(_conv(each, width, act=False) for each in widths[:1:-1])
        self.middle = nn.Sequential(*(InvertedBottleneck(width, width) for _ in range(head_depth)))
        self.hidden = _conv(width, 4 * width)
        self.classifier = nn.Conv2d(4 * width, num_classes, 1)
        # The reference returns logits at stride 8 and leaves the resize to its caller.
        self.upsample_logits = nn.Identity()
        he_normal(self)

    def forward_logits(self, image: Tensor) -> Tensor:
        x, features = self.stem(image), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        deep, middle, fine = (
            inlet(x) for inlet, x in zip(self.inlets, features[:0:-1], strict=True)
        )
        x = _upsample(deep, 4) + _upsample(middle, 2) + fine
        return self.classifier(self.hidden(self.middle(x)))


def _upsample(x: Tensor, factor: int) -> Tensor:
    """Bicubic, as the reference does it. In float32, which it insists on too."""
    return F.interpolate(x.float(), scale_factor=factor, mode="bicubic").to(x.dtype)


def _bottleneck_keys(theirs: str, ours: str) -> Keys:
    return (
        *conv_norm_keys(f"{theirs}.inverted_conv", f"{ours}.widen", ("conv", "norm")),
        *conv_norm_keys(f"{theirs}.depth_conv", f"{ours}.depthwise", ("conv", "norm")),
        *conv_norm_keys(f"{theirs}.point_conv", f"{ours}.narrow", ("conv", "norm")),
    )


_BLOCK, _OURS = "backbone.stages.{i}.op_list.{j}", "stages.{i}.{j}"
KEYS: Keys = (
    *conv_norm_keys("backbone.input_stem.op_list.0", "stem.0", ("conv", "norm")),
    *_bottleneck_keys("backbone.input_stem.op_list.{i}.main", "stem.{i}"),
    (f"{_BLOCK}.context_module.main.qkv.conv", f"{_OURS}.0.qkv"),
    (f"{_BLOCK}.context_module.main.aggreg.0.0", f"{_OURS}.0.gather"),
    (f"{_BLOCK}.context_module.main.aggreg.0.1", f"{_OURS}.0.mix"),
    *conv_norm_keys(f"{_BLOCK}.context_module.main.proj", f"{_OURS}.0.proj", ("conv", "norm")),
    *_bottleneck_keys(f"{_BLOCK}.local_module.main", f"{_OURS}.1"),
    *_bottleneck_keys(f"{_BLOCK}.main", _OURS),
    # The finest map is not enlarged, and so in no list.
    *conv_norm_keys("head.input_ops.2", "inlets.2", ("conv", "norm")),
    *conv_norm_keys("head.input_ops.{i}.op_list.0", "inlets.{i}", ("conv", "norm")),
    *_bottleneck_keys("head.middle.op_list.{i}.main", "middle.{i}"),
    *conv_norm_keys("head.output_ops.0.op_list.0", "hidden", ("conv", "norm")),
    ("head.output_ops.0.op_list.1.conv", "classifier"),
)


def _variant(
    widths: Sequence[int], depths: Sequence[int], dim: int, head_depth: int, score: float
) -> Variant:
    return Variant(
        partial(EfficientViT, widths=widths, depths=depths, dim=dim, head_depth=head_depth),
        keys=KEYS,
        size=(1024, 2048),
        paper="Cai et al., ICCV 2023",
        reference="github.com/mit-han-lab/efficientvit",
        license="Apache-2.0",
        scores=(Score(CITYSCAPES, score, source=REPOSITORY),),
        multiple=32,
    )


VARIANTS = {
    "efficientvit_b0": _variant((8, 16, 32, 64, 128), (1, 2, 2, 2, 2), 16, 1, 75.7),
    "efficientvit_b1": _variant((16, 32, 64, 128, 256), (1, 2, 3, 3, 4), 16, 3, 80.5),
    "efficientvit_b2": _variant((24, 48, 96, 192, 384), (1, 3, 4, 4, 6), 32, 3, 82.1),
    "efficientvit_b3": _variant((32, 64, 128, 256, 512), (1, 4, 6, 6, 9), 32, 3, 83.0),
}
