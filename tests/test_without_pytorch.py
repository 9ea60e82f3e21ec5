"""A vehicle's install: what runs, and what is said, where PyTorch is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from conftest import ROOT
from rtseg.cli import models as listing
from rtseg.data.scenes import scene
from rtseg.export import export
from rtseg.install import localize
from rtseg.models.loading import Model

# As if nothing but these were uninstalled: every finder is asked for all other modules.
RUN = """
import sys
class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, *rest):
        absent = name.partition(".")[0] in {absent!r}
        return None if absent else self.finder.find_spec(name, *rest)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from rtseg.cli import main
sys.argv = ["rtseg", *sys.argv[1:]]
main()
"""
TRAINING = ("torch", "safetensors", "onnx", "onnxruntime", "triton")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN.replace("{absent!r}", repr(TRAINING)), *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_networks_are_listed() -> None:
    done = run("models", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(listing.listed()))
    done = run("models", "csfcn_nano")
    assert done.returncode == 0, done.stderr
    assert "csfcn_nano:streets" in done.stdout
    done = run("models", "csfcn_nana")
    assert (done.returncode, done.stderr) == (
        2, "rtseg: no model is called 'csfcn_nana': did you mean 'csfcn_nano'?\n"
    )  # fmt: skip


def test_an_artifact_is_scored(nano: Model, tmp_path: Path) -> None:
    (artifact,) = export(nano, (64, 96), "openvino", "fp32", out=tmp_path)
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind / "val").mkdir(parents=True)
    for seed in range(2):
        cv2.imwrite(str(tmp_path / f"data/images/val/{seed}.png"), scene((64, 96), seed))
        cv2.imwrite(str(tmp_path / f"data/labels/val/{seed}.png"), np.full((64, 96), 3, np.uint8))
    done = run("eval", artifact.path, "folder", "--root", tmp_path / "data", "--classes", "camvid")
    assert done.returncode == 0, done.stderr
    assert " on folder val, run by openvino in fp32 " in " ".join(done.stdout.split())
    assert "road" in done.stdout


def test_what_has_to_be_exported_says_what_is_missing() -> None:
    done = run("predict", ROOT / "demo" / "frames", "--model", "csfcn_nano")
    assert (done.returncode, done.stderr) == (
        1,
        localize(
            "rtseg: csfcn_nano has to be exported first, which needs PyTorch: pip install "
            '"rtseg[export]", or name an artifact\n'
        ),
    )
