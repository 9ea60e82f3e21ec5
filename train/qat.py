"""Quantization-aware training: layers that export rounds to int8 compute with rounded values.

After Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018. What a layer reads is rounded with one scale, its
weights with a scale for each output channel, both symmetric; sums and biases stay in float.
Gradients pass as if nothing were rounded, and are zero for what lies outside of the range.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import Network
from ..models.layers import TrainingOnly
from ..models.network import copy_to_meta

LOW, HIGH = -128, 127  # int8; ranges are symmetric and end at HIGH
# The share of a batch's values that a range leaves out. Export's default calibration leaves out
# 1e-4, but on whole frames: with csfcn_nano on augmented crops, 1e-4 gave ranges 9 % short of
# export's, 3e-5 ranges 4 % beyond them.
BEYOND = 5e-5
SAMPLE = 2**17  # about as many values of a batch show how far they reach
PACE = 0.05  # a range's share of the way towards that of the newest batch
TINY = 1e-30  # so that zeros have a scale


class Conv1d(nn.Conv1d):
    """`reach`: (), float32, the magnitude at which the range of what it reads ends."""

    reach: Tensor

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self._conv_forward(*_operands(self, input), self.bias)
        return result


class Conv2d(nn.Conv2d):
    """See Conv1d."""

    reach: Tensor

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self._conv_forward(*_operands(self, input), self.bias)
        return result


class Linear(nn.Linear):
    """See Conv1d."""

    reach: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(*_operands(self, input), self.bias)


ROUNDED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Linear: Linear,
}


def round_layers(network: Network, size: tuple[int, int]) -> list[str]:
    """Let the layers that export rounds round from now on, in training and in eval mode; returns
    their names. Parameters, state dict and names stay as they are.

    size: (height, width) that the network takes. In float stay, as in export, transposed
    convolutions and the layers that make sampling positions, and with them what only training uses.
    """
    left = position_layers(network, size)
    names = []
    for name, layer in _exported_layers(network):
        if type(layer) not in ROUNDED or name in left:
            continue
        reach = torch.zeros((), device=next(layer.parameters()).device)
        # Not in the state dict: weights stay loadable where nothing is rounded.
        layer.register_buffer("reach", reach, persistent=False)
        layer.__class__ = ROUNDED[type(layer)]  # as PyTorch's parametrizations do
        names.append(name)
    return names


def get_ranges(network: nn.Module) -> dict[str, Tensor]:
    """{layer: its `reach`}, the tensors themselves; empty where nothing is rounded."""
    kinds = tuple(ROUNDED.values())
    layers = ((n, m) for n, m in network.named_modules() if isinstance(m, kinds))
    return {name: layer.get_buffer("reach") for name, layer in layers}


def set_ranges(network: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Layers that `saved` does not know take their range from the next batch."""
    for name, reach in get_ranges(network).items():
        if name in saved:
            reach.copy_(saved[name])


def _operands(layer: Conv1d | Conv2d | Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the layer multiplies: `x` and its weights, rounded, in float32."""
    if layer.training:
        _follow(layer.reach, x.detach())
    # A norm behind the layer multiplies whole output channels of the weights, and so their scales:
    # rounded, these weights are the same numbers as those that export folds the norm into.
    largest = layer.weight.detach().flatten(1).abs().amax(1)
    scale, scales = (reach.clamp(min=TINY) / HIGH for reach in (layer.reach, largest))
    zero, zeros = (torch.zeros_like(each, dtype=torch.int32) for each in (scale, scales))
    return (
        torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, LOW, HIGH),
        torch.fake_quantize_per_channel_affine(layer.weight, scales, zeros, 0, LOW, HIGH),
    )


def _follow(reach: Tensor, x: Tensor) -> None:
    """Move `reach` towards the magnitude that all but BEYOND of the values of `x` stay within."""
    values = x.flatten()
    values = values[:: len(values) // SAMPLE | 1].abs()  # an even step would meet few columns
    new = values.topk(max(1, round(BEYOND * len(values)))).values[-1].float()
    # 0: nothing seen yet, so the first batch sets the range.
    reach.copy_(torch.where(reach > 0, reach.lerp(new, PACE), new))


def _exported_layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of all parts that a deployed network has too."""
    for name, child in module.named_children():
        if not isinstance(child, TrainingOnly):
            yield prefix + name, child
            yield from _exported_layers(child, f"{prefix}{name}.")


def position_layers(network: Network, size: tuple[int, int]) -> set[str]:
    """Names of the layers whose results are positions that grid_sample reads at.

    Found in the gradient's graph of a copy without data, as `export.graph.find_positions` finds
    them in ONNX.
    """
    shadow = copy_to_meta(network)
    makers: dict[object, str] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: object, output: Tensor) -> None:
            makers[output.grad_fn] = name

        return hook

    for name, layer in shadow.named_modules():
        if type(layer) in ROUNDED:
            layer.register_forward_hook(note(name))
    logits = shadow(torch.zeros(1, 3, *size, device="meta", requires_grad=True))
    samplers = [node for node in _before([logits.grad_fn]) if "GridSampler" in node.name()]
    # The second input of grid_sample.
    grids = [node.next_functions[1][0] for node in samplers]
    return {makers[node] for node in _before(grids, until=makers) if node in makers}


def _before(nodes: Iterable[Any], until: Collection[object] = ()) -> set[Any]:
    """The nodes of a gradient's graph and all that came before them, up to those of `until`."""
    todo, found = list(nodes), set()
    while todo:
        node = todo.pop()
        if node is None or node in found:
            continue
        found.add(node)
        if node not in until:
            todo.extend(before for before, _ in node.next_functions)
    return found
