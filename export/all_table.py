"""The table of a whole zoo's exports, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from .export_zoo import Row

HEADINGS = (
    "variant",
    "M params",
    "GMACs",
    "ONNX, MiB",
    "engine, MiB",
    "TensorRT layers",
    "engine built, s",
    "ONNX Runtime",
    "OpenVINO",
    "OpenVINO, bf16",
    "verdict",
)
FOR_TERMINAL = (0, 1, 2, 3, 4, 5, 7, 8, 10)  # of the columns, what 80 characters hold


def markdown(rows: Sequence[Row]) -> str:
    """A table per size and precision, what they mean above, what failed below."""
    parts = [EXPLANATION]
    for title in dict.fromkeys((row.size, row.precision) for row in rows):
        chosen = [row for row in rows if (row.size, row.precision) == title]
        parts += [f"## {title[0]}, {title[1]}", _summary(chosen), _table(chosen)]
    if faults := [f"- {row.key}: {fault}" for row in rows for fault in row.faults]:
        parts += ["## What failed", "\n".join(faults)]
    tools: dict[str, str] = {}
    for row in rows:
        tools |= row.tools
    parts.append(f"Made with {', '.join(f'{n} {v}' for n, v in sorted(tools.items()))}.")
    return "\n\n".join(parts) + "\n"


EXPLANATION = """# Exports of the whole zoo

Every variant, exported and proven by `rtseg export --all`; written by that command.

Runs are given as the share of pixels with the label of the float32 PyTorch network, and the root \
mean square error of the logits over the logits' own (bars: 0.001 in fp32, 0.02 in fp16). Random \
weights give neighboring logits nearly equal values, so that their share of equal labels is \
reported and not judged; no pixel may differ where the network was sure. OpenVINO's bfloat16 is \
optional: where it is below its bar, marked (!), the runtime computes in float32. TensorRT layers \
are those of the parsed network, before fusion, frame in and labels out included. Engines are \
built without a GPU and proven on the first machine that loads them."""


def _summary(rows: Sequence[Row]) -> str:
    failed = sum(bool(row.faults) for row in rows)
    targets = " or ".join(sorted({", ".join(row.targets) for row in rows}))
    scenes = min(row.scenes for row in rows)
    return (
        f"{len(rows)} exported to {targets}, {failed} failed; each proven on {scenes} drawn "
        f"{'scene' if scenes == 1 else 'scenes'}."
    )


def _table(rows: Sequence[Row]) -> str:
    lines = [" | ".join(HEADINGS), " | ".join(["---"] + ["--:"] * (len(HEADINGS) - 2) + ["---"])]
    for row in rows:
        lines.append(" | ".join(_cells(row)))
    return "\n".join(f"| {line} |" for line in lines)


def _cells(row: Row) -> list[str]:
    return [
        f"`{row.model}`" + ("" if row.weights_from.startswith("random") else " (trained)"),
        f"{row.params / 1e6:.2f}",
        f"{row.macs / 1e9:.1f}",
        _mebibytes(row, "onnx"),
        _mebibytes(row, "tensorrt"),
        "-" if row.layers is None else str(row.layers),
        "-" if row.build_seconds is None else f"{row.build_seconds:.1f}",
        _run(row, "onnxruntime"),
        _run(row, "openvino"),
        _run(row, "openvino", "bf16"),
        "**failed**" if row.faults else "passed",
    ]


def as_rich(rows: Sequence[Row]) -> Table:
    """For a terminal: fewer columns, and the reasons of failed rows below."""
    faults = [f"{row.key}: {fault}" for row in rows for fault in row.faults]
    table = Table(caption="\n".join(faults) or None, caption_justify="left")
    for place in FOR_TERMINAL:
        table.add_column(HEADINGS[place], justify="left" if place == 0 else "right")
    table.add_column("precision")
    for row in rows:
        cells = [cell.replace("`", "").replace("*", "") for cell in _cells(row)]
        table.add_row(*(cells[place] for place in FOR_TERMINAL), row.precision)
    return table


def _mebibytes(row: Row, target: str) -> str:
    return f"{row.bytes[target] / 2**20:.1f}" if target in row.bytes else "-"


def _run(row: Row, backend: str, precision: str | None = None) -> str:
    """Agreement in % and logits error of a run, such as "99.98, 2e-04"."""
    for run in row.runs:
        if run["backend"] == backend and run["precision"] == (precision or row.precision):
            error = run["logits_error"]
            shown = f"{100 * run['agreement']:.2f}" + ("" if error is None else f", {error:.0e}")
            return shown + (" (!)" if run["faults"] else "")
    return "-"
