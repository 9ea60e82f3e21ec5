"""Bill of materials of an artifact: its files, what built it, what it needs, and the licenses.

CycloneDX 1.6 in JSON (ECMA-424), which the usual scanners read.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .. import __version__
from ..data.files import digest_of, write_atomically
from .artifact import Card, read_card, sidecar, verify_artifact
from .backends.backend import BACKENDS

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/rtseg")
BASE = ("numpy", "opencv-python", "pydantic")  # that every backend needs
UNKNOWN = "not stated"
# Of data sets that weights name; each has more terms than a line can hold.
DATA_LICENSES = {
    "camvid": "research use",
    "cityscapes": "Cityscapes license: non-commercial use",
}


def sbom_path(path: Path) -> Path:
    """Beside the artifact."""
    return path.with_name(path.name + ".cdx.json")


def write_sbom(
    path: Path,
    out: Path | None = None,
    license: str | None = None,
    data: str | None = None,
    data_license: str | None = None,
) -> Path:
    """Write the bill of materials of an artifact.

    Args:
        path: of the artifact.
        out: the file; by default `NAME.cdx.json` beside it.
        license: of the weights; by default what their checkpoint said.
        data: what they were trained on; by default likewise.
        data_license: of that.

    Returns:
        The file's path.

    Raises:
        ArtifactError: the artifact is damaged, or failed its proof.
    """
    card = read_card(path)
    verify_artifact(path, card)
    bill = build_sbom(path, card, license, data, data_license)
    out = out or sbom_path(path)
    write_atomically(out, (json.dumps(bill, indent=2) + "\n").encode())
    return out


def build_sbom(
    path: Path,
    card: Card,
    license: str | None = None,
    data: str | None = None,
    data_license: str | None = None,
) -> dict[str, object]:
    """The bill of materials as JSON values; arguments as of `write_sbom`."""
    data = data or card.trained_on
    data_license = data_license or DATA_LICENSES.get(data or "")
    files = [_file(each) for each in _list_files(path, card)]
    # `excluded` is what CycloneDX calls parts that are not there when it runs.
    built = [_library(name, version, "excluded") for name, version in card.tools.items()]
    needed = list(_list_needed(path, card))
    # A bom-ref may occur only once in a bill.
    known = {each["bom-ref"] for each in needed}
    built = [each for each in built if each["bom-ref"] not in known]
    weights = {
        "type": "data",
        "bom-ref": "weights",
        "name": card.weights_from,
        "version": card.weights[:16],
        "licenses": _license(license or card.license or DATA_LICENSES.get(card.trained_on or "")),
        "properties": _properties({"weights": card.weights, "trained": card.trained}),
    }
    dataset = {
        "type": "data",
        "bom-ref": "training-data",
        "name": data or UNKNOWN,
        "licenses": _license(data_license),
        "data": [{"type": "dataset", "name": data or UNKNOWN}],
    }
    parts = [*files, weights, *needed]
    # Of the card, not random: bills of one artifact have one serial number.
    serial = uuid.uuid5(NAMESPACE, card.to_json())
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "tools": {
                "components": [{"type": "application", "name": "rtseg", "version": __version__}]
            },
            "component": _describe(path, card),
        },
        "components": [*files, weights, dataset, *needed, *built],
        "dependencies": [
            {"ref": "artifact", "dependsOn": [each["bom-ref"] for each in parts]},
            {"ref": "weights", "dependsOn": ["training-data"]},
        ],
    }


def _describe(path: Path, card: Card) -> dict[str, object]:
    """The artifact as the bill's subject."""
    height, width = card.size
    proof = card.proof
    facts = {
        "size": f"{height}x{width}",
        "precision": card.precision,
        "class_set": card.class_set,
        "card": hashlib.sha256(card.to_json().encode()).hexdigest(),
        "proof": proof.report if proof else "built, not proven",
        **({"agreement": proof.agreement, "proof_frames": proof.frames} if proof else {}),
        **({"int8_method": card.int8.method} if card.int8 else {}),
        **({"fp8_method": card.fp8.method} if card.fp8 else {}),
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": "artifact",
        "name": path.name,
        "version": card.weights[:16],
        "description": f"{card.model}: frames to {len(card.classes)} classes, one a pixel",
        "properties": _properties(facts),
    }


def _list_files(path: Path, card: Card) -> list[Path]:
    names = dict.fromkeys([path.name, *(name for name in card.files if name)])
    files = [path.with_name(name) for name in names]
    beside = sidecar(path)
    # ONNX files and weights carry their card inside.
    return [*files, beside] if path.suffix not in (".onnx", ".safetensors") else files


def _file(path: Path) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file:{path.name}",
        "name": path.name,
        "hashes": [{"alg": "SHA-256", "content": digest_of(path)}],
        "properties": _properties({"bytes": path.stat().st_size}),
    }


def _list_needed(path: Path, card: Card) -> Iterable[dict[str, object]]:
    """What runs it: the base, and each backend that loads it, of which one is enough."""
    yield _library("rtseg", __version__, "required", _license("Apache-2.0"))
    for name in BASE:
        yield _library(name, _installed(name), "required")
    if card.engine is not None:
        yield _library(card.engine.flavour.replace("_", "-"), card.engine.version, "required")
        yield _library("cuda-bindings", _installed("cuda-bindings"), "required")
        return
    able = [spec for spec in BACKENDS.values() if path.suffix in spec.suffixes]
    for spec in able:
        name = spec.packages[-1].replace("_", "-")
        yield _library(name, _installed(name), "required" if len(able) == 1 else "optional")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _library(
    name: str, version: str | None, scope: str, licenses: list[dict[str, object]] | None = None
) -> dict[str, object]:
    purl = f"pkg:pypi/{name.lower()}" + (f"@{quote(version, safe='.')}" if version else "")
    facts: dict[str, object] = {
        "type": "library",
        "bom-ref": f"{name}@{version or 'any'}",
        "name": name,
        "scope": scope,
        "purl": purl,
    }
    return (
        facts
        | ({"version": version} if version else {})
        | ({"licenses": licenses} if licenses else {})
    )


def _license(text: str | None) -> list[dict[str, object]]:
    return [{"license": {"name": text or UNKNOWN}}]


def _properties(facts: Mapping[str, object]) -> list[dict[str, str]]:
    return [{"name": f"rtseg:{name}", "value": str(value)} for name, value in facts.items()]
