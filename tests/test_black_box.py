"""The black box: what a drive keeps, what survives SIGKILL, and masks replayed bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Run
from rtseg.data.frames import Frame
from rtseg.data.mcap_reader import McapLog
from rtseg.data.scenes import scene
from rtseg.errors import UsageError
from rtseg.export import export
from rtseg.models.loading import Model, load_model
from rtseg.runtime import Drive, load
from rtseg.runtime.drive.messages import Message, Result, Status, StatusKind
from rtseg.runtime.drive.report import DriveSnapshot
from rtseg.runtime.incident import replay_incident
from rtseg.runtime.provenance import ServedArtifact, describe_provenance, find_differences
from rtseg.runtime.sinks import black_box
from rtseg.runtime.sinks.black_box import BlackBox, find_incidents
from rtseg.runtime.sinks.incident_file import HEALTH, MACHINE, RESULT, STATUS, read_incident
from rtseg.runtime.sinks.queue import SinkCounts

SIZE = 64, 128
LIMIT_S = 120.0  # reached by nothing but a defect, however busy the machine is


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, nano: Model) -> Path:
    (made,) = export(nano, to="onnx", size=SIZE, out=tmp_path_factory.mktemp("box"))
    return Path(made.path)


def make_result(number: int, image: Any, labels: Any, level: str = "net") -> Result:
    wall_ns = 10**18 + number * 10**7
    return Result(
        frame_id=number, index=number, name="", captured_ns=number, captured_wall_ns=wall_ns,
        labels=labels, image=image, level=level, stages_ms={}, age_ms=1.0, published_ns=number,
        expires_ns=1 << 62,
    )  # fmt: skip


def noise(number: int, size: tuple[int, int] = SIZE) -> Any:
    return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


class Camera:
    """Scenes for ever, a few a second."""

    def __iter__(self) -> Iterator[Frame]:
        for number in range(10**6):
            yield Frame(scene(SIZE, number % 7), number, time.monotonic_ns())
            time.sleep(0.03)


def topics(path: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in read_incident(path)[1]:
        counts[record.topic] = counts.get(record.topic, 0) + 1
    return counts


def test_what_is_kept_replays_bit_for_bit(artifact: Path, tmp_path: Path) -> None:
    box = BlackBox(tmp_path, 600.0, artifacts=[ServedArtifact(artifact, "onnxruntime", "cpu")])
    with load(artifact, "onnxruntime", "cpu") as segment:
        for number in range(5):
            image = scene(SIZE, number)
            box(make_result(number, image, segment(image), artifact.name))
    box(Status(StatusKind.LOST, "backend", "CUDA error 700", 1, 10**18, 9, 1))
    box.keep("a sink asks")
    box.close()
    (kept,) = box.incidents
    assert kept.name.endswith("_a-sink-asks.mcap")
    assert not list(tmp_path.glob("ring/*"))
    counts = topics(kept)
    assert counts[RESULT] == 5
    assert counts[STATUS] == 1
    assert counts[MACHINE] >= 1
    done = replay_incident(kept)
    assert (done.frames, done.exact, done.failure()) == (5, 5, "")
    assert done.differences == []
    # As any other log: its pictures can be driven, or looked at in Foxglove.
    frames = list(McapLog(kept, "/rtseg/frame"))
    assert [np.array_equal(f.image, scene(SIZE, i)) for i, f in enumerate(frames)] == [True] * 5
    assert decode_all(kept) == counts


def decode_all(path: Path) -> dict[str, int]:
    """Messages by topic, each decoded by nothing but the schema that the file has of it."""
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory

    found: dict[str, int] = {}
    with path.open("rb") as file:
        reader = make_reader(file)
        decoders = DecoderFactory()
        for schema, channel, message in reader.iter_messages():
            assert schema is not None
            found[channel.topic] = found.get(channel.topic, 0) + 1
            if schema.encoding == "ros2msg":
                decode = decoders.decoder_for(channel.message_encoding, schema)
                assert decode is not None
                decoded = decode(message.data)
                picture = cv2.imdecode(np.frombuffer(decoded.data, np.uint8), cv2.IMREAD_UNCHANGED)
                assert picture.shape[:2] == SIZE
                stamp = decoded.header.stamp
                assert stamp.sec * 10**9 + stamp.nanosec > 0
            else:
                assert (schema.encoding, channel.message_encoding) == ("jsonschema", "json")
                assert json.loads(schema.data)["type"] == "object"
                assert isinstance(json.loads(message.data), dict)
    return found


def test_a_mask_that_was_disturbed_is_named(artifact: Path, tmp_path: Path) -> None:
    box = BlackBox(tmp_path, 600.0, artifacts=[ServedArtifact(artifact, "onnxruntime", "cpu")])
    with load(artifact, "onnxruntime", "cpu") as segment:
        image = scene(SIZE, 0)
        labels = segment(image)
        labels[3:5, 7] += 1
        box(make_result(4, image, labels, artifact.name))
    box.keep("asked")
    box.close()
    done = replay_incident(box.incidents[0])
    assert [(each.frame_id, each.pixels) for each in done.differing] == [(4, 2)]
    assert "1 of 1 masks differ: nothing that is recorded differs" in done.failure()


def test_a_replay_says_what_the_box_was_too_slow_for(tmp_path: Path) -> None:
    box = BlackBox(tmp_path, 600.0)
    dropped = [3]
    box.watch = lambda: DriveSnapshot(
        state="running",
        sinks=[SinkCounts("black box", dropped=dropped[0]), SinkCounts("page", dropped=9)],
    )
    image = scene(SIZE, 0)
    box(make_result(1, image, np.zeros(SIZE, np.uint8), "a.onnx"))
    dropped[0] = 8
    box._looked_s = 0.0  # half a second later
    box(make_result(2, image, np.zeros(SIZE, np.uint8), "a.onnx"))
    box.keep("asked")
    box.close()
    done = replay_incident(box.incidents[0])
    assert done.dropped == 5
    assert "5 messages" in str(done.tables()[0].rows)


def keep_one(folder: Path, artifact: Path) -> Path:
    """An incident of one mask."""
    box = BlackBox(folder, 600.0, artifacts=[ServedArtifact(artifact, "onnxruntime", "cpu")])
    image = scene(SIZE, 0)
    with load(artifact, "onnxruntime", "cpu") as segment:
        box(make_result(0, image, segment(image), artifact.name))
    box.keep("asked")
    box.close()
    (kept,) = box.incidents
    return kept


def test_a_folder_lists_its_incidents_and_replays_the_newest_or_all(
    artifact: Path, tmp_path: Path, rtseg: Run
) -> None:
    folder = tmp_path / "box"
    first = keep_one(folder, artifact)
    newest = first.with_name("incident_20990101T000000Z_again.mcap")
    shutil.copy(first, newest)
    done = rtseg("incident", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["file"] == newest.name
    assert f"also there: rtseg incident {first}" in done.stderr
    done = rtseg("incident", str(folder), "--all", "--json")
    assert [each["file"] for each in json.loads(done.stdout)] == [first.name, newest.name]
    assert "also there" not in done.stderr
    done = rtseg("incident", str(first), "--all")
    assert (done.returncode, "--all is for a black box's folder" in done.stderr) == (2, True)


def test_another_file_or_library_is_named(
    artifact: Path, tmp_path: Path, nano: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / artifact.name
    moved.write_bytes(artifact.read_bytes())
    kept = keep_one(tmp_path / "box", moved)
    (other,) = export(load_model("csfcn_nano:streets"), to="onnx", size=SIZE, out=tmp_path / "o")
    moved.write_bytes(Path(other.path).read_bytes())
    assert "is another file than then" in replay_incident(kept).failure()
    with pytest.raises(UsageError, match="none of this incident's artifacts"):
        replay_incident(kept, [moved])
    assert replay_incident(kept, [artifact]).failure() == ""
    moved.unlink()
    assert "is not here: name the file with --model" in replay_incident(kept).failure()
    then, now = describe_provenance(), describe_provenance()
    now["libraries"]["numpy"] = then["libraries"]["numpy"] | {"version": "9.9"}
    now["libraries"]["openvino"] = then["libraries"]["openvino"] | {"digest": "0"}
    now["machine"] = now["machine"] | {"cpu": "abacus"}
    assert [line.split()[0] for line in find_differences(then, now)] == ["numpy", "openvino", "cpu"]


def test_the_ring_is_bounded_in_time_and_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(black_box.time, "monotonic", lambda: now)
    box = BlackBox(tmp_path, seconds=3.0, megabytes=1.0)
    labels = np.zeros(SIZE, np.uint8)
    for number in range(100):  # about 25 kB each: 0.5 s between them holds the time bound
        now += 0.5
        box(make_result(number, noise(number), labels))
        sizes = [path.stat().st_size for path in tmp_path.glob("ring/*")]
        assert sum(sizes) <= 1_000_000
        assert len(sizes) <= 5
    for number in range(100, 300):  # far too much for a second
        now += 0.001
        box(make_result(number, noise(number, (96, 128)), labels))
        assert sum(path.stat().st_size for path in tmp_path.glob("ring/*")) <= 1_000_000
    box.keep("asked")
    box.close()
    ids = [record.frame_id for record in read_incident(box.incidents[0])[1]]
    assert ids[-1] == 299
    assert len(set(ids)) > 10


def test_only_the_newest_incidents_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(black_box, "MOST_INCIDENTS", 3)
    for number in range(6):
        box = BlackBox(tmp_path)
        box(make_result(number, noise(number), np.zeros(SIZE, np.uint8)))
        box.keep(f"number {number}")
        box.close()
    kept = sorted(path.name.split("_", 2)[2] for path in tmp_path.glob("incident_*"))
    assert kept == ["number-3.mcap", "number-4.mcap", "number-5.mcap"]


def test_a_new_reason_is_an_incident_and_a_new_number_in_it_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(black_box.time, "monotonic", lambda: now)
    snapshot = DriveSnapshot(state="running")
    box = BlackBox(tmp_path, seconds=2.0)
    box.watch = lambda: snapshot
    labels = np.zeros(SIZE, np.uint8)
    story: list[tuple[str, str]] = [
        *[("running", "")] * 5,
        *[("degraded", f"silent for {n} s") for n in range(20)],
        *[("running", "")] * 5,
        *[("degraded", "the sink black box is blocked")] * 5,
        *[("failed", "no inference serves")] * 10,
    ]
    for number, (state, reason) in enumerate(story):
        now += 1.0
        snapshot = DriveSnapshot(state=state, reasons=tuple(filter(None, [reason])))
        box(make_result(number, noise(number), labels))
        if box._saving is not None:
            box._saving.join()
    box.close()
    first, second = sorted(box.incidents)
    reasons = {json.dumps(read_incident(path)[0]["reason"]) for path in (first, second)}
    assert reasons == {'"degraded: silent for 0 s"', '"failed: no inference serves"'}
    assert topics(first)[HEALTH] >= 2


def test_a_reason_that_comes_and_goes_is_kept_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, kept = 1000.0, []
    monkeypatch.setattr(black_box.time, "monotonic", lambda: now)
    snapshot = DriveSnapshot(state="running")
    box = BlackBox(tmp_path, seconds=2.0)
    box.watch = lambda: snapshot
    monkeypatch.setattr(box, "keep", lambda reason: kept.append((now - 1000, reason)))
    labels = np.zeros(SIZE, np.uint8)
    for second in range(500):
        now = 1000.0 + second
        reasons = ["rate: 5 a second"] if second % 20 < 10 else []
        reasons += ["late: 9 ms"] if second == 205 else []
        snapshot = DriveSnapshot(state="degraded" if reasons else "running", reasons=reasons)
        box(make_result(second, noise(0), labels))
    box.close()
    assert [at for at, _ in kept] == [0, 60, 180, 205, 420]
    assert kept[3][1] == "degraded: rate: 5 a second; late: 9 ms"  # what is new beside it


def test_a_box_has_one_drive(tmp_path: Path) -> None:
    box = BlackBox(tmp_path)
    with pytest.raises(UsageError, match="another drive's black box"):
        BlackBox(tmp_path)
    box.close()
    BlackBox(tmp_path).close()


@pytest.mark.parametrize("bad", [{"seconds": 0}, {"megabytes": 0.1}, {"seconds": float("nan")}])
def test_a_box_without_room_is_one_line(tmp_path: Path, bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="a black box holds"):
        BlackBox(tmp_path, **bad)


def test_no_incident_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no incident"):
        find_incidents(tmp_path)
    (tmp_path / "x.mcap").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="is no incident"):
        read_incident(tmp_path / "x.mcap")


class Asking:
    """A sink that asks for the last seconds at the tenth message."""

    keep_incident: Any = None

    def __init__(self) -> None:
        self.messages = 0

    def __call__(self, message: Message) -> None:
        self.messages += 1
        if self.messages == 10:
            self.keep_incident("the planner asks")


def test_a_killed_worker_and_a_sink_and_a_signal_leave_incidents(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(black_box, "AFTER_S", 0.3)
    monkeypatch.setattr(black_box, "LOOK_S", 0.05)
    box = BlackBox(tmp_path, seconds=0.2, artifacts=[ServedArtifact(artifact, None, "cpu")])
    done: list[str] = []

    def conduct(message: Message) -> None:
        names = [path.name.split("_", 2)[2] for path in box.incidents]
        if "the-planner-asks.mcap" in names and not done:
            done.append("signal")
            os.kill(os.getpid(), signal.SIGUSR1)
        if "sigusr1.mcap" in names and done == ["signal"]:
            done.append("kill")
            os.kill(drive.loop.supervisor.processes()[0], signal.SIGKILL)
        if any(name.startswith(("degraded", "failed")) for name in names):
            drive.stop("seen")

    drive = Drive(Camera(), artifact, [Asking(), conduct], device="cpu", black_box=box)
    report = drive.run(LIMIT_S)
    assert report.ended == "seen"
    (counts,) = (sink for sink in report.sinks if sink.name == "black box")
    assert counts.failed == 0
    for path in box.incidents:
        replayed = replay_incident(path)
        assert replayed.frames > 0
        assert replayed.failure() == ""
    facts = read_incident(box.incidents[-1])[0]
    assert facts["engines"]["primary"]["levels"] == [artifact.name]


DRIVEN = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_black_box import Camera
from rtseg.runtime import Drive
from rtseg.runtime.provenance import ServedArtifact
from rtseg.runtime.sinks.black_box import BlackBox

artifact = Path(sys.argv[1])
box = BlackBox(Path(sys.argv[2]), 600.0, artifacts=[ServedArtifact(artifact, None, "cpu")])
Drive(Camera(), artifact, device="cpu", black_box=box).run()
"""


def test_the_last_seconds_survive_a_killed_drive(artifact: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", DRIVEN, artifact, tmp_path, Path(__file__).parent]
    process = subprocess.Popen(list(map(str, arguments)))
    try:
        end = time.monotonic() + LIMIT_S
        while sum(path.stat().st_size for path in tmp_path.glob("ring/*")) < 300_000:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.1)
        with pytest.raises(UsageError, match="another drive's black box"):
            find_incidents(tmp_path)
    finally:
        process.kill()
        process.wait()
    left = [path for path in tmp_path.glob("ring/*") if path.stat().st_size]
    written = sum(topics(path).get(RESULT, 0) for path in left)
    (kept,) = find_incidents(tmp_path)
    assert "cut-off" in kept.name
    assert not list(tmp_path.glob("ring/*"))
    done = replay_incident(kept)
    assert done.frames == written > 5
    assert done.failure() == ""
    assert find_incidents(tmp_path) == [kept]  # a second look makes no second file
