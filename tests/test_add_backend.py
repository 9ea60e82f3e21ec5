"""A backend is one file and one row of the registry."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import rtseg
from rtseg import resolve
from rtseg.cli.app import app
from rtseg.data.files import digest_of
from rtseg.data.scenes import scenes
from rtseg.errors import ArtifactError
from rtseg.models.loading import Model
from rtseg.runtime import backends, load
from rtseg.runtime.artifact import sidecar
from rtseg.runtime.backends.backend import BACKENDS, GRAPHS, BackendSpec, choose, default_backends
from rtseg.runtime.preflight import check
from rtseg.speed import doctor
from rtseg.speed.profile import costliest
from speed_parts import CARD
from typer.testing import CliRunner

FILE = '''
from rtseg.runtime.artifact import read_card
from rtseg.runtime.backends.backend import Backend, Diagnosis, Info


class Constant(Backend):
    """Its file is the class id that it gives every pixel."""

    def __init__(self, path, device=None, card=None):
        self.card, self.names = card or read_card(path), ("labels",)
        self.value = int(path.read_text())
        self.info = Info("constant", "1.0", "cpu", 1, "fp32")

    def upload(self, image):
        self.image = image

    def compute(self):
        self.labels = self.image[..., 0] * 0 + self.value

    def _fetch(self, name):
        return self.labels

    def synchronize(self): ...

    def close(self): ...

    @classmethod
    def diagnose(cls, found):
        return Diagnosis({"constant": "1.0"}, ("cpu",), "gives one class")
'''


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "constant.py").write_text(FILE)
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(tmp_path)])
    row = BackendSpec("constant", "Constant", ("numpy",), "cpu", (".id",), {"cpu": 9}, GRAPHS)
    monkeypatch.setitem(BACKENDS, "constant", row)
    path = tmp_path / "net.id"
    path.write_text("1")
    card = CARD.model_copy(update={"files": {path.name: digest_of(path)}})
    sidecar(path).write_text(card.to_json())
    return path


def test_a_backend_of_one_file_and_one_row_is_used_everywhere(artifact: Path) -> None:
    assert choose(artifact, None, None) == "constant"
    assert default_backends("cpu")[-1] == "constant"
    assert check(artifact).ok
    with load(artifact) as segment:
        assert (segment(np.zeros((4, 8, 3), np.uint8)) == 1).all()
    finding = {found.name: found for found in doctor.examine().backends}["constant"]
    assert (finding.ready, finding.note, finding.loads) == (True, "gives one class", (".id",))
    with pytest.raises(ArtifactError, match="does not report the times of layers"):
        costliest(artifact, "constant", 1)


MIRROR = '''
"""Another runtime for ONNX files."""

import onnxruntime
from rtseg.runtime.artifact import read_card
from rtseg.runtime.backends.backend import Backend, Diagnosis, Info


class Mirror(Backend):
    """An ONNX artifact, on one thread."""

    def __init__(self, path, device=None, threads=None, card=None):
        self.card = card or read_card(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 1
        self.session = onnxruntime.InferenceSession(str(path), options)
        self.names = [output.name for output in self.session.get_outputs()]
        self.info = Info("mirror", "1.0", "cpu", threads or 1, self.card.precision)

    @classmethod
    def diagnose(cls, found):
        return Diagnosis({"mirror": "1.0"}, ("cpu",))

    def upload(self, image):
        self.image = image

    def compute(self):
        name = self.session.get_inputs()[0].name
        self.outputs = dict(zip(self.names, self.session.run(self.names, {name: self.image})))

    def _fetch(self, name):
        return self.outputs[name]

    def synchronize(self):
        pass

    def close(self):
        del self.session
'''


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "a_backend_called_mirror.py").write_text(MIRROR)
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(tmp_path)])
    row = BackendSpec(
        module="a_backend_called_mirror", cls="Mirror", packages=("json",), extra="mirror",
        suffixes=(".onnx",), devices={"cpu": 9}, precisions=GRAPHS,
    )  # fmt: skip
    monkeypatch.setitem(BACKENDS, "mirror", row)
    return "mirror"


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_it_is_diagnosed_run_and_raced(mirror: str, nano: Model, tmp_path: Path) -> None:
    (artifact,) = rtseg.export(nano, size=(64, 96), out=tmp_path / "out")
    found = {each["name"]: each for each in json.loads(run("doctor", "--json"))["backends"]}
    assert found[mirror]["devices"] == ["cpu"]
    frame = scenes(1, (64, 96))[0]
    with (
        rtseg.load(artifact.path, backend=mirror) as ours,
        rtseg.load(artifact.path, backend="onnxruntime", argmax="graph") as reference,
    ):
        assert np.array_equal(ours(frame), reference(frame))
        assert ours.info.name == mirror
    cv2.imwrite(str(tmp_path / "a.png"), frame)
    facts = json.loads(
        run("predict", tmp_path / "a.png", "--model", artifact.path, "--backend", mirror,
            "-o", tmp_path / "labels", "--json")
    )  # fmt: skip
    assert facts["frames"] == 1
    raced = json.loads(
        run("bench", artifact.path, "--backend", mirror, "--no-eager", "--runs", 5,
            "--seconds", 0.1, "--json")
    )  # fmt: skip
    assert [row["backend"] for row in raced["rows"]] == [mirror]


def test_a_network_is_exported_for_it(
    mirror: str, nano: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with resolve.open_segmenter(nano, size=(64, 96), backend=mirror) as segment:
        assert segment.info.name == mirror
