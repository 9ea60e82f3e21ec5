"""A network is added by one file and one import: listed, exported with proof, raced, read back."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from rtseg.cli.app import app
from rtseg.models import VARIANTS, build, digest, load_checkpoint, save_checkpoint
from typer.testing import CliRunner

FAMILY = '''
"""TwinNet: the network that CONTRIBUTING.md adds.

Nobody: "An Example", 2026.
"""

import torch
from rtseg.models.layers import BilinearUpsample, ConvNorm, he_normal, resize
from rtseg.models.network import Network
from rtseg.models.variant import CITYSCAPES, Score, Variant, conv_norm_keys


class TwinNet(Network):
    """image (N, 3, H, W) -> logits (N, classes, H, W)."""

    def __init__(self, num_classes, width=8):
        super().__init__()
        self.shallow = ConvNorm(3, width, stride=4)
        self.deep = ConvNorm(width, width, stride=2)
        self.classifier = torch.nn.Conv2d(2 * width, num_classes, 1)
        self.upsample_logits = BilinearUpsample(4, align_corners=False)
        he_normal(self)

    def forward_logits(self, image):
        shallow = self.shallow(image)
        deep = resize(self.deep(shallow), like=shallow)
        return self.classifier(torch.cat([shallow, deep], dim=1))


KEYS = (
    *conv_norm_keys("spatial", "shallow"),
    *conv_norm_keys("context", "deep", ("0", "1")),
    ("head", "classifier"),
)
VARIANTS = {
    "twinnet": Variant(
        TwinNet, KEYS, size=(64, 128), paper="Nobody, 2026", reference="example.org/twinnet",
        license="MIT", scores=(Score(CITYSCAPES, 71.5),),
    )
}
'''


@pytest.fixture
def twinnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "a_family_called_twinnet.py").write_text(FAMILY)
    monkeypatch.syspath_prepend(tmp_path)
    family = importlib.import_module("a_family_called_twinnet")
    monkeypatch.setitem(VARIANTS, "twinnet", family.VARIANTS["twinnet"])
    return "twinnet"


def rtseg(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_it_is_listed_exported_and_raced(twinnet: str, tmp_path: Path) -> None:
    facts = json.loads(rtseg("models", twinnet, "--json"))
    assert facts["published"][0]["single"] == 71.5
    assert (facts["reference"], facts["license"]) == ("example.org/twinnet", "MIT")
    assert facts["checkpoint"]["official"] == "spatial.conv.weight"
    assert facts["reported"]["macs"] > 0
    assert twinnet in [row["model"] for row in json.loads(rtseg("models", "--json"))]
    out = tmp_path / "out"
    rtseg("export", twinnet, "--size", "64x128", "--to", "onnx", "-o", out)
    (artifact,) = out.glob("*.onnx")
    raced = rtseg("bench", artifact, "--seconds", 0.1, "--runs", 5, "--json")
    assert twinnet in raced


def test_its_checkpoints_come_and_go_by_either_name(twinnet: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(twinnet, 5)
    path = save_checkpoint(model, tmp_path / "w.safetensors", naming="official")
    assert digest(load_checkpoint(build(twinnet, 5), path)) == digest(model)
