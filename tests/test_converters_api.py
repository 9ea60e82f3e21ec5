"""Our calls of Torch-TensorRT and torch2trt, against the signatures of their releases: recorded by
`scripts/record_converters_api.py`, since the packages need a GPU's libraries to import."""

from __future__ import annotations

import json
import sys
from inspect import Parameter, Signature
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import load_script
from rtseg.speed import plain_engines
from rtseg.speed.baselines import Eager

script = load_script("record_converters_api")
RECORD = json.loads(script.RECORD.read_text())
# From 2.13 on every network has its graph's own types, and the option that asked for that is gone.
GONE = {"use_explicit_typing": (2, 13)}


def surplus_of(function: str, release: str, call: tuple[Any, Any]) -> set[str]:
    """The keywords of a call that go to `**`. Raises TypeError for a call that cannot be."""
    recorded = RECORD[function][release]
    names = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=None)
             for name in recorded["names"]]  # fmt: skip
    rest = [Parameter("rest", Parameter.VAR_KEYWORD)] if recorded["any"] else []
    bound = Signature([*names, *rest]).bind(*call[0], **call[1])
    return set(bound.arguments.get("rest", ()))


def call_of(kind: type[Eager], package: str, name: str, monkeypatch: Any) -> Any:
    """The arguments with which a peer calls a converter."""
    calls = []
    module = ModuleType(package)
    setattr(module, name, lambda *given, **named: calls.append((given, named)))
    monkeypatch.setitem(sys.modules, package, module)
    peer: Any = object.__new__(kind)
    peer.torch, peer.size, peer.device = torch, (32, 64), torch.device("cpu")
    peer._prepare(torch.nn.Conv2d(3, 4, 1))
    (call,) = calls
    return call


@pytest.mark.parametrize("release", RECORD["torch_tensorrt.compile"])
def test_torch_tensorrt_takes_what_it_is_given(release: str, monkeypatch: Any) -> None:
    call = call_of(plain_engines.TorchTensorRT, "torch_tensorrt", "compile", monkeypatch)
    handed = surplus_of("torch_tensorrt.compile", release, call)
    # The rest goes to the way that `ir` names, which swallows what it does not know.
    assert call[1]["ir"] == "dynamo"
    named = set(RECORD["torch_tensorrt.dynamo.compile"][release]["names"])
    version = tuple(map(int, release.split(".")[:2]))
    gone = {name for name, since in GONE.items() if version >= since}
    assert handed - named == handed & gone
    assert gone.isdisjoint(named)


@pytest.mark.parametrize("release", RECORD["torch2trt.torch2trt"])
def test_torch2trt_takes_what_it_is_given(release: str, monkeypatch: Any) -> None:
    call = call_of(plain_engines.Torch2Trt, "torch2trt", "torch2trt", monkeypatch)
    assert surplus_of("torch2trt.torch2trt", release, call) == set()


def test_the_oldest_release_with_typed_networks_and_the_newest_are_there() -> None:
    releases = list(RECORD["torch_tensorrt.compile"])
    assert (releases[0], releases[-1]) == ("2.7.0", "2.14.0")


def test_signatures_are_read_and_a_removed_name_would_be_found(monkeypatch: Any) -> None:
    source = "def other(a): ...\ndef compile(module, ir='default', *, inputs=None, **rest): ..."
    signature = script.read_signature(source, "compile")
    assert signature == {"names": ["module", "ir", "inputs"], "any": True}
    assert script.read_signature("def compile(module): ...", "compile")["any"] is False
    monkeypatch.setitem(RECORD, "f", {"1": {"names": ["module"], "any": False}})
    with pytest.raises(TypeError, match="unexpected keyword argument 'inputs'"):
        surplus_of("f", "1", ((1,), {"inputs": []}))
