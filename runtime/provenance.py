"""Provenance of a drive's masks: artifacts, libraries and machine, by version and digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..data.files import digest_of
from ..system import package_versions, read_system
from .artifact import read_card

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class ServedArtifact:
    """An artifact of a drive, and what it was told to run on."""

    path: Path
    backend: str | None = None
    device: str | None = None


def describe_provenance(artifacts: Sequence[ServedArtifact] = ()) -> dict[str, Any]:
    """Everything that decides a mask's bits, as JSON values.

    Raises:
        ArtifactError: a file is no artifact.
    """
    return {
        "artifacts": {each.path.name: _describe_artifact(each) for each in artifacts},
        "libraries": describe_libraries(),
        "machine": _describe_machine(),
    }


def describe_libraries() -> dict[str, dict[str, str]]:
    """Version of each library, and a digest: of its list of files with their digests, or, of
    rtseg, of its modules."""
    return {
        name: {"version": version, "digest": _digest_of_library(name)}
        for name, version in package_versions().items()
    }


def _describe_artifact(served: ServedArtifact) -> dict[str, Any]:
    card = read_card(served.path)
    return {
        "path": str(served.path.absolute()),
        "backend": served.backend,
        "device": served.device,
        "sha256": digest_of(served.path),
        "card": hashlib.sha256(card.to_json().encode()).hexdigest(),
        "weights": card.weights,
        "files": dict(card.files),
    }


def _describe_machine() -> dict[str, Any]:
    facts = asdict(read_system())
    del facts["packages"]
    # As JSON gives them back: a tuple would differ from a list.
    return {name: list(v) if isinstance(v, tuple) else v for name, v in facts.items()}


def _digest_of_library(name: str) -> str:
    if name == "rtseg":
        found = sorted((path.relative_to(PACKAGE), path) for path in _list_modules())
        lines = "".join(f"{where} {digest_of(path)}\n" for where, path in found)
        return hashlib.sha256(lines.encode()).hexdigest()
    record = metadata.distribution(name).read_text("RECORD")
    return hashlib.sha256(record.encode()).hexdigest() if record else ""


def _list_modules() -> list[Path]:
    folders = ("data", "runtime")  # what a mask passes through
    return [path for each in folders for path in (PACKAGE / each).rglob("*.py")]


def find_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two provenances' libraries and machines, a line each."""
    found = []
    before, after = then.get("libraries", {}), now.get("libraries", {})
    for name in sorted({*before, *after}):
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            found.append(
                f"{name} was {'absent' if one is None else one['version']}, is "
                f"{'absent' if other is None else other['version']}"
            )
        elif one["version"] != other["version"]:
            found.append(f"{name} was {one['version']}, is {other['version']}")
        elif one["digest"] != other["digest"]:
            found.append(f"{name} {one['version']} has other files than then")
    for name, value in then.get("machine", {}).items():
        if now.get("machine", {}).get(name) != value:
            found.append(f"{name} was {value}, is {now.get('machine', {}).get(name)}")
    return found
