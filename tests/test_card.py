"""What a card says is what is read back, whatever is not known."""

from __future__ import annotations

import pytest
from rtseg.runtime.artifact import Card, EngineFacts, Int8Facts, Proof

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


@pytest.mark.parametrize("facts", [Card, EngineFacts, Int8Facts, Proof])
def test_what_may_be_unknown_may_be_absent(facts: type[Card]) -> None:
    """`to_json` leaves out what is None, so each such field needs None as its default."""
    for name, field in facts.model_fields.items():
        if "None" in str(field.annotation):
            assert not field.is_required(), f"{facts.__name__}.{name} is required, but may be None"
            assert field.default is None
