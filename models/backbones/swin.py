"""Swin Transformer: attention in windows that shift from block to block.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Block, Groups, RelativeBias, window_plan
from ..layers import init_narrow, to_map, to_tokens
from ..variant import Keys

# The order of (row, column, channel) of a 2x2 neighborhood in the merged channels: the original
# release lays out whole maps, column by column; MMSegmentation unfolds, channel by channel.
ORIGINAL, UNFOLDED = (1, 0, 2), (2, 0, 1)


class PatchMerging(nn.Module):
    """Four neighbors become one token of twice the width: (N, H * W, C) -> (N, H/2 * W/2, 2C).

    layout: ORIGINAL or UNFOLDED, the order of the 4C values that norm and reduction take.
    """

    def __init__(self, width: int, layout: tuple[int, int, int]):
        super().__init__()
        self.layout = layout
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = size
        x = x.unflatten(1, size)
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        cells = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # N, rows, row, columns, column, C
        inner = [(2, 4, 5)[axis] for axis in self.layout]
        merged = cells.permute(0, 1, 3, *inner).flatten(3).flatten(1, 2)
        return self.reduction(self.norm(merged))

    def to_deployed(self) -> PatchMerging:
        """In the layout of whole maps, of which the four are moved in one piece."""
        if self.layout == UNFOLDED:
            with torch.no_grad():
                for values in (self.norm.weight, self.norm.bias, self.reduction.weight):
                    by_place = values.unflatten(-1, (-1, 2, 2)).transpose(-1, -2)
                    values.copy_(by_place.movedim(-3, -1).flatten(-3))
            self.layout = ORIGINAL
        return self


def unfold_layout(values: Tensor) -> Tensor:
    """A merging's norm or reduction (..., 4C) from the ORIGINAL layout to the UNFOLDED one."""
    return values.unflatten(-1, (2, 2, -1)).movedim(-1, -3).transpose(-1, -2).flatten(-3)


class Swin(nn.Module):
    """image (N, 3, H, W) -> four maps of widths C, 2C, 4C, 8C at strides 4, 8, 16 and 32.

    Any size: the image is padded with zeros at the bottom and right to a multiple of 4, odd maps to
    even ones. `norms` apply to the maps that are given back, not to what the next stage reads.
    """

    def __init__(
        self,
        embed: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        layout: tuple[int, int, int],
        drop_path: float = 0.3,
    ):
        super().__init__()
        self.outputs = [embed * 2**i for i in range(4)]
        self.stem = nn.Conv2d(3, embed, kernel_size=4, stride=4)
        self.stem_norm = nn.LayerNorm(embed)
        # Deeper blocks are dropped more often. On the CPU even where the network is built on meta,
        # whose values nobody can read.
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()
        self.stages = nn.ModuleList()
        for width, depth, count in zip(self.outputs, depths, heads, strict=True):
            # One pair of plans for all blocks of a stage: their constants exist once.
            groups = [
                Groups(partial(window_plan, window=window, shift=shift))
                for shift in (0, window // 2)
            ]
            self.stages.append(
                nn.ModuleList(
                    Block(width, count, groups[i % 2], RelativeBias(window, count), rates.pop(0))
                    for i in range(depth)
                )
            )
        self.merges = nn.ModuleList(PatchMerging(width, layout) for width in self.outputs[:3])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.outputs)
        init_narrow(self, nn.Linear)

    def forward(self, image: Tensor) -> list[Tensor]:
        height, width = image.shape[-2:]
        if height % 4 or width % 4:
            image = F.pad(image, (0, -width % 4, 0, -height % 4))
        x = self.stem(image)
        size = (x.shape[-2], x.shape[-1])
        x = self.stem_norm(to_tokens(x))
        features = []
        for i, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            # Merged at the start of the next stage: the map given back is the one before the
            # merging.
            if i:
                x = self.merges[i - 1](x, size)
                # Rounded up, as PatchMerging padded odd sides.
                size = (-(-size[0] // 2), -(-size[1] // 2))
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = block(x, size)
            features.append(to_map(norm(x), size))
        return features


# Width, blocks of the four stages, and their heads.
swin_tiny = partial(Swin, 96, (2, 2, 6, 2), (3, 6, 12, 24))
swin_small = partial(Swin, 96, (2, 2, 18, 2), (3, 6, 12, 24))
swin_base = partial(Swin, 128, (2, 2, 18, 2), (4, 8, 16, 32))
swin_large = partial(Swin, 192, (2, 2, 18, 2), (6, 12, 24, 48))


def _block_keys(theirs: str, ours: str, attention: str, mlp: tuple[str, str]) -> Keys:
    """`attention` and `mlp`: the official names of the attention and of the MLP's two maps."""
    computed = "relative_position_index"
    return (
        (f"{theirs}.{attention}.relative_position_bias_table", f"{ours}.attention.bias.table"),
        (f"{theirs}.{attention}.{computed}", f"{ours}.attention.bias.{computed}"),
        (f"{theirs}.{attention}.{{part}}", f"{ours}.attention.{{part}}"),
        (f"{theirs}.{mlp[0]}", f"{ours}.mlp.fc1"),
        (f"{theirs}.{mlp[1]}", f"{ours}.mlp.fc2"),
        (f"{theirs}.{{part}}", f"{ours}.{{part}}"),
    )


# In the original release, which CrossFormer's names follow, and in MMSegmentation.
original_block_keys = partial(_block_keys, attention="attn", mlp=("mlp.fc1", "mlp.fc2"))
toolbox_block_keys = partial(
    _block_keys, attention="attn.w_msa", mlp=("ffn.layers.0.0", "ffn.layers.1")
)


_ENDS = (
    ("backbone.patch_embed.norm", "backbone.stem_norm"),
    ("backbone.norm{i}", "backbone.norms.{i}"),
)
ORIGINAL_KEYS: Keys = (
    ("backbone.patch_embed.proj", "backbone.stem"),
    ("backbone.layers.{i}.downsample.{part}", "backbone.merges.{i}.{part}"),
    *original_block_keys("backbone.layers.{i}.blocks.{j}", "backbone.stages.{i}.{j}"),
    *_ENDS,
)
UNFOLDED_KEYS: Keys = (
    ("backbone.patch_embed.projection", "backbone.stem"),
    ("backbone.stages.{i}.downsample.{part}", "backbone.merges.{i}.{part}"),
    *toolbox_block_keys("backbone.stages.{i}.blocks.{j}", "backbone.stages.{i}.{j}"),
    *_ENDS,
)
