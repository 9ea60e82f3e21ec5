"""Which networks of the zoo go into one file for two sizes: `docs/howto/several.md` has its table.

python scripts/merge_zoo.py merged.jsonl          # continues where it was stopped
python scripts/merge_zoo.py merged.jsonl --table
"""

from __future__ import annotations

import argparse
import gc
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rtseg.data.scenes import scenes
from rtseg.errors import ExportError
from rtseg.export.graph import to_onnx
from rtseg.export.parity import open_session
from rtseg.export.several_sizes import merge_sizes
from rtseg.models import VARIANTS
from rtseg.models.random_weights import build_untrained
from rtseg.reporting import Table

PAIRS = [
    ((64 * n, 128 * n), (96 * n, 192 * n)) for n in (1, 2, 4)
]  # the first that a network takes


def main() -> None:
    """Merge each network that the file lacks, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    lines = options.rows.read_text().splitlines() if options.rows.is_file() else []
    known = [json.loads(line) for line in lines]
    if options.table:
        print(build_table(known).format("md"))
        return
    for name in VARIANTS:
        if name not in {row["name"] for row in known}:
            row = merge(name)
            print(row, flush=True)
            with options.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            gc.collect()


def merge(name: str) -> dict[str, Any]:
    """What became of one network; `same`: the least share of labels that are those of the graph of
    that size alone."""
    network = build_untrained(name, 19)
    sizes = next(pair for pair in PAIRS if all(map(_takes(network), pair)))
    row: dict[str, Any] = {"name": name, "sizes": [f"{h}x{w}" for h, w in sizes]}
    graphs = [to_onnx(network, size, "fp32", ("labels",)) for size in sizes]
    try:
        merged = merge_sizes(graphs, sizes)
    except ExportError as error:
        return row | {"why": str(error).partition("(")[2].rpartition("): export")[0]}
    whole, same = open_session(merged), []
    for graph, size in zip(graphs, sizes, strict=True):
        frame = scenes(1, size)[0][None]
        found, own = (s.run(["labels"], {"frame": frame})[0] for s in (whole, open_session(graph)))
        same.append(float(np.mean(found == own)))
    weights = sum(tensor.ByteSize() for tensor in graphs[-1].graph.initializer)
    held = sum(tensor.ByteSize() for tensor in merged.graph.initializer)
    return row | {"same": min(same), "grows": held / weights - 1}


def _takes(network: Any) -> Any:
    def takes(size: tuple[int, int]) -> bool:
        try:
            network.info.check_size(*size)
        except ValueError:
            return False
        return True

    return takes


def build_table(rows: list[dict[str, Any]]) -> Table:
    """A row a group of networks with the same answer."""

    def answer(row: dict[str, Any]) -> tuple[str, str]:
        merged = "yes" if "same" in row else f"no: {row['why']}"
        return " and ".join(row["sizes"]), merged

    found = []
    for (sizes, merged), of in groupby(sorted(rows, key=answer, reverse=True), answer):
        group = list(of)
        grown = [row["grows"] for row in group if "grows" in row]
        span = f"{min(grown):.1%} to {max(grown):.1%}" if grown else ""
        found.append([", ".join(f"`{row['name']}`" for row in group), sizes, merged, span])
    header = ["networks", "sizes tried", "one file", "tables beside the weights"]
    return Table(header, found, words=header[1:])


if __name__ == "__main__":
    main()
