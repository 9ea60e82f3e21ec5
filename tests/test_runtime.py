"""Any frame in, labels out; damaged artifacts are refused with what to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rtseg.data.files import digest_of
from rtseg.data.letterbox import restore_labels
from rtseg.errors import ArtifactError, BackendError, MissingPackage
from rtseg.export import Artifact, export
from rtseg.install import localize
from rtseg.models.loading import Model
from rtseg.runtime import Drive, Segmenter, load, read_card, segmenter
from rtseg.runtime.artifact import append_card, read_sealed, sidecar
from rtseg.runtime.backends.backend import choose, open_backend
from rtseg.runtime.frame_checks import as_bgr
from rtseg.runtime.onnx_metadata import GRAPH, METADATA, field, split_card

SIZE = 64, 128


@pytest.fixture(scope="module")
def artifacts(nano: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    out = tmp_path_factory.mktemp("artifacts")
    made = export(
        nano, [SIZE], ["onnx", "openvino", "torch"], "fp32", out=out,
        output="both",
    )  # fmt: skip
    return {artifact.target: artifact for artifact in made}


@pytest.fixture(scope="module")
def frame() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


def test_the_runtime_does_not_import_torch() -> None:
    code = "import sys, rtseg.runtime, rtseg.demo.predict; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("target", "backend"),
    [
        ("onnx", "onnxruntime"),
        ("onnx", "openvino"),
        ("openvino", "openvino"),
        ("torch", "torch"),
    ],
)
def test_every_backend_gives_the_same_labels(
    target: str, backend: str, artifacts: dict[str, Artifact], frame: np.ndarray[Any, Any]
) -> None:
    options = {"precision": "fp32"} if backend == "openvino" else {}
    with load(artifacts[target].path, backend, "cpu", **options) as segment:
        labels = segment(frame)
        assert segment.info.name == backend
        assert labels.shape == SIZE
        assert labels.dtype == np.uint8
        logits = segment.backend.logits()
        assert logits is not None
        assert logits.shape == (1, 11, *SIZE)
        assert (logits[0].argmax(0) == labels).all()
    with load(artifacts["onnx"].path, "onnxruntime", "cpu") as reference:
        assert (reference(frame) == labels).mean() > 0.999


@pytest.mark.parametrize(
    ("target", "backend"), [("onnx", "onnxruntime"), ("onnx", "openvino"), ("torch", "torch")]
)
def test_a_read_only_frame_is_taken(
    target: str, backend: str, artifacts: dict[str, Artifact], frame: np.ndarray[Any, Any]
) -> None:
    """As numpy.frombuffer, Ray and memory-mapped files give them."""
    with load(artifacts[target].path, backend, "cpu") as segment:
        expected = segment(frame)
        frozen = np.frombuffer(frame.tobytes(), np.uint8).reshape(frame.shape)
        assert (segment(frozen) == expected).all()


def test_labels_are_the_callers_own(artifacts: dict[str, Artifact]) -> None:
    with load(artifacts["openvino"].path) as segment:
        first = segment(np.zeros((*SIZE, 3), np.uint8))
        kept = first.copy()
        segment(np.random.default_rng(1).integers(0, 256, (*SIZE, 3), np.uint8))
        assert (first == kept).all()


@pytest.mark.parametrize("size", [SIZE, (100, 333)])
def test_labels_are_copied_no_more_than_once(
    size: tuple[int, int], artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of the backend's buffer, or by the resize, which has made an array of its own."""
    made = []

    def restore(*given: Any) -> Any:
        made.append(restore_labels(*given))
        return made[-1]

    monkeypatch.setattr(segmenter, "restore_labels", restore)
    with load(artifacts["onnx"].path, "onnxruntime", "cpu") as segment:
        labels = segment(np.zeros((*size, 3), np.uint8))
    assert (labels is made[0]) == (size != SIZE)
    assert labels.base is None


@pytest.mark.parametrize("size", [(64, 128), (100, 333), (30, 40), (720, 960)])
def test_any_size_goes_in_and_comes_back(
    size: tuple[int, int], artifacts: dict[str, Artifact]
) -> None:
    with load(artifacts["onnx"].path) as segment:
        labels = segment(np.zeros((*size, 3), np.uint8))
        assert labels.shape == size
        assert labels.max() < 11


@pytest.mark.parametrize(
    "make",
    [
        lambda f: f[:, :, 0],
        lambda f: f[:, :, :1],
        lambda f: np.dstack([f, np.full(SIZE, 7, np.uint8)]),
        lambda f: f.astype(np.float32),
        lambda f: f.astype(np.int64),
        lambda f: f[::-1, ::-1],
        lambda f: np.asfortranarray(f),
    ],
    ids=["gray", "gray 3-d", "BGRA", "whole floats", "int64", "reversed view", "fortran"],
)
def test_frames_that_convert_exactly(make: Any, frame: np.ndarray[Any, Any]) -> None:
    converted = as_bgr(make(frame))
    assert converted.shape == (*SIZE, 3)
    assert converted.dtype == np.uint8
    assert converted.flags.c_contiguous
    if make(frame).ndim == 3 and make(frame).shape[2] == 3:
        assert (converted == make(frame)).all()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.empty((0, 4, 3), np.uint8), "the frame is empty"),
        (np.zeros((2, 3, 64, 128), np.uint8), r"a frame has shape \(H, W, 3\)"),
        (np.zeros((3, 64, 128), np.uint8), "channels last"),
        (np.full((4, 4, 3), 0.5), "does not convert exactly"),
        (np.ones((4, 4, 3), np.float32), "does not convert exactly"),
        (np.full((4, 4, 3), np.nan), "does not convert exactly"),
        (np.full((4, 4, 3), 300), "does not convert exactly"),
        (np.full((4, 4, 3), -1), "does not convert exactly"),
        (np.array("street.png"), "a frame has shape"),
    ],
)
def test_frames_that_do_not(bad: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_bgr(bad)


def test_threads_may_share_a_segmenter(artifacts: dict[str, Artifact]) -> None:
    random = np.random.default_rng(3)
    frames = [random.integers(0, 256, (*SIZE, 3), np.uint8) for _ in range(4)]
    with load(artifacts["onnx"].path) as segment:
        alone = [segment(frame) for frame in frames]
        wrong: list[int] = []

        def work(i: int) -> None:
            wrong.extend(i for _ in range(10) if not (segment(frames[i]) == alone[i]).all())

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_closed_segmenter_says_so(artifacts: dict[str, Artifact]) -> None:
    segment: Segmenter = load(artifacts["onnx"].path)
    segment.close()
    segment.close()
    with pytest.raises(RuntimeError, match="closed: load the artifact again"):
        segment(np.zeros((*SIZE, 3), np.uint8))


@pytest.mark.parametrize("target", ["onnx", "openvino", "torch"])
def test_a_changed_file_is_refused(
    target: str, artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    path = copy_artifact(artifacts[target], tmp_path)
    victim = tmp_path / (path.stem + ".bin" if target == "openvino" else path.name)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    victim.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"changed or damaged|other weights"):
        load(path)


def copy_artifact(artifact: Artifact, folder: Path) -> Path:
    for file in artifact.path.parent.glob(f"{artifact.path.stem}.*"):
        shutil.copy(file, folder)
    return folder / artifact.path.name


def forge(path: Path) -> None:
    """Put another artifact in the place of one, sound in itself."""
    if path.suffix == ".onnx":
        model = split_card(path.read_bytes(), path)[0]
        card = read_card(path).model_copy(update={"model": "another"})
        path.write_bytes(append_card(model + field(METADATA, field(1, b"k")), card))
        return
    path.write_bytes(path.read_bytes() + b"<!-- another -->")
    files = {each.name: digest_of(each) for each in (path, path.with_suffix(".bin"))}
    sidecar(path).write_text(read_card(path).model_copy(update={"files": files}).to_json())


WAYS = [("onnx", "onnxruntime"), ("onnx", "openvino"), ("openvino", "openvino")]


@pytest.mark.parametrize(("target", "backend"), WAYS)
def test_a_file_swapped_once_it_was_verified_is_refused(
    target: str, backend: str, artifacts: dict[str, Artifact], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = copy_artifact(artifacts[target], tmp_path)

    def swap(*arguments: Any, **options: Any) -> Any:
        forge(path)
        return open_backend(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr("rtseg.runtime.open_artifact.open_backend", swap)
        with pytest.raises(ArtifactError, match="changed or damaged"):
            load(path, backend, "cpu")
    load(path, backend, "cpu").close()  # which it would have served


@pytest.mark.parametrize(("target", "backend"), WAYS)
def test_what_was_verified_is_what_runs(
    target: str, backend: str, artifacts: dict[str, Artifact], frame: np.ndarray[Any, Any],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A file that is swapped while a backend loads it is not read again."""
    path = copy_artifact(artifacts[target], tmp_path)
    with load(path, backend, "cpu") as segment:
        expected = segment(frame)

    def swap(*arguments: Any) -> bytes:
        content = read_sealed(*arguments)
        path.with_name(arguments[2] if len(arguments) > 2 else path.name).write_bytes(b"swapped")
        return content

    monkeypatch.setattr(f"rtseg.runtime.backends.{backend}.read_sealed", swap)
    with load(path, backend, "cpu") as segment:
        assert (segment(frame) == expected).all()
    assert path.read_bytes() == b"swapped"


def test_a_truncated_file_is_refused(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    whole = artifacts["onnx"].path.read_bytes()
    for part in (whole[:-100], whole[: len(whole) // 2], whole[:7], b"", b"no such thing" * 99):
        path.write_bytes(part)
        with pytest.raises(ArtifactError, match=r"half\.onnx is truncated"):
            load(path)


def test_files_that_are_no_artifacts(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no artifact at"):
        load(tmp_path / "absent.onnx")
    for take in (load, lambda name: Drive([], name)):
        with pytest.raises(ArtifactError, match=r'no artifact at csf: .*rtseg\.export\("csf"\)'):
            take("csf")
    plain = tmp_path / "plain.onnx"
    plain.write_bytes(b"\x08\x08" + field(GRAPH, bytes(300)))
    with pytest.raises(ArtifactError, match="carries no card"):
        read_card(plain)
    lonely = tmp_path / "lonely.engine"
    lonely.write_bytes(b"ptrt")
    with pytest.raises(ArtifactError, match=r"lonely\.engine\.json must be beside it"):
        load(lonely)


@pytest.mark.parametrize(
    ("name", "backend", "message"),
    [
        ("x.onnx", "tensorflow", "no backend is called 'tensorflow'"),
        ("x.onnx", "tensorrt", r"tensorrt cannot load x\.onnx: onnxruntime or openvino can"),
        ("x.tflite", None, "is no artifact"),
    ],
)
def test_backends_that_do_not_fit(name: str, backend: str | None, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        choose(Path(name), backend, None)


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtseg.runtime.backends.backend.is_installed", lambda backend: False)
    line = localize('needs openvino: pip install "rtseg[openvino]"')
    with pytest.raises(MissingPackage, match=re.escape(line)):
        choose(Path("x.xml"), None, None)


def test_a_bad_device_is_refused(artifacts: dict[str, Artifact]) -> None:
    with pytest.raises(ArtifactError, match='"cpu", "cuda" or "cuda:N"'):
        load(artifacts["onnx"].path, "onnxruntime", "tpu")


def test_signals_survive_a_closed_openvino_model(artifacts: dict[str, Artifact]) -> None:
    """Its plugin would take a signal stack with it if it were unloaded from another thread."""
    code = """
import os, signal, sys, threading
import numpy as np
from rtseg.runtime import load

signal.signal(signal.SIGTERM, lambda *caught: print("caught"))
segment = load(sys.argv[1], "openvino")
segment(np.zeros((64, 128, 3), np.uint8))
held = [segment]
del segment
thread = threading.Thread(target=lambda: held.pop().close())
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGTERM)
"""
    command = [sys.executable, "-c", code, str(artifacts["openvino"].path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "caught")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
def test_a_fork_is_told_to_load_for_itself(artifacts: dict[str, Artifact]) -> None:
    """A backend's threads are gone there, so that a call would never end."""
    with load(artifacts["onnx"].path) as segment:
        child = os.fork()
        if child == 0:
            try:
                segment(np.zeros((*SIZE, 3), np.uint8))
            except BackendError as error:
                os._exit(0 if "load it in each process" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
