"""A proof that goes on: planted faults are found within twice the pace, nothing else is blamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rtseg.data.scenes import scene
from rtseg.errors import UsageError
from rtseg.export import Artifact, export
from rtseg.models.loading import Model, load_model
from rtseg.runtime.artifact import Card, Proof
from rtseg.runtime.bounds import ErrorBound
from rtseg.runtime.drive.agreement import compare_labels, frame_bar, move_frame
from rtseg.runtime.drive.clock import LoopClock
from rtseg.runtime.drive.continuous_proof import (
    RECOVERED,
    ContinuousProof,
    ProofAlarm,
    VerifiedLevel,
    VerifyPace,
    open_proof,
)
from rtseg.runtime.drive.engine import Answer
from rtseg.runtime.drive.evidence import Evidence, FileWatch
from rtseg.runtime.drive.messages import Result
from rtseg.runtime.drive.report import take_snapshot
from rtseg.runtime.sinks.ros_topics import describe_state
from simulated import SECOND, SimulatedClock, SimulatedEngine, Simulation
from speed_parts import CARD

EVERY = 10
SIZE = 64, 96
Picture = np.ndarray[Any, Any]


def drawn(number: int) -> Picture:
    """A frame of a scene that moves: large areas with soft borders, by which labels are drawn."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]].astype(np.float32)
    waves = np.sin((x + 2 * number) / 9) + np.cos((y + number) / 7)
    image = np.repeat(((waves + 2) * 60)[:, :, None], 3, axis=2)
    return np.asarray(image, np.uint8)


def label(image: Picture) -> Picture:
    """What a network would: classes by brightness."""
    return np.digitize(image[:, :, 0], [60, 120, 180]).astype(np.uint8)


class LabelingEngine:
    """A reference that answers at once."""

    levels, baselines_ms, ready, fault = ("reference",), (1.0,), True, ""

    def __init__(self, segment: Callable[[Picture], Picture] = label):
        self.segment, self.answer, self.asked = segment, None, 0

    def submit(self, job: int, image: Picture, level: int) -> None:
        self.asked += 1
        self.answer: Answer | None = Answer(job, self.segment(image), 1.0)

    def take(self) -> Answer | None:
        answer, self.answer = self.answer, None
        return answer

    def kill(self) -> None:
        self.ready = False


class Stuck:
    """Gives its first labels again and again."""

    def __init__(self) -> None:
        self.labels: Picture | None = None

    def __call__(self, image: Picture) -> Picture:
        self.labels = label(image) if self.labels is None else self.labels
        return self.labels


def swap(image: Picture) -> Picture:
    return np.array([0, 2, 1, 3], np.uint8)[label(image)]


def shift(image: Picture) -> Picture:
    return label(move_frame(image, (0.5, 0.0)))


def flip(image: Picture) -> Picture:
    """A threshold whose exponent lost a bit."""
    return np.digitize(image[:, :, 0], [30, 120, 180]).astype(np.uint8)


def make_result(number: int, labels: Picture, image: Picture, level: str = "net") -> Result:
    times = {"captured_ns": number, "captured_wall_ns": number, "published_ns": number + 1}
    facts = {"index": number, "name": "", "level": level, "stages_ms": {}, "age_ms": 1.0}
    return Result(
        frame_id=number, labels=labels, image=image, expires_ns=1 << 62, **times, **facts
    )  # fmt: skip


def drive_along(
    proof: ContinuousProof, segment: Callable[[Picture], Picture], first: int, frames: int
) -> ProofAlarm | None:
    """The alarm that a proof raises over these frames."""
    for number in range(first, first + frames):
        image = drawn(number)
        proof(make_result(number, segment(image), image))
        for _ in range(3):
            proof.step()
        if (alarm := proof.take_alarm()) is not None:
            return alarm
    return None


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ContinuousProof:
    """One that is stepped by hand."""
    monkeypatch.setattr(ContinuousProof, "_run", lambda self: None)
    made = ContinuousProof(
        "reference",
        lambda clock: LabelingEngine(),
        pace=VerifyPace(EVERY),
        evidence=tmp_path / "evidence",
    )
    made.step()
    return made


def test_what_is_sound_is_never_blamed(proof: ContinuousProof) -> None:
    assert drive_along(proof, label, 0, 500) is None
    counts = proof.counts()
    assert counts.verified == 500 // EVERY
    assert (counts.suspects, counts.alarms, counts.reason) == (0, 0, "")
    assert (counts.last_agreement, counts.least_agreement) == (1.0, 1.0)


@pytest.mark.parametrize("fault", [swap, shift, flip, Stuck()], ids=lambda f: str(f)[:20])
def test_a_fault_is_found_within_twice_the_pace(
    proof: ContinuousProof, fault: Callable[[Picture], Picture]
) -> None:
    assert drive_along(proof, label, 0, 5 * EVERY + 3) is None
    struck = 5 * EVERY + 3
    alarm = drive_along(proof, fault, struck, 10 * EVERY)
    assert alarm is not None
    assert alarm.frame_id - struck <= 2 * EVERY
    assert proof.reasons()[0].startswith("engine disagrees with its reference: ")


def test_one_odd_frame_is_no_alarm(proof: ContinuousProof) -> None:
    for first in range(0, 200, 4 * EVERY):
        assert drive_along(proof, label, first, 4 * EVERY - 1) is None
        proof._published[""] = EVERY  # the next one is due
        assert drive_along(proof, swap, first + 4 * EVERY - 1, 1) is None
    assert proof.counts().suspects == 5
    assert proof.counts().alarms == 0


def test_frames_of_several_cameras_are_told_apart(proof: ContinuousProof) -> None:
    """Cameras that take turns, one of which stands still while the other's scene moves."""
    asked: list[str] = []

    def drive(segment: Callable[[Picture], Picture], first: int) -> str | None:
        for number in range(first, first + 20 * EVERY):
            camera = "front" if number % 2 else "rear"
            image = drawn(number) if camera == "front" else drawn(0)
            result = replace(make_result(number // 2, segment(image), image), camera=camera)
            before = proof.counts().verified
            proof(result)
            for _ in range(3):
                proof.step()
            asked.extend([camera] * (proof.counts().verified - before))
            assert proof.take_alarm("left") is None
            if (alarm := proof.take_alarm(camera)) is not None:
                return alarm.camera
        return None

    assert drive(label, 0) is None
    assert proof.counts().suspects == 0
    assert proof.counts().verified == 20
    assert asked.count("front") == asked.count("rear") == 10
    assert proof.counts().last_camera == asked[-1]
    assert drive(swap, 1000) in ("front", "rear")


def test_a_fault_of_one_camera_alone_is_found(proof: ContinuousProof) -> None:
    """As of one slot of a batch, while the others' labels stay right."""
    for number in range(40 * EVERY):
        camera, image = ("front", "rear", "left")[number % 3], drawn(number)
        segment = swap if camera == "rear" else label
        proof(replace(make_result(number // 3, segment(image), image), camera=camera))
        for _ in range(3):
            proof.step()
        if (alarm := proof.take_alarm()) is not None:
            assert alarm.camera == "rear"
            assert alarm.frame_id <= 3 * EVERY
            proof.begin_anew()
            assert not proof._newest  # what waits is of the engine that was taken out
            return
    pytest.fail("no alarm")


def test_each_camera_has_its_turn_at_a_share_of_a_core() -> None:
    clock = SimulatedClock()
    proof = ContinuousProof(
        "reference", lambda own: LabelingEngine(), pace=VerifyPace(share=0.5), clock=clock
    )
    proof._thread = object()  # type: ignore[assignment]
    turns = []
    for number in range(20):
        for camera in ("front", "front", "rear"):
            image = drawn(number)
            proof(replace(make_result(number, label(image), image), camera=camera))
        clock.now += SECOND
        for _ in range(2):
            proof.step()
        turns.append(proof.counts().last_camera)
    assert {*turns[::2]} != {*turns[1::2]}
    assert len({*turns[2:4]}) == 2


def test_it_ends_when_they_agree_again(proof: ContinuousProof) -> None:
    assert drive_along(proof, swap, 0, 3 * EVERY) is not None
    assert drive_along(proof, label, 3 * EVERY, (RECOVERED - 1) * EVERY) is None
    assert proof.reasons()
    assert drive_along(proof, label, 6 * EVERY, 2 * EVERY) is None
    assert not proof.reasons()


def test_the_evidence_is_kept_and_bounded(proof: ContinuousProof, tmp_path: Path) -> None:
    alarm = drive_along(proof, swap, 0, 3 * EVERY)
    assert alarm is not None
    (folder,) = map(Path, proof.counts().evidence)
    image = drawn(alarm.frame_id)
    for name, expected in (("frame", image), ("engine", swap(image)), ("reference", label(image))):
        kept = cv2.imread(str(folder / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(kept, expected)
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["result"]["frame_id"] == alarm.frame_id
    assert facts["system"]["packages"]["numpy"] == np.__version__
    evidence = Evidence(tmp_path / "few", most=3)
    seen = compare_labels(label(image), swap(image))
    for number in range(7):
        evidence.keep(make_result(number, swap(image), image), label(image), seen, "", {}, {})
    kept_ids = [
        json.loads((folder / "facts.json").read_text())["result"]["frame_id"]
        for folder in evidence.folders
    ]
    assert kept_ids == [4, 5, 6]
    assert len(list((tmp_path / "few").iterdir())) == 3


def test_the_evidence_has_both_sides_logits_where_they_are_known(
    proof: ContinuousProof, tmp_path: Path
) -> None:
    logits = np.arange(24, dtype=np.float32).reshape(2, 3, 4)

    class Telling(LabelingEngine):
        def submit(self, job: int, image: Picture, level: int) -> None:
            super().submit(job, image, level)
            assert self.answer is not None
            self.answer = replace(self.answer, logits=logits + 1)

    proof.engines.primary.engine = Telling()
    for number in range(5 * EVERY):
        image = drawn(number)
        proof(replace(make_result(number, swap(image), image), logits=logits))
        proof.step()
    (folder,) = map(Path, proof.counts().evidence)
    with np.load(folder / "logits.npz") as kept:
        assert np.array_equal(kept["engine"], logits)
        assert np.array_equal(kept["reference"], logits + 1)
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["logits"] == {"engine": [2, 3, 4], "reference": [2, 3, 4]}
    assert "logits" not in facts["result"]


def bounded(lead: float, observed: float, arithmetic: str) -> Card:
    bound = ErrorBound(
        arithmetic=arithmetic, observed=observed, halved=lead, frames=24, pixels=1, risk=0.04,
        share=1.0,
    )  # fmt: skip
    proven = Proof(report="", passed=True, frames=24, agreement=1.0, bounds=(bound,))
    return CARD.model_copy(update={"proof": proven})


@pytest.mark.parametrize(("off", "at_once"), [(0.01, True), (0.3, False)])
def test_one_certified_pixel_is_an_alarm_if_the_reference_is_exact(
    proof: ContinuousProof, off: float, at_once: bool
) -> None:
    proof.card = bounded(0.0, off, "openvino cpu fp32")
    proof.levels = {"net": VerifiedLevel(bounded(1.0, 0.6, "onnxruntime cpu int8"))}
    proof.engine_facts = lambda: {"levels": ["net"], "precisions": ["int8"]}
    certified = np.ones(SIZE, np.bool_)
    for number in range(EVERY):
        image = drawn(number)
        labels = label(image)
        labels[3, 3] ^= 1
        proof(replace(make_result(number, labels, image), certified=certified))
        proof.step()
        proof.step()
    alarm = proof.take_alarm()
    assert (alarm is not None) == at_once
    if alarm is not None:
        assert alarm.reason == (
            "1 certified pixels have another label; "
            "the proof put at 4.0% that a frame is beyond its bound"
        )


def test_a_swapped_file_is_told(tmp_path: Path, proof: ContinuousProof) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(b"one")
    proof.levels = {"net": VerifiedLevel(None, FileWatch(file))}
    assert drive_along(proof, label, 0, 3 * EVERY) is None
    assert not proof.reasons()
    (tmp_path / "other").write_bytes(b"two")
    (tmp_path / "other").replace(file)
    drive_along(proof, label, 3 * EVERY, 2 * EVERY)
    assert proof.reasons() == ("net.onnx was changed while it serves",)
    assert proof.counts().alarms == 1
    file.write_bytes(b"one")
    drive_along(proof, label, 5 * EVERY, EVERY)
    assert not proof.reasons()


def test_a_reference_that_dies_is_told_and_started_again(proof: ContinuousProof) -> None:
    drive_along(proof, label, 0, EVERY)
    broken = proof.engines.primary.engine
    assert broken is not None
    broken.fault = "the worker process ended by signal 9"
    proof.engines.primary.failed_ns.extend([proof.clock.now_ns()] * 3)  # so that it has to wait
    proof.step()
    assert proof.reasons() == (
        "the reference does not run: the worker process ended by signal 9",
    )  # fmt: skip
    proof.engines.primary.due_ns = 0
    proof.step()
    assert not proof.reasons()


def test_the_fallback_serves_in_place_of_an_engine_that_disagrees() -> None:
    simulation = Simulation(
        lambda clock: [lambda: SimulatedEngine(clock)], lambda clock: SimulatedEngine(clock)
    )
    proof = ContinuousProof("reference", lambda clock: LabelingEngine())
    simulation.loop.proof = proof
    simulation.camera(0.1, 0.0, 40.0)
    simulation.run(2.0)
    proof._alarm = ProofAlarm(12, simulation.clock.now, "labels agree on 60 %")
    proof._reason = "labels agree on 60 %"
    simulation.run(3.0)
    serving = simulation.supervisor.serving()
    assert serving is not None
    assert serving.role == "standby"
    entry = simulation.history.entries[-1]
    assert entry.state == "degraded"
    assert "engine disagrees with its reference: labels agree on 60 %" in entry.reasons
    assert simulation.supervisor.failures[-1].cause == "disagreement"
    simulation.run(20.0)
    assert simulation.supervisor.serving() is simulation.supervisor.standby
    proof._reason = ""
    simulation.run(35.0)
    assert simulation.supervisor.serving() is simulation.supervisor.primary
    assert simulation.states[-1] == "running"


def test_without_a_fallback_it_goes_on_and_says_so() -> None:
    simulation = Simulation(lambda clock: [lambda: SimulatedEngine(clock)])
    simulation.loop.proof = proof = ContinuousProof("reference", lambda clock: LabelingEngine())
    simulation.camera(0.1, 0.0, 4.0)
    simulation.run(2.0)
    proof._alarm = ProofAlarm(12, simulation.clock.now, "labels agree on 60 %")
    proof._reason = "labels agree on 60 %"
    simulation.run(3.0)
    assert simulation.states[-1] == "degraded"
    assert not simulation.supervisor.failures
    snapshot = take_snapshot(simulation.loop)
    assert snapshot.proof is not None
    assert snapshot.proof.reason.startswith("engine disagrees")
    assert describe_state(snapshot, None, "", "").values["verification alarms"] == "0"


def test_an_alarm_of_an_engine_that_is_gone_costs_its_successor_nothing() -> None:
    simulation = Simulation(
        lambda clock: [lambda: SimulatedEngine(clock)], lambda clock: SimulatedEngine(clock)
    )
    simulation.loop.proof = proof = ContinuousProof("reference", lambda clock: LabelingEngine())
    proof._alarm = ProofAlarm(1, simulation.clock.now - SECOND, "old")
    simulation.run(1.0)
    assert not simulation.supervisor.failures


def test_a_certified_pixel_that_differs_is_a_fault() -> None:
    labels = label(drawn(0))
    certified = np.zeros(SIZE, np.bool_)
    certified[:2] = True
    wrong = labels.copy()
    wrong[5, 5] += 1  # not certified
    assert compare_labels(labels, wrong, certified=certified).find_faults(0.85) == []
    wrong[1, 3] += 1
    found = compare_labels(labels, wrong, certified=certified).find_faults(0.85)
    assert found == ["1 certified pixels have another label"]


def test_the_bars_follow_the_precision() -> None:
    bars = [frame_bar(each, trained=True) for each in ("fp32", "bf16", "int8")]
    assert bars == pytest.approx([0.999, 0.98, 0.85])
    assert frame_bar("int8", trained=False) == 0.9


@pytest.mark.parametrize(("text", "pace"), [("30", VerifyPace(30)), ("10%", VerifyPace(share=0.1))])
def test_the_pace_is_frames_or_a_share(text: str, pace: VerifyPace) -> None:
    assert VerifyPace.parse(text) == pace


@pytest.mark.parametrize("text", ["0", "-3", "x", "0%", "101%", "10%%", "1.5", ""])
def test_a_pace_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="--verify-every"):
        VerifyPace.parse(text)


def test_a_share_of_a_core_spaces_the_frames() -> None:
    clock = SimulatedClock()
    proof = ContinuousProof(
        "reference", lambda own: SimulatedEngine(clock), pace=VerifyPace(share=0.1), clock=clock
    )
    proof._thread = object()  # type: ignore[assignment]
    for number in range(1000):
        clock.now += SECOND // 100
        image = np.full((4, 6, 3), number % 256, np.uint8)
        proof(make_result(number, image[:, :, 0], image))
        proof.step()
        clock.rung = False
        clock.wait(0.0)
    # 10 s, of which 10 ms of work may take a tenth; a step comes every 10 ms.
    assert 40 <= proof.counts().verified <= 100


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, nano: Model) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("proof")
    other = load_model("csfcn_nano:streets")
    made: dict[str, Artifact] = {}
    for name, network, size in (
        ("served", nano, (64, 128)), ("small", nano, (32, 64)), ("other", other, (64, 128)),
    ):  # fmt: skip
        (made[name],) = export(network, to="onnx", size=size, out=folder / name)
    return {name: Path(each.path) for name, each in made.items()}


def test_only_the_same_weights_at_the_same_size_verify(exported: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="has weights other than"):
        open_proof(exported["other"], [exported["served"]])
    with pytest.raises(UsageError, match="has a size or fit other than"):
        open_proof(exported["small"], [exported["served"]])


def test_a_real_reference_agrees_in_a_process_of_low_priority(exported: dict[str, Path]) -> None:
    import psutil
    from rtseg.runtime import load

    served = exported["served"]
    proof = open_proof(served, [served], VerifyPace(1))
    with load(served) as segment:
        image = scene((64, 128), 3)
        labels = segment(image)
    try:
        clock = LoopClock()
        proof(make_result(0, labels, image, served.name))
        for _ in range(600):
            if proof.counts().verified:
                break
            clock.wait(0.1)
        assert proof.counts().last_agreement == 1.0
        (process,) = proof.engines.processes()
        assert psutil.Process(process).nice() == 19
    finally:
        proof.close()
