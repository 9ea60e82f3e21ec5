"""The loop: it learns, it stops and goes on bit for bit, and faults lose nothing that was saved."""

from __future__ import annotations

import os
import resource
import shutil
import signal

import cv2
import pytest
import torch
from rtseg.errors import CheckpointError, DataError, TrainingError
from rtseg.models import build, load_checkpoint
from rtseg.models.checkpoints import read_metadata
from rtseg.train import trainer as loop
from rtseg.train.loader import Stream
from rtseg.train.log import read_log
from rtseg.train.state import SaveError, read_state
from rtseg.train.trainer import BEST, CURVES, LOG, STATE, train
from tiny_camvid import tiny_recipe, write_camvid

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


def rows(folder, key):
    return [row[key] for row in read_log(folder / LOG) if key in row]


def test_it_learns_and_leaves_weights_log_and_curves(camvid, tmp_path):
    recipe = tiny_recipe(
        camvid,
        # What it learned of the frames it saw: of six others it would be luck.
        data={"val": "train"},
        optimizer={"kind": "adamw", "learning_rate": 0.01, "clip": 5.0},
        augment={"scale": [1, 1]},
        schedule={"iterations": 40, "warmup": 5},
        precision="bf16",
        ema=0.9,
        val_every=20,
    )
    outcome = train(recipe, tmp_path, show=False)
    assert outcome.finished
    losses = rows(tmp_path, "loss")
    assert losses[-1] < 0.7 * losses[0]
    assert outcome.miou == max(val["miou"] for val in rows(tmp_path, "val")) > 0.12  # chance: 0.05
    assert cv2.imread(str(tmp_path / CURVES)) is not None
    header = read_metadata(tmp_path / BEST)
    assert (header["variant"], header["classes"]) == ("csfcn_nano", "camvid")
    assert header["metrics"]["miou"] == outcome.miou
    assert header["recipe"]["ema"] == 0.9
    assert header["revision"]
    load_checkpoint(build("csfcn_nano", 11), tmp_path / BEST)


def stop_at(iteration, monkeypatch):
    """Real signals, sent in the middle of an iteration."""
    step = loop.Run.step

    def stopping(run, batches):
        if run.iteration == iteration - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, batches)

    monkeypatch.setattr(loop.Run, "step", stopping)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"workers": 1}, "optimizer": {"kind": "adamw"}, "ema": 0.9, "precision": "bf16"},
        {"accumulate": 2, "optimizer": {"clip": 1.0}, "loss": {"kind": "ohem", "dice": 0.5}},
    ],
    ids=["adamw-ema-bf16", "sgd-accumulate-ohem"],
)
def test_twenty_iterations_are_ten_and_ten(camvid, tmp_path, monkeypatch, changes):
    recipe = tiny_recipe(camvid, **({"schedule": {"iterations": 20}} | changes))
    straight = train(recipe, tmp_path / "straight", show=False)
    with monkeypatch.context() as patch:
        stop_at(10, patch)
        half = train(recipe, tmp_path / "halves", show=False)
    assert (half.iteration, half.finished) == (10, False)
    whole = train(recipe, tmp_path / "halves", resume=True, show=False)
    assert whole.finished
    assert whole.miou == straight.miou
    one, two = (read_state(tmp_path / name / STATE) for name in ("straight", "halves"))
    for part in ("network", "average"):
        assert one[part].keys() == two[part].keys()
        assert all(torch.equal(one[part][key], two[part][key]) for key in one[part])
    assert rows(tmp_path / "straight", "loss") == rows(tmp_path / "halves", "loss")


def test_the_handlers_of_before_come_back(camvid, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    train(tiny_recipe(camvid), tmp_path, show=False)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_is_not_overwritten_by_mistake(camvid, tmp_path):
    train(tiny_recipe(camvid), tmp_path, show=False)
    with pytest.raises(ValueError, match="--resume it or name another folder"):
        train(tiny_recipe(camvid), tmp_path, show=False)


def test_resuming_nothing_or_rubbish_says_so(camvid, tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(tiny_recipe(camvid), tmp_path, resume=True, show=False)
    (tmp_path / STATE).write_bytes(b"PK rubbish")
    with pytest.raises(CheckpointError, match="is damaged"):
        train(tiny_recipe(camvid), tmp_path, resume=True, show=False)


def test_a_loss_that_is_not_finite_names_the_files(camvid, tmp_path):
    recipe = tiny_recipe(camvid, optimizer={"learning_rate": 1e30}, schedule={"iterations": 30})
    with pytest.raises(TrainingError, match=r"batch of frame_\d, frame_\d: lower"):
        train(recipe, tmp_path, show=False)


def test_a_full_disk_leaves_the_last_state_unharmed(camvid, tmp_path):
    # Validated at the end alone: whether best.safetensors is written too depends on the mIoU.
    recipe = tiny_recipe(camvid, schedule={"iterations": 6}, save_every=2, val_every=100)
    train(tiny_recipe(camvid, schedule={"iterations": 2}), tmp_path, show=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(SaveError, match=r"cannot write .*last\.pt.*unharmed"):
            train(recipe, tmp_path, resume=True, show=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_state(tmp_path / STATE)["iteration"] == 2
    assert not list(tmp_path.glob(".*")), "half a file was left behind"
    assert train(recipe, tmp_path, resume=True, show=False).finished


def test_a_killed_worker_stops_the_run_and_it_goes_on(camvid, tmp_path, monkeypatch):
    recipe = tiny_recipe(camvid, data={"workers": 1}, schedule={"iterations": 8}, save_every=2)
    take = Stream.__getitem__

    def dying(stream, position):
        if position == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(stream, position)

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "__getitem__", dying)
        with pytest.raises(TrainingError, match="a data worker died"):
            train(recipe, tmp_path, show=False)
    if (tmp_path / STATE).exists():  # the worker may die while the first iteration runs
        read_state(tmp_path / STATE)
    else:
        train(tiny_recipe(camvid, schedule={"iterations": 2}), tmp_path, show=False)
    assert train(recipe, tmp_path, resume=True, show=False).finished


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_in_one_line(tmp_path, workers):
    root = write_camvid(tmp_path / "data")
    recipe = tiny_recipe(root, data={"workers": workers}, save_every=1)
    train(tiny_recipe(root, schedule={"iterations": 2}), tmp_path / "run", show=False)
    for path in (root / "train").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"^\S*frame_\d\.png is damaged[^\n]*$"):
        train(recipe, tmp_path / "run", resume=True, show=False)
    assert read_state(tmp_path / "run" / STATE)["iteration"] == 2


def test_the_log_is_cut_back_to_the_resumed_iteration(camvid, tmp_path):
    recipe = tiny_recipe(camvid, schedule={"iterations": 4})
    train(tiny_recipe(camvid, schedule={"iterations": 2}), tmp_path, show=False)
    with (tmp_path / LOG).open("a") as file:
        file.write('{"iteration": 3, "loss": 99.0}\n{"iteration": 4, "lo')
    train(recipe, tmp_path, resume=True, show=False)
    iterations = [row["iteration"] for row in read_log(tmp_path / LOG) if "loss" in row]
    assert iterations == [1, 2, 3, 4]
    assert 99.0 not in rows(tmp_path, "loss")


def test_tensorboard_is_written_by_option(camvid, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    train(tiny_recipe(camvid, tensorboard=True), tmp_path, show=False)
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.slow
def test_a_compiled_network_takes_the_same_first_step(camvid, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    for name, option in (("plain", False), ("compiled", True)):
        recipe = tiny_recipe(camvid, schedule={"iterations": 1}, compile=option)
        train(recipe, tmp_path / name, show=False)
    plain, compiled = (rows(tmp_path / name, "loss") for name in ("plain", "compiled"))
    assert plain == pytest.approx(compiled, rel=1e-4)
    one, two = (read_state(tmp_path / name / STATE)["network"] for name in ("plain", "compiled"))
    assert one.keys() == two.keys()
