"""Exported artifacts as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from .main import Artifact


def artifact_table(artifacts: Sequence[Artifact]) -> Table:
    """A row for every way that each artifact was run."""
    table = Table(title="Artifacts, against the float32 PyTorch network on the same frames")
    for name in ("file", "MiB", "run by", "labels agree", "at borders", "mIoU", "logits error"):
        table.add_column(name, justify="left" if name in ("file", "run by") else "right")
    table.add_column("verdict")
    for artifact in artifacts:
        for number, verdict in enumerate(artifact.verdicts):
            first = number == 0
            table.add_row(
                artifact.path.name if first else "",
                f"{_mebibytes(artifact):.1f}" if first else "",
                f"{verdict.backend} {verdict.precision}",
                _share(verdict.agreement),
                _share(verdict.band_agreement),
                _share(verdict.miou),
                "-" if verdict.logits_error is None else f"{verdict.logits_error:.1e}",
                "; ".join(verdict.faults)
                or verdict.status + (f": {verdict.why}" if verdict.why else ""),
            )
        if artifact.card.engine:
            engine = artifact.card.engine
            table.caption = (
                f"engine: {engine.layers} layers, {engine.flavour} {engine.version}, "
                f"built in {engine.build_seconds:.1f} s for compute capability "
                f"{', '.join(engine.compute_capabilities)}"
            )
    return table


def _mebibytes(artifact: Artifact) -> float:
    weights = artifact.path.with_name(artifact.path.name.replace(".xml", ".bin"))
    files = {artifact.path, weights} if weights.exists() else {artifact.path}
    return sum(path.stat().st_size for path in files) / 2**20


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3%}"
