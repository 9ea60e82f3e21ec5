"""Every program under examples/ runs as its first lines say, and so does the notebook."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import rtseg
from conftest import ROOT
from rtseg.cli.app import app
from rtseg.data.images import blend
from rtseg.data.scenes import scenes
from rtseg.export import export
from rtseg.runtime.drive.messages import StatusKind
from rtseg.runtime.sinks.mcap_writer import McapRecorder
from rtseg.runtime.sinks.shared_memory import Ring
from test_sinks import result, status
from tiny_camvid import write_camvid
from typer.main import get_command

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (made,) = export("csfcn_nano:camvid", (96, 128), out=tmp_path_factory.mktemp("artifacts"))
    return made.path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    for number, frame in enumerate(scenes(6, (96, 128))):
        cv2.imwrite(str(folder / f"{number}.png"), frame)
    return folder


def start(name: str, *arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
    )


def run(name: str, *arguments: object, cwd: Path) -> str:
    process = start(name, *arguments, cwd=cwd)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def test_export_and_prove(tmp_path: Path) -> None:
    said = run("export_and_prove.py", tmp_path / "made", cwd=tmp_path)
    assert "onnxruntime fp32: passed, 100.0000%" in said
    assert "MB: proven" in said
    assert (tmp_path / "made/csfcn_nano_360x480_fp32.onnx").is_file()


def test_own_onnx(tmp_path: Path) -> None:
    said = run("own_onnx.py", cwd=tmp_path)
    assert "theirs_64x128_fp16.onnx: passed" in said
    assert "(480, 640) uint8" in said


def test_own_network(tmp_path: Path) -> None:
    assert "unet_128x256_fp32.onnx (480, 640) uint8" in run("own_network.py", cwd=tmp_path)


def test_video_overlay(artifact: Path, clip: Path, tmp_path: Path) -> None:
    run("video_overlay.py", clip, artifact, "out.mp4", cwd=tmp_path)
    assert int(cv2.VideoCapture(str(tmp_path / "out.mp4")).get(cv2.CAP_PROP_FRAME_COUNT)) == 6


def test_drive_with_callback(artifact: Path, clip: Path, tmp_path: Path) -> None:
    said = run("drive_with_callback.py", clip, artifact, cwd=tmp_path)
    assert "ms old, road" in said


def test_drive_two_cameras(artifact: Path, clip: Path, tmp_path: Path) -> None:
    said = run("drive_two_cameras.py", clip, clip, artifact, cwd=tmp_path)
    assert "front 0: " in said
    assert re.search(r"rear: running, [1-9]\d* of 6 answered", said)


def test_ring_reader(artifact: Path, clip: Path, tmp_path: Path) -> None:
    ring = tmp_path / "labels.ring"
    reader = start("ring_reader.py", ring, 3, cwd=tmp_path)  # before the writer
    drive = ["drive", clip, "--model", artifact, "--loop", "--duration", "60", "-o", ring]
    writer = subprocess.Popen([sys.executable, "-m", "rtseg", *map(str, drive)], cwd=ROOT.parent)
    try:
        said, _ = reader.communicate(timeout=120)
    finally:
        writer.terminate()
        writer.wait(30)
    assert reader.returncode == 0, said
    assert len(said.splitlines()) <= 3


@pytest.mark.parametrize("kind", [None, StatusKind.LOST])
def test_ring_reader_in_c(kind: StatusKind | None, tmp_path: Path) -> None:
    """Compiled, started before the writer, and asked for a ring that grows and starts again."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler is installed")
    program, ring = tmp_path / "reader", tmp_path / "labels.ring"
    order = [compiler, "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program]
    made = subprocess.run([*map(str, order), EXAMPLES / "ring_reader.c"], capture_output=True)
    assert made.returncode == 0, made.stderr.decode()
    reader = subprocess.Popen([program, ring, "4"], stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    if kind is not None:
        sink = Ring(ring)
        for _ in range(4):
            sink(status(kind))
            assert reader.stdout.readline() == "no mask: LOST (camera)\n"
        assert reader.wait(30) == 0
        return
    now_ns = time.monotonic_ns()
    for size in ((48, 64), (33, 57), (96, 128)):  # the second leaves slots where nothing is aligned
        sink = Ring(ring)
        for frame_id in (3,) if size != (96, 128) else (3, 4):
            message = result(frame_id, now_ns, size)
            sink(replace(message, expires_ns=now_ns + 10**12))
            said = reader.stdout.readline()
            counts = np.bincount(message.labels.ravel())
            told = " ".join(f"{each}:{n}" for each, n in enumerate(counts) if n)
            assert said.startswith(f"frame {frame_id} {size[0]}x{size[1]} age_ms ")
            assert f" classes {told} crc " in said
        sink.close()
    assert reader.wait(30) == 0


def test_ring_reader_in_c_does_not_believe_damage(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or pytest.skip("no C compiler is installed")
    program, ring = tmp_path / "reader", tmp_path / "labels.ring"
    subprocess.run([compiler, "-o", program, EXAMPLES / "ring_reader.c"], check=True)
    sink = Ring(ring)
    sink(replace(result(3), expires_ns=2**62))
    whole = ring.read_bytes()
    start = 64 + (int.from_bytes(whole[24:32], "little") - 1) % 4 * (128 + 48 * 64)
    for at in (0, 8, start, start + 8, start + 56, start + 130):
        damaged = bytearray(whole)
        damaged[at] ^= 3
        copy = tmp_path / "copy.ring"
        copy.write_bytes(damaged)
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run([program, copy, "1"], timeout=0.3, capture_output=True)
    copy.write_bytes(whole)
    done = subprocess.run([program, copy, "1"], timeout=30, capture_output=True, text=True)
    assert done.stdout.startswith("frame 3 48x64")


class Anything:
    """Stands for a class of ROS: takes any arguments, which become attributes."""

    made: ClassVar[list[Any]] = []

    def __init__(self, *arguments: Any, **named: Any):
        self.arguments = arguments
        vars(self).update(named)
        self.made.append(self)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.arguments)


def stand_in(monkeypatch: pytest.MonkeyPatch, **modules: tuple[str, ...]) -> None:
    """Modules that are not installed here, such as ROS', with classes of those names."""
    for name, classes in modules.items():
        module: Any = types.ModuleType(name.replace("__", "."))
        for each in classes:
            setattr(module, each, type(each, (Anything,), {}))
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_ros2_node(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for ROS, of which there is no package."""
    stand_in(
        monkeypatch,
        rclpy=(),
        rclpy__node=(),
        rclpy__qos=("QoSProfile",),
        sensor_msgs=(),
        sensor_msgs__msg=("Image",),
        vision_msgs=(),
        vision_msgs__msg=("LabelInfo", "VisionClass"),
    )
    published: dict[str, list[Any]] = {}

    class Node:
        def __init__(self, name: str):
            self.name = name

        def declare_parameter(self, name: str, default: str) -> Any:
            return SimpleNamespace(value=artifact)

        def create_publisher(self, kind: type, topic: str, qos: object) -> Any:
            return SimpleNamespace(publish=published.setdefault(topic, []).append)

        def create_subscription(self, kind: type, topic: str, take: Any, qos: object) -> None:
            self.take = take

    nodes: list[Node] = []
    qos = sys.modules["rclpy.qos"]
    for name in ("DurabilityPolicy", "ReliabilityPolicy"):
        setattr(qos, name, SimpleNamespace(TRANSIENT_LOCAL=1, BEST_EFFORT=2))
    monkeypatch.setattr(sys.modules["rclpy.node"], "Node", Node, raising=False)
    monkeypatch.setattr(sys.modules["rclpy"], "init", lambda: None, raising=False)
    monkeypatch.setattr(sys.modules["rclpy"], "spin", nodes.append, raising=False)
    runpy.run_path(str(EXAMPLES / "ros2_node.py"))
    (frame,) = scenes(1, (96, 128))
    image = SimpleNamespace(
        header="header", height=96, width=128, encoding="bgr8", step=384, data=frame.tobytes()
    )
    nodes[0].take(image)
    (labels,) = published["rtseg/labels"]
    assert (labels.header, labels.encoding, labels.step) == ("header", "mono8", 128)
    with rtseg.load(artifact) as segment:
        assert labels.data.tobytes() == segment(frame).tobytes()
        (info,) = published["rtseg/label_info"]
        assert [each.class_name for each in info.class_map] == list(segment.card.classes)


def test_ros2_drive_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(
        monkeypatch,
        launch=("LaunchDescription",),
        launch__actions=("DeclareLaunchArgument", "ExecuteProcess"),
        launch__substitutions=("EnvironmentVariable", "LaunchConfiguration"),
    )
    names = runpy.run_path(str(EXAMPLES / "ros2_drive.launch.py"))
    (actions,) = names["generate_launch_description"]().arguments
    words = actions[-1].cmd
    assert words[1:3:1][0] == "drive"
    known = {param.name for param in get_command(app).commands["drive"].params}  # type: ignore[attr-defined]
    options = [word for word in words if isinstance(word, str) and word.startswith("--")]
    assert {word[2:].replace("-", "_") for word in options} <= known


def test_foxglove_layout_shows_what_logs_hold(tmp_path: Path) -> None:
    pytest.importorskip("mcap", reason='needs mcap: pip install "rtseg[drive]"')
    from mcap.reader import make_reader

    path = tmp_path / "drive.mcap"
    recorder = McapRecorder(path, ["a"], [(0, 0, 0)], blend, ros_messages=True)
    recorder(result())
    recorder(status())
    recorder.close()
    with path.open("rb") as file:
        messages = list(make_reader(file).iter_messages())
    facts = {c.topic: m.data for _, c, m in messages}
    layout = json.loads((EXAMPLES / "foxglove_layout.json").read_text())
    panels = layout["configById"]
    topics = [panel["imageMode"]["imageTopic"] for panel in panels.values() if "imageMode" in panel]
    topics += [panel["topicPath"] for panel in panels.values() if "topicPath" in panel]
    assert len(topics) == 3
    assert set(topics) <= set(facts)
    for path_shown in panels["Plot!ages"]["paths"]:
        topic, *fields = path_shown["value"].split(".")
        value = json.loads(facts[topic])
        for field in fields:
            value = value[field]
        assert isinstance(value, float)
    shown = re.findall(r"\w+!\w+", json.dumps(layout["layout"]))
    assert sorted(shown) == sorted(panels)


def test_evaluate_artifact(artifact: Path, tmp_path: Path) -> None:
    write_camvid(tmp_path / "camvid")
    said = run("evaluate_artifact.py", artifact, "camvid", tmp_path / "camvid", cwd=tmp_path)
    assert re.search(r"^mean +\d+\.\d%$", said, flags=re.MULTILINE)
    assert said.splitlines()[-1].startswith("hardest: ")


def test_speed_table(tmp_path: Path) -> None:
    said = run("speed_table.py", "csfcn_nano", "64x128", "96x128", cwd=tmp_path)
    assert said.count("csfcn\\_nano") >= 2
    assert r"\begin{tabular}" in said


def test_fleet_on_ray(artifact: Path, clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an extra of its own: rtseg[fleet]")
    assert "6 frames" in run("fleet_on_ray.py", clip, artifact, "labels", cwd=tmp_path)


def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "first_steps.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert "csfcn_nano" in capsys.readouterr().out


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text()
    assert [
        p.name for p in EXAMPLES.iterdir() if p.suffix in (".py", ".ipynb") and p.name not in tested
    ] == []


@pytest.mark.parametrize("program", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_a_page_at_most_and_says_how_it_is_started(program: Path) -> None:
    text = program.read_text()
    assert 15 <= len(text.splitlines()) <= 60
    says, _, usage = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")
    assert says.endswith(".")
    assert re.search(rf"^(python|ros2 launch) {re.escape(program.name)}( |$)", usage, re.MULTILINE)
