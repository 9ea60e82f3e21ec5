"""`--precision auto`, and the int8 ranges that ship with weights."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rtseg import resolve
from rtseg.errors import ExportError, ProofError, UsageError
from rtseg.export import fastest, stored_ranges
from rtseg.export.artifacts import list_notes
from rtseg.export.export import export, make_card
from rtseg.export.graph import find_layers, to_onnx
from rtseg.export.quantize import infer_shapes
from rtseg.export.stored_ranges import ENDING, find_stored_ranges, read_ranges, write_ranges
from rtseg.models.loading import PRETRAINED, Model, load_model
from rtseg.runtime.artifact import read_card

SIZE = 96, 160
EXPORT = sys.modules["rtseg.export.export"]  # the package has its function under that name
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
        weights = path.name.removesuffix(ENDING).removeprefix(f"{variant}_")
        model = load_model(f"{variant}:{weights}")
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

    def fake(model: Model, size: Any, target: Any, precision: str, out: Path, **options: Any):
        asked.append(precision)
        if precision in refused:
            raise ProofError(f"{precision} is below its bar")
        made = []
        for each in [target] if isinstance(target, str) else target:
            path = out / f"x_{precision}.{'xml' if each == 'openvino' else each}"
            for name in (path, path.with_suffix(".bin"), out / f"{path.name}.json"):
                name.write_text("")
            card = make_card(model, SIZE, precision, "labels")
            made.append(fastest.Artifact(path, each, card, (), "3 frames"))
        return made

    monkeypatch.setattr(EXPORT, "export", fake)
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
    with pytest.raises(
        ExportError, match="are for int8 and fp8, not for auto: add --precision int8"
    ):
        export(nano, SIZE, "openvino", "auto", out=tmp_path, calib=tmp_path)
    with pytest.raises(ExportError, match="another machine: name its precision"):
        export(nano, SIZE, ["onnx", "triton"], "auto", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_ship_are_exported_in_the_fastest_form_by_default(nano, forms, tmp_path):
    asked, _times, _refused = forms
    made = export(nano, SIZE, ["tensorrt", "openvino", "onnx"], out=tmp_path)
    assert [a.path.name for a in made] == ["x_fp16.tensorrt", "x_int8.xml", "x_fp32.onnx"]
    # Targets with nothing to choose share an export.
    assert asked == ["fp32", "fp16", "int8", "fp32"]
    assert (
        made[2].chosen == "x_fp32.onnx: fp32 chosen; the form of --to onnx that fits this machine"
    )
    assert set(json.loads((tmp_path / "report.json").read_text())) == {a.path.name for a in made}


def test_what_is_tried_is_told_with_its_cost_before_it_begins(nano, forms, tmp_path, caplog):
    caplog.set_level("INFO", logger="rtseg")
    (told,) = fastest.announce(nano, ["onnx", "openvino"])
    assert told.startswith("openvino: int8 and fp32 are exported, proven and timed")
    assert told.endswith("about 2 times as long as --precision fp32")
    assert fastest.announce(load_model("csfcn_nano_rep"), ["onnx", "openvino"]) == []
    export(nano, SIZE, "openvino", out=tmp_path)
    assert caplog.messages[0] == told


def test_other_weights_stay_in_fp32_by_default_and_say_so(tmp_path):
    model = load_model("csfcn_nano_rep")
    (artifact,) = export(model, (64, 96), "openvino", out=tmp_path)
    assert artifact.card.precision == "fp32"
    assert artifact.chosen.startswith(
        "csfcn_nano_rep_64x96_fp32.xml: fp32, the default for weights"
    )
    assert artifact.chosen in list_notes([artifact])
    assert json.loads((tmp_path / "report.json").read_text())[artifact.path.name]["chosen"]


def test_the_default_is_fp32_where_nothing_can_be_chosen(nano):
    assert fastest.pick_default(nano, ["onnx", "openvino"], False) == ("auto", "")
    precision, why = fastest.pick_default(nano, ["onnx", "triton"], False)
    assert (precision, "another machine" in why) == ("fp32", True)
    precision, why = fastest.pick_default(nano, ["onnx"], True)
    assert (precision, "one file of several sizes" in why) == ("fp32", True)


def test_what_fails_its_last_proof_stays_where_the_error_says(nano, forms, tmp_path, monkeypatch):
    _asked, _times, refused = forms
    folders: list[Path] = []
    inner = EXPORT.export

    def seen(*arguments: Any, out: Path, **options: Any):
        folders.append(out)
        return inner(*arguments, out=out, **options)

    monkeypatch.setattr(EXPORT, "export", seen)
    refused.update(("int8", "fp32"))
    with pytest.raises(ProofError):
        export(nano, SIZE, "openvino", out=tmp_path)
    assert folders[-1] == tmp_path


def test_a_camera_s_format_is_raced_in_that_format(nano, tmp_path):
    (made,) = export(nano, SIZE, "openvino", out=tmp_path, input="nv12")
    assert made.card.input == "nv12"
    assert made.path.name.endswith("_nv12.xml")
    assert " chosen; " in made.chosen


def test_a_batch_is_raced_too(nano, tmp_path):
    (made,) = export(nano, SIZE, "openvino", out=tmp_path, batch=2)
    assert made.card.batch == 2
    assert "chosen; " in made.chosen


def test_a_wish_that_cannot_be_met_leaves_nothing(nano, tmp_path):
    with pytest.raises(UsageError, match="fit"):
        export(nano, SIZE, "openvino", out=tmp_path / "new", fit="middle")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="add --precision int8"):
        export(nano, SIZE, "openvino", out=tmp_path / "new", calib=tmp_path)
    assert not (tmp_path / "new").exists()


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
