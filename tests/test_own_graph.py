"""The graph of a module from outside the zoo: pooling, grids, unrolling, what no exporter takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from own_parts import SIZE, Tiny
from rtseg import load_model
from rtseg.errors import ExportError, UsageError
from rtseg.export import export
from rtseg.export.graph import to_onnx
from rtseg.models.own import (
    pool_evenly,
    wrap_module,
)
from rtseg.speed.plain_exports import write_plain_export
from torch import Tensor, nn


@pytest.mark.parametrize("wanted", [1, (2, 3), (3, 5), (None, 7), 6])
def test_adaptive_pooling_is_two_products(wanted: Any) -> None:
    image = torch.rand(1, 4, 16, 24, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(pool_evenly(image, wanted), F.adaptive_avg_pool2d(image, wanted))


class Pyramid(Tiny):
    """Pools to 6 x 6 cells, which do not divide the map."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(6)

    def forward(self, image: Tensor) -> Any:
        x = torch.relu(self.stem(image))
        cells = F.interpolate(self.pool(x), x.shape[-2:], mode="bilinear")
        return self.head(x + cells)


def test_the_exporter_does_not_unroll_a_pyramid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(Pyramid(), size=SIZE, classes="numbered", normalize="unit")
    pooled = len(to_onnx(model.network, SIZE, "fp32", ("labels",)).graph.node)
    (artifact,) = export(model, out=tmp_path)  # the reference is the module with its own pooling
    assert artifact.status == "proven"
    monkeypatch.setattr("rtseg.models.own.pool_evenly", F.adaptive_avg_pool2d)
    plain = len(to_onnx(model.network, SIZE, "fp32", ("labels",)).graph.node)
    assert pooled < 20
    assert plain > 2 * pooled


class Samples(Tiny):
    """Moves its features by a grid before the head: one that depends on sizes alone, or on the
    pixels too."""

    def __init__(self, dynamic: bool, corners: bool):
        super().__init__()
        # Wide, so that a grid, which is float32 in any file, is a small part of its values.
        self.body = nn.Sequential(
            nn.Conv2d(8, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 8, 3, padding=1)
        )
        self.flow = nn.Conv2d(8, 2, 3, padding=1) if dynamic else None
        self.corners = corners

    def forward(self, image: Tensor) -> Any:
        x = self.body(torch.relu(self.stem(image)))
        n, _, height, width = x.shape
        rows, columns = (torch.linspace(-0.9, 0.9, side) for side in (height, width))
        y, across = torch.meshgrid(rows, columns, indexing="ij")
        grid = torch.stack([across, y], dim=-1).expand(n, height, width, 2)
        if self.flow is not None:
            grid = grid + self.flow(x).permute(0, 2, 3, 1).tanh() / 8
        return self.head(F.grid_sample(x, grid, align_corners=self.corners))


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("dynamic", [False, True], ids=["constant", "dynamic"])
def test_sampling_by_a_grid_is_exported(dynamic: bool, corners: bool, tmp_path: Path) -> None:
    """A grid of sizes alone is one constant; what makes one of pixels stays, in float32 in fp16."""
    torch.manual_seed(2)
    module = Samples(dynamic, corners)
    model = load_model(module, size=SIZE, classes="numbered", normalize="unit")
    made = export(model, to=["onnx", "openvino"], precision="fp16", out=tmp_path)
    made += export(model, precision="fp32", out=tmp_path)
    assert [each.status for each in made] == ["proven"] * 3
    error = made[2].results[0].logits_error
    assert error is not None
    assert error < 1e-5
    graph = onnx.load(made[2].path).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("GridSample") == 1
    (sampler,) = [node for node in graph.node if node.op_type == "GridSample"]
    constants = {each.name for each in graph.initializer}
    assert (sampler.input[1] in constants) is not dynamic
    assert not {"Range", "Expand", "Shape"} & set(kinds)


class Unrolled(Tiny):
    def forward(self, image: Tensor) -> Any:
        x = self.stem(image)
        for _ in range(40):
            x = torch.sigmoid(x) * x  # this line
        return self.head(x)


def test_what_unrolls_is_named_with_its_nodes(caplog: pytest.LogCaptureFixture) -> None:
    to_onnx(
        load_model(Unrolled(), size=SIZE, classes="numbered", normalize="unit").network,
        SIZE,
        "fp32",
        ("labels",),
    )
    (line,) = [text for text in caplog.messages if "becomes" in text]
    place = next(
        number
        for number, text in enumerate(Path(__file__).read_text().splitlines(), 1)
        if text.endswith("# this line")
    )
    assert f"test_own_graph.py:{place} becomes 80 nodes" in line


class Branches(Tiny):
    def forward(self, image: Tensor) -> Any:
        x = self.stem(image)
        if x.mean() > 0:
            x = x * 2
        return self.head(x)


class Reads(Tiny):
    def forward(self, image: Tensor) -> Any:
        x = self.stem(image)
        return self.head(x / x.max().item())


class InNumPy(Tiny):
    def forward(self, image: Tensor) -> Any:
        return self.head(torch.from_numpy(self.stem(image).detach().numpy()))


class Decomposes(Tiny):
    def forward(self, image: Tensor) -> Any:
        x = self.stem(image)
        return self.head(x * torch.linalg.svd(x[0, 0])[1].sum())


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Branches, "cannot take Branches .*test_own_graph.py:[0-9]+.*torch.where for `if`"),
        (Reads, "cannot take Reads .*test_own_graph.py:[0-9]+.*a constant for .item"),
        (InNumPy, "cannot take InNumPy .*test_own_graph.py:[0-9]+.*take NumPy out of forward"),
        (Decomposes, r"linalg_svd has no form in ONNX \(.*test_own_graph.py:[0-9]+\)"),
    ],
)
def test_what_the_exporter_cannot_take_is_told_by_its_line(
    module: Any, says: str, tmp_path: Path
) -> None:
    model = load_model(module(), size=SIZE, classes="numbered", normalize="unit")
    with pytest.raises((UsageError, ExportError), match=says) as error:
        export(model, out=tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*")), "nothing is written"


class Doubles(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Any:
        return x * 2

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        return gradients[0] * 2


class Custom(Tiny):
    """A function with a gradient of its own, and a layer whose results a hook changes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.stem.register_forward_hook(lambda module, given, result: result - 0.5)
        self.stem.register_forward_hook(lambda module, given, result: self.seen.append(1))

    def forward(self, image: Tensor) -> Any:
        return self.head(torch.relu(Doubles.apply(self.stem(image))))


def test_hooks_and_functions_with_their_own_gradient_are_part_of_the_network(
    tmp_path: Path,
) -> None:
    (artifact,) = export(
        load_model(Custom(), size=SIZE, classes="numbered", normalize="unit"), out=tmp_path
    )
    assert artifact.status == "proven"
    assert artifact.results[0].logits_error is not None
    assert artifact.results[0].logits_error < 1e-5


def test_a_hook_that_cannot_be_copied_is_told(tmp_path: Path) -> None:
    module = Tiny()
    with (tmp_path / "log").open("w") as file:
        module.log = file  # type: ignore[assignment]
        with pytest.raises(UsageError, match=r"cannot be copied .*take its hooks and open files"):
            wrap_module(module, SIZE, "unit")


def test_the_plain_export_is_the_module_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it is compared with has neither our pooling nor our resize."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = write_plain_export(
        load_model(Pyramid(), size=SIZE, classes="numbered", normalize="unit"), SIZE
    )
    plain = {node.op_type for node in onnx.load(path).graph.node}
    assert "MatMul" not in plain
