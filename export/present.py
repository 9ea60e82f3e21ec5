"""Exported artifacts as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .export import Artifact
from .parity import ParityResult


def artifact_table(artifacts: Sequence[Artifact]) -> RenderableType:
    """A row for every way that each artifact was run, and below it what there is to explain."""
    table = Table(
        title="Artifacts against the float32 PyTorch network, same frames; agreement and mIoU in %"
    )
    table.add_column("file", overflow="fold")
    table.add_column("run by")
    for name in ("MiB", "agree", "borders", "mIoU", "logits"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    notes = []
    for artifact in artifacts:
        for number, verdict in enumerate(artifact.results):
            table.add_row(
                artifact.path.name if number == 0 else "",
                f"{verdict.backend} {verdict.precision}",
                f"{_mebibytes(artifact):.1f}" if number == 0 else "",
                _share(verdict.agreement),
                _share(verdict.band_agreement),
                _share(verdict.miou),
                "-" if verdict.logits_error is None else f"{verdict.logits_error:.0e}",
                "not used" if _optional(verdict) else verdict.status,
            )
            reasons = "; ".join(verdict.faults) or verdict.why
            if reasons:
                then = ", so the runtime computes in fp32" if _optional(verdict) else ""
                notes.append(f"{artifact.path.name}, {verdict.precision}: {reasons}{then}")
        if engine := artifact.card.engine:
            notes.append(
                f"{artifact.path.name}: {engine.layers} layers, {engine.flavour} {engine.version}, "
                f"built in {engine.build_seconds:.1f} s for compute capability "
                f"{', '.join(engine.compute_capabilities)}"
            )
    return Group(table, *(Text(line, style="dim") for line in notes))


def _optional(verdict: ParityResult) -> bool:
    """A way of computing that fell below its bar and is left out, which is no fault of the file."""
    return verdict.precision == "bf16" and verdict.status == "failed"


def _mebibytes(artifact: Artifact) -> float:
    weights = artifact.path.with_name(artifact.path.name.replace(".xml", ".bin"))
    files = {artifact.path, weights} if weights.exists() else {artifact.path}
    return sum(path.stat().st_size for path in files) / 2**20


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
