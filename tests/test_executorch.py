"""ExecuTorch programs: two methods with one set of weights, proven and served; what is refused."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rtseg
import torch
from rtseg.data.files import digest_of, write_atomically
from rtseg.data.letterbox import fit_frame
from rtseg.errors import ArtifactError, ExportError
from rtseg.export.reference import read_shipped_frames
from rtseg.models import FrameToLabels
from rtseg.models.loading import Model
from rtseg.runtime.argmax import compiled_available
from rtseg.runtime.artifact import read_card, sidecar
from rtseg.runtime.backends.backend import BACKENDS
from rtseg.runtime.preflight import check
from torch import Tensor, nn

SIZE = (96, 160)
NEEDS = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None,
    reason='lowers and runs with executorch: pip install "rtseg[executorch]"',
)


@pytest.fixture
def seems_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is refused before the package is imported."""
    row = replace(BACKENDS["executorch"], packages=("numpy",))
    monkeypatch.setitem(BACKENDS, "executorch", row)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "is in fp32 here: add --precision fp32"),
        ({"precision": "fp16"}, "is in fp32 here"),
        ({"input": "nv12"}, "takes BGR frames"),
        ({"size": [(96, 160), (64, 96)], "one_file": True}, "is made for one size"),
    ],
)
@pytest.mark.usefixtures("seems_installed")
def test_what_it_does_not_do_is_told_first(
    nano: Model, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    given = {"size": SIZE, "to": "executorch", "precision": "fp32"} | options
    with pytest.raises(ExportError, match=message):
        rtseg.export(nano, out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_told_with_its_command(
    nano: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(BACKENDS["executorch"], packages=("no_such_package",))
    monkeypatch.setitem(BACKENDS, "executorch", row)
    with pytest.raises(ExportError, match=r"needs its package: pip install .*\[executorch\]"):
        rtseg.export(nano, SIZE, "executorch", "fp32", out=tmp_path)


@pytest.fixture(scope="module")
def made(nano: Model, tmp_path_factory: pytest.TempPathFactory) -> Any:
    (artifact,) = rtseg.export(
        nano, SIZE, "executorch", out=tmp_path_factory.mktemp("et"), proof_frames=2
    )
    return artifact


@NEEDS
def test_both_methods_are_proven_and_share_their_weights(made: Any) -> None:
    assert made.path.name == "csfcn_nano_96x160_fp32.pte"
    assert made.card.proof.passed
    assert made.card.proof.logits_error < 1e-3
    assert len(made.results) == (2 if compiled_available() else 1)
    assert made.card.coarse.upsampling == "bilinear_aligned"
    # In float32, four bytes each: a second copy of them would show.
    assert made.path.stat().st_size < 1.5 * 4 * made.card.params
    assert made.card.tools["executorch"]
    assert check(made.path).ok


@NEEDS
@pytest.mark.parametrize("argmax", ["graph", "runtime"])
def test_labels_are_those_of_pytorch(made: Any, nano: Model, argmax: str) -> None:
    if argmax == "runtime" and not compiled_available():
        pytest.skip("numba makes labels of coarse logits")
    whole = FrameToLabels(nano.network, ("labels",)).eval()
    with rtseg.load(made.path, argmax=argmax, threads=1) as segment:
        assert (segment.info.name, segment.info.device) == ("executorch", "cpu")
        for _, picture in read_shipped_frames().frames[:2]:
            frame = fit_frame(picture, SIZE, "letterbox")
            with torch.inference_mode():
                expected = whole(torch.from_numpy(frame)[None])[0][0].numpy()
            assert len(np.unique(expected)) > 1
            assert (segment(frame) == expected).mean() > 0.9995


@NEEDS
def test_one_pool_of_threads_a_process(made: Any) -> None:
    with rtseg.load(made.path, threads=1), pytest.raises(ArtifactError, match="load it with thre"):
        rtseg.load(made.path, threads=2)
    with rtseg.load(made.path, threads=2) as segment:
        assert segment.info.threads == 2
    with pytest.raises(ArtifactError, match="runs on the CPU"):
        rtseg.load(made.path, device="cuda")


@NEEDS
def test_a_damaged_program_is_one_line(made: Any, tmp_path: Path) -> None:
    path, content = tmp_path / "net.pte", made.path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    update = {"files": {path.name: made.card.files[made.path.name]}}
    write_atomically(sidecar(path), made.card.model_copy(update=update).to_json().encode())
    with pytest.raises(ArtifactError, match="changed or damaged"):
        rtseg.load(path)
    path.write_bytes(content[: len(content) // 2])
    update = {"files": {path.name: digest_of(path)}}
    write_atomically(sidecar(path), made.card.model_copy(update=update).to_json().encode())
    with pytest.raises(ArtifactError, match=r"executorch .* cannot load .*net\.pte"):
        rtseg.load(path)


class Plain(nn.Module):
    """Logits of the frame's size: nothing is left to upsample."""

    def __init__(self, odd: bool = False):
        super().__init__()
        self.layer, self.odd = nn.Conv2d(3, 4, 3, padding=1), odd

    def forward(self, image: Tensor) -> Tensor:
        logits = self.layer(image)
        return torch.special.bessel_j0(logits) if self.odd else logits


def load_own(module: nn.Module) -> Model:
    torch.manual_seed(0)
    return rtseg.load_model(module, size=(32, 48), classes="numbered", normalize="imagenet")


@NEEDS
def test_a_batch_of_a_network_of_ones_own_with_logits(tmp_path: Path) -> None:
    (artifact,) = rtseg.export(
        load_own(Plain()), to="executorch", output="both", batch=2, out=tmp_path
    )
    assert artifact.passed
    assert read_card(artifact.path).coarse is None
    frames = list(np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8))
    with rtseg.load(artifact.path) as segment:
        labels = segment(frames)
        logits = segment.backend.logits()
        assert logits is not None
        assert np.array_equal(logits.argmax(1), np.stack(labels))
    assert not np.array_equal(*labels)


@NEEDS
def test_an_operator_without_a_kernel_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="special_bessel_j0"):
        rtseg.export(load_own(Plain(odd=True)), to="executorch", out=tmp_path)
    assert not list(tmp_path.glob("*.pte*"))
