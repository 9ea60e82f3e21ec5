"""scripts/layers_beside_ceiling.py: what layers are held against."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import load_script
from rtseg.export.export import export
from rtseg.export.graph import count_macs, to_onnx
from rtseg.export.quantize import infer_shapes
from rtseg.models.loading import Model
from rtseg.speed.roofline import Ceilings

pytest.importorskip("openvino", reason="needs openvino")
script = load_script("layers_beside_ceiling")
SIZE = 64, 128


def test_every_multiply_add_of_the_graph_is_held_against_a_layer(nano: Model, tmp_path: Path):
    (made,) = export(nano, SIZE, "openvino", "fp32", out=tmp_path)
    layers = script.time_layers(made.path, 1)
    graph = count_macs(infer_shapes(to_onnx(nano.network, SIZE, "fp32", ("logits",))))
    macs = sum(layer.macs for layer in layers)
    assert macs == pytest.approx(graph, rel=0.01)
    assert all(layer.ms > 0 for layer in layers)
    ceilings = Ceilings("cpu", 1, {"fp32": 1e9, "bf16": 1e9}, {"fp32": "a", "bf16": "a"}, 1e9)
    page = script.make_page(made.path, layers, 10.0, ceilings, 3)
    assert f"{macs / 1e9:.2f} GMACs would take {macs / 1e6:.1f} ms at the ceiling" in page
    assert page.count("\n| `") == 3
