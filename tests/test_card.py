"""What a card says is what is read back, whatever is not known."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from rtseg.data.files import digest_of
from rtseg.errors import ArtifactError
from rtseg.runtime import load
from rtseg.runtime.artifact import (
    Card,
    CoarseLogits,
    EngineFacts,
    Int8Facts,
    Proof,
    append_card,
    read_card,
    verify_artifact,
)
from rtseg.runtime.preflight import check
from rtseg.runtime.safetensors_card import digest_of_tensors
from safetensors.numpy import save_file

ENGINE = EngineFacts(
    flavour="tensorrt",
    version="10.3.0",
    compute_capabilities=("8.7",),
    platform="linux-aarch64",
    minimum_driver=None,
    flags=("STRONGLY_TYPED",),
    layers=3,
    onnx="0" * 64,
    build_seconds=1.0,
)
CARD = Card(
    model="csfcn_nano",
    size=(128, 256),
    precision="fp16",
    outputs=("labels",),
    classes=("road", "sky"),
    palette=((0, 0, 0), (1, 1, 1)),
    class_set="two",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    weights="0" * 64,
    weights_from="memory",
    trained=False,
    macs=1,
    params=1,
    tools={},
    engine=ENGINE,
    proof=Proof(report="0", passed=True, frames=1, agreement=1.0),
)


def test_an_engine_whose_driver_is_not_known_is_read_back() -> None:
    assert Card.from_json(CARD.to_json()) == CARD


def test_the_kind_of_upsampling_keeps_its_name_in_files() -> None:
    """Earlier versions wrote `enlarge`, and refuse a card with a field that they do not know."""
    coarse = CoarseLogits(tensor="x", upsampling="bilinear")
    card = CARD.model_copy(update={"upsampling": "shuffle", "coarse": coarse})
    text = card.to_json()
    assert '"enlarge":"shuffle"' in text
    assert '"enlarge":"bilinear"' in text
    assert "upsampling" not in text
    assert Card.from_json(text) == card


@pytest.mark.parametrize("facts", [Card, EngineFacts, Int8Facts, Proof])
def test_what_may_be_unknown_may_be_absent(facts: type[Card]) -> None:
    """`to_json` leaves out what is None, so each such field needs None as its default."""
    for name, field in facts.model_fields.items():
        if "None" in str(field.annotation):
            assert not field.is_required(), f"{facts.__name__}.{name} is required, but may be None"
            assert field.default is None


def test_a_flipped_bit_does_not_pass_for_another_card() -> None:
    """Names, palettes, sizes and means have no form that a flip would break: the digest has to."""
    text = CARD.to_json().encode()
    for place in range(len(text)):
        changed = bytearray(text)
        changed[place] ^= 1 << place % 8
        with pytest.raises(ArtifactError, match="export the model again"):
            Card.from_json(bytes(changed))


@pytest.mark.parametrize("number", [1, 2])
def test_a_card_without_a_digest_is_refused(number: int) -> None:
    """As those of the first format are: nobody sees whether it was changed."""
    card = CARD.model_copy(update={"format": number})
    with pytest.raises(ArtifactError, match="lacks its digest: export the model again"):
        Card.from_json(card.model_dump_json(exclude_none=True))
    if number == 1:
        with pytest.raises(ArtifactError, match=r"reads \(format: .*\): export the model again"):
            Card.from_json(card.to_json())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(append_card(b"model", CARD))
    return path


def test_a_sound_file_is_verified_and_one_whose_proof_failed_is_not_served(model: Path) -> None:
    card = read_card(model)
    verify_artifact(model, card)
    assert card.proof is not None
    failed = card.proof.model_copy(update={"passed": False})
    model.write_bytes(append_card(b"model", CARD.model_copy(update={"proof": failed})))
    with pytest.raises(ArtifactError, match="failed its proof, so it is not served"):
        load(model)
    assert check(model).code == "proof"


def test_a_card_that_names_no_digest_turns_no_check_off(model: Path) -> None:
    card = read_card(model)
    assert card.files.keys() == {""}
    with pytest.raises(ArtifactError, match="names no digest"):
        verify_artifact(model, card.model_copy(update={"files": {}}))


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    """No digest of the ONNX file would cover them."""
    weights = numpy_helper.from_array(np.ones((4, 4), np.float32), "weights")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights.bin")
    graph = helper.make_graph([], "g", [], [], [weights])
    path = tmp_path / "net.onnx"
    path.write_bytes(append_card(helper.make_model(graph).SerializeToString(), CARD))
    with pytest.raises(ArtifactError, match="keeps weights in another file"):
        verify_artifact(path, read_card(path))


def test_rubbish_behind_the_cards_key_is_told_at_once(model: Path) -> None:
    start = model.read_bytes().rfind(b"rtseg\x12") + 6
    model.write_bytes(model.read_bytes()[:start] + b"\xff" * 4_000_000)
    began = time.monotonic()
    with pytest.raises(ArtifactError, match="truncated or was rewritten"):
        read_card(model)
    assert time.monotonic() - began < 60  # it took longer than anybody waited


@pytest.mark.parametrize("damage", ["cut", "payload", "name", "header", "list"])
def test_damaged_weights_are_no_artifact(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    tensors = {"weight": np.arange(64, dtype=np.float32)}
    save_file(tensors, path)
    files = {"": digest_of_tensors(path)}
    card = CARD.model_copy(update={"files": files, "engine": None})
    save_file(tensors, path, {"card": card.to_json()})
    verify_artifact(path, read_card(path))
    assert check(path).ok
    content = path.read_bytes()
    broken = {
        "cut": content[:-100],
        "payload": content[:-1] + b"\x7f",
        "name": content.replace(b'"weight"', b'"weighs"'),
        "header": b"\xff" * 8 + content[8:],
        "list": (2).to_bytes(8, "little") + b"[]",
    }
    path.write_bytes(broken[damage])
    assert check(path).code in ("card", "digest")
    with pytest.raises(ArtifactError):
        load(path)


@pytest.mark.parametrize("name", ["net.xml", "net.engine"])
def test_a_card_names_a_digest_of_every_file_that_is_read(name: str, tmp_path: Path) -> None:
    """Else the weights, or the kernel that makes the labels, could be anybody's."""
    path = tmp_path / name
    path.write_bytes(b"plan")
    other = tmp_path / ("net.bin" if name == "net.xml" else "net.engine.labels.npz")
    other.write_bytes(b"weights")
    outputs = ("labels",) if name == "net.xml" else ("coarse",)
    digests = {each.name: digest_of(each) for each in (path, other)}
    card = CARD.model_copy(update={"outputs": outputs, "files": digests})
    verify_artifact(path, card)
    less = card.model_copy(update={"files": {path.name: digests[path.name]}})
    with pytest.raises(ArtifactError, match=rf"names no digest of {other.name}"):
        verify_artifact(path, less)
