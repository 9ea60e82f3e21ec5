"""Networks that are not of the zoo: what they may return, what is asked for, what is found."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_files
import pytest
import rtseg as rtseg_package
import torch
import torch.nn.functional as F
from conftest import ROOT, Run, as_json
from own_parts import IMAGENET, SIZE, Tiny, prepare
from rtseg import load_model
from rtseg.errors import CheckpointError, UsageError
from rtseg.export import export
from rtseg.models.factories import is_factory, load_module
from rtseg.models.own import (
    Normalization,
    load_own_weights,
    pick_output,
    wrap_module,
)
from rtseg.resolve import read_own_options
from rtseg.runtime import read_card
from torch import Tensor, nn


class Resized(Tiny):
    """Ends in the resize that papers write."""

    corners = False

    def forward(self, image: Tensor) -> Any:
        x = F.interpolate(super().forward(image), scale_factor=2, mode="bilinear")
        return F.interpolate(x, size=image.shape[-2:], mode="bilinear", align_corners=self.corners)


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


IMAGE = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("make", "output"),
    [
        (lambda x: x, None),
        (lambda x: (x, x[:, :2]), None),
        (lambda x: {"out": x, "aux": x[:, :3]}, None),
        (lambda x: Output(None, x), None),
        (lambda x: {"a": x[:, :3], "b": x}, "b"),
        (lambda x: (x[:, :2], x), 1),
    ],
    ids=["tensor", "tuple", "dict", "dataclass", "by name", "by place"],
)
def test_logits_are_found_in_what_a_module_returns(make: Any, output: Any) -> None:
    logits = torch.rand(1, 5, 4, 6)
    assert pick_output(make(logits), output) is logits


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ({"a": torch.rand(1, 5, 4, 6), "b": torch.rand(1, 5, 4, 6)}, "say which"),
        ({"boxes": torch.rand(1, 100, 4)}, "boxes (1, 100, 4) float32"),
        (torch.rand(1, 1000), "logits are (N, classes, h, w)"),
        (None, "no tensor"),
    ],
    ids=["two of one shape", "detection", "classifier", "nothing"],
)
def test_what_cannot_be_logits_is_said(result: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says.replace("(", r"\(").replace(")", r"\)")):
        pick_output(result)


def test_normalization_is_asked_for() -> None:
    with pytest.raises(UsageError, match='normalize="imagenet"'):
        wrap_module(Tiny(), SIZE, None)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_the_network_reads_what_its_normalization_says(order: Any) -> None:
    module = Tiny()
    normalization = Normalization((100.0, 110.0, 120.0), (50.0, 60.0, 70.0), order, scale=1.0)
    network = wrap_module(module, SIZE, normalization)
    rgb = torch.randint(0, 256, (1, 3, *SIZE)).float()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (network.info.mean, network.info.std))
    given = (rgb / 255 - mean) / std
    wanted = rgb if order == "rgb" else rgb.flip(1)
    wanted = (wanted - torch.tensor(normalization.mean).view(1, 3, 1, 1)) / torch.tensor(
        normalization.std
    ).view(1, 3, 1, 1)
    torch.testing.assert_close(network.forward_logits(given), module(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("corners", [False, True])
def test_a_resize_at_the_end_is_left_to_the_argmax(corners: bool) -> None:
    module = Resized().eval()
    module.corners = corners
    network = wrap_module(module, SIZE, "unit")
    coarse = network.forward_logits(IMAGE)
    assert coarse.shape[-2:] == (32, 48), "the first resize stays, the last one does not"
    assert network.info.align_corners is corners
    full = F.interpolate(coarse, SIZE, mode="bilinear", align_corners=corners)
    torch.testing.assert_close(full, module(IMAGE), rtol=0, atol=1e-6)


def test_a_resize_that_is_not_the_end_stays() -> None:
    class Softmaxed(Resized):
        def forward(self, image: Tensor) -> Any:
            return super().forward(image).softmax(1)

    module = Softmaxed().eval()
    network = wrap_module(module, SIZE, "unit")
    torch.testing.assert_close(network.forward_logits(IMAGE), module(IMAGE))


def test_one_logit_stands_for_two_classes() -> None:
    network = wrap_module(Tiny(1), SIZE, "unit")
    logits = network.forward_logits(IMAGE)
    assert network.info.num_classes == 2
    assert torch.equal(logits.argmax(1), (network.module(IMAGE)[:, 0] > 0).long())


def test_class_ids_are_labels() -> None:
    class Labels(Tiny):
        def forward(self, image: Tensor) -> Any:
            return super().forward(image).argmax(1)

    with pytest.raises(UsageError, match="name its classes"):
        wrap_module(Labels(), SIZE, "unit")
    network = wrap_module(Labels(), SIZE, "unit", num_classes=5)
    assert torch.equal(network.forward_logits(IMAGE).argmax(1), network.module(IMAGE))


def test_wrong_class_count_is_refused() -> None:
    with pytest.raises(UsageError, match="have 5 classes, the class set 7"):
        wrap_module(Tiny(), SIZE, "unit", num_classes=7)


def test_a_module_that_fails_names_its_own_line() -> None:
    class Fails(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.reshape(7, -1)

    with pytest.raises(UsageError, match=r"fails on an image of 64x96.*test_own_network\.py:\d+"):
        wrap_module(Fails(), SIZE, "unit")


def test_factories_by_file(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Conv2d(3, 4, 1)\n"
        "def fails():\n    raise RuntimeError('no such option')\nnumber = 3\n"
    )
    assert isinstance(load_module(f"{tmp_path}/nets.py:make"), nn.Conv2d)
    for name, says in {
        "fails": "no such option",
        "number": "no callable",
        "x": "no callable",
    }.items():
        with pytest.raises(UsageError, match=says):
            load_module(f"{tmp_path}/nets.py:{name}")
    with pytest.raises(UsageError, match="no file"):
        load_module(f"{tmp_path}/none.py:make")
    with pytest.raises(UsageError, match="cannot be imported"):
        load_module("no_such_package.nets:make")


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("a.b:make", True),
        ("nets.py:make", True),
        ("net.pt2", True),
        ("csfcn", False),
        ("a.pth", False),
    ],
)
def test_what_is_a_factory(what: str, expected: bool) -> None:
    assert is_factory(what) is expected


def test_programs_of_torch_export(tmp_path: Path) -> None:
    module = Tiny().eval()
    torch.export.save(torch.export.export(module, (IMAGE,)), tmp_path / "net.pt2")
    network = load_module(str(tmp_path / "net.pt2"))
    torch.testing.assert_close(network(IMAGE), module(IMAGE))


def test_weights_load_all_or_nothing() -> None:
    module, state = Tiny(), Tiny().state_dict()
    before = module.head.bias.clone()
    wrong = {k: v for k, v in state.items() if k != "stem.bias"} | {"extra": state["stem.bias"]}
    with pytest.raises(CheckpointError, match=r"1 missing: stem\.bias; 1 unexpected: extra$"):
        load_own_weights(module, wrong, "mine.pth")
    assert torch.equal(module.head.bias, before)
    broken = state | {"head.bias": torch.full_like(state["head.bias"], torch.nan)}
    with pytest.raises(CheckpointError, match=r"holds NaN .*head\.bias: its training diverged"):
        load_own_weights(module, broken, "mine.pth")
    assert torch.equal(module.head.bias, before)
    load_own_weights(module, state, "mine.pth")
    assert torch.equal(module.head.bias, state["head.bias"])


def test_a_module_is_loaded_with_its_weights_and_exported_names(tmp_path: Path) -> None:
    torch.save({"state_dict": Tiny().state_dict()}, tmp_path / "mine.pth")
    model = load_model(
        Tiny(),
        tmp_path / "mine.pth",
        size=SIZE,
        classes="numbered",
        normalize="imagenet",
        fit="stretch",
        preprocess=prepare(),
    )
    assert (model.network.info.name, model.weights_from) == ("tiny", "mine.pth")
    assert model.classes.names[0] == "class 0"
    (artifact,) = export(model, out=tmp_path)
    assert (artifact.card.fit, artifact.card.size) == ("stretch", SIZE)


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"normalize": "unit"}, "which size"),
        ({"size": SIZE}, "how are this network's pixels normalized"),
        ({"size": SIZE, "normalize": "unit"}, "what are the 5 classes of this network called"),
        (
            {"size": SIZE, "normalize": "unit", "preprocess": prepare(pad=True)}
            | {"classes": "numbered"},
            "mean: yours",
        ),
    ],
)
def test_what_cannot_be_guessed_is_asked_for(own: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_model(Tiny(), **own)


@pytest.mark.parametrize(
    ("count", "likely"),
    [
        (
            19,
            "called? probably --classes cityscapes or --classes bdd100k; else --classes FILE.yaml",
        ),
        (11, "called? probably --classes camvid; else --classes FILE.yaml"),
        (5, "called? --classes FILE.yaml with a list of 5 names"),
    ],
)
def test_classes_are_asked_for_with_the_likely_answer(count: int, likely: str) -> None:
    """Numbers, and Cityscapes' names of any 19 logits, were taken silently."""
    with pytest.raises(UsageError, match=re.escape(likely)):
        load_model(Tiny(count), size=SIZE, normalize="unit")
    numbered = load_model(Tiny(count), size=SIZE, classes="numbered", normalize="unit")
    assert numbered.classes.names[-1] == f"class {count - 1}"


def test_a_network_of_the_zoo_needs_none_of_it() -> None:
    with pytest.raises(UsageError, match="for modules of your own"):
        load_model("csfcn_nano", normalize="unit")
    with pytest.raises(UsageError, match="have names"):
        load_model("csfcn_nano", classes="numbered")
    assert load_model("csfcn_nano:camvid").network.info.name == "csfcn_nano"


def test_the_command_exports_a_network_of_the_users_own(rtseg: Run, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))\n"
    )
    (tmp_path / "classes.yaml").write_text("[road, car, tree, sky]")
    command = ["export", "nets.py:make", "--size", "64x96", "--classes", "classes.yaml"]
    done = rtseg(*command, "-o", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "how are this network's pixels normalized?" in done.stderr
    assert not (tmp_path / "out").exists()
    done = rtseg(*command[:4], "--normalize", "imagenet", "-o", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "what are the 4 classes of this network called?" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    done = rtseg(*command, "--normalize", "imagenet", "-o", "out", "--json", cwd=tmp_path)
    (artifact,) = as_json(done)
    card = read_card(tmp_path / artifact["file"])
    assert (card.model, card.classes) == ("sequential", ("road", "car", "tree", "sky"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("imagenet", "0,0,0", "1,1,1", None), "either --normalize"),
        ((None, "0,0,0", None, None), "either --normalize"),
        ((None, "0,0", "1,1,1", None), "are three numbers"),
        (("imagnet", None, None, None), "but 'imagenet' is"),
        (("unit", None, None, "gbr"), "channel order"),
    ],
)
def test_words_of_the_command_line_that_do_not_fit(words: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_own_options([SIZE], *words, None)


def test_a_named_normalization_follows_the_channel_order() -> None:
    found = read_own_options([SIZE], "imagenet", None, None, "bgr", None)["normalize"]
    assert found.rgb == IMAGENET.rgb


def test_a_network_that_knows_one_class_is_told(tmp_path: Path) -> None:
    module = Tiny()
    module.head.bias.data[2] += 100
    model = load_model(module, size=SIZE, classes="numbered", normalize="imagenet")
    (artifact,) = export(model, out=tmp_path)
    assert any(
        "every pixel of the proof's frames 'class 2'" in w for w in artifact.card.proof.warnings
    )


NETS = """import cv2
import numpy as np
from torch import nn

def make_net():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))

def preprocess(frame):
    factor = min(64 / frame.shape[0], 96 / frame.shape[1])
    small = cv2.resize(frame, (round(frame.shape[1] * factor), round(frame.shape[0] * factor)))
    image = np.zeros((64, 96, 3), np.float32)
    image[: small.shape[0], : small.shape[1]] = small[..., ::-1] / 255
    return ((image - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(2, 0, 1)
"""


def test_the_page_does_what_it_says(
    rtseg: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command and program of "Your own network", on files that a stranger would have; at a
    smaller size, for time. Its end is in test_own_end_to_end, where the network was taught."""
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "__init__.py").touch()
    (tmp_path / "mypackage" / "nets.py").write_text(NETS)
    (tmp_path / "classes.yaml").write_text("[road, car, tree, sky, person]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(load_module("mypackage.nets:make_net").state_dict(), "mine.pth")
    onnx_files.write_paddle(tmp_path / "theirs.onnx")
    page, _, _ = (ROOT / "docs/howto/own-network.md").read_text().partition("## Afterwards")
    page = page.replace("512x1024", "64x96").replace("(512, 1024)", "(64, 96)")
    commands = re.findall(r"^\$ rtseg (.+)$", page, re.MULTILINE)
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert (len(commands), len(programs)) == (3, 2)
    for command in commands:
        done = rtseg(*command.split(), "-o", "out", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    names: dict[str, Any] = {"my_preprocess": prepare(pad=True), "rtseg": rtseg_package}
    for program in programs:
        exec(program, names)  # our own text
    assert {path.name for path in (tmp_path / "artifacts").glob("*.onnx")} == {
        "sequential_64x96_fp16.onnx"
    }
    assert (tmp_path / "out" / "theirs_64x96_fp16.xml").is_file()
