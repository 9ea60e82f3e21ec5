"""What a proof must not pass, and what it warns of beside equality with PyTorch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rtseg.data.classes import CAMVID
from rtseg.data.files import scratch_folder
from rtseg.data.scenes import scenes
from rtseg.errors import DataError, ProofError, UsageError
from rtseg.export import conditions, export
from rtseg.export.artifacts import list_notes
from rtseg.export.calibrate import Calibration, pick_frames
from rtseg.export.export import make_card
from rtseg.export.reference import ProofFrames, read_frames, run_reference
from rtseg.models import build, save_checkpoint
from rtseg.models.loading import Model, load_model, read_trained_size
from rtseg.runtime import load, read_card

SIZE = 64, 128


@pytest.fixture
def network() -> Any:
    """csfcn_nano's own, to be spoiled."""
    return load_model("csfcn_nano:camvid").network


def write(folder: Path, frames: list[np.ndarray[Any, Any]]) -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{number:03}.png"), frame)
    return folder


def test_activations_near_the_end_of_float16_fail(network: Any, tmp_path: Path) -> None:
    """CPUs compute float16 graphs in float32, so that the labels are right there all the same."""
    norm, block = network.backbone.stem[1].norm, network.backbone.layer2[0]
    for of in (norm.weight, norm.bias):
        of.data[0] *= 92_378
    for reader in (block.conv1.conv, block.shortcut.conv):
        reader.weight.data[:, 0] /= 92_378
    model = Model(network, CAMVID, "memory", True, SIZE)
    (artifact,) = export(model, to="onnx", precision="fp32", out=tmp_path)
    assert artifact.status == "proven"
    with pytest.raises(ProofError, match="and float16 ends at 65504"):
        export(model, to="onnx", precision="fp16", out=tmp_path)


def test_a_number_added_to_all_classes_hides_no_error(network: Any, tmp_path: Path) -> None:
    """Ten million leaves float32 steps of 1, in which classes are tied."""
    network.classifier.bias.data += 1e7
    path = save_checkpoint(
        network, tmp_path / "w.safetensors", metadata={"trained": False, "classes": "camvid"}
    )
    model = load_model(path)
    assert model.trained  # whatever the file says
    for trained in (True, False):
        with pytest.raises(ProofError, match="the logits are off"):
            export(replace(model, trained=trained), SIZE, out=tmp_path)


def test_a_checkpoints_classes_are_its_own(tmp_path: Path) -> None:
    names = list(CAMVID.names)
    names[3], names[9] = names[9], names[3]
    swapped = replace(CAMVID, name="swapped", names=tuple(names))
    path = save_checkpoint(
        build("csfcn_nano", 11), tmp_path / "w.safetensors", metadata={"classes": "camvid"}
    )
    with pytest.raises(UsageError, match="class 3 is 'road', not 'pedestrian'"):
        load_model("csfcn_nano", path, swapped)
    with pytest.raises(UsageError, match="class 3 is 'road'"):
        load_model(load_model(path), classes=swapped)
    colors = replace(CAMVID, name="mine", palette=tuple((i, i, i) for i in range(11)))
    assert load_model(path, classes=colors).classes == colors
    own = load_model(build("csfcn_nano", 11))  # a network in memory says nothing of its classes
    assert load_model(own, classes=swapped).classes == swapped


@pytest.mark.parametrize(
    ("metadata", "size"),
    [
        ({"recipe": {"augment": {"crop": [240, 320]}, "data": {"name": "folder"}}}, (240, 320)),
        ({"recipe": {"augment": {"crop": [240, 320]}, "val_size": [360, 636]}}, (360, 640)),
        (
            {"recipe": {"augment": {"crop": [1024, 1024]}, "data": {"name": "cityscapes"}}},
            (1024, 2048),
        ),
        ({"trained_size": [128, 256], "recipe": {"augment": {"crop": [64, 64]}}}, (128, 256)),
        ({"recipe": "mine"}, (512, 1024)),
        ({}, (512, 1024)),
    ],
)
def test_the_usual_size_is_that_of_the_training(
    metadata: dict[str, Any], size: tuple[int, int], network: Any, tmp_path: Path
) -> None:
    path = save_checkpoint(network, tmp_path / "w.safetensors", metadata=metadata)
    assert read_trained_size(path, network) == size


def test_shipped_networks_are_used_at_the_size_of_their_training(nano: Model) -> None:
    assert nano.trained_size == (360, 480)
    assert make_card(nano, SIZE, "fp32", "labels").trained_size == (360, 480)


@pytest.mark.parametrize(
    ("size", "warning"),
    [
        ((360, 480), None),
        ((360, 640), None),
        ((512, 1024), "at 360x480, and 512x1024 is 1.7 times its scale and another aspect"),
        ((176, 240), "176x240 is 0.49 times its scale"),
    ],
)
def test_a_size_far_from_the_trainings_is_told(
    size: tuple[int, int], warning: str | None, nano: Model
) -> None:
    card = make_card(nano, size, "fp32", "labels")
    found = conditions.find_warnings(card, ProofFrames(scenes_of(1), "drawn"))
    assert (warning is None) == (found == [])
    assert warning is None or warning in found[0]


def scenes_of(count: int, brightness: float = 1.0) -> list[tuple[str, Any]]:
    return [(str(i), (s * brightness).astype(np.uint8)) for i, s in enumerate(scenes(count, SIZE))]


def test_the_proof_says_what_its_frames_were(nano: Model, tmp_path: Path) -> None:
    folder = write(tmp_path / "frames", [frame for _, frame in scenes_of(9, brightness=0.1)])
    steps: dict[str, float] = {}
    artifacts = export(
        nano, SIZE, "onnx", out=tmp_path, frames=folder, proof_frames=3, progress=steps.__setitem__
    )
    (artifact,) = artifacts
    proof = read_card(artifact.path).proof
    assert proof is not None
    assert (proof.frames, proof.frames_from, proof.frames_of) == (3, "given", 9)
    assert proof.warnings == artifact.warnings
    assert "0.22 times its scale" in proof.warnings[0]
    assert "the proof's frames are far darker" in proof.warnings[1]
    assert "proven on 3 of 9 frames given" in list_notes(artifacts)
    result = replace(artifacts[0].results[0], status="not run", why="no GPU")
    path = Path("net.engine")
    notes = list_notes([replace(artifacts[0], path=path, results=(result,))])
    assert "net.engine: not run here; its first load proves it on 3 of 9 frames given" in notes
    assert not any(note.startswith("proven") for note in notes)
    for number in (1, 2, 3):
        for what in ("float32 reference", "proof of onnx"):
            assert steps[f"csfcn_nano_64x128_fp32: {what}, frame {number} of 3"] == number / 3
    entry = json.loads((tmp_path / "report.json").read_text())[artifact.path.name]
    assert entry["frames"] == "3 of 9 frames given"
    assert [run["frames"] for run in entry["runs"]] == [3]
    assert entry["warnings"] == list(proof.warnings)


def test_calibration_in_the_dark_is_told(nano: Model, tmp_path: Path) -> None:
    bright, dark = (
        write(tmp_path / name, [frame for _, frame in scenes_of(24, brightness)])
        for name, brightness in (("bright", 1.0), ("dark", 0.12))
    )
    card = make_card(nano, SIZE, "int8", "labels")
    expected = run_reference(nano.network, ProofFrames(scenes_of(2)), SIZE)
    for folder, telling in ((bright, False), (dark, True)):
        found = conditions.compare_calibration(card, pick_frames(Calibration(folder)), expected)
        assert [("far darker" in line, "unlike the proof's" in line) for line in found] == (
            [(True, False), (False, True)] if telling else []
        )


def test_frames_of_another_aspect_are_letterboxed_in_the_proof(nano: Model, tmp_path: Path) -> None:
    wide = scenes(1, (64, 256))[0]
    expected = run_reference(nano.network, ProofFrames([("wide", wide)]), SIZE)
    frame = expected.reference.frames[0]
    assert frame[:32].any(axis=2).all()
    assert not frame[32:].any()
    (artifact,) = export(nano, SIZE, "onnx", out=tmp_path, fit="stretch")
    assert read_card(artifact.path).fit == "stretch"


def test_an_artifact_that_crops_answers_for_the_middle_as_its_proof_did(
    nano: Model, tmp_path: Path
) -> None:
    wide = scenes(1, (64, 256))[0]
    (artifact,) = export(nano, SIZE, "onnx", out=tmp_path, fit="crop", frames=[("wide", wide)])
    with load(artifact.path) as segment:
        assert segment.card.fit == "crop"
        labels = segment(wide)
        assert (labels[:, :64] == 255).all()
        assert (labels[:, 192:] == 255).all()
        assert (labels[:, 64:192] == segment(wide[:, 64:192])).all()
    with pytest.raises(UsageError, match="fit is"):
        export(nano, SIZE, "onnx", out=tmp_path, fit="middle")  # type: ignore[arg-type]


def test_what_a_killed_export_left_is_no_artifact_and_goes(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\nfrom rtseg.data.files import scratch_folder\n"
        "with scratch_folder(pathlib.Path(sys.argv[1]), 'export') as folder:\n"
        "    (folder / 'half.onnx').write_bytes(b'half')\n"
        "    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    (theirs,) = tmp_path.iterdir()
    with scratch_folder(tmp_path, "export") as ours:
        assert set(tmp_path.iterdir()) == {theirs, ours}  # one that is at work is left alone
    run.send_signal(signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + 10
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        with scratch_folder(tmp_path, "export"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_label_of_the_proof_is_one_line(tmp_path: Path) -> None:
    for folder in ("frames", "labels"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "frames/a.png"), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "labels/a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png is damaged or not an image"):
        read_frames(tmp_path / "frames", tmp_path / "labels")
