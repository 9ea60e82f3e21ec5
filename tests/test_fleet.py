"""Logs through Ray Data: all labeled, bad ones told, nothing done twice, nothing lost."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Run, as_json
from onnx_files import write_paddle
from rtseg.data.frames import open_source
from rtseg.data.scenes import scenes
from rtseg.export import export
from rtseg.fleet import run_lengths
from rtseg.fleet.fleet import FleetOptions, fleet, local_opener, single_process
from rtseg.fleet.logs import find_logs
from rtseg.fleet.workers import Labeler, read_log
from rtseg.models.loading import Model, load_model
from rtseg.runtime import Segmenter, load
from torch import nn

ray: Any = pytest.importorskip("ray", reason='needs Ray: pip install "rtseg[fleet]"')
pytest.importorskip("ray.data", reason='needs Ray Data: pip install "rtseg[fleet]"')
SIZE = (64, 96)
FRAMES = 4
HERE = FleetOptions(workers=1, batch=2, backend="onnxruntime")


@pytest.fixture(scope="module")
def artifact(nano: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts")
    (made,) = export(nano, [SIZE], ["onnx"], out=out)
    return made.path


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """One Ray for all tests: starting it takes longer than all they do. Gives its address."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Two good logs of unlike sizes, one with a damaged frame, and one that is no video."""
    for number, size in enumerate([SIZE, (50, 80)]):
        folder = tmp_path / "logs" / f"log{number}"
        folder.mkdir(parents=True)
        for i, scene in enumerate(scenes(FRAMES, size, seed=10 * number)):
            cv2.imwrite(str(folder / f"{i}.png"), scene)
    (tmp_path / "logs" / "log1" / "9.png").write_bytes(b"no picture")
    (tmp_path / "logs" / "broken.mp4").write_bytes(b"no video")
    return tmp_path / "logs"


def expected(folder: Path, artifact: Path) -> dict[str, np.ndarray[Any, Any]]:
    with load(artifact, "onnxruntime") as segment:
        frames = [f for f in open_source(folder) if hasattr(f, "image")]
        return {frame.name: segment(frame.image) for frame in frames}


def labels_in(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {
        path.stem: cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        for path in (folder / "labels").glob("*.png")
    }


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, labels in ours.items():
        np.testing.assert_array_equal(labels, theirs[name])


def test_all_logs_are_labeled_and_a_second_run_does_what_is_left(
    artifact: Path, logs: Path, tmp_path: Path, cluster: str
) -> None:
    out, seen = tmp_path / "out", list[tuple[str, bool]]()

    def finished(log: str, error: str) -> None:
        seen.append((log, bool(error)))

    first = fleet([str(logs / "*")], artifact, out, HERE, finished=finished)
    assert sorted(seen) == [("broken", True), ("log0", False), ("log1", False)]
    assert (first.frames, first.skipped, first.done) == (2 * FRAMES, 1, 0)
    assert list(first.failed) == [str(logs / "broken.mp4")]
    for name in ("log0", "log1"):
        assert_equal(labels_in(out / name), expected(logs / name, artifact))
    facts = json.loads((out / "log1" / "log.json").read_text())
    assert facts["frames"] == FRAMES
    assert sum(facts["classes"].values()) == pytest.approx(1, abs=1e-4)
    assert not (out / "broken").exists()

    for frame in logs.glob("log1/*.png"):  # would fail if it were read again
        frame.unlink()
    (logs / "broken.mp4").unlink()
    (out / "log0" / "log.json").unlink()
    again = fleet([str(logs / "log0"), str(logs / "log1")], artifact, out, HERE)
    assert (again.done, list(again.logs), again.failed) == (1, ["log0"], {})


def pyramid() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))


@pytest.mark.parametrize("kind", ["somebody's file", "own module"])
def test_networks_from_outside_the_zoo_label_logs(
    kind: str, logs: Path, tmp_path: Path, cluster: str
) -> None:
    theirs = write_paddle(tmp_path / "theirs.onnx") if kind == "somebody's file" else pyramid()
    model = load_model(theirs, size=SIZE, classes="numbered", normalize="imagenet")
    (made,) = export(model, to=["onnx"], out=tmp_path)
    summary = fleet([str(logs / "log0"), str(logs / "log1")], made.path, tmp_path / "out", HERE)
    assert (summary.frames, summary.skipped, summary.failed) == (2 * FRAMES, 1, {})
    for name in ("log0", "log1"):
        assert_equal(labels_in(tmp_path / "out" / name), expected(logs / name, made.path))
    classes = json.loads((tmp_path / "out" / "log0" / "log.json").read_text())["classes"]
    assert set(classes) <= {f"class {number}" for number in range(5)}


def test_a_killed_worker_loses_nothing(
    artifact: Path, logs: Path, tmp_path: Path, cluster: str
) -> None:
    marker, out = tmp_path / "killed", tmp_path / "out"
    frames = FRAMES

    def opener() -> Segmenter:
        from rtseg.runtime import load

        segmenter: Any = load(artifact, "onnxruntime", threads=1)
        calls = 0

        def dies_once(frame: np.ndarray[Any, Any]) -> Any:
            nonlocal calls
            calls += 1
            if calls == frames - 1 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return segmenter(frame)

        def stream(pictures: Any) -> Any:
            return map(dies_once, pictures)

        return SimpleNamespace(card=segmenter.card, stream_pictures=stream)  # type: ignore[return-value]

    summary = fleet([str(logs / "log0")], artifact, out, HERE, opener=opener)
    assert marker.exists()
    assert (summary.frames, summary.failed) == (FRAMES, {})
    assert_equal(labels_in(out / "log0"), expected(logs / "log0", artifact))


def test_labels_of_another_model_are_not_called_done(
    artifact: Path, logs: Path, tmp_path: Path, cluster: str
) -> None:
    out, log = tmp_path / "out", str(logs / "log0")
    other = tmp_path / "other.onnx"
    other.write_bytes(artifact.read_bytes())
    assert list(fleet([log], artifact, out, HERE).logs) == ["log0"]

    def cut_off() -> Segmenter:
        raise OSError("killed")

    with pytest.raises(Exception, match="killed"):
        fleet([log], other, out, HERE, opener=cut_off)
    assert fleet([log], artifact, out, HERE).done == 0


def test_a_log_s_folder_lies_in_the_output(tmp_path: Path) -> None:
    (tmp_path / "logs" / "x").mkdir(parents=True)
    assert [log.name for log in find_logs([str(tmp_path / "logs" / "x" / "..")])] == ["logs"]


def test_the_command_writes_runs_and_measures(
    artifact: Path, logs: Path, tmp_path: Path, rtseg: Run, cluster: str
) -> None:
    out = tmp_path / "out"
    options = ["--model", artifact, "-o", out, "--as", "rle", "--workers", 1, "--compare", 4]
    joined = ["--address", cluster, "--json"]
    facts = as_json(rtseg("fleet", logs / "log0", logs / "log1", *options, *joined))
    assert (facts["logs"], facts["frames"], facts["failed"]) == (2, 2 * FRAMES, {})
    assert facts["single_process_frames_per_s"] > 0
    assert facts["frames_per_s"] == pytest.approx(2 * FRAMES / facts["seconds"], rel=0.01)
    assert facts["start_s"] > 0
    for name in ("log0", "log1"):
        found = dict(run_lengths.read(out / name / "labels.parquet"))
        assert_equal(found, expected(logs / name, artifact))


def rows_of(folder: Path, artifact: Path, out: Path) -> list[dict[str, Any]]:
    with local_opener(artifact, HERE)() as segmenter:
        labeler = Labeler(lambda: segmenter, str(out), "png")
        rows = read_log({"log": "log", "input": str(folder)})
        return [labeler.answer(row) for row in rows]


def test_a_worker_s_rows_tell_frames_from_what_was_skipped(
    artifact: Path, logs: Path, tmp_path: Path
) -> None:
    rows = rows_of(logs / "log1", artifact, tmp_path)
    assert [bool(row["skipped"]) for row in rows] == [False] * FRAMES + [True, False]
    assert rows[-1]["end"] == FRAMES
    assert rows[0]["ms"] > 0
    assert sum(rows[0]["pixels"]) == 50 * 80


def test_an_error_while_labeling_is_the_log_s_own(
    artifact: Path, logs: Path, tmp_path: Path
) -> None:
    class Broken:
        card = load(artifact, "onnxruntime").card

        def stream_pictures(self, pictures: object) -> Iterator[None]:
            raise RuntimeError("out of memory")
            yield

    labeler = Labeler(lambda: Broken(), str(tmp_path), "png")  # type: ignore[arg-type,return-value]
    (row, *_) = read_log({"log": "log", "input": str(logs / "log0")})
    assert labeler.answer(row)["error"] == "0: RuntimeError: out of memory"


def test_a_frame_that_fails_leaves_the_others_of_its_batch(
    artifact: Path, logs: Path, tmp_path: Path
) -> None:
    rows = [row for row in read_log({"log": "log", "input": str(logs / "log0")}) if row["image"]]
    rows[1] |= {"height": 7}  # fewer bytes than its image has
    with local_opener(artifact, HERE)() as segmenter:
        labeler = Labeler(lambda: segmenter, str(tmp_path), "rle")
        alone = [labeler.answer(row) for row in rows]
        found = labeler({key: np.array([row[key] for row in rows], object) for key in rows[0]})
    assert [bool(error) for error in found["error"]] == [False, True, *[False] * (len(rows) - 2)]
    assert str(found["error"][1]).startswith("1: ValueError: cannot reshape")
    assert found["values"] == [row["values"] for row in alone]


@pytest.mark.parametrize("shape", [(7, 5), (1, 1), (64, 64)])
def test_runs_give_the_labels_back(shape: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    values, lengths = run_lengths.encode(labels)
    np.testing.assert_array_equal(run_lengths.decode(values, lengths, shape[0]), labels)
    with pytest.raises(ValueError, match="damaged"):
        run_lengths.decode(values, lengths + 1, 1000)


def test_logs_of_one_name_get_folders_of_their_own(tmp_path: Path) -> None:
    for name in ("a/drive.mp4", "b/drive.mp4", "c/other.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(str(p) for p in sorted(tmp_path.glob("*/*.mp4"))))
    names = [log.name for log in find_logs([f"@{listed}"])]
    assert len(set(names)) == 3
    assert names[2] == "other"
    assert all(name.startswith("drive-") for name in names[:2])


def test_the_plain_loop_counts_frames(artifact: Path, logs: Path) -> None:
    assert single_process([str(logs / "log0")], artifact, HERE, most=2) > 0


def test_an_unknown_form_is_refused(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="png or rle"):
        fleet([str(tmp_path)], artifact, tmp_path / "out", FleetOptions(form="jpeg"))


def test_the_log_tells_each_log_s_end(
    artifact: Path,
    logs: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rtseg.fleet.fleet import FleetSummary, _close
    from rtseg.fleet.logs import DriveLog, LogProgress
    from rtseg.runtime import read_card

    caplog.set_level("INFO", logger="rtseg")
    monkeypatch.setattr(LogProgress, "write", lambda *arguments: {})
    card, summary = read_card(artifact), FleetSummary()
    for name, error in (("good", ""), ("bad", "its reader ended early")):
        progress = LogProgress(DriveLog(str(logs / "log0"), name))
        progress.error = error
        _close(progress, tmp_path, {}, card, summary, lambda log, error: None)
    done, failed = caplog.records
    assert (done.message, vars(done)["log"], vars(done)["frames"]) == ("log done", "good", 0)
    assert (failed.levelname, vars(failed)["error"]) == ("WARNING", "its reader ended early")
