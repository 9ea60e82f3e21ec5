"""The networks."""

from __future__ import annotations

import json

from rich.table import Table

from .options import Json
from .terminal import need, show


def models(as_json: Json = False) -> None:
    """List the networks with their size and cost.

    rtseg models
    """
    need("torch", "PyTorch", "export", "models")
    from ..models.zoo import rows

    zoo = rows()
    table = Table("model", "params", "GMACs 512x1024", "GMACs 1024x2048", "weights", "source")
    for row in zoo:
        table.add_row(
            row["model"],
            f"{row['params'] / 1e6:.2f} M",
            f"{row['macs_512x1024'] / 1e9:.2f}",
            f"{row['macs_1024x2048'] / 1e9:.2f}",
            row["weights"] or "-",
            row["paper"],
        )
    show(json.dumps(zoo, indent=2), table, as_json)
