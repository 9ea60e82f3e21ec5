"""FDDWNet: the published parameters, and its modules said once more from a checkpoint's names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from rtseg.models import build, count, deploy
from rtseg.models.checkpoints import official_names
from rtseg.models.registry import build_on_meta
from test_segformer import randomize
from torch import Tensor

EARLY, LATE = ((6, 1), (7, 2), (8, 5), (9, 9)), ((10, 2), (11, 5), (12, 9), (13, 17))
DEEP = [  # name and dilation, in the order of the computation
    (f"FDDWC_{number}{suffix}", dilation)
    for part in (EARLY, LATE)
    for suffix in ("", "_1")
    for number, dilation in part
]


def test_parameters_are_the_published_ones() -> None:
    params = sum(p.numel() for p in build_on_meta("fddwnet").parameters())
    assert 0.80e6 <= params < 0.81e6  # 0.80 M in the paper's table 3


def plain_forward(state: dict[str, Tensor], x: Tensor) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        parts = (state[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts, eps=1e-3)

    def conv(x: Tensor, name: str, **options: object) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)  # type: ignore[arg-type]

    def module(x: Tensor, name: str, dilation: int = 1) -> Tensor:
        y, width = x, x.shape[1]
        for half, d in ((1, 1), (2, dilation)):
            n = f"{name}.conv{half}"
            y = conv(y, f"{n}_1", padding=(d, 0), dilation=(d, 1), groups=width)
            y = conv(norm(y, f"{n}_1_bn"), f"{n}_2", padding=(0, d), dilation=(1, d), groups=width)
            y = norm(conv(norm(y, f"{n}_2_bn"), n), f"{n}_bn")
            y = F.relu6(y) if half == 1 else F.relu6(y + x)
        return y

    def down(x: Tensor, name: str) -> Tensor:
        y = torch.cat([conv(x, f"{name}.conv", stride=2, padding=1), F.max_pool2d(x, 2)], 1)
        return F.relu6(norm(y, f"{name}.bn"))

    def up(x: Tensor, name: str) -> Tensor:
        weight, bias = state[f"{name}.conv.weight"], state[f"{name}.conv.bias"]
        y = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
        return F.relu6(norm(y, f"{name}.bn"))

    fine = down(down(x, "down_1"), "down_2")
    for number in range(1, 6):
        fine = module(fine, f"FDDWC_{number}")
    y = down(fine, "down_3")
    for name, dilation in DEEP:
        y = module(y, name, dilation)
    y = F.relu6(up(y, "up_1") + module(fine, "FDDWC_up_low_2"))
    y = up(module(module(y, "FDDWC_up_1"), "FDDWC_up_2"), "up_2")
    y = F.relu6(y + module(up(fine, "up_0"), "FDDWC_up_low_3"))
    y = module(module(y, "FDDWC_up_3"), "FDDWC_up_4")
    return F.conv_transpose2d(y, state["output_conv.weight"], state["output_conv.bias"], stride=2)


@torch.inference_mode()
def test_it_computes_what_its_checkpoints_names_say() -> None:
    network = build("fddwnet", 19)
    randomize(network)
    own = network.state_dict()
    state = {theirs: own[ours] for ours, theirs in official_names(network).items()}
    assert len(state) == len(own)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    found, expected = network(image), plain_forward(state, image)
    assert found.shape == expected.shape == (1, 19, 64, 96)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    cheaper = deploy(network, (64, 96))
    assert (cheaper(image) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert count(cheaper, (512, 1024)).layers < count(network, (512, 1024)).layers
