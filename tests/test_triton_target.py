"""The model repository, against Triton's own schema and ONNX Runtime's view of the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from conftest import Run
from rtseg.data.files import digest_of
from rtseg.errors import ArtifactError
from rtseg.export.triton import write_model
from rtseg.models.loading import Model
from rtseg.runtime.artifact import Card, EngineFacts, Proof, read_card, sidecar

schema = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="needs Triton's schema: pip install tritonclient"
)
text_format = pytest.importorskip("google.protobuf.text_format")
SIZE = (64, 96)
TYPES = {"TYPE_UINT8": "tensor(uint8)", "TYPE_FP32": "tensor(float)"}


@pytest.fixture(scope="module")
def artifact(rtseg: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the command, which writes the model repository beside it."""
    out = tmp_path_factory.mktemp("artifacts")
    graph = ("--size", f"{SIZE[0]}x{SIZE[1]}", "--output", "both")
    done = rtseg("export", "csfcn_nano:camvid", *graph, "--to", "onnx", "--to", "triton", "-o", out)
    assert done.returncode == 0, done.stderr
    return out / "csfcn_nano_64x96_fp32.onnx"


def parsed(folder: Path) -> Any:
    """Fails on any field or value that Triton's schema does not have."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


def test_an_onnx_model_is_described_as_its_graph_is(artifact: Path, tmp_path: Path) -> None:
    folder = write_model(artifact, tmp_path / "repository")
    config = parsed(folder)
    assert (config.name, config.backend, config.max_batch_size) == (folder.name, "onnxruntime", 0)
    assert (folder / "1" / "model.onnx").read_bytes() == artifact.read_bytes()
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    for declared, real in (
        (config.input, session.get_inputs()),
        (config.output, session.get_outputs()),
    ):
        ours = [(t.name, list(t.dims), TYPES[schema.DataType.Name(t.data_type)]) for t in declared]
        assert ours == [(t.name, t.shape, t.type) for t in real]


def test_labels_and_card_travel_with_it(artifact: Path, nano: Model, tmp_path: Path) -> None:
    folder = write_model(artifact, tmp_path)
    config = parsed(folder)
    assert config.output[0].label_filename == "labels.txt"
    assert tuple((folder / "labels.txt").read_text().splitlines()) == nano.classes.names
    assert Card.from_json(config.parameters["rtseg"].string_value) == read_card(artifact)
    warm_up = config.model_warmup[0].inputs["frame"]
    assert list(warm_up.dims) == [1, *SIZE, 3]
    assert list(tmp_path.iterdir()) == [folder]


def test_the_server_can_make_engines_itself(artifact: Path, tmp_path: Path) -> None:
    config = parsed(write_model(artifact, tmp_path, tensorrt=True, gpus=2))
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["precision_mode"] == "FP32"
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, schema.ModelInstanceGroup.KIND_GPU)


def engine(artifact: Path, folder: Path, flavour: Any, proven: bool) -> Path:
    """The files of an engine; what is inside them is not looked at here."""
    path = folder / "net.engine"
    path.write_bytes(b"engine")
    facts = EngineFacts(
        flavour=flavour,
        version="11.0",
        compute_capabilities=("8.6",),
        platform="linux_x86_64",
        minimum_driver="580",
        flags=(),
        layers=1,
        onnx="",
        build_seconds=1.0,
    )
    files = {path.name: digest_of(path)}
    proof = Proof(report="r", passed=True, frames=1, agreement=1.0) if proven else None
    card = read_card(artifact).model_copy(update={"engine": facts, "proof": proof, "files": files})
    sidecar(path).write_text(card.to_json())
    return path


def test_an_engine_becomes_a_plan(artifact: Path, tmp_path: Path) -> None:
    path = engine(artifact, tmp_path, "tensorrt", proven=True)
    folder = write_model(path, tmp_path / "repository")
    config = parsed(folder)
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert (folder / "1" / "model.plan").read_bytes() == b"engine"
    assert [output.name for output in config.output] == ["labels"]


@pytest.mark.parametrize(
    ("flavour", "proven", "message"),
    [("tensorrt_rtx", True, "loads only TensorRT engines"), ("tensorrt", False, "not been proven")],
)
def test_engines_that_cannot_be_served_are_refused(
    artifact: Path, tmp_path: Path, flavour: str, proven: bool, message: str
) -> None:
    path = engine(artifact, tmp_path, flavour, proven)
    with pytest.raises(ArtifactError, match=message):
        write_model(path, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_the_command_writes_a_repository(artifact: Path) -> None:
    (folder,) = (artifact.parent / "triton").iterdir()
    assert parsed(folder).name == artifact.stem
    assert (folder / "1" / "model.onnx").read_bytes() == artifact.read_bytes()


def test_an_engine_with_a_label_kernel_is_refused(artifact: Path, tmp_path: Path) -> None:
    path = engine(artifact, tmp_path, "tensorrt", proven=True)
    kernel = path.with_name("net.engine.labels.npz")
    kernel.write_bytes(b"kernel")
    card = read_card(path)
    files = {**card.files, kernel.name: digest_of(kernel)}
    card = card.model_copy(update={"outputs": ("coarse",), "files": files})
    sidecar(path).write_text(card.to_json())
    with pytest.raises(ArtifactError, match="export it without --label-kernel"):
        write_model(path, tmp_path / "repository")
