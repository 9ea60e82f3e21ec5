"""FP8: what is rounded and how, that it is what NumPy says, and where it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from conftest import Run
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from rtseg.data.scenes import scenes
from rtseg.errors import ArtifactError, ExportError
from rtseg.export import calibrate, export, quantize
from rtseg.export.export import make_card
from rtseg.export.graph import census, find_layers, to_onnx
from rtseg.export.parity import open_session
from rtseg.export.tensorrt import build_engine, find_unserved
from rtseg.models.loading import Model
from rtseg.models.onnx_graph import KINDS
from rtseg.runtime.packages import Package
from rtseg.runtime.support import FIRST_FP8, GPUS, find_support

SIZE = (64, 128)
RTX = Package("tensorrt_rtx", "1.7.1.116", 13)


@pytest.fixture(scope="module")
def plain(nano: Model) -> onnx.ModelProto:
    return quantize.infer_shapes(to_onnx(nano.network, SIZE, "fp32", ("labels",)))


@pytest.fixture(scope="module")
def rounded(nano: Model, plain: onnx.ModelProto) -> onnx.ModelProto:
    spans = calibrate.measure_ranges(plain, KINDS, scenes(3, SIZE), "minmax")
    nodes = [layer.node for layer in find_layers(plain)]
    return quantize._round(plain, nodes, spans, make_card(nano, SIZE, "fp8", "labels"))


def test_every_weight_is_float8_of_its_own_float_value(
    plain: onnx.ModelProto, rounded: onnx.ModelProto
) -> None:
    floats = {each.name: numpy_helper.to_array(each) for each in plain.graph.initializer}
    held = {each.name: numpy_helper.to_array(each) for each in rounded.graph.initializer}
    weights = [
        name for name in held if held[name].dtype == ml_dtypes.float8_e4m3fn and held[name].ndim > 1
    ]
    assert len(weights) == len(find_layers(plain))
    for name in weights:
        wanted = floats[name.removesuffix("_quantized")]
        node = next(n for n in rounded.graph.node if name in n.input)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        scale = held[node.input[1]].reshape([-1 if i == axis else 1 for i in range(wanted.ndim)])
        found = held[name].astype(np.float32) * scale
        # Half a step of three bits of mantissa; below 2^-6 steps are of one size, 2^-9.
        allowed = np.maximum(np.abs(wanted) * 2**-4, scale * 2**-10) * 1.0001
        assert (np.abs(found - wanted) <= allowed).all()
        assert np.abs(held[name].astype(np.float32)).max() == 448
    shares = census(rounded)
    assert shares["float8e4m3fn"] > 0.9 * sum(n for kind, n in shares.items() if "float" in kind)
    assert "int8" not in shares


def test_the_proof_runs_what_the_reference_says(rounded: onnx.ModelProto) -> None:
    """ONNX's own reference against the session of the proof, which ONNX Runtime optimizes wrongly
    unless it is told not to."""
    probe = onnx.ModelProto()
    probe.CopyFrom(rounded)
    layers = [n for n in probe.graph.node if n.op_type == "Conv"][:3]
    last = list(probe.graph.node).index(layers[-1])
    del probe.graph.node[last + 1 :], probe.graph.output[:]
    name = layers[-1].output[0]
    probe.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    frame = scenes(1, SIZE)[0][None]
    (theirs,) = ReferenceEvaluator(probe).run([name], {"frame": frame})
    (ours,) = open_session(probe).run([name], {"frame": frame})
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert error < 0.02  # ties round to one side or the other by the order of sums


def test_only_engines_are_in_fp8(nano: Model, tmp_path: Path, street_folder: Path) -> None:
    for to in ("onnx", "openvino", ["tensorrt", "onnx"]):
        with pytest.raises(ExportError, match="fp8 is a precision of TensorRT's engines: add --to"):
            export(nano, SIZE, to, "fp8", out=tmp_path, calib=street_folder)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def street_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import cv2

    folder = tmp_path_factory.mktemp("street")
    for place, image in enumerate(scenes(12, (120, 200), seed=9)):
        cv2.imwrite(str(folder / f"{place:03}.png"), image)
    return folder


@pytest.mark.parametrize("asked", [{"gpu": "a100"}, {"compute_capability": ["8.9", "8.6"]}])
def test_gpus_without_fp8_are_refused_before_anything_is_made(
    asked: dict[str, Any], nano: Model, tmp_path: Path, street_folder: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(
        ExportError,
        match=r"fp8 needs compute capability 8.9 or later, and this is 8\.[06]: use --prec",
    ):
        export(nano, SIZE, "tensorrt", "fp8", out=tmp_path, calib=street_folder, **asked)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_it_in_a_line(rtseg: Run, tmp_path: Path) -> None:
    options = ["--to", "tensorrt", "--precision", "fp8", "--gpu", "t4", "-o", str(tmp_path / "out")]
    done = rtseg("export", "csfcn_nano", *options)
    assert done.returncode != 0
    assert "no engine in fp8 for t4: fp8 needs compute capability 8.9 or later" in done.stderr
    assert not (tmp_path / "out").exists()


def test_support_knows_which_gpus_have_fp8() -> None:
    able = {name for name in GPUS if find_support(name, "tensorrt", precision="fp8").works}
    assert able == {"RTX 40", "L4", "L40S", "H100", "H200", "B200", "Thor", "RTX 50"}
    assert find_support("a100", "tensorrt").works
    told = find_support("a100", "tensorrt", precision="fp8")
    assert (told.fix, FIRST_FP8 in told.why) == ("use --precision int8", True)
    (line,) = find_unserved(RTX, ("8.9", "12.0"), "a100", "fp8")
    assert line.endswith("and this is 8.0; use --precision int8")


def test_an_engine_is_built_for_gpus_that_have_fp8(
    nano: Model, plain: onnx.ModelProto, rounded: onnx.ModelProto, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    graph, card = tmp_path / "graph.onnx", make_card(nano, SIZE, "fp8", "labels")
    onnx.save(rounded, graph)
    built = build_engine(graph, tmp_path / "net.engine", card)
    assert built.card.engine is not None
    capabilities = built.card.engine.compute_capabilities
    assert "8.9" in capabilities
    assert all(float(each) >= 8.9 for each in capabilities)
    weights = [e for e in rounded.graph.initializer if e.name.endswith("_quantized")]
    assert built.census["float8e4m3fn"] >= sum(np.prod(each.dims) for each in weights)
    assert built.layer_types["FP8"] >= len(find_layers(plain))
    with pytest.raises(ArtifactError, match=r"no engine in fp8 for 8\.6: fp8 needs"):
        build_engine(graph, tmp_path / "old.engine", card, compute_capabilities=("8.6",))
    assert not (tmp_path / "old.engine").exists()
