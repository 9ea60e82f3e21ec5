"""A backend is one file and one row of the registry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rtseg.data.files import digest_of
from rtseg.errors import ArtifactError
from rtseg.runtime import backends, load
from rtseg.runtime.artifact import sidecar
from rtseg.runtime.backends.backend import BACKENDS, GRAPHS, BackendSpec, choose, default_backends
from rtseg.runtime.preflight import check
from rtseg.speed import doctor
from rtseg.speed.profile import costliest
from speed_parts import CARD

FILE = '''
from rtseg.runtime.artifact import read_card
from rtseg.runtime.backends.backend import Backend, Diagnosis, Info


class Constant(Backend):
    """Its file is the class id that it gives every pixel."""

    def __init__(self, path, device=None):
        self.card, self.names = read_card(path), ("labels",)
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
    with pytest.raises(ArtifactError, match="does not tell the times of layers"):
        costliest(artifact, "constant", 1)
