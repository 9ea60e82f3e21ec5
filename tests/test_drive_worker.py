"""Inference in its own process: what goes through, what breaks, what is proven."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rtseg.errors import ArtifactError
from rtseg.export import Artifact, export
from rtseg.models.loading import Model
from rtseg.runtime import Segmenter, load
from rtseg.runtime.backends.backend import open_backend
from rtseg.runtime.drive import known_frame, worker_process
from rtseg.runtime.drive.clock import LoopClock
from rtseg.runtime.drive.drive import build_artifact_task
from rtseg.runtime.drive.engine import Answer
from rtseg.runtime.drive.realtime import RealtimeOptions, apply_realtime
from rtseg.runtime.drive.worker import Worker, WorkerTask, wait_ready
from rtseg.runtime.records import write_record
from rtseg.usage import read_usage

LIMIT_S = 300.0  # reached by nothing but a defect, however busy the machine is
PRETENDER = """
import os, time
import numpy as np

def first(image):
    if image[0, 0, 0] == 251:
        raise RuntimeError("CUDA error 700")
    if image[0, 0, 0] == 252:
        time.sleep(1000)
    if image[0, 0, 0] == 253:
        os._exit(70)
    if image[0, 0, 0] == 254:
        return image[:2, :, 0]
    return image[:, :, 0].copy()

def second(image):
    return image[:, :, 1].copy()

def both():
    return [first, second]

def spoiled(path):
    # an artifact whose labels are wrong from a marked frame on
    from rtseg.runtime import Segmenter, load

    class Spoiled(Segmenter):
        struck = False

        def __call__(self, frame):
            self.struck = self.struck or frame[0, 0, 0] == 77
            return super().__call__(frame) ^ np.uint8(self.struck)

    segment = load(path, "onnxruntime", "cpu")
    segment.__class__ = Spoiled
    return [segment]

def none():
    raise OSError("no GPU answers")
"""


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., WorkerTask]:
    (tmp_path / "pretender.py").write_text(PRETENDER)

    def make(loader: str = "both", **options: Any) -> WorkerTask:
        paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"PYTHONPATH": os.pathsep.join(paths)}
        name = f"pretender:{loader}"
        return WorkerTask(("first", "second"), {}, name, environment=environment, **options)

    return make


def ask(worker: Worker, image: np.ndarray[Any, Any], level: int = 0, job: int = 1) -> Answer:
    worker.submit(job, image, level)
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if (answer := worker.take()) is not None:
            return answer
        assert not worker.fault, worker.fault
        worker.clock.wait(0.05)
    raise AssertionError("no answer")


def until_broken(worker: Worker) -> str:
    end = time.monotonic() + LIMIT_S
    while not worker.fault:
        assert time.monotonic() < end
        worker.clock.wait(0.05)
    return worker.fault


def test_frames_of_any_size_come_back_as_labels(task: Callable[..., WorkerTask]) -> None:
    worker = Worker(task(), LoopClock())
    try:
        wait_ready(worker, LIMIT_S)
        assert len(worker.baselines_ms) == 2
        random = np.random.default_rng(0)
        answers = []
        for job, size in enumerate([(3, 5), (1200, 1920), (48, 64), (1200, 1920)]):
            image = random.integers(0, 200, (*size, 3), np.uint8)
            for level in (0, 1):
                answer = ask(worker, image, level, job)
                assert answer.job == job
                answers.append((answer.labels, image[:, :, level]))
        for labels, expected in answers:  # only now: a later frame must not change them
            assert labels is not None
            assert (labels == expected).all()
    finally:
        worker.kill()
        worker.join(LIMIT_S)


@pytest.mark.parametrize(
    ("value", "message"),
    [(251, "RuntimeError: CUDA error 700"), (254, r"ValueError: labels of shape \(2, 8\)")],
)
def test_an_error_there_is_an_answer_here(
    task: Callable[..., WorkerTask], value: int, message: str
) -> None:
    worker = Worker(task(), LoopClock())
    try:
        wait_ready(worker, LIMIT_S)
        answer = ask(worker, np.full((6, 8, 3), value, np.uint8))
        assert answer.labels is None
        with pytest.raises(ValueError, match=message):
            raise ValueError(answer.error)
    finally:
        worker.kill()
        worker.join(LIMIT_S)


def test_a_death_there_is_told_with_its_cause(task: Callable[..., WorkerTask]) -> None:
    worker = Worker(task(), LoopClock())
    wait_ready(worker, LIMIT_S)
    worker.submit(1, np.full((6, 8, 3), 253, np.uint8), 0)
    assert until_broken(worker) == "the worker process ended with exit code 70"
    assert not worker.ready
    worker.kill()
    worker.join(LIMIT_S)


def test_a_worker_that_hangs_is_killed_and_leaves_nothing(task: Callable[..., WorkerTask]) -> None:
    before = read_usage().handles
    worker = Worker(task(), LoopClock())
    wait_ready(worker, LIMIT_S)
    worker.submit(1, np.full((6, 8, 3), 252, np.uint8), 0)
    worker.kill()
    worker.join(LIMIT_S)
    assert worker.process.returncode == -9
    assert read_usage().handles == before


def test_a_worker_that_cannot_be_started_keeps_nothing(
    task: Callable[..., WorkerTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("subprocess.Popen", refuse)
    before = read_usage().handles
    for _ in range(3):
        with pytest.raises(OSError, match="Too many open files"):
            Worker(task(), LoopClock())
    assert read_usage().handles == before


def test_a_loader_that_fails_says_why(task: Callable[..., WorkerTask]) -> None:
    worker = Worker(task("none"), LoopClock())
    assert until_broken(worker) == "OSError: no GPU answers"
    with pytest.raises(RuntimeError, match="no GPU answers"):
        wait_ready(worker, LIMIT_S)
    worker.kill()
    worker.join(LIMIT_S)


SIZE = 64, 128


@pytest.fixture(scope="module")
def artifact(nano: Model, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("artifacts")
    (made,) = export(nano, [SIZE], out=out)
    return made


def test_an_artifact_is_served_as_without_a_worker(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    frame = np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)
    task = build_artifact_task([artifact.path], "onnxruntime", "cpu", RealtimeOptions(priority=0))
    known: dict[str, str] = {}
    worker = Worker(replace(task, logits=True), LoopClock(), known)
    try:
        wait_ready(worker, LIMIT_S)
        answer = ask(worker, frame)
        assert worker.facts["realtime"]["garbage collector"].endswith("objects frozen")
        with load(artifact.path, "onnxruntime", "cpu") as segment:
            assert (answer.labels == segment(frame)).all()
            assert segment.backend.maker is not None
            assert np.array_equal(answer.logits, segment.backend.maker.coarse[0])
            assert known_frame.prove(segment, "it") == known[artifact.path.name]
    finally:
        worker.kill()
        worker.join(LIMIT_S)
    # One that computes anything else than the first did must not serve.
    other = Worker(task, LoopClock(), {artifact.path.name: "other"})
    assert "gives other labels for the known frame than at the start" in until_broken(other)
    assert not other.ready
    other.kill()
    other.join(LIMIT_S)


def test_a_worker_that_changes_while_it_serves_is_found_within_twice_the_pace(
    artifact: Artifact, task: Callable[..., WorkerTask]
) -> None:
    every = 4
    spoiled = task("spoiled", recheck=every)
    worker = Worker(
        replace(spoiled, levels=("nano",), arguments={"path": str(artifact.path)}), LoopClock()
    )
    frame = np.zeros((*SIZE, 3), np.uint8)
    try:
        wait_ready(worker, LIMIT_S)
        for _ in range(5 * every):
            ask(worker, frame)
        assert 2 <= worker.facts["rechecks"] <= 5
        frame[0, 0, 0] = 77
        for asked in range(2 * every):
            worker.submit(asked, frame, 0)
            end = time.monotonic() + LIMIT_S
            while not worker.fault and not worker.take() and time.monotonic() < end:
                worker.clock.wait(0.05)
            time.sleep(0.2)  # for the known frame
            if worker.fault:
                break
        assert worker.fault.startswith("nano gives other labels on ")
        assert worker.fault.endswith("than at the start: its process is replaced")
    finally:
        worker.kill()
        worker.join(LIMIT_S)


def test_a_worker_that_certifies_is_warm_for_that(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loops are compiled before it is ready, not at the first frame, which would be stuck."""
    asked: list[str] = []
    monkeypatch.setattr(Segmenter, "details", lambda self, frame: asked.append("details"))
    monkeypatch.setattr(Segmenter, "__call__", lambda self, frame: asked.append("labels"))
    with load(artifact.path, "onnxruntime", "cpu") as segment:
        for certifies, kind in ((False, "labels"), (True, "details")):
            asked.clear()
            segment.certifies = certifies
            worker_process.measure_baseline(segment)
            assert set(asked) == {kind}


def flip_bit(path: Path, folder: Path, name: str) -> Path:
    """The artifact with the highest exponent bit of one weight flipped, as in memory."""
    (tensor,) = (each for each in onnx.load(path).graph.initializer if each.name == name)
    content = bytearray(path.read_bytes())
    middle = len(tensor.raw_data) // 8 * 4
    content[content.index(tensor.raw_data) + middle + 3] ^= 1 << 6
    out = folder / "flipped.onnx"
    out.write_bytes(content)
    return out


def test_a_flipped_bit_changes_the_known_frame(artifact: Artifact, tmp_path: Path) -> None:
    weights = [
        each.name for each in onnx.load(artifact.path).graph.initializer
        if len(each.dims) == 4 and np.prod(each.dims) > 64
    ]  # fmt: skip
    with load(artifact.path, "onnxruntime", "cpu", threads=1) as segment:
        known = known_frame.KnownFrame(segment)
        unsealed = segment.card.model_copy(update={"files": {}})
        assert known.exact
        assert known.find_change(segment) == ""
        for name in weights[:: max(1, len(weights) // 5)]:
            flipped = flip_bit(artifact.path, tmp_path, name)
            backend = open_backend("onnxruntime", flipped, "cpu", card=unsealed, threads=1)
            with Segmenter(backend) as other:
                assert "than at the start" in known.find_change(other), name
        shown = iter(range(1, 100))
        once = known.find_change(lambda frame: segment(frame) ^ np.uint8(next(shown) == 1))
        assert once == ""  # one odd run is no fault


def test_the_known_frame_waits_for_room(artifact: Artifact) -> None:
    with load(artifact.path, "onnxruntime", "cpu", threads=1) as segment:
        repetition = known_frame.Repetition([segment, len], every=10)

        def due_after(waited_s: float, others_wait: bool = False) -> int:
            for frames in range(1, 100):
                repetition.add(waited_s)
                if repetition.due(0, others_wait):
                    assert repetition.find_change(0) == ""
                    return frames
            raise AssertionError("never due")

        assert due_after(100.0) == 10
        assert due_after(100.0, others_wait=True) == 19
        assert due_after(0.0) == 19
        assert not repetition.due(1, False)  # no artifact, no known frame


@pytest.fixture
def proved(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Segmenter, str, Path]]:
    """A Segmenter that answered the known frame once, the digest, and where that is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with load(artifact.path, "onnxruntime", "cpu") as segment:
        digest = known_frame.prove(segment, "nano")
        (kept,) = (tmp_path / "rtseg" / "known-frames").iterdir()
        yield segment, digest, kept


def test_the_known_digest_is_kept_and_held_to(proved: tuple[Segmenter, str, Path]) -> None:
    segment, digest, kept = proved
    assert known_frame.prove(segment, "nano") == digest
    record = json.loads(kept.read_text())
    assert record["labels"] == digest
    forged = json.dumps(record | {"labels": "0" * 64})
    for malformed in ("", digest, forged):  # a crash left it, or somebody: as if it were absent
        kept.write_text(malformed)
        for _ in range(2):
            assert known_frame.prove(segment, "nano") == digest
        assert json.loads(kept.read_text()) == record
    write_record(kept, {"of": record["of"], "labels": "0" * 64})
    with pytest.raises(ArtifactError, match=r"nano gives other labels .*delete"):
        known_frame.prove(segment, "nano")


def test_a_first_load_that_was_wrong_is_not_held_to(proved: tuple[Segmenter, str, Path]) -> None:
    segment, digest, kept = proved
    wrong = {"of": json.loads(kept.read_text())["of"], "labels": "0" * 64}
    write_record(kept, wrong | {"loads": 1})
    assert [known_frame.prove(segment, "nano") for _ in range(2)] == [digest] * 2
    write_record(kept, wrong | {"loads": 2})
    with pytest.raises(ArtifactError, match="nano gives other labels"):
        known_frame.prove(segment, "nano")


def test_what_is_not_granted_is_said() -> None:
    nothing = RealtimeOptions(priority=0, lock_memory=False, freeze_garbage=False)
    assert apply_realtime(nothing) == {}
    granted = apply_realtime(replace(nothing, cores=(4096,), priority=1000))
    assert granted["cores"].startswith("not ")
    assert granted["SCHED_FIFO"].startswith("not ")
