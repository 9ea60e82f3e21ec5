"""Profile of a network: its costliest layers, as the runtime itself times them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import ArtifactError, MissingPackage
from ..reporting import Table, format_figure
from ..runtime import read_card
from ..runtime.backends.backend import BACKENDS
from .bench import Setup
from .contestant import random_frame
from .plan import Entry
from .result import Report

COSTLIEST = 10
RUNS = 10
LAYER = ("layer", "kind", "kernel")


@dataclass(frozen=True)
class LayerTime:
    """name: as the runtime has it; kind: such as "Convolution"; by: the kernel; ms: median of a
    run; share: of all layers together, 0..1."""

    name: str
    kind: str
    by: str
    ms: float
    share: float


def costliest(
    path: Path, backend: str, threads: int, hint: str | None = None, count: int = COSTLIEST
) -> list[LayerTime]:
    """The layers of an artifact that take longest, the longest first, on a random frame.

    hint: the precision that OpenVINO shall compute in, None for its default.

    Raises ArtifactError for a backend that does not tell.
    """
    spent = (
        BACKENDS[backend]
        .load()
        .profile(path, threads, hint, random_frame(read_card(path).size)[None])
    )
    # Medians: one run that was interrupted would make any layer the costliest.
    medians = {layer: float(np.median(times)) for layer, times in spent.items()}
    whole = sum(medians.values()) or 1.0
    slowest = sorted(medians.items(), key=lambda item: -item[1])[:count]
    return [LayerTime(*layer, round(ms, 4), round(ms / whole, 4)) for layer, ms in slowest]


def profile(setup: Setup) -> Report:
    """The costliest layers of every artifact that is to be measured."""
    tables: list[Table] = []
    facts: list[dict[str, object]] = []
    for contest in setup.single_frame_contests:
        for entry in contest.entries:
            setup.host.progress(f"{entry.title}: layers", 0.0)
            try:
                found = costliest(entry.path, entry.backend, setup.host.threads, entry.hint)
            except (ArtifactError, MissingPackage) as error:
                setup.host.note_absent(contest, entry.runner, str(error))
                continue
            tables.append(_table(entry, found))
            facts.append(
                {
                    "artifact": entry.path.name,
                    "backend": entry.backend,
                    "precision": entry.hint or "default",
                    "layers": [asdict(layer) for layer in found],
                }
            )
    return setup.report("profile", tables, facts, {"runs": RUNS, "layers": COSTLIEST})


def _table(entry: Entry, found: Sequence[LayerTime]) -> Table:
    rows = [
        [layer.name[-40:], layer.kind, layer.by, format_figure(layer.ms), f"{layer.share:.1%}"]
        for layer in found
    ]
    told = f" in {entry.hint}" if entry.hint else ""
    title = f"{entry.title}{told}: its costliest layers"
    return Table([*LAYER, "ms", "share"], rows, title, len(LAYER), optional=["kernel"])
