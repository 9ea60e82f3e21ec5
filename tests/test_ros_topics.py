"""ROS 2 topics with real DDS and real Zenoh on loopback, between processes."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import rtseg
from conftest import ROOT
from ros_peer import CAMERA, FRAME_ID, SIZE, open_peer, pictures
from rtseg.data.frames import Frame
from rtseg.data.ros.links import open_link, parse_address
from rtseg.data.ros.ros_camera import RosCamera
from rtseg.data.ros.ros_messages import CompressedImage, Header, Image, LabelInfo
from rtseg.data.ros.zenoh_link import encode_attachment
from rtseg.export import export
from rtseg.runtime import DriveLimits, Result
from rtseg.runtime.artifact import read_card
from rtseg.runtime.drive.messages import State, Status, StatusKind
from rtseg.runtime.drive.report import DriveSnapshot
from rtseg.runtime.drive.stats import FrameCounts, TimeSummary
from rtseg.runtime.sinks import open_sinks
from rtseg.runtime.sinks.ros_topics import LEVELS, RosTopics, describe_state

LIMIT_S = 60.0
PEER = Path(__file__).with_name("ros_peer.py")
LOOPBACK = """<CycloneDDS><Domain><General>
<Interfaces><NetworkInterface name="lo"/></Interfaces><AllowMulticast>false</AllowMulticast>
</General><Discovery><ParticipantIndex>auto</ParticipantIndex>
<Peers><Peer address="127.0.0.1"/></Peers></Discovery></Domain></CycloneDDS>"""
INSTALL = 'pip install "rtseg[ros2]"'


@dataclass
class Net:
    """A transport on loopback that nobody else uses."""

    transport: str
    domain: int
    endpoint: str = ""

    def address(self, topic: str, **options: str) -> str:
        scheme = "ros2" if self.transport == "dds" else "zenoh"
        if self.endpoint:
            options["connect"] = self.endpoint
        more = "".join(f"&{key}={value}" for key, value in options.items())
        return f"{scheme}:{topic}?domain={self.domain}{more}"

    def peer(self) -> Any:
        return open_peer(self.transport, self.domain, self.endpoint)

    def start(self, task: str) -> subprocess.Popen[str]:
        """The peer in a process of its own, which publishes or listens."""
        order = [sys.executable, PEER, task, self.transport, str(self.domain), self.endpoint]
        return subprocess.Popen(
            [str(each) for each in order if each], stdout=subprocess.PIPE, text=True
        )


@pytest.fixture(params=["dds", "zenoh"])
def net(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    domain = 1 + os.getpid() % 99
    if request.param == "dds":
        pytest.importorskip("cyclonedds", reason=f"needs cyclonedds: {INSTALL}")
        monkeypatch.setenv("CYCLONEDDS_URI", LOOPBACK)
        yield Net("dds", domain)
        return
    zenoh = pytest.importorskip("zenoh", reason=f"needs eclipse-zenoh: {INSTALL}")
    pytest.importorskip("rosbags", reason=f"needs rosbags: {INSTALL}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"tcp/127.0.0.1:{free.getsockname()[1]}"
    config = zenoh.Config()  # of a router, as `ros2 run rmw_zenoh_cpp rmw_zenohd` is one
    config.insert_json5("mode", '"router"')
    config.insert_json5("listen/endpoints", json.dumps([endpoint]))
    config.insert_json5("scouting/multicast/enabled", "false")
    with zenoh.open(config):
        yield Net("zenoh", domain, endpoint)


def until(holds: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    end = time.monotonic() + limit_s
    while not (found := holds()):
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)
    return found


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (made,) = export("csfcn_nano:camvid", SIZE, out=tmp_path_factory.mktemp("artifacts"))
    return made.path


def test_labels_come_back_from_rtseg_drive(
    net: Net, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`rtseg drive` in one process; camera and planner in this one, without its code."""
    peer, frames = net.peer(), pictures()
    peer.labels()
    order = ["drive", net.address(CAMERA), "--model", artifact, "-o", net.address("/rtseg")]
    order += ["--max-age", "2000", "--json"]
    drive = subprocess.Popen(
        [sys.executable, "-m", "rtseg", *map(str, order)],
        cwd=ROOT.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    sent: dict[int, int] = {}
    came: dict[int, tuple[Any, float]] = {}
    end = time.monotonic() + LIMIT_S
    try:
        while len(came) < 20:
            assert drive.poll() is None, drive.communicate()
            assert time.monotonic() < end, "no labels"
            stamp_ns = time.time_ns()
            sent[stamp_ns] = len(sent) % len(frames)
            peer.send(stamp_ns, frames[sent[stamp_ns]])
            while (now_ns := time.time_ns()) < stamp_ns + 50_000_000:
                came |= {each.stamp_ns: (each, now_ns - each.stamp_ns) for each in peer.labels()}
                time.sleep(0.001)
        classes = until(peer.classes)  # whoever comes late gets them too
        diagnostics = until(lambda: [each for each in peer.diagnostics() if each[0] == 0])
    finally:
        drive.send_signal(signal.SIGTERM)
        report = json.loads(drive.communicate(timeout=30)[0])
    assert drive.returncode == 0
    card = read_card(artifact)
    with rtseg.load(artifact) as segment:
        expected = [segment(frame) for frame in frames]
    for stamp_ns, (labels, _) in came.items():
        assert (labels.frame_id, labels.encoding) == (FRAME_ID, "mono8")
        assert np.array_equal(labels.labels, expected[sent[stamp_ns]])
    assert classes == dict(enumerate(card.classes))
    level, text, values = diagnostics[-1]
    assert (level, values["state"]) == (0, "running")
    assert text.startswith("running")
    assert int(values["frames answered"]) >= 1
    assert 0 < float(values["age p50 ms"]) < 2000
    assert report["frames"]["published"] >= 20
    # The age that the drive reports counts from the header's stamp, so it is at most what a reader
    # in another process sees.
    ages = sorted(age / 1e6 for _, age in came.values())
    assert 0 < report["age_ms"]["p50"] < ages[-1]
    digests = [hashlib.sha256(each).hexdigest()[:12] for each in expected]
    with capsys.disabled():
        print(
            f"\n{net.transport}: {len(came)} label maps, age at the drive "
            f"p50 {report['age_ms']['p50']:.1f} ms, p99 {report['age_ms']['p99']:.1f} ms; received "
            f"at p50 {ages[len(ages) // 2]:.1f} ms; digests {', '.join(digests)}"
        )
    if net.transport == "zenoh":
        assert {len(each) for each in peer.attachments} == {33}
    peer.close()


def test_certified_and_confidence_come_as_images_with_the_labels_stamp(
    net: Net, artifact: Path
) -> None:
    peer, card = net.peer(), read_card(artifact)
    labels = np.full(SIZE, 3, np.uint8)
    certified, confidence = labels == 3, np.arange(labels.size, dtype=np.uint8).reshape(SIZE)
    certified[:, ::2] = False
    names = ("labels", "certified", "confidence")
    for name in names:
        peer.labels(name)
    sink = RosTopics(parse_address(net.address("/rtseg")), card, certify=True)
    came: dict[str, Any] = {}
    stamp_ns = 1_700_000_000_123_456_789
    try:

        def arrived() -> bool:
            sink(Result(
                frame_id=1, index=1, name="", captured_ns=1, captured_wall_ns=stamp_ns,
                labels=labels, image=pictures()[0], level="", stages_ms={}, age_ms=1.0,
                published_ns=2, expires_ns=3, coordinate_frame=FRAME_ID, certified=certified,
                confidence=confidence,
            ))  # fmt: skip
            time.sleep(0.05)
            came.update({name: found[-1] for name in names if (found := peer.labels(name))})
            return len(came) == len(names)

        until(arrived)
    finally:
        sink.close()
        peer.close()
    expected = labels, np.where(certified, 255, 0), confidence
    for name, picture in zip(names, expected, strict=True):
        got = came[name]
        assert (got.stamp_ns, got.frame_id, got.encoding) == (stamp_ns, FRAME_ID, "mono8")
        assert np.array_equal(got.labels, picture), name


class Collector:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.statuses: list[Status] = []

    def __call__(self, message: Any) -> None:
        (self.results if isinstance(message, Result) else self.statuses).append(message)


def dark(frame: Any) -> Any:
    """A segmenter: class 1 where it is dark."""
    return (frame[..., 0] < 128).astype(np.uint8)


@contextmanager
def driving(source: Any, *sinks: Any, **limits: Any) -> Iterator[rtseg.Drive]:
    drive = rtseg.Drive(source, dark, sinks, limits=DriveLimits(**limits))
    thread = threading.Thread(target=drive.run, daemon=True)
    thread.start()
    try:
        yield drive
    finally:
        drive.stop()
        thread.join(10)


def test_a_publisher_that_dies_and_returns(net: Net) -> None:
    camera, got = RosCamera(net.address(CAMERA)), Collector()
    with driving(camera, got) as drive:
        first = net.start("publish")
        until(lambda: len(got.results) > 5)
        assert drive.snapshot().state in ("running", "degraded")
        first.kill()
        first.wait()
        until(lambda: drive.snapshot().state == "stale")
        until(lambda: any("is silent" in each.text for each in got.statuses))
        before = len(got.results)
        second = net.start("publish")
        until(lambda: len(got.results) > before + 5)
        until(lambda: drive.snapshot().state == "running")
        second.kill()
        second.wait()
    assert got.results[-1].coordinate_frame == FRAME_ID
    camera.close()


def test_a_stuck_subscriber_does_not_slow_the_loop(net: Net) -> None:
    camera, card = RosCamera(net.address(CAMERA)), SimpleNamespace(classes=("a", "b"), model="dark")
    sinks = open_sinks([Path(net.address("/rtseg"))], card, lambda *each: each[0])  # type: ignore[arg-type]
    got, reader, publisher = Collector(), net.start("listen"), net.start("publish")
    try:
        with driving(camera, got, *sinks) as drive:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "got labels\n"
            reader.send_signal(signal.SIGSTOP)  # a reliable reader that acknowledges nothing
            before, began = len(got.results), time.monotonic()
            time.sleep(4)
            rate = (len(got.results) - before) / (time.monotonic() - began)
            ages = [each.age_ms for each in got.results[before:]]
            snapshot = drive.snapshot()
    finally:
        for process in (reader, publisher):
            process.kill()
            process.wait()
    assert rate > 10, "of 20 Hz"
    assert np.median(ages) < 50
    assert (
        snapshot.frames.captured - snapshot.frames.published <= 5 + 0.3 * snapshot.frames.captured
    )
    camera.close()


def test_malformed_messages_become_statuses(net: Net) -> None:
    camera, got, peer = RosCamera(net.address(CAMERA)), Collector(), net.peer()
    frame = pictures(1)[0]

    def send(**wrong: Any) -> None:
        peer.send(time.time_ns(), frame, **wrong)

    with driving(camera, got) as drive:
        until(lambda: send() or time.sleep(0.05) or got.results)
        for wrong, why in (
            ({"step": 5}, "rows of 5 bytes"),
            ({"encoding": "32FC4"}, "an image in '32FC4'"),
            ({"step": 2**31}, "bytes where 96 rows of 2147483648"),
        ):
            until(
                lambda wrong=wrong, why=why: (
                    send(**wrong)
                    or time.sleep(0.05)
                    or any(why in each.text and each.cause == "corrupt" for each in got.statuses)
                )
            )
        before = len(got.results)
        until(lambda: send() or time.sleep(0.05) or len(got.results) > before)
        assert drive.snapshot().frames.dropped["corrupt"] >= 3
    camera.close()
    peer.close()


def test_compressed_images_and_a_reliable_reader(net: Net) -> None:
    topic, frame = "/camera/image_raw/compressed", pictures(1)[0]
    camera = RosCamera(net.address(topic, reliability="reliable"))
    link = open_link(parse_address(net.address(topic)))
    publication = link.advertise(topic, CompressedImage.TYPE)
    content, frames = cv2.imencode(".png", frame)[1].tobytes(), iter(camera)

    def next_frame() -> Any:
        nonlocal frames
        publication.send(CompressedImage(Header(time.time_ns(), "b"), "png", content).encode())
        try:
            return next(frames)
        except OSError:  # not matched yet
            frames = iter(camera)

    found = until(next_frame)
    assert np.array_equal(found.image, frame)
    assert found.coordinate_frame == "b"
    camera.close()
    publication.close()


@pytest.mark.parametrize(
    ("state", "level"),
    list(zip([each.value for each in State], (1, 0, 1, 3, 2, 3), strict=True)),
)
def test_diagnostics_say_what_the_drive_says(state: str, level: int) -> None:
    snapshot = DriveSnapshot(
        state=state,
        reasons=["a sink is blocked", "frames are late"],
        level="nano",
        frames=FrameCounts(9, 7, {"replaced": 2}),
        statuses={"LATE": 3},
        age_ms=TimeSummary(7, 12.3, 11.0, 15.0, 16.0, 17.25),
    )
    found = describe_state(snapshot, None, "name", "net")
    assert found.level == level == LEVELS[State(state).value]
    assert found.message == f"{state}: a sink is blocked; frames are late"
    assert (found.name, found.hardware_id) == ("name", "net")
    for key, value in {
        "frames captured": "9",
        "frames answered": "7",
        "dropped, replaced": "2",
        "statuses, LATE": "3",
        "age p50 ms": "11.0",
        "age max ms": "17.2",
        "artifact": "nano",
    }.items():
        assert found.values[key] == value
    late = Status(StatusKind.LATE, "late", "no mask within 500 ms", 7, 9)
    found = describe_state(snapshot, late, "name", "net")
    assert found.message == f"{state}: LATE late: no mask within 500 ms"


def test_ages_count_from_arrival_where_stamps_are_another_clocks(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    camera, peer, frame = RosCamera(net.address(CAMERA)), net.peer(), pictures(1)[0]

    def next_frame(stamp_ns: Callable[[], int]) -> tuple[Frame, int]:
        frames = iter(camera)
        for _ in range(200):
            sent_ns = time.monotonic_ns()
            peer.send(stamp_ns(), frame)
            try:
                return next(frames), sent_ns  # type: ignore[return-value]
            except OSError:
                frames = iter(camera)  # not matched yet
        raise AssertionError("no frame came")

    with caplog.at_level("WARNING", "rtseg"):
        found, sent_ns = next_frame(lambda: time.time_ns() - 200_000_000)
        assert camera.clock is not None
        assert camera.clock.trusted
        assert found.age_source == "exposure"
        assert found.captured_ns < sent_ns
        assert not caplog.records
        found, sent_ns = next_frame(lambda: 5 * 10**9)  # a simulation's clock
        assert found.captured_ns >= sent_ns
        assert found.age_source == "arrival"
        assert found.wall_ns == 5 * 10**9
        assert "ages count from arrival" in caplog.text
    camera.close()
    peer.close()


def test_the_configuration_for_dds_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cyclone refuses what it does not know; a domain that was left can be joined again."""
    pytest.importorskip("cyclonedds", reason=f"needs cyclonedds: {INSTALL}")
    monkeypatch.delenv("CYCLONEDDS_URI", raising=False)
    for _ in range(2):
        exchange_by_default()
        gc.collect()


def exchange_by_default() -> None:
    link = open_link(parse_address(f"ros2:/image?domain={100 + os.getpid() % 99}"))
    subscription = link.subscribe("/image", Image.TYPE, False)
    publication: Any = link.advertise("/image", Image.TYPE)
    message = Image(Header(5, "a"), 2, 3, "mono8", 3, bytes(6)).encode()
    took = until(lambda: publication.send(message) or subscription.take(0.1))
    assert Image.decode(took) == Image.decode(message)
    assert subscription.publishers() == 1
    # Where rmw looks for it.
    assert f"typehash={Image.TYPE.digest};" in repr(publication._writer.get_qos())
    subscription.close()
    publication.close()


def test_zenoh_knows_us_as_rmw_zenoh_would() -> None:
    zenoh = pytest.importorskip("zenoh", reason=f"needs eclipse-zenoh: {INSTALL}")
    from zenoh import ext

    link: Any = open_link(parse_address("zenoh:/a?domain=3"))
    zid = link.session.info.zid()
    assert link.key("/rtseg/label_info", LabelInfo.TYPE) == (
        f"3/rtseg/label_info/vision_msgs::msg::dds_::LabelInfo_/{LabelInfo.TYPE.digest}"
    )
    token = link.token("MP", "/rtseg/label_info", LabelInfo.TYPE, "latched")
    assert token.startswith(f"@ros2_lv/3/{zid}/0/")
    assert token.endswith(
        "/MP/%/%/rtseg/%rtseg%label_info/vision_msgs::msg::dds_::LabelInfo_/"
        f"{LabelInfo.TYPE.digest}/:1:,1:,:,:,,"
    )
    assert zenoh.KeyExpr(token)  # one that Zenoh allows
    gid = bytes(range(16))
    plain = zenoh.ZBytes(encode_attachment(7, 99, gid, labeled=False))
    assert ext.z_deserialize(tuple[ext.Int64, ext.Int64, bytes], plain) == (7, 99, gid)
    labeled = zenoh.ZBytes(encode_attachment(7, 99, gid, labeled=True))
    fields = tuple[str, ext.Int64, str, ext.Int64, str, bytes]
    names = "sequence_number", "source_timestamp", "source_gid"
    assert ext.z_deserialize(fields, labeled) == (names[0], 7, names[1], 99, names[2], gid)
    assert link.labeled is False
    link._seen_labeled = True  # a message with labels came in
    assert link.labeled is True


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cyclonedds.core", None)
    monkeypatch.setitem(sys.modules, "zenoh", None)
    for where, package in (("ros2:/a?domain=231", "cyclonedds"), ("zenoh:/a?domain=231", "zenoh")):
        with pytest.raises(rtseg.MissingPackage, match=package):
            open_link(parse_address(where))
