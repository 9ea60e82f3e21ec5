"""train, eval, submit and data check as typed."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from rtseg.cli.app import app
from rtseg.models.checkpoints import read_metadata
from rtseg.train.trainer import BEST
from tiny_camvid import RECIPE, write_camvid
from typer.testing import CliRunner


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(data, run folder, what `train --json` said)"""
    folder = tmp_path_factory.mktemp("cli")
    root = write_camvid(folder / "camvid")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    result = run("train", folder / "tiny.yaml", f"data.root={root}", "-o", folder / "run", "--json")
    assert result.exit_code == 0, result.output
    return root, folder / "run", json.loads(result.stdout)


def test_train_says_what_it_made(trained):
    _, folder, facts = trained
    assert facts["weights"] == str(folder / BEST)
    assert (facts["iterations"], facts["finished"]) == (4, True)
    assert (folder / BEST).is_file()


def test_own_data_name_the_run_and_its_classes(tmp_path, monkeypatch):
    """A shipped recipe's folder would tell of another data set."""
    for split in ("train", "val"):
        for kind, picture in (("images", np.zeros((40, 64, 3))), ("labels", np.zeros((40, 64)))):
            (tmp_path / "mine" / kind / split).mkdir(parents=True)
            file = tmp_path / "mine" / kind / split / "a.png"
            cv2.imwrite(str(file), picture.astype(np.uint8))
    (tmp_path / "mine" / "classes.yaml").write_text("- road\n- kerb\n")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    monkeypatch.chdir(tmp_path)
    result = run("train", "tiny.yaml", "data.name=folder", "data.root=mine", "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)["weights"]
    assert made == f"runs/{RECIPE['model']}_mine/{BEST}"
    assert read_metadata(Path(made))["classes"]["name"] == "mine"


def test_eval_gives_the_number_that_training_measured(trained):
    root, folder, facts = trained
    worst = folder / "worst.png"
    result = run(
        "eval", folder / BEST, "camvid", "--root", root, "--size", "32x64", "--worst", worst,
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert measured["miou"] == pytest.approx(facts["miou"], abs=1e-6)
    assert measured["images"] == 6
    assert cv2.imread(str(worst)) is not None


def test_eval_refuses_other_classes(trained, tmp_path):
    _, folder, _ = trained
    for kind, content in (("images", np.zeros((8, 8, 3))), ("labels", np.zeros((8, 8)))):
        (tmp_path / kind / "val").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / kind / "val" / "a.png"), content)
    (tmp_path / "classes.yaml").write_text("- a\n- b\n")
    result = run("eval", folder / BEST, "folder", "--root", tmp_path)
    assert isinstance(result.exception, ValueError)
    assert "the model has 11 classes" in str(result.exception)


def test_data_check_fails_where_something_is_wrong(trained, tmp_path):
    root, _, _ = trained
    sheet = tmp_path / "sheet.png"
    result = run("data", "check", root, "--as", "camvid", "--sheet", sheet, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["problems"] == {}
    assert cv2.imread(str(sheet)) is not None
    broken = write_camvid(tmp_path / "broken")
    (broken / "trainannot/frame_0.png").unlink()
    result = run("data", "check", broken, "--as", "camvid", "--json")
    assert "problems: 1" in str(result.exception)
    assert list(json.loads(result.stdout)["problems"]) == ["image without label"]
