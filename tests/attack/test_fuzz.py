"""Parsers under random damage, and under values of every shape that YAML and JSON can have."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from conftest import load_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rtseg.data.classes import CAMVID, load_class_set
from rtseg.data.limits import parse_yaml, read_json_object
from rtseg.data.soft_labels import load_class_map
from rtseg.errors import RtsegError, UsageError
from rtseg.runtime.artifact import Card
from rtseg.runtime.drive.faults import KINDS, Fault
from rtseg.train.recipe import check_recipe
from test_preflight import card_of

FUZZ = load_script("fuzz")
INPUTS = 60  # of each target; scripts/fuzz.py takes as many as there is time for

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([*KINDS, *CAMVID.names, 255, -1, 1 << 64, "road", "csfcn_nano"])
)  # fmt: skip
KEYS = st.sampled_from([
    "name", "color", "colour", "at", "fault", "seconds", "model", "data", "schedule", "optimizer",
    "batch", "size", "classes", "palette", "coarse", "proof", "files", "root", "learning_rate",
]) | st.text(max_size=8)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=15,
)
few = settings(
    max_examples=150, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.mark.parametrize("name", FUZZ.TARGETS)
def test_damage_is_an_answer_or_an_error_of_ours(name: str) -> None:
    count, found = FUZZ.fuzz(FUZZ.TARGETS[name], seconds=20.0, most=INPUTS)
    assert count
    assert {why: content[:60] for why, content in found.items()} == {}


def test_the_fuzzer_finds_a_bug() -> None:
    def parse(path: Path) -> object:
        return path.read_bytes().index(b"sound")

    count, found = FUZZ.fuzz(FUZZ.Target(".txt", parse, lambda: b"a sound file"), 5.0, most=200)
    assert count == 200
    assert list(found) == ["ValueError"]


@few
@given(st.text(max_size=300))
def test_any_text_is_yaml_or_told(text: str) -> None:
    told = ""
    try:
        parse_yaml(text, "the text")
    except UsageError as error:
        told = str(error)
    assert "\n" not in told


@few
@given(value=VALUES)
def test_class_sets_of_any_shape(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("classes") / "mine.yaml"
    path.write_text(json.dumps(value))
    try:
        classes = load_class_set(path)
    except RtsegError:
        return
    assert all(0 <= v <= 255 for color in classes.palette for v in color)


@few
@given(value=st.lists(VALUES, max_size=6))
def test_class_maps_of_any_shape(value: list[object]) -> None:
    try:
        ids = load_class_map(value, CAMVID)  # type: ignore[arg-type]
    except UsageError:
        return
    assert all(each == 255 or 0 <= each < 11 for each in ids)


@few
@given(value=st.dictionaries(KEYS, VALUES, max_size=6))
def test_recipes_of_any_shape(value: dict[str, object]) -> None:
    try:
        check_recipe(value)
    except RtsegError:
        return


@few
@given(at=SCALARS, fault=SCALARS, seconds=SCALARS)
def test_faults_of_any_shape(at: object, fault: object, seconds: object) -> None:
    try:
        made = Fault(at, fault, seconds)  # type: ignore[arg-type]
    except (RtsegError, TypeError):  # a TypeError is told with the plan's name
        return
    assert 0 <= made.at < 1e10


@few
@given(changes=st.dictionaries(st.sampled_from(sorted(Card.model_fields)), VALUES, max_size=3))
def test_cards_of_any_shape(changes: dict[str, object]) -> None:
    facts = json.loads(card_of().to_json()) | changes
    facts.pop("digest")
    body = json.dumps(facts)
    digest = hashlib.sha256(body.encode()).hexdigest()
    try:
        card = Card.from_json(f'{{"digest":"{digest}",{body[1:]}')
    except RtsegError:
        return
    assert len(card.palette) == len(card.classes)
    assert all(side > 0 for side in card.size)


@few
@given(content=st.binary(max_size=80) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_records_of_any_shape(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("records") / "record.json"
    path.write_bytes(content)
    assert isinstance(read_json_object(path), dict)
