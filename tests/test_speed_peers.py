"""Peers do the same job as we, and are asked for by name."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from rtseg.data.scenes import scenes
from rtseg.errors import ArtifactError, MissingPackage
from rtseg.speed import baselines as peers
from rtseg.speed.baselines import PEERS, check_peers, usual_peers
from speed_parts import SIZE, planned


@pytest.fixture(scope="module")
def contest(tmp_path_factory):
    """csfcn_nano at a tiny size, exported into a cache of our own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        (found,), _ = planned(["csfcn_nano"], [SIZE], ["torch"])
        yield found


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "openvino_bf16"])
def test_a_peer_gives_eager_s_labels(contest, name):
    pytest.importorskip(PEERS[name].package)
    frames = scenes(1, (90, 150))
    eager = contest.peer("eager", "cpu").open(frames, 1, None)
    peer = contest.peer(name, "cpu").open(frames, 1, None)
    labels, expected = peer.frame_to_labels(), eager.frame_to_labels()
    assert labels.shape == expected.shape == (90, 150)
    assert labels.dtype == expected.dtype
    assert (labels == expected).mean() > (0.95 if name == "openvino_bf16" else 0.999)
    peer.queued(2)
    peer.staged()
    assert set(peer.laps[0]) == set(eager.laps[0] if eager.laps else peer.laps[0])
    assert peer.subject.peer
    assert peer.subject.runner != eager.subject.runner


@pytest.mark.slow
def test_torch_compile_gives_eager_s_labels(contest):
    frames = scenes(1, SIZE)
    eager = contest.peer("eager", "cpu").open(frames, 1, None)
    compiled = contest.peer("compile", "cpu").open(frames, 1, None)
    assert (compiled.frame_to_labels() == eager.frame_to_labels()).mean() > 0.999


def test_an_unknown_peer_is_told_the_others():
    with pytest.raises(ValueError, match="no peer is called 'mxnet': choose from eager, compile"):
        check_peers(["mxnet"])


def test_torch2trt_s_install_line_is_in_the_error():
    with pytest.raises(MissingPackage, match=r"pip install .*NVIDIA-AI-IOT/torch2trt"):
        check_peers(["torch2trt"])


def test_torch2trt_is_imported_only_when_it_is_named(monkeypatch):
    module = ModuleType("torch2trt")
    monkeypatch.setitem(sys.modules, "torch2trt", module)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(peers, "cuda_available", lambda: True)
    assert "torch2trt" not in usual_peers(["eager", "all"], "cuda")
    assert usual_peers(["eager", "torch2trt"], "cuda") == ["eager", "torch2trt"]
    with pytest.raises(ArtifactError, match="torch2trt runs on an NVIDIA GPU only"):
        usual_peers(["torch2trt"], "cpu")


def test_all_peers_are_those_that_are_installed(monkeypatch):
    absent = {"openvino", "torch_tensorrt"}
    monkeypatch.setattr(
        peers.importlib.util, "find_spec", lambda name: None if name in absent else object()
    )
    assert usual_peers(["eager", "all"], "cpu") == ["eager", "compile", "onnxruntime"]


def test_a_compiler_that_fails_only_leaves_its_row_out(contest, monkeypatch):
    import torch

    def broken(image):
        raise RuntimeError("no C++ compiler\nlong trace")

    monkeypatch.setattr(torch, "compile", lambda network, **options: broken)
    with pytest.raises(ArtifactError, match=r"torch.compile: no C\+\+ compiler$"):
        contest.peer("compile", "cpu").open(scenes(1, SIZE), 1, None)
