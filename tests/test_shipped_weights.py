"""Weights that ship: by name, and by the classes that are asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from rtseg.cli.app import app
from rtseg.data import shipped
from rtseg.data.classes import ADE20K, CAMVID, CITYSCAPES
from rtseg.data.datasets import open_data
from rtseg.data.shipped import SHIPPED, find_pretrained, name_shipped
from rtseg.data.soft_labels import load_class_map
from rtseg.errors import MissingPackage, UsageError
from rtseg.models import loading, save_checkpoint
from rtseg.models.loading import build_untrained, load_model, read_classes, shipped_weights
from rtseg.train.predictor import Predictor
from rtseg.train.recipe import load_recipe
from rtseg.train.state import start_network
from tiny_camvid import write_camvid
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    for name, classes in (("camvid", CAMVID), ("streets", CITYSCAPES)):
        network = build_untrained("csfcn_nano", len(classes))
        path = folder / f"csfcn_nano_{name}.safetensors"
        save_checkpoint(network, path, metadata={"classes": classes.name})
    return folder


@pytest.fixture(autouse=True)
def two_ship(pretrained, monkeypatch):
    monkeypatch.setattr(loading, "PRETRAINED", pretrained)


@pytest.mark.parametrize(
    ("what", "classes", "taken"),
    [
        ("csfcn_nano", None, "csfcn_nano_streets.safetensors"),
        ("csfcn_nano:camvid", None, "csfcn_nano_camvid.safetensors"),
        ("csfcn_nano:streets", None, "csfcn_nano_streets.safetensors"),
        ("csfcn_nano", CAMVID, "csfcn_nano_camvid.safetensors"),
        ("csfcn_nano", CITYSCAPES, "csfcn_nano_streets.safetensors"),
        ("csfcn_nano", ADE20K, "random, seed 0"),
        ("csfcn_nano_rep", None, "random, seed 0"),
    ],
)
def test_a_name_takes_the_weights_that_fit(what, classes, taken):
    model = load_model(what, classes=classes)
    assert model.weights_from == taken
    assert model.network.info.num_classes == len(model.classes)


def test_a_file_goes_after_the_colon_too(pretrained):
    path = pretrained / "csfcn_nano_camvid.safetensors"
    assert load_model(f"csfcn_nano:{path}").classes == CAMVID


def test_unknown_weights_are_told_with_those_that_ship():
    with pytest.raises(UsageError, match="csfcn_nano:streets, csfcn_nano:camvid"):
        load_model("csfcn_nano:cityscapes")
    with pytest.raises(UsageError, match="no weights of csfcn ship"):
        load_model("csfcn:camvid")
    assert shipped_weights("csfcn") == []


def test_the_names_are_those_of_the_files():
    files = {path.name: read_classes(path).name for path in find_pretrained().glob("*.safetensors")}
    assert files == {
        f"{variant}_{weights}.safetensors": classes
        for variant, each in SHIPPED.items()
        for weights, classes in each.items()
    }
    assert name_shipped("csfcn_tiny", "csfcn_tiny_camvid.safetensors") == "csfcn_tiny:camvid"
    assert name_shipped("csfcn_tiny", "csfcn_nano_camvid.safetensors") is None
    assert name_shipped("csfcn", "mine.pth") is None


@pytest.mark.parametrize("what", ["csfcn_nano", "csfcn_nano:camvid", "csfcn_tiny"])
def test_without_the_package_of_weights_nobody_gets_random_ones(what, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "PRETRAINED", tmp_path / "pretrained")
    with pytest.raises(MissingPackage, match=r"the weights csfcn.* are not installed: pip install"):
        load_model(what)
    with pytest.raises(UsageError, match="no file 'cityscapes'"):
        load_model("csfcn_nano:cityscapes")
    for other, classes in (("csfcn_nano", ADE20K), ("csfcn", None)):  # none ever shipped for these
        assert load_model(other, classes=classes).weights_from == "random, seed 0"


def test_an_installed_package_is_found_where_there_is_no_checkout(tmp_path, monkeypatch):
    # The environment may have the true package: a name that none has stands for it.
    monkeypatch.setattr(shipped, "PACKAGE", "rtseg_weights_of_a_test")
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "rtseg" / "data" / "shipped.py"))
    absent = tmp_path / "rtseg" / "models" / "pretrained"
    assert find_pretrained() == absent
    installed = tmp_path / "site" / "rtseg_weights_of_a_test"
    installed.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert find_pretrained() == installed
    absent.mkdir(parents=True)
    assert find_pretrained() == absent


def test_a_command_with_a_data_set_takes_those_of_its_classes(tmp_path, caplog):
    caplog.set_level("INFO", logger="rtseg")
    root = write_camvid(tmp_path / "camvid", frames=1)
    result = CliRunner().invoke(app, ["eval", "csfcn_nano", "camvid", "--root", str(root)])
    assert result.exit_code == 0, result.output
    assert "csfcn_nano_camvid.safetensors" in caplog.text
    result = CliRunner().invoke(app, ["eval", "csfcn_nano:streets", "camvid", "--root", str(root)])
    assert isinstance(result.exception, UsageError)
    assert "the model has 19 classes" in str(result.exception)
    call = ["eval", "csfcn_nano", "camvid", "--root", str(root), "--json"]
    result = CliRunner().invoke(app, [*call, "--class-map", "cityscapes_to_camvid"])
    assert result.exit_code == 0, result.output
    assert "csfcn_nano_streets.safetensors" in caplog.text
    data = open_data("camvid", root, "val")
    predictor = Predictor(load_model("csfcn_nano:streets").network)
    ids = np.array(load_class_map("cityscapes_to_camvid", CAMVID))
    right = (ids[predictor(data[0].image)] == data[0].label)[data[0].label != 255].mean()
    assert json.loads(result.stdout)["pixel_accuracy"] == pytest.approx(right)
    result = CliRunner().invoke(
        app, [*call, "--class-map", "cityscapes_to_camvid", "--classes", "camvid"]
    )
    assert isinstance(result.exception, UsageError)
    assert "the model has 11" in str(result.exception)


def test_a_recipe_starts_from_weights_that_ship(pretrained):
    recipe = load_recipe("csfcn_nano_streets")
    network = build_untrained("csfcn_nano", 19, seed=2)
    started = start_network(network, recipe)
    assert started.file == str(pretrained / "csfcn_nano_camvid.safetensors")
    shipped = load_model("csfcn_nano:camvid").network.state_dict()
    ours = network.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in shipped.items() if k.startswith("backbone."))
    assert torch.equal(ours["classifier.weight"][13], shipped["classifier.weight"][8])  # car
