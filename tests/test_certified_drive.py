"""A drive with certified labels: what it counts, when it calls itself degraded, what sinks get."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ROOT
from made_messages import SIZE, result
from numpy.typing import NDArray
from rtseg.data.classes import CAMVID
from rtseg.data.frames import Frame
from rtseg.data.images import blend
from rtseg.demo.live import encode
from rtseg.errors import UsageError
from rtseg.runtime import Details, Drive, Result
from rtseg.runtime.drive.certified_share import CertifiedShare, parse_corridor
from rtseg.runtime.drive.clock import LoopClock
from rtseg.runtime.drive.worker import Worker, WorkerTask, wait_ready
from rtseg.runtime.sinks.mcap_writer import McapRecorder
from rtseg.runtime.sinks.shared_memory import Ring, RingReader

LIMIT_S = 300.0  # reached by nothing but a defect, however busy the machine is
LEFT = np.zeros(SIZE, bool)
LEFT[:, : SIZE[1] // 2] = True


def share_map(share: float) -> NDArray[np.bool_]:
    certified = np.zeros(SIZE, bool)
    certified[:, : round(share * SIZE[1])] = True
    return certified


def certified_result(frame_id: int = 0) -> Result:
    confidence = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE).astype(np.uint8)
    return replace(result(frame_id), certified=LEFT, confidence=confidence)


def test_shares_are_counted_in_all_by_class_and_in_the_corridor() -> None:
    labels = np.zeros(SIZE, np.uint8)
    labels[SIZE[0] // 2 :] = 1
    certified = np.zeros(SIZE, bool)
    certified[SIZE[0] // 2 :] = True  # the lower half, which is class 1
    certified[: SIZE[0] // 2, : SIZE[1] // 2] = True
    corridor = parse_corridor("0.5,0 1,0 1,0.99 0.5,0.99")
    counts = CertifiedShare(["sky", "road", "car"], 0.9, corridor)
    counts.add(labels, certified)
    summary = counts.summary()
    assert summary.share == pytest.approx(0.75, abs=0.03)
    assert summary.by_class == {"sky": pytest.approx(0.5), "road": 1.0}
    assert summary.corridor == pytest.approx(0.5, abs=0.05)
    assert (summary.frames, summary.silent) == (1, 0)
    assert "in the corridor" in str(summary)


def test_a_fallen_share_is_told_until_it_has_clearly_risen() -> None:
    counts = CertifiedShare(["sky"], 0.9)
    labels = np.zeros(SIZE, np.uint8)

    def run(share: float, results: int = 10) -> str:
        for _ in range(results):
            counts.add(labels, share_map(share))
        return counts.reason()

    assert run(0.9) == ""
    assert run(0.75) == ""  # less, but not below 80 % of what is expected
    assert run(0.5, 1) == ""  # one bad frame is none
    assert run(0.5) == "certified share fell to 50% of the pixels, from 90%"
    assert run(0.75) != ""  # between the two bounds it stays as it was
    assert run(0.88) == ""
    assert run(0.75) == ""
    assert counts.summary().falls == 1


def test_without_a_card_the_first_results_say_what_is_expected() -> None:
    counts = CertifiedShare(["sky"])
    for share in (*[1.0] * 10, *[0.5] * 10):
        counts.add(np.zeros(SIZE, np.uint8), share_map(share))
    assert "from 100%" in counts.reason()


def test_results_without_a_bitmap_are_told_with_their_reason() -> None:
    counts = CertifiedShare(["sky"], 0.9)
    counts.add(np.zeros(SIZE, np.uint8), None, "the graph makes its labels")
    assert counts.reason() == "no label is certified: the graph makes its labels"
    assert counts.summary().silent == 1
    counts.add(np.zeros(SIZE, np.uint8), share_map(1))
    assert counts.reason() == ""


@pytest.mark.parametrize("text", ["", "0,0 1,1", "0,0 1,1 2,0", "0,0 1 1,0", "a,b c,d e,f"])
def test_what_is_no_corridor_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="three corners or more"):
        parse_corridor(text)


def test_a_log_has_both_maps_where_results_have_them(tmp_path: Path) -> None:
    pytest.importorskip("mcap")
    from mcap.reader import make_reader
    from rtseg.data.mcap_reader import McapLog

    path = tmp_path / "drive.mcap"
    sink = McapRecorder(path, CAMVID.names, CAMVID.palette, blend, ros_messages=True)
    sink(result(0))
    sink(certified_result(1))
    sink.close()
    for topic, expected in certified_result(1).maps().items():
        (frame,) = list(McapLog(path, f"/rtseg/{topic}"))
        assert isinstance(frame, Frame)
        assert (frame.image[:, :, 0] == expected).all()
    with path.open("rb") as file:
        reader = make_reader(file)
        found = [channel.topic for _, channel, _ in reader.iter_messages()]
        (facts, _) = (m.data for *_, m in reader.iter_messages(topics=["/rtseg/result"]))
    assert found.count("/rtseg/ros/certified") == found.count("/rtseg/ros/confidence") == 1
    assert "certified" not in json.loads(facts)


def test_the_ring_has_both_maps_where_results_have_them(tmp_path: Path) -> None:
    path = tmp_path / "labels.ring"
    ring, reader = Ring(path, slots=2), RingReader(path)
    for message in (result(0), certified_result(1), result(2), certified_result(3)):
        ring(message)
        entry = reader.latest()
        assert entry is not None
        assert (entry.labels == message.labels).all()
        assert (entry.certified is None) == (message.certified is None)
        if entry.certified is not None:
            assert entry.confidence is not None
            assert (entry.certified == message.certified).all()
            assert (entry.confidence == message.confidence).all()
    # A damaged map is not believed.
    assert ring._map is not None
    place = ring._map.find(message.confidence.tobytes())  # type: ignore[union-attr]
    ring._map[place] ^= 1
    assert reader.latest() is None
    ring.close()


def test_a_reader_in_c_finds_the_maps(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, and cc is absent")
    program, path = tmp_path / "reader", tmp_path / "labels.ring"
    source = ROOT / "examples" / "ring_reader.c"
    subprocess.run([compiler, "-Wall", "-Werror", "-o", program, source], check=True)
    ring = Ring(path)
    now = time.monotonic_ns()
    ring(replace(certified_result(1), captured_ns=now, expires_ns=now + 300 * 10**9))
    done = subprocess.run([program, path, "1"], capture_output=True, text=True, check=True)
    assert f" certified {LEFT.sum()} " in done.stdout
    ring.close()


def test_the_page_gets_what_is_certified_behind_the_labels() -> None:
    assert len(encode(result(1)).body) == sum(
        encode(result(1)).facts[key]  # type: ignore[misc]
        for key in ("jpeg_bytes", "labels_bytes")
    )
    picture = encode(certified_result(1))
    end = picture.facts["jpeg_bytes"] + picture.facts["labels_bytes"]  # type: ignore[operator]
    png = cv2.imdecode(np.frombuffer(picture.body[end:], np.uint8), cv2.IMREAD_UNCHANGED)
    assert png is not None
    assert (png == 255 * LEFT).all()


def frames(count: int) -> Iterator[Frame]:
    for i in range(count):
        image = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), np.uint8)
        yield Frame(image, i, time.monotonic_ns(), name=f"frame {i}")


def test_details_reach_the_sinks_and_the_report() -> None:
    def segment(image: NDArray[np.uint8]) -> Details:
        return Details(image[..., 0].copy(), LEFT, np.full(SIZE, 200, np.uint8))

    seen: list[Any] = []
    report = Drive(frames(4), segment, [seen.append], certify=True, every_frame=True).run(LIMIT_S)
    results = [each for each in seen if isinstance(each, Result)]
    assert len(results) == 4, seen
    for each in results:
        assert each.certified is not None
        assert each.confidence is not None
        assert (each.certified == LEFT).all()
        assert each.confidence.min() == 200
        assert "certified" not in each.facts()
    assert report.certified is not None
    assert report.certified.share == pytest.approx(0.5, abs=0.02)
    assert "50.00% of the pixels" in report.to_markdown()
    assert json.loads(json.dumps(report.to_dict()))["certified"]["frames"] == 4


PRETENDER = """
import numpy as np
from rtseg.runtime import Details

def segment(image):
    if image[0, 0, 0] == 9:
        return Details(image[..., 0].copy(), why="it cannot")
    return Details(image[..., 0].copy(), image[..., 1] > 7, image[..., 2].copy())

def make():
    return [segment]
"""


def test_details_come_through_a_worker_process(tmp_path: Path) -> None:
    (tmp_path / "certifier.py").write_text(PRETENDER)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": path}
    task = WorkerTask(("one",), {}, "certifier:make", environment=environment)
    worker = Worker(task, LoopClock())
    try:
        wait_ready(worker, LIMIT_S)
        image = np.random.default_rng(0).integers(10, 256, (30, 40, 3), np.uint8)
        image[:, :20, 1] = 3
        for job, known in enumerate((image, np.full_like(image, 9), image)):
            worker.submit(job, known, 0)
            while (answer := worker.take()) is None:
                worker.clock.wait(1)
            assert answer.labels is not None
            assert (answer.labels == known[..., 0]).all()
            if job == 1:
                assert (answer.certified, answer.confidence) == (None, None)
                assert answer.why == "it cannot"
                continue
            assert answer.certified is not None
            assert answer.confidence is not None
            assert (answer.certified == (known[..., 1] > 7)).all()
            assert (answer.confidence == known[..., 2]).all()
    finally:
        worker.kill()
        worker.join(10)
