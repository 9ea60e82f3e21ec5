"""A user's own preprocessing, part of the proof: from the camera's bytes to the labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx_files
import pytest
import torch
import torch.nn.functional as F
from conftest import Run
from numpy.typing import NDArray
from own_parts import IMAGENET, SIZE, Tiny, prepare
from rtseg import load_model
from rtseg.data.letterbox import restore_labels
from rtseg.data.scenes import scenes
from rtseg.errors import UsageError
from rtseg.export import export
from rtseg.export.artifacts import describe_next
from rtseg.export.reference import ProofFrames, run_reference
from rtseg.models.factories import load_function
from rtseg.models.loading import Model
from rtseg.models.own import Normalization
from rtseg.runtime import load, read_card
from rtseg.runtime.description import describe
from rtseg.train.predictor import Predictor
from torch import nn

Frame = NDArray[np.uint8]


def open_tiny(preprocess: Any, **options: Any) -> Model:
    torch.manual_seed(0)
    given: dict[str, Any] = {"fit": "stretch", "normalize": "imagenet", **options}
    return load_model(Tiny(), size=SIZE, classes="numbered", preprocess=preprocess, **given)


def with_fault(fault: Callable[[Frame], Frame], only: tuple[int, int]) -> Callable[[Frame], object]:
    """A preprocessing that is right on the frames that are drawn as a network is loaded, and has a
    fault on those of a size."""
    sound = prepare()

    def preprocess(frame: Frame) -> object:
        return sound(fault(frame) if frame.shape[:2] == only else frame)

    return preprocess


def test_the_card_says_that_it_was_checked(tmp_path: Path) -> None:
    frames = [(f"street {i}", scene) for i, scene in enumerate(scenes(4, (100, 140)))]
    (artifact,) = export(open_tiny(prepare()), out=tmp_path, frames=frames)
    found = artifact.card.preprocess
    assert found is not None
    assert (found.frames, found.agreement) == (4, 1.0)
    assert found.largest < 0.01
    assert artifact.as_dict()["preprocess"] == describe(artifact.path)["preprocess"]
    assert repr(artifact).splitlines() == [
        f"<Artifact {artifact.path}",
        "  tiny for onnx, fp32, 64x96",
        "  proven on 4 of 4 frames given>",
    ]
    assert describe_next([artifact], tmp_path).endswith(
        "; the weights that it came with, no --weights: if they are untrained, the proof shows "
        "equality, and the labels mean nothing"
    )
    assert export(open_tiny(None), out=tmp_path / "plain")[0].card.preprocess is None


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_the_reference_reads_what_it_makes(order: Any, tmp_path: Path) -> None:
    """Its very numbers: a difference that float32's rounding hides still reaches the network."""
    sound = prepare(order=order)
    model = open_tiny(
        lambda frame: sound(frame) + 1e-4,
        normalize=Normalization(IMAGENET.mean, IMAGENET.std, order),
    )
    frames = [("street", scenes(1, SIZE)[0])]
    given = run_reference(
        *(model.network, ProofFrames(frames), SIZE, "stretch"), preprocess=model.preprocess
    )
    image = sound(frames[0][1]) + 1e-4
    wanted = F.interpolate(model.network.module(image), SIZE, mode="bilinear")[0]  # type: ignore[operator]
    assert given.logits[0] is not None
    np.testing.assert_allclose(given.logits[0], wanted.detach().numpy(), rtol=0, atol=1e-6)
    assert export(model, out=tmp_path, frames=frames)[0].status == "proven"


def test_a_resize_in_float_is_told_and_passes(tmp_path: Path) -> None:
    """OpenCV rounds to bytes, PyTorch does not: neither is a fault, of less than a level."""

    def in_float(frame: Frame) -> torch.Tensor:
        image = torch.from_numpy(frame[..., ::-1].transpose(2, 0, 1).copy())[None].float()
        image = F.interpolate(image, SIZE, mode="bilinear") / 255
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
        return (image - mean) / std

    for size in ((100, 140), (40, 60)):  # larger frames, and frames that are enlarged
        frames = [("street", scenes(1, size)[0])]
        (artifact,) = export(open_tiny(in_float), out=tmp_path, frames=frames)
        found = artifact.card.preprocess
        assert found is not None
        assert 0.1 < found.largest <= 1.05
        assert 0.9 < found.agreement < 1


FAULTS: dict[str, tuple[Callable[[Frame], Frame], str]] = {
    "order": (lambda frame: frame[..., ::-1], "order: yours is bgr, this export's rgb"),
    "resize": (
        lambda frame: cv2.resize(frame, SIZE[::-1], interpolation=cv2.INTER_NEAREST),  # type: ignore[return-value]
        "resize: yours is nearest, this export's bilinear",
    ),
    "a mask": (lambda frame: frame * (np.arange(len(frame)) < 80)[:, None, None].astype(np.uint8),
               "resize: no way known here explains yours (51% of it is left)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_on_the_proofs_frames_is_named_and_nothing_is_written(
    kind: str, tmp_path: Path
) -> None:
    fault, says = FAULTS[kind]
    size = (100, 140)
    model = open_tiny(with_fault(fault, size))
    frames = [("street 1", scenes(1, size)[0])]
    with pytest.raises(UsageError, match="'street 1' of 100x140: ") as error:
        export(model, out=tmp_path / "out", frames=frames)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*"))


def test_the_cameras_own_format_is_proven_from_its_picture(tmp_path: Path) -> None:
    """It takes the picture that the camera gives, before the export's resize."""
    seen: list[tuple[int, ...]] = []
    sound = prepare()

    def preprocess(frame: Frame) -> object:
        seen.append(frame.shape[:2])
        return sound(frame)

    model = open_tiny(preprocess)
    seen.clear()
    (artifact,) = export(model, out=tmp_path, input="nv12", camera_size=(128, 192))
    assert set(seen) == {(128, 192)}
    assert artifact.card.preprocess is not None
    assert artifact.card.preprocess.largest <= 1.05


def test_gray_beside_the_frame_is_exported_and_proven_from_the_cameras_bytes(
    rtseg: Run, tmp_path: Path
) -> None:
    """As Ultralytics does it: in the middle, over gray."""
    (tmp_path / "nets.py").write_text(NETS + GRAY)
    command = [
        *("export", "nets.py:make", "--classes", "numbered", "--normalize", "unit"),
        *("--size", "64x96", "--preprocess", "nets.py:letterbox", "-o", "out"),
    ]
    done = rtseg(*command, cwd=tmp_path)
    assert done.returncode == 2
    mends = ["--fit", "letterbox_center", "--pad-color", "114,114,114"]
    assert f"export it with {' '.join(mends)} (in Python" in done.stderr
    assert not (tmp_path / "out").exists()
    camera = ["--input", "nv12", "--camera-size", "108x192"]
    done = rtseg(*command, *mends, *camera, "--to", "onnx", "--to", "openvino", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "your preprocessing gives what this export does on 3 frames" in done.stderr
    labels = []
    for path in [*(tmp_path / "out").glob("*.onnx"), *(tmp_path / "out").glob("*.xml")]:
        card = read_card(path)
        assert (card.fit, card.pad_color) == ("letterbox_center", (114, 114, 114))
        assert describe(path)["pad_color"] == [114, 114, 114]
        with load(path) as segment:
            labels.append(segment(card.encode(scenes(1, (108, 192))[0])))
    assert labels[0].shape == labels[1].shape == (108, 192)
    assert (labels[0] == labels[1]).mean() > 0.99


@pytest.mark.parametrize("one_file", [False, True])
def test_one_that_takes_a_size_is_held_against_every_size(tmp_path: Path, one_file: bool) -> None:
    sizes = [SIZE, (96, 144)]
    asked: set[tuple[int, int]] = set()

    def preprocess(frame: Frame, size: tuple[int, int]) -> object:
        asked.add(size)
        image = cv2.resize(frame, size[::-1])[..., ::-1].astype(np.float32) / 255
        if size == fault:
            image = image[..., ::-1]
        return ((image - IMAGENET.mean) / IMAGENET.std).transpose(2, 0, 1)

    fault = (0, 0)
    model = open_tiny(preprocess)
    assert asked == {SIZE}
    made = export(model, sizes, out=tmp_path, one_file=one_file)
    assert asked == set(sizes)
    for artifact in made:
        assert artifact.card.preprocess is not None
        assert artifact.card.preprocess.largest < 0.01
    fault = sizes[1]
    with pytest.raises(UsageError, match="order: yours is bgr, this export's rgb"):
        export(model, sizes, out=tmp_path / "none", one_file=one_file)
    assert not (tmp_path / "none").exists()


def test_one_of_a_single_size_is_told_before_anything_is_built(tmp_path: Path) -> None:
    model = open_tiny(prepare())
    for sizes in ([SIZE, (96, 144)], (96, 144)):
        with pytest.raises(UsageError, match=r"pictures of 96x144 too: .*\(frame, size\)") as error:
            export(model, sizes, out=tmp_path / "none")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("fit", ["letterbox", "letterbox_center"])
@pytest.mark.parametrize("color", [(114, 114, 114), (10, 200, 30)])
def test_labels_are_the_networks_of_the_users_own_picture(
    fit: Any, color: Any, tmp_path: Path
) -> None:
    own = prepare(pad=True, middle=fit == "letterbox_center", color=color[::-1])
    model = open_tiny(own, fit=fit, pad_color=color)
    frames = [("wide", scenes(1, (60, 200))[0]), ("high", scenes(2, (200, 90))[1])]
    (artifact,) = export(model, out=tmp_path, frames=frames)
    assert artifact.card.preprocess is not None
    assert artifact.card.preprocess.largest < 0.01
    wide = frames[0][1]
    logits = F.interpolate(model.network.module(own(wide)), SIZE, mode="bilinear")[0]  # type: ignore[operator]
    labels = logits.argmax(0).numpy().astype(np.uint8)
    expected = restore_labels(labels, (60, 200), fit)
    with load(artifact.path) as segment:
        assert (segment(wide) == expected).mean() > 0.999
    # As `rtseg eval` of the network in PyTorch, whose resize does not round to bytes.
    found = Predictor(model.network, SIZE, aspect=fit, pad_color=color, flip=True)
    assert (found(wide) == expected).mean() > 0.9


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda frame: 1 / 0, r"fails on a frame of 96x144: ZeroDivisionError.*test_preprocess"),
        (lambda frame: prepare()(frame) * np.nan, "gives NaN"),
        (lambda frame: "text", "your preprocess fails"),
    ],
)
def test_one_that_cannot_be_run_is_told(function: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        open_tiny(function)


def test_one_that_writes_into_its_frame_changes_nothing(tmp_path: Path) -> None:
    sound = prepare()

    def preprocess(frame: Frame) -> object:
        found = sound(frame)
        frame[:] = 0
        return found

    assert export(open_tiny(preprocess), out=tmp_path)[0].status == "proven"


PREPARE = """
import cv2
import numpy as np

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])

def prepare(frame):
    image = cv2.resize(frame, (96, 64))[..., ::-1].astype(np.float32) / 255
    return ((image - MEAN) / STD).transpose(2, 0, 1)

def swapped(frame):
    return prepare(frame)[::-1]

def last(frame):
    return prepare(frame).transpose(1, 2, 0)[None]
"""
GRAY = """
import cv2
import numpy as np

def letterbox(frame, size=(64, 96)):
    factor = min(size[0] / frame.shape[0], size[1] / frame.shape[1])
    height, width = round(frame.shape[0] * factor), round(frame.shape[1] * factor)
    image = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
    down, across = (size[0] - height) / 2, (size[1] - width) / 2
    top, bottom = round(down - 0.1), round(down + 0.1)
    left, right = round(across - 0.1), round(across + 0.1)
    image = cv2.copyMakeBorder(
        image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114, 114, 114)
    )
    return image[..., ::-1].transpose(2, 0, 1).astype(np.float32) / 255
"""
NETS = """from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))
"""


def test_the_command_takes_it_for_a_module_and_for_a_file(rtseg: Run, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS + PREPARE)
    onnx_files.write_paddle(tmp_path / "theirs.onnx")
    rest = ["--classes", "numbered", "--normalize", "imagenet", "--size", "64x96", "-o", "out"]
    for what in ("nets.py:make", "theirs.onnx"):
        command = ["export", what, *rest, "--fit", "stretch", "--preprocess"]
        done = rtseg(*command, "nets.py:swapped", cwd=tmp_path)
        assert done.returncode == 2
        assert "order: yours is bgr, this export's rgb" in done.stderr
        assert not (tmp_path / "out").exists()
        done = rtseg(*command, "nets.py:prepare", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "your preprocessing gives what this export does on 3 frames" in done.stderr
        (path,) = (tmp_path / "out").glob("*.onnx")
        card = read_card(path)
        assert (card.fit, card.preprocess and card.preprocess.frames) == ("stretch", 3)
        with load(path) as segment:
            assert segment(scenes(1, (100, 150))[0]).shape == (100, 150)
        for each in (tmp_path / "out").iterdir():
            each.unlink()
        (tmp_path / "out").rmdir()
    done = rtseg("export", "csfcn_nano", "--preprocess", "nets.py:prepare", cwd=tmp_path)
    assert done.returncode == 2
    assert "preprocess are for modules of your own" in done.stderr


def test_channels_may_come_last(tmp_path: Path) -> None:
    (tmp_path / "prepares.py").write_text(PREPARE)
    torch.manual_seed(0)
    model = load_model(
        nn.Conv2d(3, 4, 3, 2, 1), size=SIZE, classes="numbered", normalize="imagenet",
        fit="stretch", preprocess=f"{tmp_path}/prepares.py:last",
    )  # fmt: skip
    assert model.preprocess is not None
    assert np.shape(model.preprocess(scenes(1, SIZE)[0])) == (1, *SIZE, 3)


def test_a_function_is_named_like_a_factory(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(PREPARE)
    for what, says in {
        f"{tmp_path}/nets.py:nothing": "has no function 'nothing'",
        "prepare": "a function is named package.module:callable",
        f"{tmp_path}/none.py:prepare": "there is no file",
    }.items():
        with pytest.raises(UsageError, match=says):
            load_function(what)
