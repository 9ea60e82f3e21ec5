"""Every program under examples/ runs as its first lines say, and so does the notebook."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from conftest import ROOT
from rtseg.data.scenes import scenes
from rtseg.export import export
from tiny_camvid import write_camvid

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (made,) = export("csfcn_nano:camvid", (96, 128), out=tmp_path_factory.mktemp("artifacts"))
    return made.path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    for number, frame in enumerate(scenes(6, (96, 128))):
        cv2.imwrite(str(folder / f"{number}.png"), frame)
    return folder


def start(name: str, *arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
    )


def run(name: str, *arguments: object, cwd: Path) -> str:
    process = start(name, *arguments, cwd=cwd)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def test_export_and_prove(tmp_path: Path) -> None:
    said = run("export_and_prove.py", tmp_path / "made", cwd=tmp_path)
    assert "onnxruntime fp32: passed, 100.0000%" in said
    assert (tmp_path / "made/csfcn_nano_360x480_fp32.onnx").is_file()


def test_own_network(tmp_path: Path) -> None:
    assert "unet_128x256_fp32.onnx (480, 640) uint8" in run("own_network.py", cwd=tmp_path)


def test_video_overlay(artifact: Path, clip: Path, tmp_path: Path) -> None:
    run("video_overlay.py", clip, artifact, "out.mp4", cwd=tmp_path)
    assert int(cv2.VideoCapture(str(tmp_path / "out.mp4")).get(cv2.CAP_PROP_FRAME_COUNT)) == 6


def test_drive_with_callback(artifact: Path, clip: Path, tmp_path: Path) -> None:
    said = run("drive_with_callback.py", clip, artifact, cwd=tmp_path)
    assert "ms old, road" in said


def test_ring_reader(artifact: Path, clip: Path, tmp_path: Path) -> None:
    ring = tmp_path / "labels.ring"
    reader = start("ring_reader.py", ring, 3, cwd=tmp_path)  # before the writer
    drive = ["drive", clip, "--model", artifact, "--loop", "--duration", "60", "-o", ring]
    writer = subprocess.Popen([sys.executable, "-m", "rtseg", *map(str, drive)], cwd=ROOT.parent)
    try:
        said, _ = reader.communicate(timeout=120)
    finally:
        writer.terminate()
        writer.wait(30)
    assert reader.returncode == 0, said
    assert len(said.splitlines()) <= 3


def test_evaluate_artifact(artifact: Path, tmp_path: Path) -> None:
    write_camvid(tmp_path / "camvid")
    said = run("evaluate_artifact.py", artifact, "camvid", tmp_path / "camvid", cwd=tmp_path)
    assert said.splitlines()[-1].startswith("mean")


def test_speed_table(tmp_path: Path) -> None:
    said = run("speed_table.py", "csfcn_nano", "64x128", "96x128", cwd=tmp_path)
    assert said.count("csfcn\\_nano") >= 2
    assert r"\begin{tabular}" in said


def test_fleet_on_ray(artifact: Path, clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an extra of its own: rtseg[fleet]")
    assert "6 frames" in run("fleet_on_ray.py", clip, artifact, "labels", cwd=tmp_path)


def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "first_steps.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert "csfcn_nano" in capsys.readouterr().out


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text()
    assert [
        p.name for p in EXAMPLES.iterdir() if p.suffix in (".py", ".ipynb") and p.name not in tested
    ] == []
