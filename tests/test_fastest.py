"""`--precision auto`, and the int8 ranges that ship with weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rtseg import resolve
from rtseg.errors import ExportError, ProofError
from rtseg.export import fastest, stored_ranges
from rtseg.export.export import export, make_card
from rtseg.export.graph import find_layers, to_onnx
from rtseg.export.quantize import infer_shapes
from rtseg.export.stored_ranges import ENDING, find_stored_ranges, read_ranges, write_ranges
from rtseg.models.loading import PRETRAINED, Model, load_model
from rtseg.runtime.artifact import read_card

SIZE = 96, 160
SHIPPED = sorted(PRETRAINED.glob(f"*{ENDING}"))


@pytest.fixture
def nano() -> Model:
    return load_model("csfcn_nano:streets")


def test_every_file_of_weights_that_ships_has_its_ranges():
    weights = {path.stem for path in PRETRAINED.glob("*.safetensors")}
    assert {path.name.removesuffix(ENDING) for path in SHIPPED} == weights


@pytest.mark.parametrize("variant", ["csfcn_nano", "csfcn_tiny"])
def test_the_ranges_that_ship_are_of_the_layers_that_are_exported(variant):
    # Names of tensors come from the exporter: a change of the network or of it makes them stale.
    for path in [path for path in SHIPPED if path.name.startswith(variant)]:
        model = load_model(f"{variant}:{path.name.removesuffix(ENDING).rpartition('_')[2]}")
        stored = find_stored_ranges(model)
        assert stored is not None, f"{path.name} was measured with other weights"
        plain = infer_shapes(to_onnx(model.network, SIZE, "fp32", ("labels",)))
        layers = {layer.name: layer.node for layer in find_layers(plain)}
        assert set(stored.in_float) <= set(layers)
        reads = {node.name: node.input[0] for node in plain.graph.node}
        wanted = {reads[node] for name, node in layers.items() if name not in stored.in_float}
        assert wanted <= set(stored.ranges)
        assert all(most > 0 for most in stored.ranges.values())


def test_int8_needs_no_frames_where_ranges_ship(nano, tmp_path, monkeypatch):
    # The bar is not what is tested: at this size there is little to see.
    monkeypatch.setattr("rtseg.export.parity.ParityResult.passed", property(lambda result: True))
    (artifact,) = export(nano, SIZE, "onnx", "int8", out=tmp_path)
    facts = read_card(artifact.path).int8
    stored = find_stored_ranges(nano)
    assert facts is not None
    assert stored is not None
    assert (facts.frames, facts.method) == (stored.frames, stored.method)
    assert facts.layers == 24 - len(stored.in_float)
    assert artifact.frames.startswith("3 motorway frames that ship")


def test_weights_that_changed_have_no_ranges(nano):
    with torch.no_grad():
        next(nano.network.parameters()).mul_(2)
    assert find_stored_ranges(nano) is None
    with pytest.raises(ExportError, match="int8 is calibrated on real frames"):
        export(nano, SIZE, "onnx", "int8", out="nowhere")
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weights": 1, "size": [1]}'])
def test_damaged_ranges_are_one_line(content, tmp_path):
    path = tmp_path / f"x{ENDING}"
    path.write_text(content)
    with pytest.raises(ExportError, match="is damaged: install the package again"):
        read_ranges(path)


def test_ranges_are_read_as_they_were_written(tmp_path):
    stored = replace(read_ranges(SHIPPED[0]), in_float=("a", "b"))
    write_ranges(tmp_path / "x.json", stored)
    assert read_ranges(tmp_path / "x.json") == stored


@pytest.fixture
def forms(nano, monkeypatch):
    """Exports without a proof: what `export` was asked for, and the times that a race gives."""
    asked: list[str] = []
    times = {"int8": 1.0, "fp32": 3.0}
    refused: set[str] = set()

    def fake(model: Model, size: Any, target: str, precision: str, out: Path, **options: Any):
        asked.append(precision)
        if precision in refused:
            raise ProofError(f"{precision} is below its bar")
        path = out / f"x_{precision}.xml"
        for each in (path, path.with_suffix(".bin"), out / f"{path.name}.json"):
            each.write_text("")
        card = make_card(model, size, precision, "labels")
        return [fastest.Artifact(path, target, card, (), "3 frames")]

    monkeypatch.setattr(fastest, "export", fake)
    monkeypatch.setattr(
        fastest, "_race", lambda paths: {name: times[name] for name in paths if len(paths) > 1}
    )
    return asked, times, refused


def test_the_fastest_that_passes_is_kept_and_says_why(nano, forms, tmp_path):
    asked, times, _refused = forms
    (artifact,) = export(nano, SIZE, "openvino", "auto", out=tmp_path)
    assert artifact.path.name == "x_int8.xml"
    assert artifact.chosen == "x_int8.xml: int8 chosen; fp32 takes 3.00x its time"
    assert asked == ["int8", "fp32"]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"x_int8.xml", "x_int8.bin", "x_int8.xml.json", "report.json"}
    assert json.loads((tmp_path / "report.json").read_text())["x_int8.xml"]["chosen"]
    times["fp32"] = 0.5
    (artifact,) = export(nano, SIZE, "openvino", "auto", out=tmp_path)
    assert artifact.chosen == "x_fp32.xml: fp32 chosen; int8 takes 2.00x its time"


def test_a_form_below_its_bar_is_not_chosen(nano, forms, tmp_path):
    _asked, _times, refused = forms
    refused.add("int8")
    (artifact,) = export(nano, SIZE, "openvino", "auto", out=tmp_path)
    assert artifact.path.name == "x_fp32.xml"
    assert "int8 did not pass: int8 is below its bar" in artifact.chosen
    refused.add("fp32")
    with pytest.raises(ProofError, match="fp32 is below"):
        export(nano, SIZE, "openvino", "auto", out=tmp_path)


def test_what_auto_does_not_go_with(nano, tmp_path):
    with pytest.raises(ExportError, match="for int8: add --precision int8"):
        export(nano, SIZE, "openvino", "auto", out=tmp_path, calib=tmp_path)
    with pytest.raises(ExportError, match="another machine: name its precision"):
        export(nano, SIZE, ["onnx", "triton"], "auto", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_was_chosen_is_kept(nano, forms, tmp_path, monkeypatch, caplog):
    asked, _times, _refused = forms
    monkeypatch.setattr(resolve, "export_cache", lambda model: tmp_path)
    caplog.set_level("INFO", logger="rtseg")
    first = resolve.cached_export(nano, SIZE, ["openvino"], "auto")["openvino"]
    asked.clear()
    caplog.clear()
    assert resolve.cached_export(nano, SIZE, ["openvino"], "auto")["openvino"] == first
    assert asked == []
    assert "int8 chosen" in caplog.text
    first.unlink()  # a cache that was half emptied
    assert resolve.cached_export(nano, SIZE, ["openvino"], "auto")["openvino"] == first


def test_other_weights_have_one_form(tmp_path):
    model = load_model("csfcn_nano_rep")
    assert fastest.list_candidates(model, "openvino") == ["fp32"]
    assert fastest.list_candidates(model, "tensorrt") == ["fp16"]
    assert stored_ranges.find_stored_ranges(model) is None
