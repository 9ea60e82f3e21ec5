"""From names and files to what is measured."""

from __future__ import annotations

import pytest
from rtseg import resolve
from rtseg.errors import MissingPackage
from speed_parts import CARD, onnx_with_card, planned


def test_an_artifact_is_measured_in_every_backend_that_reads_it(tmp_path):
    path = onnx_with_card(tmp_path)
    (contest,), absent = planned([path], eager=False)
    assert {entry.backend for entry in contest.entries} <= {"openvino", "onnxruntime"}
    assert contest.title == "csfcn_nano 4x8"
    assert not any(entry.asked_for for entry in contest.entries)
    assert absent == []


def test_artifacts_of_one_network_and_size_meet_in_one_contest(tmp_path):
    paths = []
    for name, size in (("a", (4, 8)), ("b", (4, 8)), ("c", (8, 16))):
        (tmp_path / name).mkdir()
        paths.append(onnx_with_card(tmp_path / name, CARD.model_copy(update={"size": size})))
    contests, _ = planned(paths, backends=["onnxruntime"])
    assert [len(contest.entries) for contest in contests] == [2, 1]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"sizes": [(8, 8)]}, "takes 4x8 only, .* name csfcn_nano"),
        ({"precisions": ["fp16"], "backends": ["onnxruntime"]}, "is fp32 and does not run as fp16"),
        ({"backends": ["cuda"]}, "no backend is called 'cuda': choose from"),
        ({"backends": ["torch"]}, "torch cannot load some.onnx"),
    ],
)
def test_a_wish_that_an_artifact_cannot_fulfil_is_refused(tmp_path, wish, message):
    if "torch" in wish.get("backends", ()):
        pytest.importorskip("torch")
    with pytest.raises(ValueError, match=message):
        planned([onnx_with_card(tmp_path)], **wish)


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="name a variant"):
        planned([])


def test_bf16_is_for_backends_that_compute_in_it(tmp_path):
    pytest.importorskip("openvino")
    path = onnx_with_card(tmp_path)
    backends = ["openvino", "onnxruntime"]
    (contest,), absent = planned(
        [path], backends=backends, precisions=["fp32", "bf16"], eager=False
    )
    assert [(e.backend, e.hint) for e in contest.entries] == [
        ("openvino", "fp32"),
        ("openvino", "bf16"),
        ("onnxruntime", None),
    ]
    assert absent == ["onnxruntime bf16 left out: only openvino computes in it"]


def test_an_absent_package_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setattr(resolve, "is_installed", lambda backend: False)
    with pytest.raises(MissingPackage, match=r"pip install .*\[openvino\]"):
        planned(["csfcn_nano"], backends=["openvino"])
