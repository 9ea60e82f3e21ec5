"""SCTNet: one branch of convolutions that learned from a transformer, which is gone at inference.

Xu et al., "SCTNet: Single-Branch CNN with Transformer Semantic Information for Real-Time
Segmentation", AAAI 2024. Reference implementation: github.com/xzz777/SCTNet.

Checked: parameters without those that only training has, within 1.5 % of the paper's table 1; the
attention step by step; that a checkpoint with the names of training's loads, without its teacher.
Not checked: outputs of the reference, and the released weights, which could not be fetched, and so
the scores.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.resnet import BasicBlock, block_keys, blocks
from ..layers import ConvNorm, DropPath, TrainingOnly, he_normal, resize
from ..network import Network
from ..variant import (
    ADE20K,
    CITYSCAPES,
    COCO_STUFF,
    REPOSITORY,
    Keys,
    Score,
    Variant,
    at_size,
)
from .dappm import (
    DAPPM,
    NormHead,
    head_keys,
    pyramid_keys,
    sequence_keys,
    two_convolutions,
)

KERNELS, HEADS = 64, 8  # learned kernels of an attention, in groups that are normalized together


class ConvolutionalAttention(nn.Module):
    """Attention to learned kernels: (N, C, H, W) -> the same.

    A convolution with strips of 7 pixels says how much each kernel fits at each pixel, and the same
    strips, transposed, put back what fitted; once down, once across.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.down = nn.Parameter(torch.empty(KERNELS, width, 7, 1))
        self.across = nn.Parameter(torch.empty(KERNELS, width, 1, 7))
        for kernels in (self.down, self.across):
            nn.init.trunc_normal_(kernels, std=0.001)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        down = self._attend(x, self.down, (3, 0))
        return down + self._attend(x, self.across, (0, 3))

    def _attend(self, x: Tensor, kernels: Tensor, padding: tuple[int, int]) -> Tensor:
        fits = F.conv2d(x, kernels, padding=padding)
        # In float32: over a whole map a softmax's values are small.
        shares = fits.float().flatten(2).unflatten(1, (HEADS, -1)).softmax(dim=3)
        shares = shares / (shares.sum(dim=2, keepdim=True) + 1e-6)
        shares = shares.flatten(1, 2).unflatten(2, fits.shape[2:]).to(x.dtype)
        return F.conv2d(shares, kernels.transpose(0, 1), padding=padding)


class ConvFormerMlp(nn.Module):
    """Norm, 3x3 convolution, GELU, 3x3 convolution: (N, C, H, W) -> the same."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(width, eps=1e-6)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.conv1(self.norm(x))))


class ConvFormerBlock(nn.Module):
    """A transformer's block made of convolutions: (N, C, H, W) -> the same."""

    def __init__(self, width: int):
        super().__init__()
        self.attention = ConvolutionalAttention(width)
        self.mlp = ConvFormerMlp(width)
        self.drop_path = DropPath(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(x))
        return x + self.drop_path(self.mlp(x))


class SCTNet(Network):
    """image (N, 3, H, W) -> logits (N, classes, H/8, W/8); in train mode with "auxiliary", those of
    the stage at stride 8."""

    def __init__(self, num_classes: int, width: int, pyramid_width: int):
        super().__init__()
        c = width
        basic = partial(blocks, BasicBlock, depth=2, last_act=False)
        self.stem = two_convolutions(c)
        self.layer1 = basic(c, c)
        self.layer2 = basic(c, 2 * c, stride=2)
        self.layer3 = basic(2 * c, 4 * c, stride=2)
        self.former3 = ConvFormerBlock(4 * c)
        self.down = ConvNorm(4 * c, 8 * c, stride=2)
        self.former4 = ConvFormerBlock(8 * c)
        self.former5 = ConvFormerBlock(8 * c)
        self.pyramid = DAPPM(8 * c, pyramid_width, 2 * c)
        self.head = NormHead(4 * c, 4 * c, num_classes)
        self.extra = TrainingOnly({"auxiliary": NormHead(2 * c, 2 * c, num_classes)})
        # The toolbox resizes the logits to the image after the network.
        self.upsample_logits = nn.Identity()
        for module in self.modules():
            # The reference leaves its convolutions' biases in, before norms too.
            if isinstance(module, nn.Conv2d) and module.bias is None:
                module.bias = nn.Parameter(torch.zeros(module.out_channels))
        he_normal(self)

    def forward_logits(self, image: Tensor) -> Tensor:
        return self.head(self._features(image)[0])

    def forward_auxiliary(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        joint, detail = self._features(image)
        return self.head(joint), {name: head(detail) for name, head in self.extra.items()}

    def _features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(detail and context side by side, detail alone), both at stride 8."""
        # Stages end without their ReLU; the next one reads them through it.
        detail = self.layer2(F.relu(self.layer1(self.stem(image))))
        x = self.former3(F.relu(self.layer3(F.relu(detail))))
        x = self.former5(F.relu(self.former4(self.down(x))))
        context = resize(self.pyramid(x), like=detail)
        return torch.cat([detail, context], dim=1), detail

    def upgrade_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without the transformer that taught it, which checkpoints of training bring along."""
        return {k: v for k, v in state.items() if not k.startswith("auxiliary_head.1.")}


_FORMERS = (("layer3_2", "former3"), ("layer4", "former4"), ("layer5", "former5"))
KEYS: Keys = (
    *sequence_keys("backbone.conv1", "stem.0"),
    *sequence_keys("backbone.conv1", "stem.1", first=3),
    *sequence_keys("backbone.convdown4", "down"),
    *(
        row
        for theirs, ours in _FORMERS
        for row in (
            (f"backbone.{theirs}.attn_l.kv", f"{ours}.attention.down"),
            (f"backbone.{theirs}.attn_l.kv3", f"{ours}.attention.across"),
            (f"backbone.{theirs}.attn_l.norm", f"{ours}.attention.norm"),
            (f"backbone.{theirs}.mlp_l.{{part}}", f"{ours}.mlp.{{part}}"),
        )
    ),
    *block_keys("backbone.layer{stage}.{block}", "layer{stage}.{block}"),
    *pyramid_keys("backbone.spp"),
    *(
        (theirs.replace(".conv2", ".conv_seg"), ours)
        for name, own in (("decode_head", "head"), ("auxiliary_head.0", "extra.auxiliary"))
        for theirs, ours in head_keys(name, own)
    ),
)
_variant = partial(
    Variant,
    keys=KEYS,
    paper="Xu et al., AAAI 2024",
    reference="github.com/xzz777/SCTNet",
    license="MIT",
    multiple=32,
)
VARIANTS = {
    "sctnet_s": _variant(
        partial(SCTNet, width=32, pyramid_width=64),
        size=(768, 1536),
        scores=(
            Score(CITYSCAPES, 76.3, source=REPOSITORY),
            Score(at_size(512, 1024), 72.94, source=REPOSITORY),
            Score(ADE20K, 37.9),
        ),
    ),
    "sctnet_b": _variant(
        partial(SCTNet, width=64, pyramid_width=128),
        size=(1024, 2048),
        scores=(
            Score(CITYSCAPES, 80.5, source=REPOSITORY),
            Score(at_size(512, 1024), 76.46, source=REPOSITORY),
            Score(at_size(768, 1536), 79.83, source=REPOSITORY),
            Score(ADE20K, 43.0),
            Score(COCO_STUFF, 35.91, source=REPOSITORY),
        ),
    ),
}
