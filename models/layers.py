"""Layers shared by two or more families."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import UsageError


class ConvNorm(nn.Module):
    """Convolution, batch norm, and (unless `act=False`) ReLU; same padding; no bias by default.

    (N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        act: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        padding = dilation * (kernel // 2)
        # Named attributes, not a Sequential: state dicts, folding and the tables of official names
        # all refer to `.conv` and `.norm`.
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)
        # In place: the norm's result is nobody else's.
        self.act: nn.Module = nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))

    def to_deployed(self) -> ConvNorm:
        """The norm goes into the convolution's weight and bias."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()
        return self


class RepConv(ConvNorm):
    """Trains as 3x3 and 1x1 convolution and identity in parallel, each with its norm; runs as one
    3x3 convolution (Ding et al., "RepVGG", CVPR 2021).

    The 3x3 branch has the names of the plain ConvNorm whose place this takes.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__(inputs, outputs, bias=bias)
        # The 3x3 branch keeps the names `conv` and `norm`, so that a plain head's checkpoint fits.
        self.point = ConvNorm(inputs, outputs, kernel=1, act=False)
        self.identity: nn.BatchNorm2d | None = None
        if inputs == outputs:
            self.identity = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        total = self.norm(self.conv(x)) + self.point(x)
        return self.act(total if self.identity is None else total + self.identity(x))

    def branch_norms(self) -> list[tuple[str, nn.BatchNorm2d]]:
        """(name, norm) of the two branches that a plain convolution does not have."""
        norms = {"point.norm": self.point.norm, "identity": self.identity}
        return [(name, n) for name, n in norms.items() if isinstance(n, nn.BatchNorm2d)]

    def to_deployed(self) -> ConvNorm:
        """All branches in one convolution."""
        # In float64: rounding three branches and then their sum would cost a digit.
        conv, point = copy.deepcopy(self.conv).double(), copy.deepcopy(self.point.conv).double()
        assert isinstance(self.norm, nn.BatchNorm2d)
        one = fuse_conv_bn_eval(conv, copy.deepcopy(self.norm).double())
        if isinstance(self.point.norm, nn.BatchNorm2d):  # else its norm was folded before
            point = fuse_conv_bn_eval(point, copy.deepcopy(self.point.norm).double())
        weight, bias = one.weight.detach().clone(), bias_of(one) + bias_of(point)
        # A 1x1 convolution is a 3x3 one whose middle tap alone is not zero.
        weight[:, :, 1:2, 1:2] += point.weight.detach()
        if self.identity is not None:
            norm = copy.deepcopy(self.identity).double()
            assert norm.running_var is not None
            assert norm.running_mean is not None
            # The identity is a 1x1 convolution by the unit matrix; its norm scales the diagonal.
            scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
            weight[:, :, 1, 1] += torch.diag(scale)
            bias += norm.bias.detach() - norm.running_mean * scale
        out, inputs = weight.shape[:2]
        plain = ConvNorm(inputs, out, bias=True)
        plain.conv.weight = nn.Parameter(weight.to(self.conv.weight.dtype))
        plain.conv.bias = nn.Parameter(bias.to(self.conv.weight.dtype))
        plain.norm, plain.act = nn.Identity(), self.act
        return plain


def bias_of(layer: nn.Module) -> Tensor:
    """The bias of a layer that has one, without its gradient."""
    return layer.get_parameter("bias").detach()


def make_pointwise(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Conv2d:
    """The 1x1 convolution of a matrix (outputs, inputs)."""
    outputs, inputs = weight.shape
    conv = nn.Conv2d(inputs, outputs, 1, bias=bias is not None)
    conv.weight = nn.Parameter(weight[..., None, None].to(dtype))
    if bias is not None:
        conv.bias = nn.Parameter(bias.to(dtype))
    return conv


def set_norm_scale(unit: ConvNorm, value: float) -> None:
    """The same factor for all channels behind a ConvNorm's norm."""
    for norm in unit.norm.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.constant_(norm.weight, value)


def head_conv(inputs: int, outputs: int, kind: str, bias: bool = False) -> ConvNorm:
    """The 3x3 convolution of a head: "plain", or "rep" for a reparameterized one."""
    kinds = {"plain": ConvNorm, "rep": RepConv}
    if kind not in kinds:
        raise UsageError(f"head is {' or '.join(kinds)}, not {kind!r}")
    return kinds[kind](inputs, outputs, bias=bias)


def resize(x: Tensor, like: Tensor, align_corners: bool = False) -> Tensor:
    """`x` (N, C, h, w) bilinearly resized to the height and width of `like`."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=align_corners)


def repeat(x: Tensor, like: Tensor) -> Tensor:
    """`x` (N, C, h, w) resized to the height and width of `like`, by the nearest value."""
    return F.interpolate(x, like.shape[-2:], mode="nearest")


def global_mean(x: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, C, 1, 1)"""
    return x.mean((2, 3), keepdim=True)


class BilinearUpsample(nn.Module):
    """Bilinear enlargement by a whole factor: (N, K, h, w) -> (N, K, factor h, factor w)."""

    def __init__(self, factor: int, align_corners: bool):
        super().__init__()
        self.factor = factor
        self.align_corners = align_corners

    def forward(self, logits: Tensor) -> Tensor:
        size = [side * self.factor for side in logits.shape[-2:]]
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)


class Constant(nn.Module):
    """A tensor that depends on sizes only, made once per size and kept.

    `make(*sizes)` gives a CPU tensor; a copy is kept per device and dtype: floats take the dtype of
    `like`, integers (an index) keep theirs. A graph that is traced after a size was seen holds the
    tensor as a constant, not the arithmetic that made it.
    """

    def __init__(self, make: Callable[..., Tensor]):
        super().__init__()
        self.make = make
        self.made: dict[tuple[int, ...], Tensor] = {}
        self._placed: dict[tuple[object, ...], Tensor] = {}

    def forward(self, *sizes: int, like: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            # A trace must not write into dictionaries: what was made before becomes a constant.
            made = self.made[sizes] if sizes in self.made else self.make(*sizes)
            return made.to(like.device, like.dtype if made.is_floating_point() else made.dtype)
        # A deep copy or a moved module brings its tensors along, hence the key by device.
        key = (sizes, like.device, like.dtype)
        if key not in self._placed:
            if sizes not in self.made:
                self.made[sizes] = self.make(*sizes)
            made = self.made[sizes]
            dtype = like.dtype if made.is_floating_point() else made.dtype
            self._placed[key] = made.to(like.device, dtype)
        return self._placed[key]


class DropPath(nn.Module):
    """In training, drops a branch of a sample with probability `rate`, and scales up the others."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return branch
        kept = torch.rand(len(branch), *[1] * (branch.dim() - 1), device=branch.device) >= self.rate
        # Scaled up here, so that inference has nothing to do.
        return branch * (kept / (1 - self.rate)).to(branch.dtype)


def to_tokens(x: Tensor) -> Tensor:
    """A map (N, C, H, W) as tokens, row by row: (N, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens (N, H * W, C) as a map (N, C, H, W) of `size` (H, W)."""
    return x.transpose(1, 2).unflatten(2, size)


class NormConv(nn.Module):
    """Batch norm, ReLU, convolution, in this order; same padding; no bias by default.

    (N, inputs, H, W) -> (N, outputs, H, W)
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, groups: int = 1, bias: bool = False
    ):
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(x)))


class Head(nn.Module):
    """A convolution, dropout of whole channels in training, and a classifier with bias.

    (N, inputs, h, w) -> (N, classes, h, w). kind: "plain", or "rep" for a `RepConv`.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        classes: int,
        dropout: float = 0.0,
        kind: str = "plain",
        bias: bool = False,
    ):
        super().__init__()
        self.hidden = head_conv(inputs, width, kind, bias)
        self.dropout: nn.Module = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.hidden(x)))


class TrainingOnly(nn.ModuleDict):
    """Parts that inference does without, such as auxiliary heads; a deployed network has none."""

    def to_deployed(self) -> nn.ModuleDict:
        return nn.ModuleDict()


def keep_unused(**parts: nn.Module) -> TrainingOnly:
    """What official checkpoints hold and no output depends on: kept so that they can be saved back,
    and frozen."""
    return TrainingOnly(parts).requires_grad_(False)


class Warp(nn.Module):
    """Reads a map where a flow points to: features (N, C, h, w), flow (N, 2, H, W) -> (N, C, H, W).

    The flow is added to the identity grid, x first, in units of 1 / W and 1 / H of -1..1; outside
    there are zeros. `align_corners` is of the reading; the grid itself is aligned.
    """

    def __init__(self, align_corners: bool):
        super().__init__()
        self.align_corners = align_corners
        self.grid = Constant(sampling_grid)
        self.step = Constant(offset_step)

    def forward(self, features: Tensor, flow: Tensor) -> Tensor:
        height, width = flow.shape[-2:]
        # Half precision has 11 bits: at 2048 columns it cannot tell a pixel from its neighbor. The
        # features are converted too, since a sample wants one type for both.
        flow = flow.float()
        grid = flow * self.step(height, width, like=flow) + self.grid(height, width, like=flow)
        warped = F.grid_sample(
            features.float(), grid.permute(0, 2, 3, 1), align_corners=self.align_corners
        )
        return warped.to(features.dtype)


def sampling_grid(height: int, width: int) -> Tensor:
    """The identity grid (2, height, width) in -1..1, corners aligned; x first, then y."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    return torch.stack([x, y])


def offset_step(height: int, width: int) -> Tensor:
    """What an offset of one is in grid coordinates: (2, 1, 1), x first."""
    return torch.tensor([1 / width, 1 / height]).view(2, 1, 1)


def relative_bins(rows: Sequence[int], height: int, width: int) -> list[tuple[int, int]]:
    """Per level of a pyramid (rows, columns): round(rows * width / height) columns, half to even,
    at least one."""
    return [(r, max(1, round(r * width / height))) for r in rows]


BINS = [(rows, rows) for rows in (1, 2, 3, 6)]  # of PSPNet's pyramid, which others took over


def pooling_matrix(bins: Iterable[tuple[int, int]], height: int, width: int) -> Tensor:
    """Average pooling of a height x width map to a pyramid, as one matrix (height * width, S).

    Each level is adaptive average pooling to (rows, columns) of `bins`, flattened row by row; S
    counts the cells of all levels. Bins may outnumber the map's pixels.
    """
    # A matrix, since PyTorch's exporter unrolls adaptive pooling into over a thousand layers. It is
    # separable: each level is the Kronecker product of averaging rows and averaging columns.
    levels = [np.kron(averages(r, height), averages(c, width)) for r, c in bins]
    return torch.from_numpy(np.concatenate(levels).T.astype(np.float32))


def averages(bins: int, length: int) -> np.ndarray:
    """(bins, length): row i averages the positions that adaptive pooling puts in bin i."""
    matrix = np.zeros((bins, length))
    for i in range(bins):
        start, stop = i * length // bins, -(-(i + 1) * length // bins)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def spreading_matrix(bins: Iterable[tuple[int, int]], height: int, width: int) -> Tensor:
    """The way back: (S, height * width), each level bilinearly enlarged, corners aligned, all of
    them added."""
    levels = []
    for rows, columns in bins:
        # Resizing the unit vectors gives the matrix of the resize, whatever its rule.
        cells = torch.eye(rows * columns).view(-1, 1, rows, columns)
        spread = F.interpolate(cells, (height, width), mode="bilinear", align_corners=True)
        levels.append(spread.flatten(1))
    return torch.cat(levels)


def he_normal(network: nn.Module) -> None:
    """He initialization (fan out, ReLU) of the convolutions beside a norm."""
    for module in network.modules():
        if isinstance(module, (ConvNorm, NormConv)):
            nn.init.kaiming_normal_(module.conv.weight, mode="fan_out", nonlinearity="relu")


def init_narrow(network: nn.Module, *kinds: type[nn.Linear] | type[nn.Conv2d]) -> None:
    """A transformer's initialization: weights of deviation 0.02, cut at 2; no bias."""
    for module in network.modules():
        if isinstance(module, kinds):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
