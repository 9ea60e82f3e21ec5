"""An exported artifact, how it moves to its place, and what the report says of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..data.files import write_atomically
from ..runtime.artifact import Card
from .parity import Verdict
from .sensitivity import Cost


@dataclass(frozen=True)
class Artifact:
    """An exported file, its card, and what the proof found, one verdict per way of running it."""

    path: Path
    target: str
    card: Card
    verdicts: tuple[Verdict, ...]
    costs: tuple[Cost, ...] = ()  # of an int8 graph

    @property
    def status(self) -> str:
        if all(v.status == "not run" for v in self.verdicts):
            return "built, not proven"
        return "proven" if self.passed else "failed"

    @property
    def passed(self) -> bool:
        """No run fell below its bar. Computing in bfloat16 is optional: a fall there only means
        that the runtime will not do it."""
        return all(v.status != "failed" for v in self.verdicts if v.precision != "bf16")


def publish(artifact: Artifact, out: Path) -> Artifact:
    """Move an artifact's files from the scratch folder to `out`, under `.failed` if it failed."""
    suffix = "" if artifact.passed else ".failed"
    stem = artifact.path.stem
    ending = artifact.path.suffix
    belonging = [
        p
        for p in artifact.path.parent.iterdir()
        if p.name.startswith(artifact.path.name) or (ending == ".xml" and p.name == f"{stem}.bin")
    ]
    # The artifact itself last: whoever sees it finds its card and weights beside it.
    for path in sorted(belonging, key=lambda p: p == artifact.path):
        shutil.move(path, out / (path.name + suffix))
    return replace(artifact, path=out / (artifact.path.name + suffix))


def write_report(out: Path, artifacts: Sequence[Artifact]) -> None:
    """Add to the folder's `report.json`, by artifact; an older entry of the same name goes."""
    path = out / "report.json"
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError):
        report = {}
    for artifact in artifacts:
        report[artifact.path.name] = entry(artifact)
    write_atomically(path, (json.dumps(report, indent=2) + "\n").encode())


def entry(artifact: Artifact) -> dict[str, Any]:
    """What the report says of an artifact."""
    card = artifact.card
    return {
        "target": artifact.target,
        "status": artifact.status,
        "model": card.model,
        "size": f"{card.size[0]}x{card.size[1]}",
        "precision": card.precision,
        "weights": card.weights,
        "weights_from": card.weights_from,
        "report": card.proof.report if card.proof else None,
        "engine": card.engine.model_dump() if card.engine else None,
        "int8": _int8(artifact),
        "tools": card.tools,
        "runs": [asdict(verdict) for verdict in artifact.verdicts],
    }


def _int8(artifact: Artifact) -> dict[str, Any] | None:
    """How it became int8, and what each layer costs, worst first."""
    facts = artifact.card.int8
    if facts is None:
        return None
    return {**facts.model_dump(), "sensitivity": [asdict(cost) for cost in artifact.costs]}
