"""`rtseg targets`: predicts what an NPU will make of a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ..errors import UsageError
from ._console import note, show, working
from ._options import Json, complete_models, parse_size

if TYPE_CHECKING:
    from ..export.targets import LayerRisk
    from ..reporting import Table


def targets(
    model: Annotated[
        str | None,
        Argument(
            help="A name that `rtseg models` lists, or a checkpoint.",
            autocompletion=complete_models,
        ),
    ] = None,
    device: Annotated[str, Option(help="qnn, rknn, axelera or hailo8.")] = "qnn",
    size: Annotated[str | None, Option(help="HxW; by default that of the training.")] = None,
    scored: Annotated[
        bool, Option("--score", help="Hold predictions against Qualcomm's published times.")
    ] = False,
    calib: Annotated[
        Path | None,
        Option(
            help="Folder of real frames that ranges are measured on; shipped weights have some."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict what an NPU refuses of a network.

    rtseg targets csfcn_nano --device rknn
    rtseg targets --score
    """
    if (model is None) != scored:
        raise UsageError("name a model, or give --score: one of the two")
    from ..export.targets import check_device, predict, score
    from ..reporting import Table

    if model is None:
        with working() as step:
            step("judging the networks of the table")
            rows = score()
        cells = [
            [row["model"], "faster" if row["predicted_faster"] else "slower",
             f"{row['published_speedup']:.2f}x", "right" if row["right"] else "wrong"]
            for row in rows
        ]  # fmt: skip
        header = ["model", "int8 predicted", "published", ""]
        title = "int8 beside float on a QCS8550, by Qualcomm AI Hub's table"
        show(json.dumps(rows, indent=2), Table(header, cells, title, words=header), as_json)
        note(f"{sum(row['right'] for row in rows)} of {len(rows)} predictions are right")
        return
    check_device(device)
    from ..resolve import load_source

    with working() as step:
        step(f"loading {model}")
        source = load_source(model)
        step(f"judging each layer of {model}")
        report = predict(source, parse_size(size) if size else source.trained_size, device, calib)
    host = "the last resize and the argmax: rtseg.labels.exact_labels"
    if not report.exact_labels:
        host = ", ".join(f"{number} {kind}" for kind, number in report.host.items())
    faster = {True: "faster than float", False: "slower than float", None: "not known"}
    facts = [
        ["chip", report.chip],
        ["refused", "\n".join(f"{kind}, {why}: {', '.join(names[:3])}"
                              for kind, (why, names) in report.refused.items()) or "nothing"],
        ["not known", ", ".join(report.unknown) or "-"],
        ["cut at", ", ".join(report.cut)],
        ["on the chip", f"{report.share:.0%} of the multiply-adds"],
        ["on the host", host],
        ["int8", "\n".join([faster[report.int8_faster], *report.slow])],
    ]  # fmt: skip
    show(json.dumps(report.as_dict(), indent=2), Table(("", ""), facts, words=("",)), as_json)
    if not as_json:
        show("", _tabulate_risks(report.risks), False)
        note(f"signal to noise: {report.measured or 'not known without frames, --calib FOLDER'}")
    note("predicted by what the makers publish; nothing was compiled for the chip:")
    for url in report.sources:  # too long for a table's cell
        note(url)


def _tabulate_risks(risks: Sequence[LayerRisk]) -> Table:
    from ..export.targets import pick_worst
    from ..reporting import Table

    def times(spread: float | None) -> str:
        return "-" if spread is None else f"{spread:.0f}x"

    rows = [
        [risk.layer, "-" if risk.sqnr_db is None else f"{risk.sqnr_db:.0f}",
         times(risk.input_spread), f"{risk.starved:.0%}", times(risk.spread)]
        for risk in pick_worst(risks)
    ]  # fmt: skip
    header = ["layer", "signal to noise, dB", "input spread", "starved", "weight spread"]
    title = "In int8: expected noise; channels below 8 steps if weights have one scale a layer"
    return Table(header, rows, title, words=header[:1])
