"""Engines are really built here, by TensorRT-RTX, which needs no GPU for that."""

import re
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
trt = pytest.importorskip("tensorrt_rtx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from rtseg.errors import ArtifactError, MissingPackage, UsageError  # noqa: E402
from rtseg.export import tensorrt as module  # noqa: E402
from rtseg.export.tensorrt import BuilderOptions, build_engine, choose_package  # noqa: E402
from rtseg.gpu import Gpu  # noqa: E402
from rtseg.runtime.artifact import Card, read_card, sidecar, verify_artifact  # noqa: E402
from rtseg.runtime.backends import tensorrt_self_test as self_test  # noqa: E402
from rtseg.runtime.packages import Package, make_log, read_header  # noqa: E402
from rtseg.runtime.preflight import block_digests, check, this_platform  # noqa: E402
from rtseg.runtime.verify import Reference  # noqa: E402

SIZE, CLASSES = (32, 64), 5
RTX, FULL = Package("tensorrt_rtx", "1.7.1.116", 13), Package("tensorrt", "10.13.3.9", 12)


def graph(path, dtype, extra=()):
    """frame uint8 NHWC -> float -> NCHW -> convolution -> argmax -> uint8."""
    kinds = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}
    weight = np.random.default_rng(0).normal(size=(CLASSES, 3, 3, 3)).astype(dtype)
    nodes = [
        helper.make_node("Cast", ["frame"], ["floats"], to=kinds[dtype]),
        helper.make_node("Transpose", ["floats"], ["image"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["image", "weight"], ["scores"], pads=[1, 1, 1, 1]),
        *extra,
        helper.make_node("ArgMax", ["scores"], ["ids"], axis=1, keepdims=0),
        helper.make_node("Cast", ["ids"], ["narrow"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["narrow"], ["labels"], to=TensorProto.UINT8),
    ]
    inputs = [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, *SIZE, 3])]
    outputs = [helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, *SIZE])]
    held = [numpy_helper.from_array(weight, "weight")]
    model = helper.make_model(
        helper.make_graph(nodes, "small", inputs, outputs, held),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)],
        ir_version=10,
    )
    path.write_bytes(model.SerializeToString())
    return path


def card_of(precision):
    return Card(
        model="small",
        size=SIZE,
        precision=precision,
        outputs=("labels",),
        classes=tuple("abcde"),
        palette=((0, 0, 0),) * CLASSES,
        class_set="letters",
        mean=(0, 0, 0),
        std=(1, 1, 1),
        weights="w",
        weights_from="random",
        trained=False,
        macs=1,
        params=135,
        tools={"rtseg": "0"},
    )


@pytest.fixture
def single(tmp_path):
    return graph(tmp_path / "small.onnx", np.float32)


def test_an_engine_and_all_that_belongs_to_it(single, tmp_path):
    target = tmp_path / "small.engine"
    frames = np.zeros((1, *SIZE, 3), np.uint8)
    reference = Reference(frames, frames[..., 0], frames[..., 0], ("black",))
    built = build_engine(single, target, card_of("fp32"), references={SIZE: reference})

    card = read_card(target)
    assert card == built.card
    verify_artifact(target, card)
    assert set(card.files) == {"small.engine", "small.engine.reference.npz"}
    assert (card.proof, card.tools["tensorrt_rtx"]) == (None, trt.__version__)
    facts = card.engine
    assert (facts.flavour, facts.version) == ("tensorrt_rtx", trt.__version__)
    assert facts.platform == this_platform()
    assert "STRONGLY_TYPED" in facts.flags
    assert not {"TF32", "STRIP_PLAN", "REFIT"} & set(facts.flags)
    assert {"8.0", "8.6", "8.9", "12.0"} <= set(facts.compute_capabilities)
    assert facts.layers >= 6
    assert facts.blocks == block_digests(target)
    assert read_header(target) == ("tensorrt_rtx", trt.__version__, target.stat().st_size)
    assert check(target).code in ("ok", "no_gpu", "driver", "compute_capability", "no_package")


@pytest.mark.parametrize(
    ("precision", "dtype", "types"),
    [("fp32", np.float32, {"float": 135}), ("fp16", np.float16, {"float16": 135})],
)
def test_the_census_tells_what_the_weights_are(tmp_path, precision, dtype, types):
    path = graph(tmp_path / "small.onnx", dtype)
    built = build_engine(path, tmp_path / "small.engine", card_of(precision))
    floats = {name: held for name, held in built.census.items() if "float" in name}
    assert floats == types
    convolved = "HALF" if precision == "fp16" else "FLOAT"
    assert built.layer_types[convolved] >= 3


def test_compute_capabilities_are_selectable(single, tmp_path):
    sizes = {}
    for wanted in (("8.9",), ("8.9", "7.5")):
        target = tmp_path / f"{len(wanted)}.engine"
        built = build_engine(single, target, card_of("fp32"), compute_capabilities=wanted)
        assert built.card.engine.compute_capabilities == wanted
        sizes[wanted] = target.stat().st_size
    assert len(set(sizes.values())) == 2


def test_options_of_the_builder_are_set_and_kept_in_the_card(single, tmp_path):
    options = BuilderOptions(optimization_level=1, workspace_mib=64)
    built = build_engine(single, tmp_path / "small.engine", card_of("fp32"), options=options)
    assert built.card.engine.options == {"optimization_level": "1", "workspace_mib": "64"}
    assert read_card(tmp_path / "small.engine") == built.card
    plain = build_engine(single, tmp_path / "plain.engine", card_of("fp32"))
    assert "options" not in plain.card.to_json()  # older versions read it as before


def test_the_full_package_is_told_all_options(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "gpus", lambda: [gpu_of("NVIDIA RTX 4090", "8.9")])
    full, config = MagicMock(), MagicMock()
    full.BuilderFlag.__members__ = {}
    cache = tmp_path / "times.cache"
    cache.write_bytes(b"known")
    options = BuilderOptions(5, 256, True, True, cache)
    found = module._configure(full, config, FULL, (), options, card_of("fp16"))
    assert config.builder_optimization_level == 5
    config.set_memory_pool_limit.assert_called_once_with(full.MemoryPoolType.WORKSPACE, 256 << 20)
    config.set_flag.assert_called_once_with(full.BuilderFlag.VERSION_COMPATIBLE)
    level = full.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.hardware_compatibility_level is level
    config.create_timing_cache.assert_called_once_with(b"known")
    assert {"8.0", "8.9", "9.0", "12.0"} <= set(found)
    assert "7.5" not in found
    config.get_timing_cache.return_value.serialize.return_value = b"known and new"
    module._keep_timings(config, cache)
    assert cache.read_bytes() == b"known and new"
    assert options.facts()["timing_cache"] == "times.cache"
    with pytest.raises(ArtifactError, match=r"no engine in fp8 for 8\.0: fp8 needs compute"):
        module._configure(full, config, FULL, (), options, card_of("fp8"))
    alone = module._configure(full, config, FULL, (), BuilderOptions(), card_of("fp8"))
    assert alone == ("8.9",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hardware_compatible": True}, "no --hardware-compatible: name GPUs with"),
        ({"version_compatible": True}, "no --version-compatible: its engines load in the release"),
        ({"timing_cache": Path("t")}, "no --timing-cache: it times nothing"),
        ({"optimization_level": 6}, "0 to 5, not 6"),
        ({"workspace_mib": 0}, "1 MiB or more, not 0"),
    ],
)
def test_options_that_a_builder_has_not(single, tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        build_engine(
            single, tmp_path / "small.engine", card_of("fp32"), options=BuilderOptions(**options)
        )
    assert not (tmp_path / "small.engine").exists()


def test_options_that_do_not_exist(single, tmp_path):
    target, card = tmp_path / "small.engine", card_of("fp32")
    with pytest.raises(ValueError, match=r"compute capability .*8\.6.*, not 3\.5"):
        build_engine(single, target, card, compute_capabilities=["3.5"])
    with pytest.raises(ValueError, match="log level"):
        build_engine(single, target, card, log_level="loud")
    assert not target.exists()


def test_the_log_is_as_loud_as_asked(single, tmp_path):
    lines = {}
    for level in ("error", "verbose"):
        target = tmp_path / f"{level}.engine"
        log = build_engine(single, target, card_of("fp32"), log_level=level).log
        # Nothing said, nothing left: a file of no bytes looks like a build that broke.
        lines[level] = log.read_text().splitlines() if log.exists() else []
        assert not log.exists() or log.stat().st_size
    assert len(lines["verbose"]) > 50 > len(lines["error"])
    assert any(line.startswith("[VERBOSE]") for line in lines["verbose"])


def test_a_graph_that_tensorrt_cannot_read_names_the_node(tmp_path):
    odd = helper.make_node("Wobble", ["scores"], ["more"], name="the_odd_one", domain="elsewhere")
    path = graph(tmp_path / "odd.onnx", np.float32, [odd])
    target = tmp_path / "odd.engine"
    with pytest.raises(ArtifactError, match=r"cannot parse .* at node the_odd_one \(Wobble\): ."):
        build_engine(path, target, card_of("fp32"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd.engine.log", "odd.onnx"]


def test_a_file_that_is_no_graph(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"cannot parse .*bad\.onnx"):
        build_engine(tmp_path / "bad.onnx", tmp_path / "bad.engine", card_of("fp32"))
    with pytest.raises(ArtifactError, match="no ONNX graph at"):
        build_engine(tmp_path / "none.onnx", tmp_path / "bad.engine", card_of("fp32"))


def test_a_build_that_fails_leaves_the_log_alone(single, tmp_path, monkeypatch):
    monkeypatch.setattr(trt.Builder, "build_serialized_network", lambda *_: None)
    with pytest.raises(ArtifactError, match=r"cannot build the engine.*small\.engine\.log"):
        build_engine(single, tmp_path / "small.engine", card_of("fp32"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.engine.log", "small.onnx"]


def test_nothing_half_written_stays(single, tmp_path, monkeypatch):
    write = module.write_atomically

    def full_disk(path, content):
        if path == sidecar(tmp_path / "small.engine"):
            raise OSError("no space left on device")
        write(path, content)

    monkeypatch.setattr(module, "write_atomically", full_disk)
    with pytest.raises(OSError, match="no space"):
        build_engine(single, tmp_path / "small.engine", card_of("fp32"))
    assert not (tmp_path / "small.engine").exists()


def test_the_package_is_chosen_by_what_can_build_here(monkeypatch):
    def machine(packages, found):
        monkeypatch.setattr(
            module, "find_package", lambda name: {p.flavour: p for p in packages}.get(name)
        )
        monkeypatch.setattr(module, "gpus", lambda: found)

    gpu = [Gpu(0, "NVIDIA RTX 4090", "8.9", "580.65.06", None)]
    machine([FULL, RTX], gpu)
    assert choose_package() == FULL
    assert choose_package("tensorrt_rtx") == RTX
    machine([FULL, RTX], [])
    assert choose_package() == RTX
    machine([FULL], [])
    assert choose_package() == FULL
    machine([], [])
    with pytest.raises(MissingPackage, match=r"pip install .*\[tensorrt-rtx\]"):
        choose_package()
    machine([RTX], gpu)
    with pytest.raises(MissingPackage, match=r"needs tensorrt: pip install .*\[tensorrt\]"):
        choose_package("tensorrt")
    machine([FULL, RTX], gpu)  # a 4090, which the full one builds for and no other
    assert choose_package(gpu="RTX 4080") == FULL
    assert choose_package(gpu="RTX 3090") == RTX


def gpu_of(name, capability):
    return Gpu(0, name, capability, "580.65.06", None)


@pytest.mark.parametrize(
    ("package", "capabilities", "here", "named", "words"),
    [
        (RTX, ("8.9",), ("NVIDIA RTX 4090", "8.9"), None, None),
        (RTX, ("8.9",), ("NVIDIA H100", "9.0"), None, r"run on NVIDIA H100: .*\[tensorrt\]"),
        (RTX, ("8.9",), ("NVIDIA RTX 4090", "8.9"), "h100", r"run on h100: .*\[tensorrt\]"),
        (RTX, ("8.6",), ("NVIDIA RTX 4090", "8.9"), None, "--compute-capability 8.9"),
        (FULL, ("8.9",), ("NVIDIA RTX 4090", "8.9"), "orin", "for 8.9.*or on that machine"),
    ],
)
def test_gpus_that_an_engine_cannot_run_on_are_told(
    monkeypatch, package, capabilities, here, named, words
):
    monkeypatch.setattr(module, "gpus", lambda: [gpu_of(*here)])
    lines = list(module.find_unserved(package, capabilities, named))
    assert bool(lines) == bool(words)
    if words:
        assert re.search(words, lines[0])


def test_a_gpu_that_no_engine_is_for_by_default_gets_one_of_its_own(single, tmp_path, monkeypatch):
    target, card = tmp_path / "small.engine", card_of("fp32")
    monkeypatch.setattr(module, "gpus", lambda: [gpu_of("Tesla T4", "7.5")])
    built = build_engine(single, target, card)
    assert (built.card.engine.compute_capabilities, built.warnings) == (("7.5",), ())
    monkeypatch.setattr(module, "gpus", list)
    built = build_engine(single, target, card, gpu="rtx 4090")
    assert (built.card.engine.compute_capabilities, built.warnings) == (("8.9",), ())
    built = build_engine(single, target, card, gpu="h100")
    assert "8.9" in built.card.engine.compute_capabilities
    assert "does not run on h100" in built.warnings[0]


def test_the_full_package_builds_for_the_gpu_at_hand_only(monkeypatch):
    gpu = [Gpu(0, "NVIDIA RTX 4090", "8.9", "580.65.06", None)]
    monkeypatch.setattr(module, "gpus", lambda: gpu)
    assert module._capability_here(()) == ("8.9",)
    assert module._capability_here(("8.9",)) == ("8.9",)
    with pytest.raises(ArtifactError, match=r"GPU at hand \(8\.9\), not for 8\.6"):
        module._capability_here(("8.6",))


def test_the_self_test_builds_and_its_answers_are_pytorchs():
    log = make_log(trt)
    assert len(self_test.build(trt, log)) > 1000
    assert log.errors == []
    torch = pytest.importorskip("torch")
    image, grid = (torch.from_numpy(values) for values in self_test.inputs())
    f, answers = torch.nn.functional, self_test.answers(*self_test.inputs())
    for name, corners in (("grid_sample_in_half", True), ("grid_sample", False)):
        expected = f.grid_sample(image, grid, align_corners=corners).numpy()
        np.testing.assert_allclose(answers[name], expected, atol=1e-5)
    for name, corners in (("resize_in_half", False), ("resize_corners", True)):
        expected = f.interpolate(
            image, self_test.LARGE[2:], mode="bilinear", align_corners=corners
        ).numpy()
        np.testing.assert_allclose(answers[name], expected, atol=1e-5)
