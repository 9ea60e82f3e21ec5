"""Distillation: soft labels are exact under class maps and augmentation, and a student learns."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from rtseg.cli.app import app
from rtseg.data.classes import CAMVID, IGNORE
from rtseg.data.datasets import open_data
from rtseg.data.soft_labels import (
    FACTS,
    SoftLabels,
    load_class_map,
    read_probabilities,
)
from rtseg.data.transforms import Augment
from rtseg.errors import DataError, UsageError
from rtseg.models import load_checkpoint, save_checkpoint
from rtseg.models.loading import build_untrained, load_model
from rtseg.train.distill import SoftSource, soft_loss
from rtseg.train.loader import Stream
from rtseg.train.log import read_log
from rtseg.train.parallel import Place
from rtseg.train.predictor import Predictor
from rtseg.train.recipe import Teacher
from rtseg.train.state import start_classifier
from rtseg.train.trainer import BEST, LOG, STATE, train
from tiny_camvid import tiny_recipe, write_camvid, write_npz
from typer.testing import CliRunner

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory):
    """The same frames, of which `train` has no label files."""
    root = write_camvid(tmp_path_factory.mktemp("unlabeled"))
    for path in (root / "trainannot").glob("*.png"):
        path.unlink()
    return root


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    """A network with random weights that passes for a trained one."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_checkpoint(build_untrained("csfcn_nano", 11, seed=3), path, metadata={"classes": "camvid"})
    return path


# --- class maps


# --- augmentation


# --- the loss


def test_the_loss_is_the_divergence_worked_out_by_hand():
    logits = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1).repeat(1, 1, 1, 2)
    soft = torch.tensor([[102, 153, 0], [0, 0, 0]], dtype=torch.int16).T.reshape(1, 3, 1, 2)
    label = torch.full((1, 1, 2), IGNORE)
    student = torch.tensor([1.0, 0.0, -1.0]).softmax(0)
    expected = 0.4 * torch.log(0.4 / student[0]) + 0.6 * torch.log(0.6 / student[1])
    teacher = Teacher(source=("x",), stride=1)
    assert soft_loss(logits, soft, label, teacher) == pytest.approx(float(expected), rel=1e-5)


def test_temperature_softens_both_sides():
    logits = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    soft = torch.full((2, 5, 4, 4), 51, dtype=torch.int16)
    soft[:, 0] = 71
    soft[:, 1] = 31
    label = torch.full((2, 4, 4), IGNORE)
    p = (soft.double() / 255) ** (1 / 3)
    p = p / p.sum(1, keepdim=True)
    q = (logits.double() / 3).log_softmax(1)
    expected = 9 * (p * (p.log() - q)).sum(1).mean()
    hot = Teacher(source=("x",), stride=1, temperature=3)
    assert soft_loss(logits, soft, label, hot) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({}, [0, 1, 2, 3]),
        ({"where": "unlabeled"}, [3]),
        ({"where": "agree"}, [0, 3]),
        ({"confidence": 0.9}, [0, 1]),
    ],
)
def test_soft_labels_count_where_they_are_asked_to(changes, counted):
    soft = torch.tensor([[250, 5], [250, 5], [153, 102], [102, 153], [0, 0]], dtype=torch.int16)
    soft = soft.T.reshape(1, 2, 1, 5)
    label = torch.tensor([0, 1, 1, IGNORE, IGNORE]).view(1, 1, 5)
    logits = torch.randn(1, 2, 1, 5, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    teacher = Teacher(source=("x",), stride=1, **changes)
    soft_loss(logits, soft, label, teacher).backward()
    assert torch.nonzero(logits.grad.abs().sum(dim=(0, 1, 2)))[:, 0].tolist() == counted


def test_nothing_to_learn_is_no_loss():
    soft = torch.zeros((1, 2, 2, 2), dtype=torch.int16)
    label = torch.full((1, 4, 4), IGNORE)
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    value = soft_loss(logits, soft, label, Teacher(source=("x",)))
    value.backward()
    assert value == 0
    assert logits.grad.abs().max() == 0


# --- training


def agreement(folder, data, teacher):
    """Of the student in `folder` with the teacher's labels, on the frames of `data`."""
    ours, theirs = (Predictor(load_model(str(path)).network) for path in (folder, teacher))
    shares = [(ours(sample.image) == theirs(sample.image)).mean() for sample in data]
    return float(np.mean(shares))


def test_a_student_learns_its_teacher_from_frames_without_labels(unlabeled, teacher_file, tmp_path):
    recipe = tiny_recipe(
        unlabeled,
        optimizer={"kind": "adamw", "learning_rate": 0.01, "clip": 5.0},
        augment={"scale": [1, 1], "flip": 0.0, "brightness": 0.0, "crop": [40, 64]},
        schedule={"iterations": 60, "warmup": 5},
        teacher=str(teacher_file),
        val_size=[40, 64],
        val_every=60,
    )
    outcome = train(recipe, tmp_path, show=False)
    losses = [row["loss"] for row in read_log(tmp_path / LOG) if "loss" in row]
    assert outcome.finished
    assert np.mean(losses[-5:]) < 0.3 * losses[0]
    data = open_data("camvid", unlabeled, "train")
    data.labels_optional = True
    first = build_untrained("csfcn_nano", 11, seed=4)
    save_checkpoint(first, tmp_path / "first.safetensors", metadata={"classes": "camvid"})
    before = agreement(tmp_path / "first.safetensors", data, teacher_file)
    after = agreement(tmp_path / BEST, data, teacher_file)
    assert after > 0.7 > before


def test_soft_labels_on_disk_teach_as_the_model_that_wrote_them(camvid, teacher_file, tmp_path):
    changes = {"schedule": {"iterations": 3}, "teacher": {"source": str(teacher_file)}}
    train(tiny_recipe(camvid, **changes), tmp_path / "model", show=False)
    folder = tmp_path / "model" / "teacher" / "0"
    facts = json.loads((folder / FACTS).read_text())
    assert facts["model"] == str(teacher_file)
    assert len(facts["frames"]) == 6
    changes["teacher"] = {"source": str(folder)}
    train(tiny_recipe(camvid, **changes), tmp_path / "folder", show=False)
    losses = [
        [row["loss"] for row in read_log(tmp_path / run / LOG) if "loss" in row]
        for run in ("model", "folder")
    ]
    assert losses[0] == losses[1]


def test_ten_iterations_are_five_and_five_with_a_teacher(camvid, teacher_file, tmp_path):
    def recipe(stop):
        return tiny_recipe(
            camvid,
            data={"workers": 1, "cache": True, "repeat": {"frame_0": 3}},
            augment={"balanced": 0.5, "noise": 5.0, "jpeg": 0.5, "blur": 0.5, "blur_radius": 2.0},
            schedule={"iterations": 10, "stop": stop},
            teacher={"source": str(teacher_file), "temperature": 2.0},
            ema=0.9,
        )

    train(recipe(1.0), tmp_path / "whole", show=False)
    train(recipe(0.5), tmp_path / "halves", show=False)
    train(recipe(1.0), tmp_path / "halves", resume=True, show=False)
    whole, halves = (
        torch.load(tmp_path / run / STATE, weights_only=True) for run in ("whole", "halves")
    )
    for name, value in whole["average"].items():
        assert torch.equal(value, halves["average"][name]), name


def test_several_teachers_are_averaged(camvid, tmp_path):
    for folder, value in (("a", 200), ("b", 100)):
        for number in range(6):
            probabilities = np.zeros((11, 20, 32), np.uint8)
            probabilities[0] = value
            write_npz(tmp_path / folder, f"frame_{number}", probabilities)
    folders = [SoftLabels(tmp_path / each, CAMVID) for each in "ab"]
    source = SoftSource(folders, stride=2)
    augment = Augment(crop=(8, 16))
    image, label = np.zeros((40, 64, 3), np.uint8), np.zeros((40, 64), np.uint8)
    _, _, view = augment.augment(image, label, np.random.default_rng(0))
    cut = source.cut("frame_1", view)
    assert cut.shape == (11, 4, 8)
    assert (cut[0] == 150).all()
    assert (cut[1:] == 0).all()


def test_teachers_of_other_classes_and_of_the_data_s_own_go_together(
    camvid, teacher_file, tmp_path
):
    city, data = tmp_path / "city", open_data("camvid", camvid, "train")
    for index in range(len(data)):
        write_npz(city, data.name(index), np.full((19, 20, 32), 13, np.uint8))
    recipe = tiny_recipe(
        camvid,
        teacher={"source": [str(city), str(teacher_file)], "class_map": "cityscapes_to_camvid"},
    )
    source = SoftSource.open(recipe, data, tmp_path / "run", Place(0, 1, torch.device("cpu")))
    mapped, own = source.read(data.name(0))
    counts = np.bincount(load_class_map("cityscapes_to_camvid", CAMVID), minlength=11)
    assert (mapped == 13 * counts[:, None, None]).all()
    written = read_probabilities(tmp_path / "run" / "teacher" / "1" / f"{data.name(0)}.npz")
    assert np.array_equal(own, written)
    assert written.shape == (11, 20, 32)


@pytest.mark.parametrize("variant", ["csfcn_nano", "csfcn"], ids=["plain", "shuffle"])
def test_new_classes_start_as_the_ones_they_are_mapped_to(camvid, tmp_path, variant):
    """The classes' logits are the old ones', before the first step."""
    path = tmp_path / "old.safetensors"
    old = build_untrained(variant, 11)
    save_checkpoint(old, path, metadata={"classes": "camvid"})
    new = build_untrained(variant, 19, seed=5)
    load_checkpoint(new, path, "new")
    start_classifier(new, path, "cityscapes_to_camvid")
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = old.eval()(image), new.eval()(image)
    mapped = expected[:, load_class_map("cityscapes_to_camvid", CAMVID)]
    assert torch.allclose(found, mapped, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match="2 entries for 19 classes"):
        start_classifier(new, path, (0, 1))


# --- bad input


def test_soft_labels_for_other_frames_or_classes_say_so(camvid, tmp_path):
    write_npz(tmp_path / "other", "elsewhere", np.zeros((11, 2, 2), np.uint8))
    with pytest.raises(DataError, match="no soft labels for any frame"):
        train(tiny_recipe(camvid, teacher=str(tmp_path / "other")), tmp_path / "run", show=False)
    write_npz(tmp_path / "more", "frame_0", np.zeros((19, 20, 32), np.uint8))
    with pytest.raises(DataError, match="19 classes, not 11: give a class map"):
        train(tiny_recipe(camvid, teacher=str(tmp_path / "more")), tmp_path / "run", show=False)


def test_a_teacher_of_other_classes_asks_for_a_map(camvid, tmp_path):
    path = tmp_path / "city.safetensors"
    save_checkpoint(build_untrained("csfcn_nano", 19), path, metadata={"classes": "cityscapes"})
    with pytest.raises(UsageError, match=r"19 classes of cityscapes.*give teacher\.class_map"):
        train(tiny_recipe(camvid, teacher=str(path)), tmp_path / "run", show=False)
    recipe = tiny_recipe(
        camvid,
        schedule={"iterations": 1},
        teacher={"source": str(path), "class_map": "cityscapes_to_camvid"},
    )
    assert train(recipe, tmp_path / "run", show=False).finished


def test_a_network_without_weights_teaches_nothing(camvid, tmp_path):
    with pytest.raises(UsageError, match="random weights"):
        train(tiny_recipe(camvid, teacher="csfcn"), tmp_path / "run", show=False)


def test_an_unlabeled_frame_without_soft_labels_is_named(unlabeled, tmp_path):
    write_npz(tmp_path / "some", "frame_0", np.full((11, 20, 32), 23, np.uint8))
    with pytest.raises(DataError, match=r"frame_\d has no label"):
        train(tiny_recipe(unlabeled, teacher=str(tmp_path / "some")), tmp_path / "run", show=False)


def test_repeated_frames_come_that_often_in_every_epoch(camvid):
    recipe = tiny_recipe(camvid)
    data = open_data("camvid", camvid, "train")
    stream = Stream(data, recipe.augment, seed=1, repeat={"frame_2": 3})
    for epoch in range(3):
        taken = [data.name(stream.index(8 * epoch + i)) for i in range(8)]
        assert sorted(taken) == sorted([f"frame_{i}" for i in range(6)] + ["frame_2"] * 2)
    with pytest.raises(DataError, match=r"data\.repeat: no frame's name begins with 'x'"):
        Stream(data, recipe.augment, seed=1, repeat={"x": 3})


# --- writing


@pytest.fixture
def frames_folder(camvid, tmp_path):
    folder = tmp_path / "frames"
    shutil.copytree(camvid / "train", folder)
    (folder / "zz_damaged.png").write_bytes(b"no picture")
    return folder


def test_the_command_labels_a_folder_and_says_how_sure_it_was(
    frames_folder, teacher_file, tmp_path
):
    out = tmp_path / "soft"
    call = ["pseudo-label", str(teacher_file), str(frames_folder), "-o", str(out), "--json"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["skipped"] == ["zz_damaged.png"]
    assert sorted(facts["frames"]) == [f"frame_{i}" for i in range(6)]
    network = load_model(str(teacher_file)).network
    image = cv2.imread(str(frames_folder / "frame_2.png"))
    expected = Predictor(network).probabilities(image).reshape(11, 20, 2, 32, 2).mean((2, 4)) * 255
    written = read_probabilities(out / "frame_2.npz").astype(float)
    assert np.abs(written - expected).max() < 2.6  # rounded, and 0 below 3
    confidence = np.mean([facts["frames"][name] for name in facts["frames"]])
    assert facts["confidence"] == pytest.approx(confidence)
    shares = [row["share"] for row in facts["by_class"].values()]
    assert sum(shares) == pytest.approx(1)


def test_an_artifact_with_logits_labels_as_its_network_does(frames_folder, teacher_file, tmp_path):
    pytest.importorskip("onnxruntime")
    for output in ("both", "labels"):
        call = ["export", str(teacher_file), "--size", "40x64", "--to", "onnx", "--output", output]
        result = CliRunner().invoke(app, [*call, "-o", str(tmp_path / output)])
        assert result.exit_code == 0, result.output
    (both,), (labels,) = ((tmp_path / kind).glob("*.onnx") for kind in ("both", "labels"))
    for model, out in ((teacher_file, "a"), (both, "b")):
        call = ["pseudo-label", str(model), str(frames_folder), "-o", str(tmp_path / out)]
        result = CliRunner().invoke(app, call)
        assert result.exit_code == 0, result.output
    for path in (tmp_path / "a").glob("*.npz"):
        ours, theirs = read_probabilities(path), read_probabilities(tmp_path / "b" / path.name)
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 3
    call = ["pseudo-label", str(labels), str(frames_folder), "-o", str(tmp_path / "c")]
    result = CliRunner().invoke(app, call)
    assert isinstance(result.exception, UsageError)
    assert "--output both" in str(result.exception)
    assert not (tmp_path / "c").exists()
