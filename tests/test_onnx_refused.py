"""ONNX files that are refused, each with a line that says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_files as files
import pytest
from conftest import Run
from odd_files import CLASSES, SIZE, Write, nodes_to, save, two_outputs
from onnx import TensorProto, helper
from rtseg import load_model
from rtseg.errors import UsageError


def detector(path: Path) -> Path:
    flat = np.array([1, CLASSES, -1], np.int64)
    nodes = [*files.body("x"), helper.make_node("Reshape", ["logits_4", "flat"], ["y"])]
    return save(path, nodes, [1, CLASSES, 384], constants={"flat": flat})


def many_classes(path: Path) -> Path:
    kind = TensorProto.INT64
    return save(path, nodes_to("ArgMax", axis=1), [1, 1, 16, 24], classes=300, kind=kind)


def thresholded(path: Path) -> Path:
    nodes = [*files.body("x"), helper.make_node("Cast", ["logits_4"], ["y"], to=TensorProto.INT64)]
    return save(path, nodes, [1, 5, 16, 24], kind=TensorProto.INT64)


def custom(path: Path) -> Path:
    nodes = [*files.body("x"), helper.make_node("DeformConv2d", ["logits_4"], ["y"], domain="mmcv")]
    return save(path, nodes, [1, 5, 16, 24], domains=("mmcv",))


def external(path: Path) -> Path:
    model = onnx.load(files.write_ultralytics(path))
    onnx.save(model, path, save_as_external_data=True, location="a.data", size_threshold=16)
    (path.parent / "a.data").unlink()
    return path


def quantized(path: Path) -> Path:
    one, zero = np.array(0.1, np.float32), np.array(0, np.int8)
    nodes = [
        *files.body("x"),
        helper.make_node("QuantizeLinear", ["logits_4", "one", "zero"], ["q8"]),
        helper.make_node("DequantizeLinear", ["q8", "one", "zero"], ["y"]),
    ]
    return save(path, nodes, [1, 5, 16, 24], constants={"one": one, "zero": zero})


def two_inputs(path: Path) -> Path:
    model = onnx.load(files.write_paddle(path))
    model.graph.input.append(files.value("scale_factor", ["n", 2]))
    onnx.save(model, path)
    return path


def suppressed(path: Path) -> Path:
    nodes = [*nodes_to("Relu"), helper.make_node("NonMaxSuppression", ["boxes", "scores"], ["n"])]
    boxes, scores = np.zeros((1, 2, 4), np.float32), np.zeros((1, 1, 2), np.float32)
    return save(path, nodes, [1, 5, 16, 24], constants={"boxes": boxes, "scores": scores})


def broken(path: Path) -> Path:
    path.write_bytes(b"no such thing")
    return path


REFUSED: dict[str, tuple[Write, str]] = {
    "a detection head": (detector, r"gives no class for every pixel: y \(1, 5, 384\)"),
    "suppression of boxes": (suppressed, "detects objects"),
    "two outputs of one shape": (two_outputs, r"y \(1, 5, 16, 24\), z .*--logits NAME"),
    "ids above 255": (many_classes, "tells 300 classes apart, and labels are uint8"),
    "ids by no argmax": (thresholded, "no ArgMax over classes makes: give the logits"),
    "a custom operator": (custom, "uses mmcv::DeformConv2d .* only some runtimes know"),
    "weights elsewhere": (external, "keeps its weights in a.data, which cannot be read"),
    "quantized": (quantized, r"is quantized already \(QuantizeLinear\): give the float32 file"),
    "two inputs": (two_inputs, r"takes 2 inputs \(x, scale_factor\)"),
    "four channels": (
        lambda path: save(path, nodes_to("Relu"), [1, 5, 16, 24], image=[1, 4, *SIZE]),
        "three channels",
    ),
    "half precision": (
        lambda path: save(path, nodes_to("Relu"), [1, 5, 16, 24], reads=TensorProto.FLOAT16),
        "in float16: give the float32 file",
    ),
    "no file": (lambda path: path, "there is no file"),
    "damaged": (broken, "is damaged or no ONNX model"),
}


@pytest.mark.parametrize(("write", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exported_says_why_in_a_line(
    write: Write, says: str, rtseg: Run, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match=says) as error:
        load_model(path, size=SIZE, classes="numbered", normalize="unit")
    assert "\n" not in str(error.value)


def test_nothing_is_written_of_what_is_refused(rtseg: Run, tmp_path: Path) -> None:
    detector(tmp_path / "a.onnx")
    done = rtseg("export", "a.onnx", "--normalize", "unit", "-o", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
