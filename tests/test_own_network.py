"""Networks that are not of the zoo: what they may return, what is asked for, what is found."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnx_files
import pytest
import rtseg as rtseg_package
import torch
import torch.nn.functional as F
from conftest import ROOT, Run, as_json
from rtseg import load_model
from rtseg.cli._options import parse_color
from rtseg.data.letterbox import Fit
from rtseg.errors import CheckpointError, ExportError, UsageError
from rtseg.export import export
from rtseg.export.graph import to_onnx
from rtseg.models.factories import is_factory, load_module
from rtseg.models.own import (
    NORMALIZATIONS,
    Normalization,
    load_own_weights,
    pick_output,
    pool_evenly,
    wrap_module,
)
from rtseg.models.preprocessing import check_preprocess
from rtseg.resolve import read_own_options
from rtseg.runtime import read_card
from rtseg.speed.plain_exports import write_plain_export
from torch import Tensor, nn

SIZE = (64, 96)
IMAGENET = NORMALIZATIONS["imagenet"]


class Tiny(nn.Module):
    """Two convolutions, logits at a quarter of the size."""

    def __init__(self, classes: int = 5):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, image: Tensor) -> Any:
        return self.head(torch.relu(self.stem(image)))


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


def prepare(
    *,
    order: str = "rgb",
    scale: float = 1 / 255,
    mean: Any = IMAGENET.mean,
    std: Any = IMAGENET.std,
    way: int = cv2.INTER_LINEAR,
    pad: bool = False,
    color: Any = 0,
    pad_last: bool = False,
    middle: bool = False,
    crop: bool = False,
    corners: bool = False,
) -> Any:
    """A preprocessing as people write it, with a fault planted."""

    def preprocess(frame: np.ndarray[Any, Any]) -> Tensor:
        height, width = SIZE
        if corners:
            x = torch.from_numpy(frame.transpose(2, 0, 1).copy())[None].float()
            image = F.interpolate(x, SIZE, mode="bilinear", align_corners=True)[0].numpy()
            image = image.transpose(1, 2, 0)
        elif crop:
            factor = max(height / frame.shape[0], width / frame.shape[1])
            h, w = round(height / factor), round(width / factor)
            top, left = (frame.shape[0] - h) // 2, (frame.shape[1] - w) // 2
            image = cv2.resize(frame[top : top + h, left : left + w], (width, height))
        elif pad:
            factor = min(height / frame.shape[0], width / frame.shape[1])
            h, w = round(frame.shape[0] * factor), round(frame.shape[1] * factor)
            inner = cv2.resize(frame, (w, h))
            image = np.empty((height, width, 3), np.uint8)
            image[:] = color
            top, left = ((height - h) // 2, (width - w) // 2) if middle else (0, 0)
            image[top : top + h, left : left + w] = inner
        else:
            image = cv2.resize(frame, (width, height), interpolation=way)
        if order == "rgb":
            image = image[..., ::-1]
        values = (image.astype(np.float32) * scale - np.float32(mean)) / np.float32(std)
        if pad_last:
            values[h:], values[:, w:] = 0, 0
        return torch.from_numpy(values.transpose(2, 0, 1).copy())[None]

    return preprocess


def test_the_same_preprocessing_passes() -> None:
    check_preprocess(IMAGENET, SIZE, prepare(), "stretch")
    check_preprocess(IMAGENET, SIZE, prepare(pad=True), "letterbox")
    check_preprocess(IMAGENET, SIZE, prepare(crop=True), "crop")


@pytest.mark.parametrize(
    ("fit", "way", "says"),
    [
        (
            "letterbox",
            {},
            "yours is bilinear, this export's bilinear with pad.*--fit stretch .*fit='stretch'",
        ),
        (
            "stretch",
            {"pad": True},
            "yours is bilinear with padding.*, this export's bilinear.*--fit letterbox ",
        ),
        (
            "stretch",
            {"crop": True},
            r"yours is .*\(cropped.*, this export's bilinear\. .*--fit crop ",
        ),
        ("crop", {"pad": True}, r"yours is .*with padding.*, this export's .*\(cropped"),
        (
            "letterbox",
            {"pad": True, "middle": True},
            r"yours is .*in the middle\), this export's .*at the top left.*--fit letterbox_center ",
        ),
    ],
)
def test_another_rule_for_another_aspect_is_named(fit: Any, way: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_preprocess(IMAGENET, SIZE, prepare(**way), fit)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"order": "bgr"}, "order: yours is bgr"),
        (
            {"scale": 1.0, "mean": np.array(IMAGENET.mean) * 1, "std": IMAGENET.std},
            "scale: your pixels",
        ),
        ({"mean": (0.5, 0.5, 0.5)}, "mean: yours is (0.500, 0.500, 0.500)"),
        ({"std": (0.5, 0.5, 0.5)}, "std: yours is (0.500, 0.500, 0.500)"),
        ({"way": cv2.INTER_NEAREST}, "resize: yours is nearest"),
        ({"way": cv2.INTER_AREA}, "resize: yours is by area"),
        ({"corners": True}, "half a pixel off"),
        ({"pad": True}, "padding"),
    ],
    ids=["order", "scale", "mean", "std", "nearest", "area", "half pixel", "padding"],
)
def test_a_planted_fault_is_named(fault: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as error:
        check_preprocess(IMAGENET, SIZE, prepare(**fault), "stretch")
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (
            {"color": 114},
            "padding: yours is (114, 114, 114) of 0..255 in RGB, this export's is (0, 0, 0). If "
            "the network was trained with yours, export it with --pad-color 114,114,114 (in "
            "Python, pad_color=(114, 114, 114)); if not, change yours",
        ),
        (
            {"pad_last": True},
            "padding: yours is 0 after the normalization, which is the mean color (124, 116, 104) "
            "of 0..255 in RGB, this export's is (0, 0, 0). If the network was trained with yours, "
            "export it with --pad-color 124,116,104 (",
        ),
        ({"color": (30, 20, 10)}, "yours is (10, 20, 30) of 0..255 in RGB"),  # BGR, as frames are
    ],
    ids=["gray", "after normalization", "a color"],
)
def test_a_color_beside_the_frame_is_named(fault: dict[str, Any], named: str) -> None:
    """It is told alone: scale, mean and order are read off the frame itself."""
    with pytest.raises(UsageError) as error:
        check_preprocess(IMAGENET, SIZE, prepare(pad=True, **fault), "letterbox")
    assert named in str(error.value)
    assert not re.search("order:|scale:|mean:|std:|resize:", str(error.value))


def test_padding_that_no_pixel_has_is_told_to_be_mended() -> None:
    def outside(frame: np.ndarray[Any, Any]) -> Any:
        image = prepare(pad=True)(frame)
        bars = image[0, 0] == image[0, 0, -1, -1]
        return torch.where(bars, -9.0, image)

    with pytest.raises(UsageError, match=r"no pixel has: pad the frame before it is normalized$"):
        check_preprocess(IMAGENET, SIZE, outside, "letterbox")


def read_advice(message: str) -> tuple[Normalization, Fit, Any]:
    """What the options that an error names mean to the command that is given them."""
    words = re.findall(r"export it with (.*) \(in Python", message)[0].split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    own: dict[str, Any] = read_own_options(
        [SIZE],
        *(given.pop(name, None) for name in ("--normalize", "--mean", "--std", "--order")),
        *(None, "x", given.pop("--fit", None)),
        parse_color(given.pop("--pad-color", "0,0,0")),
    )
    assert not given
    normalization = own.get("normalize", IMAGENET)
    return normalization, own.get("fit", "letterbox"), own["pad_color"]


GRAY = {"pad": True, "middle": True, "color": 114}
CAFFE = {"order": "bgr", "scale": 1.0, "mean": (103.939, 116.779, 123.68), "std": (1, 1, 1)}


@pytest.mark.parametrize(
    ("fault", "advice"),
    {
        "gray": ({"pad": True, "color": 114}, "--pad-color 114,114,114"),
        "gray, in the middle": (GRAY, "--fit letterbox_center --pad-color 114,114,114"),
        "mean color": ({"pad": True, "pad_last": True}, "--pad-color 124,116,104"),
        "order": (
            {"pad": True, "order": "bgr", "mean": IMAGENET.mean[::-1], "std": IMAGENET.std[::-1]},
            "--normalize imagenet --order bgr",
        ),
        "order alone": (
            {"pad": True, "order": "bgr"},
            "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --order bgr",
        ),
        "mean": (
            {"pad": True, "mean": (0.5, 0.5, 0.5)},
            "--mean 0.5,0.5,0.5 --std 0.229,0.224,0.225",
        ),
        "0..1": ({"pad": True, "mean": (0, 0, 0), "std": (1, 1, 1)}, "--normalize unit"),
        "0..255": (
            {"pad": True, "scale": 1.0, "mean": (0, 0, 0), "std": (1, 1, 1)},
            "--normalize none",
        ),
        "Caffe": (
            {"pad": True, **CAFFE},
            "--mean 0.4076,0.458,0.485 --std 0.003922,0.003922,0.003922 --order bgr",
        ),
        "all": (
            {**GRAY, **CAFFE, "color": (10, 20, 30)},
            "--fit letterbox_center --pad-color 30,20,10 --mean 0.4076,0.458,0.485 --std "
            "0.003922,0.003922,0.003922 --order bgr",
        ),
    }.values(),
)
def test_an_export_with_the_options_that_an_error_names_does_the_same(
    fault: dict[str, Any], advice: str
) -> None:
    with pytest.raises(UsageError) as error:
        check_preprocess(IMAGENET, SIZE, prepare(**fault), "letterbox")
    assert f"export it with {advice} (in Python" in str(error.value)
    normalization, fit, color = read_advice(str(error.value))
    check_preprocess(normalization, SIZE, prepare(**fault), fit, color)


@pytest.mark.parametrize(
    "fault",
    [{"way": cv2.INTER_NEAREST}, {"corners": True}, {"scale": 1.0}],
    ids=["nearest", "half pixel", "not divided"],
)
def test_what_no_option_mends_is_told_to_be_changed(fault: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        check_preprocess(IMAGENET, SIZE, prepare(**fault), "stretch")
    assert "export it with" not in str(error.value)
    assert re.search(r"with cv2\.INTER_LINEAR in yours$|divide them by 255", str(error.value))


def test_a_normalization_that_is_nearly_the_same_is_named() -> None:
    """Two levels of 255 are below what tells apart two resizes."""
    rough = tuple(mean - 0.008 for mean in IMAGENET.mean)
    with pytest.raises(UsageError, match=r"mean: yours is \(0\.477, 0\.448, 0\.398\)"):
        check_preprocess(IMAGENET, SIZE, prepare(mean=rough), "stretch")


def test_another_shape_is_named() -> None:
    with pytest.raises(UsageError, match=r"gives \(3, 32, 32\)"):
        check_preprocess(IMAGENET, SIZE, lambda frame: np.zeros((3, 32, 32), np.float32))


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
    assert f"test_own_network.py:{place} becomes 80 nodes" in line


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
        (Branches, "cannot take Branches .*test_own_network.py:[0-9]+.*torch.where for `if`"),
        (Reads, "cannot take Reads .*test_own_network.py:[0-9]+.*a constant for .item"),
        (InNumPy, "cannot take InNumPy .*test_own_network.py:[0-9]+.*take NumPy out of forward"),
        (Decomposes, r"linalg_svd has no form in ONNX \(.*test_own_network.py:[0-9]+\)"),
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
