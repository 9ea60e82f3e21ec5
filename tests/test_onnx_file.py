"""Anybody's ONNX file: taken as others' exporters write it, proven against itself, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnx_files as files
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from conftest import Run, as_json
from odd_files import CLASSES, SIZE, Write, save, two_outputs
from onnx import TensorProto, helper
from rtseg import bench, load, load_model
from rtseg.api import open_labeler
from rtseg.data.classes import ClassSet
from rtseg.data.scenes import scenes
from rtseg.errors import ArtifactError, ExportError, ProofError, UsageError
from rtseg.export import export
from rtseg.export.graph import census, find_coarse, to_onnx
from rtseg.export.half import to_half
from rtseg.models.loading import Model
from rtseg.models.own import NORMALIZATIONS, Normalization
from rtseg.runtime import read_card
from rtseg.speed.config import BenchConfig
from rtseg.speed.plain_exports import write_plain_export
from rtseg.speed.plan import plan


def torch_file(dynamo: bool = True, dynamic: bool = False, **net: Any) -> Write:
    return lambda path: files.write_torch(path, files.Net(**net), dynamo, dynamic)


FILES: dict[str, Write] = {
    "torch, logits at 1/4": torch_file(),
    "torch, resized": torch_file(ends="resized"),
    "torch, logits at 1/8": torch_file(stride=8),
    "torch, resized from 1/8": torch_file(ends="resized", stride=8),
    "torch, ids at 1/8, any size": torch_file(dynamic=True, ends="ids", stride=8),
    "TorchScript, resized from 1/8": torch_file(False, ends="resized", stride=8),
    "torch, argmax, any size": torch_file(dynamic=True, ends="argmax"),
    "torch, sigmoid of one": torch_file(classes=1, ends="sigmoid"),
    "torch, sigmoids": torch_file(ends="sigmoid"),
    "TorchScript, softmax, aligned": torch_file(False, ends="softmax", corners=True),
    "TorchScript, softmax, any size": torch_file(False, True, ends="softmax"),
    "Paddle": files.write_paddle,
    "TensorFlow, softmax": files.write_tensorflow,
    "TensorFlow, ids": lambda path: files.write_tensorflow(path, "ids"),
    "Ultralytics, logits": files.write_ultralytics,
    "Ultralytics, class map": lambda path: files.write_ultralytics(path, "labels"),
}


NORMS = {
    "imagenet": NORMALIZATIONS["imagenet"],
    "bgr": Normalization((100.0, 110.0, 120.0), (50.0, 60.0, 70.0), "bgr", scale=1.0),
}


def plain_labels(path: Path, frame: np.ndarray[Any, Any], how: Normalization) -> Any:
    """What the file says of a frame, as its user would write it: labels, at the file's stride."""
    image = frame.astype(np.float32)
    image = image[..., ::-1] if how.order == "rgb" else image
    image = (image * np.float32(how.scale) - np.float32(how.mean)) / np.float32(how.std)
    session = onnxruntime.InferenceSession(str(path))
    (wanted,) = session.get_inputs()
    if wanted.shape[3] != 3:
        image = image.transpose(2, 0, 1)
    (found,) = session.run(None, {wanted.name: np.ascontiguousarray(image[None])})
    if found.ndim == 4 and found.shape[3] == CLASSES:
        found = found.transpose(0, 3, 1, 2)
    if found.dtype != np.float32:
        return found.reshape(found.shape[-2:] if found.shape[-1] != 1 else found.shape[1:3])
    if found.shape[1] == 1:
        return (found[0, 0] > 0.5).astype(np.int64)
    full = F.interpolate(torch.from_numpy(found), SIZE, mode="bilinear")
    return full.argmax(1)[0].numpy()


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("write", FILES.values(), ids=FILES)
def test_files_of_others_are_exported_as_they_are(
    write: Write, norm: Normalization, tmp_path: Path
) -> None:
    path = write(tmp_path / "theirs.onnx")
    model = load_model(path, size=SIZE, classes="numbered", normalize=norm)
    (artifact,) = export(model, out=tmp_path / "out")
    assert (artifact.status, artifact.card.model) == ("proven", "theirs")
    assert len(artifact.card.classes) == max(2, model.network.form.channels)
    assert artifact.card.macs > 0
    assert artifact.card.params > 0
    (frame,) = scenes(1, SIZE, seed=5)
    with load(artifact.path) as segment:
        labels = segment(frame)
    theirs = plain_labels(path, frame, norm)
    stride = SIZE[0] // theirs.shape[0]
    if stride > 1:  # a class map of cells, whose centers lie between our pixels
        center = (stride - 1) // 2
        agree = (labels[center::stride, center::stride] == theirs).mean()
        assert agree > 0.95
    else:
        assert (labels == theirs).mean() > 0.9999
    assert len(np.unique(labels)) > 1


@pytest.mark.parametrize("name", [n for n in FILES if n != "torch, sigmoids"])
def test_the_last_resize_is_left_to_the_argmax(name: str, tmp_path: Path) -> None:
    model = load_model(
        FILES[name](tmp_path / "a.onnx"), size=SIZE, classes="numbered", normalize="unit"
    )
    graph = to_onnx(model.network, SIZE, "fp32", ("labels",))
    coarse = find_coarse(graph)
    assert coarse is not None
    assert coarse.upsampling == ("bilinear_aligned" if "aligned" in name else "bilinear")
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("Resize") == 1
    assert not {"Softmax", "Sigmoid", "Shape", "Slice"} & set(kinds)
    # Normalization is in the first convolution, transposes of channels-last files are gone.
    assert kinds[: kinds.index("Conv")] == ["Cast", "Transpose", "Concat", "Concat"]
    assert kinds.count("Transpose") == 1


@pytest.mark.parametrize("name", ["Paddle", "TensorFlow, softmax"])
def test_every_target_in_half(name: str, tmp_path: Path) -> None:
    model = load_model(
        FILES[name](tmp_path / "a.onnx"), size=SIZE, classes="numbered", normalize="imagenet"
    )
    made = export(model, to=["onnx", "openvino"], precision="fp16", out=tmp_path)
    assert [artifact.status for artifact in made] == ["proven", "proven"]
    held = made[0].results[0].census
    assert held["float16"] > 1000
    assert "float" not in held


def test_an_engine_is_built(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs a TensorRT builder")
    model = load_model(
        files.write_paddle(tmp_path / "a.onnx"), size=SIZE, classes="numbered", normalize="imagenet"
    )
    (engine,) = export(model, to="tensorrt", precision="fp16", out=tmp_path)
    assert engine.status in ("built, not proven", "proven")


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("street")
    for place, scene in enumerate(scenes(24, (120, 200), seed=9)):
        cv2.imwrite(str(folder / f"{place:03}.png"), scene)
    return folder


def test_int8(street: Path, nano: Model, tmp_path: Path) -> None:
    path = write_plain_export(nano, (96, 160))  # of a trained network, from float image to int64
    model = load_model(path, classes="camvid", normalize="imagenet", name="theirs")
    (artifact,) = export(model, precision="int8", calib=street, out=tmp_path)
    assert artifact.status == "proven"
    facts = artifact.card.int8
    assert facts is not None
    assert facts.layers >= 2
    assert facts.share > 0.5


def test_a_wrong_graph_is_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is the file itself: a fault of the wrapping shows in the proof."""
    from rtseg.export import wrap

    right = wrap.fold_into

    def wrong(*given: Any) -> None:
        *before, flips, size = given
        right(*before, not flips, size)

    monkeypatch.setattr(wrap, "fold_into", wrong)
    model = load_model(
        files.write_paddle(tmp_path / "a.onnx"), size=SIZE, classes="numbered", normalize="imagenet"
    )
    with pytest.raises(ProofError, match="below the parity bar"):
        export(model, out=tmp_path)


def bytes_in(path: Path) -> Path:
    """A file that normalizes by itself, from uint8 with channels last."""
    node = helper.make_node
    nodes = [
        node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        node("Mul", ["planes", "unit"], ["scaled"]),
        *files.body("scaled"),
        node("ArgMax", ["logits_4"], ["y"], axis=1, keepdims=0),
    ]
    unit = {"unit": np.array(1 / 255, np.float32)}
    shape = [2, *SIZE, 3]
    return save(
        path, nodes, [2, 16, 24], image=shape, reads=TensorProto.UINT8, constants=unit, kind=7
    )


def test_bytes_in_batches_of_two(tmp_path: Path) -> None:
    path = bytes_in(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match=r'takes the camera\'s bytes.*normalize="none"'):
        load_model(path, classes="numbered", normalize="imagenet")
    model = load_model(path, classes="numbered", normalize="none")
    (frame,) = scenes(1, SIZE, seed=5)
    (artifact,) = export(model, precision="fp16", out=tmp_path)
    with load(artifact.path) as segment:
        labels = segment(frame)
    session = onnxruntime.InferenceSession(str(path))
    (theirs,) = session.run(None, {"x": np.repeat(frame[None, ..., ::-1], 2, 0)})
    assert (labels[1::4, 1::4] == theirs[0]).mean() > 0.88  # BGR would be 0.6


def test_one_size_is_the_files_own(tmp_path: Path) -> None:
    path = files.write_tensorflow(tmp_path / "a.onnx")
    assert load_model(path, classes="numbered", normalize="unit").trained_size == SIZE
    with pytest.raises(UsageError, match="takes 64x96 only, not 128x192: leave the size out"):
        load_model(path, classes="numbered", normalize="unit", size=(128, 192))


def test_any_size_is_asked_for_and_taken(tmp_path: Path) -> None:
    path = files.write_paddle(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="takes any size: say which"):
        load_model(path, classes="numbered", normalize="unit")
    model = load_model(path, classes="numbered", normalize="unit", size=SIZE)
    made = export(model, size=[SIZE, (96, 128)], out=tmp_path)
    assert [a.card.size for a in made] == [SIZE, (96, 128)]


def test_preprocessing_is_held_against_the_users_own(tmp_path: Path) -> None:
    def preprocess(frame: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        image = cv2.resize(frame, SIZE[::-1]).astype(np.float32) / 255
        return image.transpose(2, 0, 1)

    path = files.write_ultralytics(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="order: yours is bgr, this export's rgb"):
        load_model(path, classes="numbered", normalize="unit", fit="stretch", preprocess=preprocess)


def test_the_original_is_what_it_is_measured_against(tmp_path: Path) -> None:
    path = files.write_tensorflow(tmp_path / "theirs.onnx")
    model = load_model(path, classes="numbered", normalize=NORMS["bgr"])
    report = bench(model, seconds=0.05, runs=5)
    rows = {row.subject.backend: row for row in report.rows}
    original = rows.pop("original file")
    assert original.subject.peer
    assert all(list(ours.against) == ["original file fp32"] for ours in rows.values())
    assert rows


def test_an_artifact_finds_its_original(tmp_path: Path) -> None:
    path = files.write_tensorflow(tmp_path / "theirs.onnx")
    model = load_model(path, classes="numbered", normalize=NORMS["bgr"])
    (artifact,) = export(model, out=tmp_path)
    ((contest,), absent) = plan(BenchConfig(models=[artifact.path]), lambda line, share: None)
    assert absent == []
    network: Any = contest.model.network
    assert network.order == "bgr", "the order is found by the card's digest"
    (frame,) = scenes(1, SIZE, seed=5)
    peer = contest.peer("eager", "cpu").open([frame], 1, None)
    with load(artifact.path) as segment:
        assert (peer.label(frame) == segment(frame)).mean() > 0.999
    peer.close()
    path.unlink()
    ((contest,), _) = plan(BenchConfig(models=[artifact.path]), lambda line, share: None)
    assert "theirs.onnx" in contest.why


def test_it_is_evaluated_without_an_export(tmp_path: Path) -> None:
    names = ClassSet("five", ("a", "b", "c", "d", "e"), tuple((i, i, i) for i in range(5)))
    path = files.write_paddle(tmp_path / "a.onnx")
    model = load_model(path, classes=names, size=SIZE, normalize="imagenet")
    (frame,) = scenes(1, SIZE, seed=5)
    with open_labeler(model, names) as (segment, _):
        labels = segment(frame)
    assert (labels == plain_labels(path, frame, NORMS["imagenet"])).mean() > 0.9999


def test_the_command(rtseg: Run, tmp_path: Path) -> None:
    files.write_paddle(tmp_path / "theirs.onnx")
    (tmp_path / "classes.yaml").write_text("[road, car, tree, sky, person]")
    command = ["export", "theirs.onnx", "--size", "64x96", "--classes", "classes.yaml"]
    done = rtseg(*command, "-o", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "how are this network's pixels normalized?" in done.stderr
    assert not (tmp_path / "out").exists()
    done = rtseg(*command[:4], "--normalize", "imagenet", "-o", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "what are the 5 classes of this network called?" in done.stderr
    assert not (tmp_path / "out").exists()
    done = rtseg(*command, "--normalize", "imagenet", "-o", "out", "--json", cwd=tmp_path)
    (artifact,) = as_json(done)
    card = read_card(tmp_path / artifact["file"])
    assert (card.model, card.weights_from) == ("theirs", "theirs.onnx")
    assert card.classes == ("road", "car", "tree", "sky", "person")
    checked = rtseg("check", artifact["file"], cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    for place, scene in enumerate(scenes(4, SIZE)):
        (tmp_path / "clip").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "clip" / f"{place}.png"), scene)
    driven = rtseg("drive", "clip", "--model", artifact["file"], "--json", cwd=tmp_path)
    assert driven.returncode == 0, driven.stderr
    assert json.loads(driven.stdout)["frames"]


def test_classes_that_do_not_match_are_refused(tmp_path: Path) -> None:
    path = files.write_ultralytics(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="tells 5 classes apart, the class set has 19"):
        load_model(path, classes="cityscapes", normalize="unit")


def test_the_output_that_is_named_is_taken(tmp_path: Path) -> None:
    path = two_outputs(tmp_path / "a.onnx")
    model = load_model(path, classes="numbered", normalize="unit", output="z")
    network: Any = model.network
    assert network.form.output == "z"
    with pytest.raises(UsageError, match="no output 'w', but y, z"):
        load_model(path, classes="numbered", normalize="unit", output="w")


def test_artifacts_and_weights_are_told_apart(tmp_path: Path) -> None:
    path = files.write_ultralytics(tmp_path / "a.onnx")
    (artifact,) = export(load_model(path, classes="numbered", normalize="unit"), out=tmp_path)
    with pytest.raises(UsageError, match="is an artifact already"):
        load_model(artifact.path, classes="numbered", normalize="unit")
    with pytest.raises(UsageError, match="has its weights already"):
        load_model(path, "mine.pth", classes="numbered", normalize="unit")


def test_commands_that_run_artifacts_say_how_to_make_one(tmp_path: Path) -> None:
    path = files.write_ultralytics(tmp_path / "a.onnx")
    with pytest.raises(ArtifactError, match="--normalize NAME` makes an artifact of it"):
        load(path)


def test_a_file_with_the_name_of_a_variant_is_none(tmp_path: Path) -> None:
    path = files.write_ultralytics(tmp_path / "csfcn_nano.onnx")
    assert (
        load_model(path, classes="numbered", normalize="unit").network.info.name
        == "csfcn_nano_onnx"
    )


def test_what_float16_cannot_hold_stays_in_float32() -> None:
    """A layer norm spelled out: its squares pass float16's end, 1e-12 is none of its numbers."""
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["x"], ["mean"], axes=[1]),
        node("Sub", ["x", "mean"], ["less"]),
        node("Pow", ["less", "two"], ["squares"], name="pow"),
        node("ReduceMean", ["squares"], ["variance"], axes=[1]),
        node("Add", ["variance", "tiny"], ["more"]),
        node("Sqrt", ["more"], ["deviation"]),
        node("Div", ["less", "deviation"], ["y"]),
    ]
    constants = {
        name: onnx.numpy_helper.from_array(np.array(number, np.float32), name)
        for name, number in {"two": 2, "tiny": 1e-12}.items()
    }
    graph = helper.make_graph(
        nodes,
        "norm",
        [files.value("x", [1, 8, 4, 4])],
        [files.value("y", [1, 8, 4, 4])],
        list(constants.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    half = to_half(model, set())
    onnx.checker.check_model(half, full_check=True)
    x = np.random.default_rng(0).normal(0, 900, (1, 8, 4, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(half.SerializeToString())
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in onnx.shape_inference.infer_shapes(half).graph.value_info
    }
    assert {types[n] for n in ("squares", "variance", "more", "deviation")} == {TensorProto.FLOAT}
    assert types["less"] == TensorProto.FLOAT16
    assert census(half) == {"float": 2}
    (found,) = session.run(None, {"x": x})
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_branches_are_sound_in_float32_only() -> None:
    value = files.value("y", [1])
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value_float=1.0)], "branch", [], [value]
    )
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph([node], "g", [files.value("x", [], TensorProto.BOOL)], [value])
    with pytest.raises(ExportError, match="branch or loop"):
        to_half(helper.make_model(graph), set())
