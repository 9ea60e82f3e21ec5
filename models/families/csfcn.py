"""CSFCN: context and spatial feature calibration.

Li, Geng, Han: "Context and Spatial Feature Calibration for Real-Time Semantic Segmentation",
IEEE Transactions on Image Processing 32, 2023. Reference implementation: github.com/kaigelee/CSFCN.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.resnet import BASIC_BLOCK_KEYS, DEEP_STEM_KEYS, ResNet, deep_stem
from ..layers import (
    BilinearUpsample,
    Constant,
    ConvNorm,
    Warp,
    bias_of,
    head_conv,
    make_pointwise,
    pooling_matrix,
    relative_bins,
    resize,
)
from ..network import Network
from ..variant import CAMVID, CITYSCAPES, CITYSCAPES_TEST, Score, Variant, conv_norm_keys


def pyramid_pooling(height: int, width: int) -> Tensor:
    """Average pooling of a height x width map to 6, 3, 2 and 1 rows of about square cells."""
    return pooling_matrix(relative_bins((6, 3, 2, 1), height, width), height, width)


class CFC(nn.Module):
    """CFC: every position attends to a pyramid-pooled summary of the map, then is recalibrated.

    (N, inputs, h, w) -> (N, width, h, w), at stride 32.
    """

    def __init__(self, inputs: int, width: int, queries: int, mask_width: int):
        super().__init__()
        self.reduce = ConvNorm(inputs, width)
        self.query = nn.Conv2d(width, queries, 1)
        self.key = nn.Conv1d(width, queries, 1)
        self.value = nn.Conv1d(width, width, 1)
        self.mask = nn.Sequential(
            ConvNorm(width, mask_width, kernel=1),
            nn.Conv2d(mask_width, width, 3, padding=1, bias=False),
        )
        self.pooling = Constant(pyramid_pooling)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        height, width = x.shape[-2:]
        keys, values = self.keys_values(x.flatten(2) @ self.pooling(height, width, like=x))
        scores = self.query(x).flatten(2).transpose(1, 2) @ keys
        # Unscaled dot products reach far, and half precision would flatten the largest ones.
        attention = scores.float().softmax(dim=-1).to(x.dtype)
        # Values first: (N, width, S) times (N, S, positions) lands in the layout of a map.
        context = (values @ attention.transpose(1, 2)).unflatten(2, (height, width))
        return x + context * (1 + torch.tanh(self.mask(context)))

    def keys_values(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """pooled (N, width, S) -> keys (N, queries, S), values (N, width, S)."""
        return self.key(pooled), self.value(pooled)

    def to_deployed(self) -> DeployedCFC:
        return DeployedCFC(self)


class DeployedCFC(CFC):
    """CFC with keys and values from one convolution, and without the keys' bias."""

    def __init__(self, plain: CFC):
        nn.Module.__init__(self)
        self.reduce, self.query, self.mask = plain.reduce, plain.query, plain.mask
        self.pooling = plain.pooling
        self.split = [plain.key.out_channels, plain.value.out_channels]
        self.key_value = nn.Conv1d(plain.key.in_channels, sum(self.split), 1)
        weights = plain.key.weight, plain.value.weight
        # A key's bias adds the same to all scores of a query, which softmax takes out again.
        biases = torch.zeros_like(bias_of(plain.key)), bias_of(plain.value)
        self.key_value.weight = nn.Parameter(torch.cat(weights).detach())
        self.key_value.bias = nn.Parameter(torch.cat(biases))

    def keys_values(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.key_value(pooled).split(self.split, dim=1)
        return keys, values


class SFC(nn.Module):
    """SFC: deep and shallow features are each moved by learned offsets, gated and added.

    shallow (N, shallow, H/8, W/8), deep (N, deep, H/32, W/32) -> (N, width, H/8, W/8). Channels are
    moved in two groups; offsets are in units of 1 / width and 1 / height of the map.
    """

    GROUPS = 2

    def __init__(
        self, shallow: int, deep: int, width: int, offset_width: int, squeezed: int | None
    ):
        super().__init__()
        self.deep = ConvNorm(deep, width)
        self.shallow = ConvNorm(shallow, width)
        self.squeeze: nn.ModuleList | None = None
        if squeezed:
            # One each for the deep and the shallow map; the letters are only counted.
            self.squeeze = nn.ModuleList(nn.Conv2d(width, squeezed, 1, bias=False) for _ in "ds")
        self.offset_hidden = ConvNorm(2 * (squeezed or width), offset_width, kernel=1)
        self.offset = nn.Conv2d(
            # Two coordinates for each of 2 maps x GROUPS, and one gate a map.
            offset_width,
            4 * self.GROUPS + 2,
            kernel_size=3,
            padding=1,
            bias=False,
        )
        self.move = Warp(align_corners=True)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        shallow = self.shallow(shallow)
        deep = resize(self.deep(deep), like=shallow, align_corners=True)
        pair = [shallow, deep]
        if self.squeeze is not None:
            pair = [squeeze(x) for squeeze, x in zip(self.squeeze, pair, strict=True)]
        hidden = self.offset_hidden(torch.cat(pair, dim=1))
        return self.warp(torch.cat([shallow, deep], dim=1), self.offset(hidden))

    def warp(self, features: Tensor, offset: Tensor) -> Tensor:
        """features (N, 2C, h, w) shallow then deep, offset (N, 10, h, w) -> (N, C, h, w)."""
        n, channels, height, width = features.shape
        groups = 2 * self.GROUPS
        # Splits, since TensorRT takes two dozen layers to work out the bounds of a Python slice.
        moves, gates = offset.split([2 * groups, 2], dim=1)
        # All groups of both maps go through one grid sample, as a larger batch.
        warped = self.move(
            features.reshape(n * groups, channels // groups, height, width),
            moves.reshape(n * groups, 2, height, width),
        )
        deep_gate, shallow_gate = (1 + torch.tanh(gates)).split(1, dim=1)
        warped = warped.view(n, channels, height, width)
        shallow, deep = warped.split(channels // 2, dim=1)
        return deep * deep_gate + shallow * shallow_gate

    def to_deployed(self) -> DeployedSFC:
        return DeployedSFC(self)


class DeployedSFC(SFC):
    """SFC with the linear chain in front of the offsets merged.

    Squeezing, concatenation and the first offset convolution are one linear map of (shallow, deep).
    """

    def __init__(self, plain: SFC):
        nn.Module.__init__(self)
        self.deep, self.shallow = plain.deep, plain.shallow
        self.offset, self.move = plain.offset, plain.move
        first = plain.offset_hidden.conv
        if first.bias is None:
            raise ValueError("fold the norms first: the merged convolution needs their bias")
        # In double: the product of two matrices is rounded once, when it is stored.
        shallow, deep = first.weight.detach().flatten(1).double().chunk(2, dim=1)
        if plain.squeeze is not None:
            squeezes = [
                weight.detach().flatten(1).double() for weight in plain.squeeze.parameters()
            ]
            shallow, deep = shallow @ squeezes[0], deep @ squeezes[1]
        self.hidden_shallow = make_pointwise(shallow, first.bias.detach(), first.weight.dtype)
        self.hidden_deep = make_pointwise(deep, None, first.weight.dtype)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        shallow, deep = self.shallow(shallow), self.deep(deep)
        # A bilinear resize commutes with a 1x1 convolution: the deep half is taken at a sixteenth
        # of the positions, then enlarged together with the features.
        both = resize(
            torch.cat([deep, self.hidden_deep(deep)], 1), like=shallow, align_corners=True
        )
        deep, hidden_deep = both.split([shallow.shape[1], both.shape[1] - shallow.shape[1]], dim=1)
        hidden = F.relu(self.hidden_shallow(shallow) + hidden_deep)
        return self.warp(torch.cat([shallow, deep], dim=1), self.offset(hidden))


class CSFCN(Network):
    """image (N, 3, H, W) -> logits (N, classes, H, W).

    The backbone's deepest map, recalibrated by context, meets its stride-8 map in the spatial
    calibration; one convolution and a classifier follow.

    shuffle: the classifier gives each position its 8x8 pixels' logits (pixel shuffle); otherwise
    one value a class, enlarged bilinearly. head: "plain", or "rep" for a reparameterized
    convolution.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Module,
        widths: tuple[int, ...],  # of the backbone's four stages
        context: int = 256,  # channels of the context calibration
        queries: int = 32,
        mask_width: int = 64,
        spatial: int = 128,  # channels from the spatial calibration on
        offset_width: int = 64,
        squeezed: int | None = None,
        shuffle: bool = False,
        head: str = "plain",
    ):
        super().__init__()
        self.backbone = backbone
        self.context = CFC(widths[3], context, queries, mask_width)
        self.spatial = SFC(widths[1], context, spatial, offset_width, squeezed)
        self.head = head_conv(spatial, spatial, head)
        self.classifier = nn.Conv2d(spatial, num_classes * (64 if shuffle else 1), 1)
        self.upsample_logits = (
            nn.PixelShuffle(8) if shuffle else BilinearUpsample(8, align_corners=True)
        )
        self._initialize()

    def forward_logits(self, image: Tensor) -> Tensor:
        features = self.backbone(image)
        deep = self.context(features[3])
        return self.classifier(self.head(self.spatial(features[1], deep)))

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not self.classifier:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            # Keys and values, which no ReLU follows.
            elif isinstance(module, nn.Conv1d):
                nn.init.xavier_normal_(module.weight)
        for layer in (self.context.query, self.context.key, self.context.value):
            nn.init.zeros_(bias_of(layer))
        nn.init.kaiming_normal_(self.classifier.weight, mode="fan_out", nonlinearity="relu")
        # No offset and an even mask at the start: the paper's intent, which the released
        # constructor overwrites by its last pass.
        nn.init.zeros_(self.spatial.offset.weight)
        nn.init.zeros_(self.context.mask.get_parameter("1.weight"))


def _csfcn(num_classes: int, **options: object) -> CSFCN:
    widths = (64, 128, 256, 512)
    backbone = ResNet(deep_stem(), 128, widths, depths=(2, 2, 2, 2))
    return CSFCN(num_classes, backbone, widths, **options)  # type: ignore[arg-type]


def _csfcn_nano(num_classes: int, **options: object) -> CSFCN:
    """Two stem convolutions straight to stride 4, no stage there, and about half of all widths."""
    widths = (32, 64, 128, 192)
    stem = nn.Sequential(ConvNorm(3, 16, stride=2), ConvNorm(16, 32, stride=2))
    return CSFCN(
        num_classes,
        ResNet(stem, 32, widths, depths=(0, 1, 2, 1)),
        widths,
        context=128,
        queries=16,
        mask_width=32,
        spatial=64,
        offset_width=32,
        **options,  # type: ignore[arg-type]
    )


KEYS = (
    *DEEP_STEM_KEYS,
    *BASIC_BLOCK_KEYS,
    *conv_norm_keys("cfc.reduce_channel", "context.reduce"),
    ("cfc.{part}_conv", "context.{part}"),
    *conv_norm_keys("cfc.local_attention.conv.0", "context.mask.0"),
    ("cfc.local_attention.conv.1", "context.mask.1"),
    *conv_norm_keys("sfc.conv_32", "spatial.deep"),
    *conv_norm_keys("sfc.conv_8", "spatial.shallow"),
    ("sfc.cp1x1", "spatial.squeeze.0"),
    ("sfc.sp1x1", "spatial.squeeze.1"),
    *conv_norm_keys("sfc.conv_offset.0", "spatial.offset_hidden"),
    ("sfc.conv_offset.1", "spatial.offset"),
    *conv_norm_keys("conv_out32.conv", "head"),
    ("conv_out32.conv_out", "classifier"),
)
_variant = partial(
    Variant,
    keys=KEYS,
    size=(1024, 2048),
    paper="Li, Geng, Han, TIP 2023",
    reference="github.com/kaigelee/CSFCN",
    license="MIT",
)
_nano = partial(Variant, keys=KEYS, size=(512, 1024), paper="ours, after CSFCN")
_full = partial(_csfcn, squeezed=32, shuffle=True)
VARIANTS = {
    "csfcn": _variant(
        _full,
        scores=(Score(CITYSCAPES, 79.0), Score(CITYSCAPES_TEST, 78.7), Score(CAMVID, 77.8)),
    ),
    "csfcn_tiny": _variant(partial(_csfcn, mask_width=32)),
    "csfcn_nano": _nano(_csfcn_nano),
    "csfcn_rep": _variant(partial(_full, head="rep")),
    "csfcn_nano_rep": _nano(partial(_csfcn_nano, head="rep")),
}
