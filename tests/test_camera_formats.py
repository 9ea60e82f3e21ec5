"""A camera's bytes straight into the graph: against OpenCV, in every backend, through the drive."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from rtseg.data.camera import Camera
from rtseg.data.camera_formats import FORMATS, check_format, from_bgr, to_bgr
from rtseg.data.frames import Frame
from rtseg.data.letterbox import fit_frame
from rtseg.data.playback import Paced, request_format
from rtseg.data.scenes import scene
from rtseg.errors import ExportError, ProofError, UsageError
from rtseg.export import camera_input, export
from rtseg.export.parity import open_session
from rtseg.models.loading import Model
from rtseg.runtime import Drive, Result, Segmenter, load
from rtseg.runtime.artifact import Card
from rtseg.runtime.verify import Reference
from speed_parts import CARD

SIZE = (64, 96)
CAMERAS = {  # name: size of the picture, of the network, and how one comes to the other
    "same": (SIZE, SIZE, "stretch"),
    "black below": ((108, 192), SIZE, "letterbox"),
    "black beside": ((96, 96), SIZE, "letterbox"),
    "gray around": ((108, 192), SIZE, "letterbox_center"),
    "a color around": ((96, 96), SIZE, "letterbox_center"),
    "middle": ((60, 200), SIZE, "crop"),
    "larger": ((38, 70), SIZE, "stretch"),
}


PADS = {"gray around": (114, 114, 114), "a color around": (250, 3, 114)}


def card_of(kind: str, camera: str = "same", batch: int = 1) -> Card:
    picture, size, fit = CAMERAS[camera]
    facts = {"size": size, "input": kind, "fit": fit, "batch": batch, "pad_color": PADS.get(camera)}
    return CARD.model_copy(update=facts | {"camera_size": None if camera == "same" else picture})


def start_of_graph(size: tuple[int, int]) -> onnx.ModelProto:
    """What every graph of ours begins with, and its pixels as they are."""
    nodes = [
        helper.make_node("Cast", ["frame"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Identity", ["planes"], ["pixels"]),
    ]
    inputs = [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, *size, 3])]
    outputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, *size])]
    graph = helper.make_graph(nodes, "start", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def noise(shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(3).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_graphs_pixels_are_opencvs(kind: str, camera: str) -> None:
    card = card_of(kind, camera)
    graph = camera_input.take_camera(start_of_graph(card.size), card)
    # Noise has every value beside every other: nothing is hidden by smooth surfaces.
    frame = noise(card.frame_shape)
    (pixels,) = open_session(graph).run(["pixels"], {"frame": frame[None]})
    expected = fit_frame(to_bgr(frame, card.input), card.size, card.fit, card.pad_color)
    error = np.abs(pixels[0].transpose(1, 2, 0) - expected)
    assert error.max() <= 1
    # Color conversion is exact; OpenCV rounds the weights of its resize.
    assert (error > 0).mean() <= (0.2 if card.camera_size else 0)
    assert camera_input.find_conversion_faults(graph, [frame], card) == []


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("kind", FORMATS)
def test_pytorchs_pixels_are_opencvs(kind: str, camera: str) -> None:
    torch = pytest.importorskip("torch")
    from rtseg.runtime.camera_torch import CameraFrames

    card = card_of(kind, camera, batch=2)
    frames = noise(card.input_shape)
    pixels = CameraFrames(card)(torch.from_numpy(frames)).numpy()
    assert (pixels.dtype, pixels.shape) == (np.uint8, (2, *SIZE, 3))
    for frame, ours in zip(frames, pixels, strict=True):
        expected = fit_frame(to_bgr(frame, card.input), card.size, card.fit, card.pad_color)
        error = np.abs(ours.astype(int) - expected)
        assert error.max() <= 1
        assert (error > 0).mean() <= (0.2 if card.camera_size else 0)


def test_every_frame_of_a_batch_is_converted() -> None:
    for kind in ("nv12", "uyvy", "bayer_gbrg"):
        card = card_of(kind, "larger", batch=2)
        graph = camera_input.take_camera(start_of_graph(card.size), card)
        frames = noise(card.input_shape)
        (pixels,) = open_session(graph).run(["pixels"], {"frame": frames})
        for frame, ours in zip(frames, pixels, strict=True):
            theirs = fit_frame(to_bgr(frame, card.input), card.size, card.fit, card.pad_color)
            assert np.abs(ours.transpose(1, 2, 0) - theirs).max() <= 1


def test_colors_that_are_wrong_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    card = card_of("nv12")
    monkeypatch.setattr(camera_input, "LUMA", camera_input.LUMA * 1.02)
    graph = camera_input.take_camera(start_of_graph(card.size), card)
    faults = camera_input.find_conversion_faults(graph, [noise(card.frame_shape)], card)
    assert "colors are off from OpenCV's by 6 levels" in faults[0]


def test_a_graph_that_begins_otherwise_is_refused() -> None:
    graph = start_of_graph(SIZE)
    graph.graph.node[1].op_type = "Identity"
    with pytest.raises(ExportError, match="does not begin with a Transpose of 'floats'"):
        camera_input.take_camera(graph, card_of("nv12"))


@pytest.mark.parametrize("kind", FORMATS)
def test_pictures_as_a_camera_gives_them_come_back(kind: Any) -> None:
    """A gray ramp has no chroma to lose, and one color is the same at every pixel."""
    ramp = np.repeat(np.linspace(20, 230, 96).astype(np.uint8)[None, :, None], 64, axis=0)
    blue = np.broadcast_to(np.array([200, 60, 30], np.uint8), (64, 96, 3))
    for picture, most in ((np.repeat(ramp, 3, axis=2), 3), (np.ascontiguousarray(blue), 2)):
        back = to_bgr(from_bgr(picture, kind), kind).astype(int)
        assert np.abs(back - picture).max() <= most


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("nv12", (63, 96), "nv12 has even sides, not 63x96"),
        ("yuyv", (64, 95), "even sides"),
        ("bayer_rggb", (63, 96), "even sides"),
        ("p010", (64, 96), "input is bgr, nv12"),
    ],
)
def test_formats_have_the_sizes_that_they_can(
    kind: str, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_format(kind, size)
    check_format("yuyv", (63, 96))  # which shares chroma in a row only


@pytest.fixture(scope="module")
def made(nano: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """csfcn_nano of an NV12 camera of another size and aspect."""
    out = tmp_path_factory.mktemp("nv12")
    # On frames of the camera's own size: of a network this far below its training's size one gray
    # level of a photograph's resizing moves more labels than the bar allows.
    drawn = [(str(index), scene((108, 192), index)) for index in range(3)]
    artifacts = export(
        nano, (64, 128), ["onnx", "openvino"], "fp32", out=out, input="nv12",
        camera_size=(108, 192), frames=drawn,
    )  # fmt: skip
    assert [a.status for a in artifacts] == ["proven", "proven"]
    return {artifact.target: artifact.path for artifact in artifacts}


def test_artifacts_are_named_by_their_camera(made: dict[str, Path]) -> None:
    assert made["onnx"].name == "csfcn_nano_64x128_fp32_nv12_from_108x192.onnx"
    report = json.loads((made["onnx"].parent / "report.json").read_text())
    assert report[made["onnx"].name]["runs"][0]["agreement"] >= 0.9999


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_labels_are_those_of_the_picture(
    backend: str, made: dict[str, Path], nano: Model, tmp_path: Path
) -> None:
    """From NV12, and through the artifact of BGR from what OpenCV makes of it."""
    (plain,) = export(nano, (64, 128), "onnx", out=tmp_path)
    path = made["openvino" if backend == "openvino" else "onnx"]
    with load(path, backend, "cpu") as segment, load(plain.path) as of_bgr:
        frame = segment.card.encode(scene((108, 192), 5))
        assert (segment.card.frame_shape, frame.shape) == ((162, 192), (162, 192))
        labels, expected = segment(frame), of_bgr(to_bgr(frame, "nv12"))
        assert labels.shape == (108, 192)
        # OpenCV's own resize differs by a level here and there.
        assert (labels == expected).mean() > 0.99


def test_frames_of_another_shape_are_told(made: dict[str, Path]) -> None:
    with load(made["onnx"]) as segment:
        for frame in (scene((108, 192), 0), noise((160, 192)), np.zeros((162, 192), np.float32)):
            with pytest.raises(UsageError, match=r"takes nv12 frames of a 108x192 camera, uint8 "):
                segment(frame)
        # Pictures are for `label_picture`, of any size.
        assert segment.label_picture(scene((90, 120), 0)).shape == (90, 120)


def test_pytorchs_colors_that_are_wrong_fail_the_proof(
    nano: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rtseg.runtime import camera_torch

    monkeypatch.setattr(camera_torch, "LUMA", round(camera_torch.LUMA * 1.02))
    with pytest.raises(ProofError, match=r"frame 0's colors are off from OpenCV's by \d levels"):
        export(nano, (64, 128), "torch", "fp32", out=tmp_path, input="nv12")


@pytest.mark.parametrize("kind", ["bgr", "nv12", "yuyv", "bayer_gbrg"])
@pytest.mark.parametrize("argmax", ["graph", "runtime"])
def test_torch_artifacts_take_a_cameras_bytes(
    kind: Any, argmax: str, nano: Model, tmp_path: Path
) -> None:
    """Converted on the network's device; the labels are those of the graph that does it."""
    if argmax == "runtime":
        pytest.importorskip("numba")
    ours, graph = export(
        nano, (64, 128), ["torch", "onnx"], "fp32", out=tmp_path, input=kind, camera_size=(108, 192)
    )
    assert ours.status == "proven"
    with load(ours.path, "torch", "cpu", argmax=argmax) as segment, load(graph.path) as other:
        frame = segment.card.encode(scene((108, 192), 5))
        assert frame.shape == segment.card.frame_shape
        labels = segment(frame)
        assert labels.shape == (108, 192)
        assert (labels == other(frame)).mean() > 0.999


def test_references_of_every_format_travel(tmp_path: Path) -> None:
    for kind in FORMATS:
        card = card_of(kind)
        frames = noise((2, *card.frame_shape))
        labels = noise((2, *SIZE))
        Reference(frames, labels, labels, ("a", "b")).save(tmp_path / "r.npz")
        back = Reference.load(tmp_path / "r.npz")
        assert np.array_equal(back.frames.reshape(2, *card.frame_shape), frames)


def test_an_engine_is_built_of_every_format(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from rtseg.export.tensorrt import build_engine

    for kind, camera in (("nv12", "middle"), ("yuyv", "larger"), ("bayer_grbg", "black below")):
        card = card_of(kind, camera)
        path = tmp_path / "graph.onnx"
        graph = camera_input.take_camera(start_of_graph(card.size), card)
        path.write_bytes(graph.SerializeToString())
        built = build_engine(path, tmp_path / "net.engine", card)
        assert built.card.input == kind
        # No slice with bounds that TensorRT would compute, at two dozen layers each.
        assert built.card.engine is not None
        assert built.card.engine.layers < 70


class Recorded:
    """OpenCV's capture of a V4L2 camera, as drivers hand frames over without its conversion."""

    def __init__(self, images: list[Any]):
        self.images, self.settings = images, {}  # type: ignore[var-annotated]

    def isOpened(self) -> bool:
        return True

    def set(self, name: int, value: float) -> bool:
        self.settings[name] = value
        return True

    def get(self, name: int) -> float:
        return self.settings.get(name, 0)

    def grab(self) -> bool:
        return bool(self.images)

    def retrieve(self) -> tuple[bool, Any]:
        return True, self.images.pop(0)

    def getBackendName(self) -> str:
        return "V4L2"

    def release(self) -> None: ...


@pytest.mark.parametrize("kind", ["nv12", "yuyv", "bayer_bggr"])
def test_a_camera_gives_its_bytes(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = from_bgr(scene(SIZE, 1), kind)
    driver = Recorded([frame.reshape(1, -1), frame, frame[:-2]])
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: driver)
    came = iter(Camera("0", kind, SIZE))
    for _ in range(2):
        got = next(came)
        assert got.format == kind
        assert np.array_equal(got.image, frame)
    with pytest.raises(OSError, match=f"are no 64x96 in {kind}"):
        next(came)
    assert driver.settings[cv2.CAP_PROP_CONVERT_RGB] == 0


def test_sources_that_have_only_bgr_are_told() -> None:
    with pytest.raises(UsageError, match=r"drive\.mp4 gives pictures in BGR, and the model takes"):
        request_format(Paced([], 0, where="drive.mp4"), "nv12", SIZE)
    with pytest.raises(UsageError, match="is decoded to BGR, not to nv12"):
        request_format(Camera("rtsp://x"), "nv12", SIZE)
    asked = request_format(Camera("0"), "nv12", SIZE)
    assert isinstance(asked, Camera)
    assert (asked.format, asked.size) == ("nv12", SIZE)


class Stamped:
    """A source of fresh frames in one format."""

    def __init__(self, frames: list[Any], kind: Any):
        self.frames, self.kind = frames, kind

    recorded, restarts = True, False

    def __iter__(self) -> Any:
        import time

        for index, image in enumerate(self.frames):
            yield Frame(image, index, time.monotonic_ns(), format=self.kind)


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "worker"])
def test_a_drive_takes_the_cameras_bytes(made: dict[str, Path], inline: bool) -> None:
    messages: list[Any] = []
    frames = [from_bgr(scene((108, 192), seed), "nv12") for seed in range(3)]
    segment: Segmenter = load(made["onnx"])
    drive = Drive(
        Stamped(frames, "nv12"),
        segment if inline else made["onnx"],
        [messages.append],
        every_frame=True,
    )
    drive.run(60)
    results = [each for each in messages if isinstance(each, Result)]
    assert len(results) == 3
    for frame, result in zip(frames, results, strict=True):
        assert np.array_equal(result.labels, segment(frame))
        assert np.array_equal(result.image, to_bgr(frame, "nv12"))


def test_a_drive_of_a_camera_in_bgr_is_told(made: dict[str, Path]) -> None:
    pictures = Stamped([scene((108, 192), 0)], "bgr")
    drive = Drive(pictures, load(made["onnx"]), every_frame=True)
    drive.run(30)
    (skipped,) = drive.loop.capture.skipped or [SimpleNamespace(reason="")]
    assert "delivers bgr, and the model takes nv12: export it with --input bgr" in skipped.reason


def test_raw_frames_reach_an_artifact_of_bgr_as_pictures() -> None:
    seen: list[Any] = []

    def segment(image: Any) -> Any:
        seen.append(image)
        return np.zeros(image.shape[:2], np.uint8)

    frame = from_bgr(scene(SIZE, 2), "yuyv")
    Drive(Stamped([frame], "yuyv"), segment, every_frame=True).run(30)
    assert np.array_equal(seen[0], to_bgr(frame, "yuyv"))


def test_predict_converts_pictures(made: dict[str, Path], rtseg: Any, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), scene((90, 160), 1))
    done = rtseg("predict", tmp_path / "a.png", "--model", made["onnx"], "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    labels = cv2.imread(str(tmp_path / "out" / "labels" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (90, 160)
    done = rtseg("drive", tmp_path / "a.png", "--model", made["onnx"])
    assert done.returncode == 2
    assert "gives pictures in BGR" in done.stderr
    assert "Traceback" not in done.stderr


def test_bench_makes_frames_of_the_format(made: dict[str, Path]) -> None:
    from rtseg.speed.contestant import ArtifactContestant

    picture = scene((108, 192), 0)
    measured = ArtifactContestant.open(made["onnx"], "onnxruntime", [picture], device="cpu")
    try:
        measured.take_noise()
        measured.network()
        measured.time_stages()
        assert measured.label(picture).shape == (108, 192)
    finally:
        measured.close()
