"""`check` on files and machines of every kind of mismatch; no GPU needed."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from rtseg.gpu import Gpu
from rtseg.runtime import preflight
from rtseg.runtime.artifact import Card, EngineFacts, sidecar
from rtseg.runtime.packages import Package, read_header
from rtseg.runtime.preflight import BINDINGS, Machine, block_digests, check

GPU = Gpu(0, "NVIDIA RTX 4090", "8.9", "580.65.06", 24 << 30)
H100 = replace(GPU, name="NVIDIA H100", compute_capability="9.0")
RTX = Package("tensorrt_rtx", "1.7.1.116", 13)
FULL = Package("tensorrt", "10.13.3.9", 12)
MACHINE = Machine("linux-x86_64", (GPU,), (RTX,), frozenset({BINDINGS, "onnxruntime", "openvino"}))
FACTS = EngineFacts(
    flavour="tensorrt_rtx",
    version="1.7.1.116",
    compute_capabilities=("8.0", "8.6", "8.9"),
    platform="linux-x86_64",
    minimum_driver="580",
    flags=("STRONGLY_TYPED",),
    layers=3,
    onnx="0" * 64,
    build_seconds=1.0,
)
FACTS_OF_FULL = FACTS.model_copy(
    update={
        "flavour": "tensorrt",
        "version": "10.13.3.9",
        "compute_capabilities": ("8.9",),
        "minimum_driver": "525",
    }
)


def card_of(**changes):
    facts = {
        "model": "csfcn_tiny",
        "size": (512, 1024),
        "precision": "fp16",
        "outputs": ("labels",),
        "classes": ("road",),
        "palette": ((0, 0, 0),),
        "class_set": "one",
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
        "weights": "w",
        "weights_from": "random, seed 0",
        "trained": False,
        "macs": 1,
        "params": 1,
        "tools": {},
    }
    return Card(**facts | changes)


def plan_of(facts, size=5_000_000):
    """Bytes with the header of a TensorRT plan."""
    magic = b"ftrt" if facts.flavour == "tensorrt" else b"vtrt"
    version = bytes(int(part) for part in facts.version.split("."))
    header = magic + bytes(12) + size.to_bytes(8, "little") + version
    return (header + bytes(range(256)) * (size // 256 + 1))[:size]


@pytest.fixture
def engine(tmp_path):
    return write_engine(tmp_path, FACTS)


def write_engine(folder, facts, **changes):
    path = folder / "net.engine"
    path.write_bytes(plan_of(facts))
    facts = facts.model_copy(update={"blocks": block_digests(path)})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    card = card_of(engine=facts, files={path.name: digest}, **changes)
    sidecar(path).write_text(card.to_json())
    return path


def test_a_sound_engine_runs_on_a_fitting_machine(engine):
    verdict = check(engine, MACHINE)
    assert verdict.ok, str(verdict)
    assert (verdict.code, verdict.reason, verdict.fix) == ("ok", "", "")


MACHINES = {  # what differs: (machine, code, words of the reason, words of the command)
    "no GPU": (
        replace(MACHINE, gpus=()),
        "no_gpu",
        "none answers",
        "rtseg export csfcn_tiny --size 512x1024 --precision fp16 --to openvino",
    ),
    "old driver": (
        replace(MACHINE, gpus=(replace(GPU, driver="535.183.01"),)),
        "driver",
        "580 or newer, and 535.183.01",
        "sudo apt-get install nvidia-driver-580",
    ),
    "old driver on Windows": (
        replace(MACHINE, platform="windows-x86_64", gpus=(replace(GPU, driver="552.44"),)),
        "driver",
        "580 or newer",
        "https://www.nvidia.com/drivers",
    ),
    "other compute capability": (
        replace(MACHINE, gpus=(replace(GPU, name="Quadro T1000", compute_capability="7.5"),)),
        "compute_capability",
        "8.0, 8.6, 8.9, and Quadro T1000 has 7.5",
        "--to tensorrt",
    ),
    "a GPU that must be named at the export": (
        replace(MACHINE, gpus=(replace(GPU, name="Tesla T4", compute_capability="7.5"),)),
        "compute_capability",
        "Tesla T4 has 7.5",
        "--compute-capability 7.5",
    ),
    "a GPU that TensorRT-RTX has no code for": (
        replace(MACHINE, gpus=(H100,)),
        "compute_capability",
        "on NVIDIA H100 it has no code for compute capability 9.0",
        'pip install "rtseg[tensorrt]"; then rtseg export csfcn_tiny',
    ),
    "the same without any TensorRT": (
        replace(MACHINE, gpus=(H100,), tensorrt=()),
        "compute_capability",
        "no code for compute capability 9.0",
        'pip install "rtseg[tensorrt]"; then rtseg export csfcn_tiny',
    ),
    "the same with the package that works": (
        replace(MACHINE, gpus=(H100,), tensorrt=(FULL, RTX)),
        "compute_capability",
        "no code for compute capability 9.0",
        "rtseg export csfcn_tiny",
    ),
    "a Jetson": (
        replace(MACHINE, gpus=(replace(GPU, name="Orin", compute_capability="8.7"),)),
        "compute_capability",
        "on Orin it has no code",
        "use JetPack's TensorRT",
    ),
    "bindings for a newer driver": (
        replace(MACHINE, bindings="13.5.0", gpus=(replace(GPU, driver="550.54"),)),
        "driver",
        "needs NVIDIA driver 580",
        "nvidia-driver-580",
    ),
    "no TensorRT": (
        replace(MACHINE, tensorrt=()),
        "no_package",
        "tensorrt_rtx, which is not installed",
        "pip install tensorrt-rtx-cu13==1.7.1.116",
    ),
    "other flavour": (
        replace(MACHINE, tensorrt=(FULL,)),
        "flavour",
        "tensorrt cannot load it",
        "pip install tensorrt-rtx-cu13==1.7.1.116",
    ),
    "other version": (
        replace(MACHINE, tensorrt=(replace(RTX, version="1.6.1.120"),)),
        "version",
        "1.7.1.116, and 1.6.1.120 is here",
        "pip install tensorrt-rtx-cu13==1.7.1.116",
    ),
    "driver older than the installed package's CUDA": (
        replace(MACHINE, tensorrt=(replace(RTX, cuda=13),), gpus=(replace(GPU, driver="570.1"),)),
        "driver",
        "580",
        "nvidia-driver-580",
    ),
    "other processor": (
        replace(MACHINE, platform="linux-aarch64"),
        "platform",
        "linux-x86_64, and this is linux-aarch64",
        "rtseg export",
    ),
    "no cuda-bindings": (
        replace(MACHINE, modules=frozenset()),
        "no_package",
        "cuda-bindings",
        'pip install "rtseg[tensorrt-rtx]"',
    ),
}


@pytest.mark.parametrize("case", MACHINES)
def test_a_machine_that_does_not_fit(engine, case):
    machine, code, reason, fix = MACHINES[case]
    verdict = check(engine, machine)
    assert (verdict.ok, verdict.code) == (False, code)
    assert reason in verdict.reason
    assert fix in verdict.fix


@pytest.mark.parametrize(
    ("bindings", "driver", "code"),
    [
        ("13.5.0", "550.54", "driver"), ("12.9.4", "550.54", "ok"), ("13.5.0", "580.65", "ok"),
        (None, "550.54", "ok"), ("13.5.0", "", "ok"),
    ],
)  # fmt: skip
def test_the_driver_has_to_run_the_installed_bindings(tmp_path, bindings, driver, code):
    """An engine for CUDA 12 on a T4 or JetPack 6 whose cuda-bindings are those of CUDA 13."""
    path = write_engine(tmp_path, FACTS_OF_FULL)
    gpu = replace(GPU, driver=driver)
    machine = replace(MACHINE, gpus=(gpu,), tensorrt=(FULL,), bindings=bindings)
    verdict = check(path, machine)
    assert verdict.code == code
    if code == "driver":
        assert "cuda-bindings 13.5.0 is newer than NVIDIA driver 550.54 allows" in verdict.reason
        assert verdict.fix == 'pip install "cuda-bindings<13"'


def test_without_a_gpu_an_artifact_of_the_same_export_is_named(engine):
    engine.with_suffix(".onnx").touch()
    verdict = check(engine, replace(MACHINE, gpus=()))
    assert str(engine.with_suffix(".onnx")) in verdict.fix


def test_advice_for_an_fp8_engine_is_what_the_gpu_can_do(tmp_path):
    facts = FACTS.model_copy(update={"compute_capabilities": ("8.9",)})
    engine = write_engine(tmp_path, facts, precision="fp8")
    assert check(engine, MACHINE).ok
    assert check(engine, replace(MACHINE, gpus=())).fix.endswith("--precision int8 --to openvino")
    a100 = replace(GPU, name="NVIDIA A100", compute_capability="8.0")
    verdict = check(engine, replace(MACHINE, gpus=(a100,)))
    assert verdict.code == "compute_capability"
    assert "NVIDIA A100 fp8 needs compute capability 8.9 or later" in verdict.reason
    assert verdict.fix.endswith("--precision int8 --to tensorrt")
    assert "pip install" not in verdict.fix
    h100 = check(engine, replace(MACHINE, gpus=(H100,)))
    assert h100.fix.startswith('pip install "rtseg[tensorrt]"')
    assert h100.fix.endswith("--precision fp8 --to tensorrt")


def test_rtx_engines_run_on_linux_and_windows_alike(engine, tmp_path):
    windows = replace(MACHINE, platform="windows-x86_64")
    assert check(engine, windows).ok
    full = write_engine(tmp_path, FACTS_OF_FULL)
    assert check(full, replace(windows, tensorrt=(FULL,))).code == "platform"


def test_one_fitting_gpu_of_several_is_enough(engine):
    old = replace(GPU, index=1, compute_capability="6.1")
    assert check(engine, replace(MACHINE, gpus=(old, GPU))).ok


@pytest.mark.parametrize(
    ("installed", "flags", "runs"),
    [
        ("10.13.3.9", (), True),
        ("10.13.3", (), True),  # how JetPack records it
        ("10.13.4.1", (), False),
        ("11.0.0.1", (), False),
        ("10.14.1.2", ("VERSION_COMPATIBLE",), True),
        ("11.2.0.1", ("VERSION_COMPATIBLE",), True),
        ("10.12.0.1", ("VERSION_COMPATIBLE",), False),
    ],
)
def test_full_tensorrt_loads_its_own_version(tmp_path, installed, flags, runs):
    engine = write_engine(tmp_path, FACTS_OF_FULL.model_copy(update={"flags": flags}))
    verdict = check(engine, replace(MACHINE, tensorrt=(replace(FULL, version=installed),)))
    assert verdict.ok is runs, str(verdict)
    assert runs or verdict.code == "version"


def test_a_changed_engine_is_refused_wherever_the_change_is(engine):
    content = engine.read_bytes()
    for place in (1000, len(content) - 1):
        engine.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        assert check(engine, MACHINE).code == "digest"
    engine.write_bytes(content)
    assert check(engine, MACHINE).ok


def test_a_truncated_engine_says_how_much_is_there(engine):
    engine.write_bytes(engine.read_bytes()[:1_000_000])
    verdict = check(engine, MACHINE)
    assert verdict.code == "truncated"
    assert "1000000 of 5000000 bytes" in verdict.reason


def test_an_engine_of_full_tensorrt_that_was_cut_differs_from_its_digest(tmp_path):
    engine = write_engine(tmp_path, FACTS_OF_FULL)
    engine.write_bytes(engine.read_bytes()[:-1])
    assert check(engine, replace(MACHINE, tensorrt=(FULL,))).code == "digest"


def test_an_engine_without_its_card(engine):
    sidecar(engine).unlink()
    verdict = check(engine, MACHINE)
    assert verdict.code == "no_card"
    assert "net.engine.json" in verdict.reason


@pytest.mark.parametrize("content", ["{}", "not JSON", '{"format": 2}'])
def test_a_card_of_an_unknown_form(engine, content):
    sidecar(engine).write_text(content)
    verdict = check(engine, MACHINE)
    assert verdict.code == "card"
    assert "export it again" in verdict.fix


def test_a_card_of_a_later_format(engine):
    card = Card.from_json(sidecar(engine).read_text()).model_copy(update={"format": 3})
    sidecar(engine).write_text(card.to_json())
    verdict = check(engine, MACHINE)
    assert verdict.code == "card"
    assert "format" in verdict.reason


@pytest.mark.parametrize("content", [b"", b"vtrt", b"<html>Not found</html>" * 9])
def test_a_file_that_is_no_engine(engine, content):
    engine.write_bytes(content)
    assert check(engine, MACHINE).code == "not_engine"


def test_a_file_that_is_not_there_or_no_artifact(tmp_path):
    assert check(tmp_path / "none.engine", MACHINE).code == "missing"
    (tmp_path / "notes.txt").touch()
    verdict = check(tmp_path / "notes.txt", MACHINE)
    assert verdict.code == "not_artifact"
    assert ".onnx" in verdict.reason


def test_an_engine_without_its_reference(engine):
    card = Card.from_json(sidecar(engine).read_text())
    files = card.files | {"net.engine.reference.npz": "0" * 64}
    sidecar(engine).write_text(card.model_copy(update={"files": files}).to_json())
    verdict = check(engine, MACHINE)
    assert verdict.code == "incomplete"
    assert "net.engine.reference.npz" in verdict.fix


def test_onnx_and_openvino_files(tmp_path):
    model, weights = tmp_path / "net.xml", tmp_path / "net.bin"
    for path in (model, weights):
        path.write_text("<net/>")
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (model, weights)}
    sidecar(model).write_text(card_of(files=files).to_json())
    assert check(model, MACHINE).ok
    verdict = check(model, replace(MACHINE, modules=frozenset()))
    assert (verdict.code, verdict.fix) == ("no_package", 'pip install "rtseg[openvino]"')
    weights.write_text("other")
    assert check(model, MACHINE).code == "digest"
    (tmp_path / "net.onnx").write_bytes(b"no card in here")
    assert check(tmp_path / "net.onnx", MACHINE).code == "card"


def test_the_command_names_the_weights_of_a_trained_model(tmp_path):
    engine = write_engine(tmp_path, FACTS, trained=True, weights_from="mine.pth")
    assert "--weights mine.pth" in check(engine, replace(MACHINE, gpus=())).fix


def test_checking_imports_no_backend(engine):
    program = (
        "import sys; from rtseg.runtime.preflight import check; check(sys.argv[1]); "
        "print([m for m in ('torch', 'tensorrt', 'tensorrt_rtx', 'onnxruntime', 'openvino', "
        "'cuda.bindings.runtime') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(engine)],
        capture_output=True,
        text=True,
        check=True,
        cwd=engine.parent,
    )
    assert done.stdout.strip() == "[]"


def test_block_digests_are_those_of_the_blocks(tmp_path):
    path = tmp_path / "file"
    content = os.urandom(preflight.BLOCK + 12345)
    path.write_bytes(content)
    blocks = content[: preflight.BLOCK], content[preflight.BLOCK :]
    assert block_digests(path) == tuple(hashlib.sha256(block).hexdigest() for block in blocks)


def test_the_header_names_flavour_and_version(engine):
    assert read_header(engine) == ("tensorrt_rtx", "1.7.1.116", 5_000_000)
