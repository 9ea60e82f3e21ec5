"""The bill of materials of an artifact, against what CycloneDX 1.6 requires."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from rtseg.cli.app import app
from rtseg.data.files import digest_of, write_atomically
from rtseg.errors import ArtifactError
from rtseg.models.loading import PRETRAINED, read_origin
from rtseg.runtime.artifact import Card, append_card, sidecar
from rtseg.runtime.sbom import write_sbom
from speed_parts import CARD
from typer.testing import CliRunner

TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
LICENSES = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["license"],
        "properties": {
            "license": {
                "type": "object",
                "oneOf": [{"required": ["id"]}, {"required": ["name"]}],
                "properties": {"name": TEXT, "id": TEXT},
                "additionalProperties": False,
            }
        },
        "additionalProperties": False,
    },
}
COMPONENT = {
    "type": "object",
    "required": ["type", "name"],
    "properties": {
        "type": {"enum": ["application", "library", "file", "machine-learning-model", "data"]},
        "bom-ref": TEXT,
        "name": TEXT,
        "version": TEXT,
        "description": TEXT,
        "scope": {"enum": ["required", "optional", "excluded"]},
        "purl": {"type": "string", "pattern": "^pkg:pypi/[a-z0-9._-]+(@[A-Za-z0-9.%_-]+)?$"},
        "licenses": LICENSES,
        "hashes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["alg", "content"],
                "properties": {
                    "alg": {"const": "SHA-256"},
                    "content": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                },
                "additionalProperties": False,
            },
        },
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type"],
                "properties": {"type": {"enum": ["dataset"]}, "name": TEXT},
                "additionalProperties": False,
            },
        },
        "properties": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": TEXT, "value": {"type": "string"}},
                "additionalProperties": False,
            },
        },
    },
    "additionalProperties": False,
}
TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$"
UUID = "^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
BOM = {  # of bom-1.6.schema.json, what this bill uses of it
    "type": "object",
    "required": ["bomFormat", "specVersion", "serialNumber", "version", "metadata", "components"],
    "properties": {
        "$schema": {"const": "http://cyclonedx.org/schema/bom-1.6.schema.json"},
        "bomFormat": {"const": "CycloneDX"},
        "specVersion": {"const": "1.6"},
        "serialNumber": {"type": "string", "pattern": UUID},
        "version": {"type": "integer", "minimum": 1},
        "metadata": {
            "type": "object",
            "required": ["timestamp", "component", "tools"],
            "properties": {
                "timestamp": {"type": "string", "pattern": TIME},
                "component": COMPONENT,
                "tools": {
                    "type": "object",
                    "required": ["components"],
                    "properties": {"components": {"type": "array", "items": COMPONENT}},
                    "additionalProperties": False,
                },
            },
            "additionalProperties": False,
        },
        "components": {"type": "array", "uniqueItems": True, "items": COMPONENT},
        "dependencies": {
            "type": "array",
            "uniqueItems": True,
            "items": {
                "type": "object",
                "required": ["ref"],
                "properties": {"ref": TEXT, "dependsOn": {"type": "array", "uniqueItems": True}},
                "additionalProperties": False,
            },
        },
    },
    "additionalProperties": False,
}
FACTS = {"tools": {"rtseg": "0.1.0", "torch": "2.13.0+cpu", "onnx": "1.23.2"}}


def write_onnx(folder: Path, card: Card) -> Path:
    path = folder / "net.onnx"
    write_atomically(path, append_card(b"model", card))
    return path


def write_engine(folder: Path, card: Card) -> Path:
    path = folder / "net.engine"
    write_atomically(path, b"plan")
    write_atomically(folder / "net.engine.reference.npz", b"reference")
    files = {each.name: digest_of(each) for each in folder.glob("net.engine*")}
    write_atomically(sidecar(path), card.model_copy(update={"files": files}).to_json().encode())
    return path


@pytest.mark.parametrize("write", [write_onnx, write_engine])
def test_a_bill_has_what_the_schema_requires(write: Any, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from test_card import ENGINE

    engine = ENGINE if write is write_engine else None
    path = write(tmp_path, CARD.model_copy(update={**FACTS, "engine": engine}))
    out = write_sbom(path)
    assert out == path.with_name(f"{path.name}.cdx.json")
    bill = json.loads(out.read_text())
    jsonschema.validate(bill, BOM)
    refs = [each["bom-ref"] for each in bill["components"]]
    assert len(set(refs)) == len(refs)
    named = {ref for each in bill["dependencies"] for ref in (each["ref"], *each["dependsOn"])}
    assert named <= {*refs, "artifact"}
    files = {each["name"]: each["hashes"] for each in bill["components"] if each["type"] == "file"}
    expected = {each.name for each in tmp_path.iterdir()} - {out.name}
    assert files.keys() == expected
    for name, (digest,) in files.items():
        assert digest == {"alg": "SHA-256", "content": digest_of(tmp_path / name)}


def test_a_bill_names_libraries_and_licenses(tmp_path: Path) -> None:
    facts = {**FACTS, "license": "Apache-2.0", "trained_on": "camvid", "engine": None}
    path = write_onnx(tmp_path, CARD.model_copy(update=facts))
    bill = json.loads(write_sbom(path).read_text())
    parts = {each["bom-ref"]: each for each in bill["components"]}
    torch = parts["torch@2.13.0+cpu"]
    assert (torch["scope"], torch["purl"]) == ("excluded", "pkg:pypi/torch@2.13.0%2Bcpu")
    numpy = parts[f"numpy@{metadata.version('numpy')}"]
    assert numpy["scope"] == "required"
    assert {
        name.split("@")[0] for name, each in parts.items() if each.get("scope") == "optional"
    } == {
        "onnxruntime",
        "openvino",
    }
    assert parts["weights"]["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    assert parts["training-data"]["name"] == "camvid"
    assert parts["training-data"]["licenses"] == [{"license": {"name": "research use"}}]


def test_what_is_not_known_is_said_and_can_be_given(tmp_path: Path) -> None:
    path = write_onnx(tmp_path, CARD.model_copy(update={"engine": None}))
    unknown = {
        each["bom-ref"]: each for each in json.loads(write_sbom(path).read_text())["components"]
    }
    assert unknown["training-data"]["name"] == "not stated"
    out = tmp_path / "bill.json"
    words = ["sbom", str(path), "-o", str(out), "--license", "MIT", "--data", "own frames"]
    done = CliRunner().invoke(app, [*words, "--data-license", "CC0-1.0"], catch_exceptions=False)
    assert done.stdout.strip() == str(out)
    given = {each["bom-ref"]: each for each in json.loads(out.read_text())["components"]}
    assert given["weights"]["licenses"] == [{"license": {"name": "MIT"}}]
    assert given["training-data"]["name"] == "own frames"
    assert given["training-data"]["licenses"] == [{"license": {"name": "CC0-1.0"}}]


def test_a_damaged_artifact_has_no_bill(tmp_path: Path) -> None:
    path = write_onnx(tmp_path, CARD.model_copy(update={"engine": None}))
    path.write_bytes(path.read_bytes().replace(b"model", b"Model", 1))
    with pytest.raises(ArtifactError):
        write_sbom(path)
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]


def test_shipped_weights_say_what_they_learned_from() -> None:
    for path in PRETRAINED.glob("*.safetensors"):
        license, trained_on = read_origin(path)
        assert trained_on == "camvid" or re.match("research use", license or "")
