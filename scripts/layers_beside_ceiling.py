"""Layer by layer, what an OpenVINO artifact spends its time on, beside what the machine could do.

A layer with weights is held against its multiply-adds at the rate of the machine's fastest matrix
product; whatever else there is only moves, enlarges or converts values, and is loss as a whole.

    python scripts/layers_beside_ceiling.py artifacts/csfcn_tiny_512x1024_int8.xml -o layers.md
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import openvino
from rtseg.data.files import write_atomically
from rtseg.reporting import Table, format_figure
from rtseg.runtime import load, read_card
from rtseg.runtime.backends.backend import leaves_out_argmax
from rtseg.runtime.backends.openvino import default_precision, read_model, the_core
from rtseg.speed.contestant import random_frame
from rtseg.speed.roofline import Ceilings, fastest, measure_ceilings
from rtseg.system import read_system, usable_cores

RUNS = 30
CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData")
MS = 1e3


@dataclass(frozen=True)
class Layer:
    """ms: median of the runs; macs: 0 for what has no weights."""

    name: str
    kind: str
    kernel: str
    ms: float
    macs: int

    def limit_ms(self, rate: float) -> float:
        return self.macs / rate * MS


def count_macs(model: openvino.Model) -> dict[str, int]:
    """Multiply-adds by the friendly names of the layers with weights."""
    macs = {}
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind in CONVOLUTIONS:
            weight = math.prod(node.input(1).get_shape())
            # Of a transposed convolution each value that is read meets all of its kernel.
            backwards = kind == "ConvolutionBackpropData"
            shape = (node.input(0) if backwards else node.output(0)).get_shape()
            macs[node.get_friendly_name()] = weight * math.prod(shape) // shape[1]
        elif kind == "MatMul":
            inner = node.input(0).get_shape()[-2 if node.get_attributes()["transpose_a"] else -1]
            macs[node.get_friendly_name()] = math.prod(node.output(0).get_shape()) * inner
    return macs


def time_layers(path: Path, threads: int) -> list[Layer]:
    """The layers as they are executed, the longest first."""
    card = read_card(path)
    model = read_model(path, card, leaves_out_argmax(card, None))
    macs = count_macs(model)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[default_precision(card)],
        "PERF_COUNT": True,
    }
    compiled = the_core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(random_frame(card.size)[None]))
    request.infer()
    spent: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for _ in range(RUNS):
        request.infer()
        for node in request.get_profiling_info():
            if ms := node.real_time.total_seconds() * MS:
                spent[node.node_name, node.node_type, node.exec_type].append(ms)
    # A layer that others were fused into has the names of all of them.
    merged = {
        node.get_friendly_name(): node.get_rt_info()["originalLayersNames"].astype(str).split(",")
        for node in compiled.get_runtime_model().get_ops()
        if "originalLayersNames" in node.get_rt_info()
    }
    layers = [
        Layer(
            name,
            kind,
            kernel,
            statistics.median(each),
            sum(macs.get(n, 0) for n in {name, *merged.get(name, ())}),
        )
        for (name, kind, kernel), each in spent.items()
    ]
    return sorted(layers, key=lambda layer: -layer.ms)


def time_frame(path: Path, threads: int) -> float:
    """ms of a frame to its labels, the fastest of 3 s of calls."""
    with load(path, device="cpu", threads=threads) as segment:
        frame = random_frame(segment.card.size)
        whole = fastest(lambda: segment(frame), 3.0, time.perf_counter_ns)
    return whole * MS


def make_page(
    path: Path, layers: list[Layer], frame_ms: float, ceilings: Ceilings, rows: int
) -> str:
    precision = "int8" if "int8" in path.stem else default_precision(read_card(path))
    rate = ceilings.macs_per_s[precision]
    network = sum(layer.ms for layer in layers)
    macs = sum(layer.macs for layer in layers)
    limit = macs / rate * MS
    kinds: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        kinds[f"{layer.kind}, {layer.kernel}" if layer.macs else layer.kind].append(layer)
    by_kind = Table(
        ["what", "layers", "ms", "of the layers' time", "GMACs", "of the ceiling"],
        [
            [
                what,
                str(len(each)),
                format_figure(ms := sum(layer.ms for layer in each)),
                f"{ms / network:.1%}",
                format_figure(sum(layer.macs for layer in each) / 1e9) if each[0].macs else "-",
                f"{sum(layer.limit_ms(rate) for layer in each) / ms:.0%}" if each[0].macs else "-",
            ]
            for what, each in sorted(kinds.items(), key=lambda item: -sum(x.ms for x in item[1]))
        ],
    )
    single = Table(
        ["layer", "what", "ms", "GMACs", "of the ceiling"],
        [
            [
                f"`{layer.name}`",
                f"{layer.kind}, {layer.kernel}",
                format_figure(layer.ms),
                format_figure(layer.macs / 1e9) if layer.macs else "-",
                f"{layer.limit_ms(rate) / layer.ms:.0%}" if layer.macs else "-",
            ]
            for layer in layers[:rows]
        ],
    )
    return "\n\n".join(
        [
            f"## {path.stem} beside the machine's ceiling",
            f"Written by `scripts/layers_beside_ceiling.py`, which says how. {read_system()}.",
            f"- {ceilings}; that of {precision} is {ceilings.by[precision]}'s\n"
            f"- a frame to its labels: {frame_ms:.1f} ms at its fastest; the layers' medians add up"
            f" to {network:.1f} ms\n"
            f"- {macs / 1e9:.2f} GMACs would take {limit:.1f} ms at the ceiling, which is "
            f"{limit / frame_ms:.0%} of the frame",
            by_kind.markdown(),
            f"The {rows} layers that take longest:",
            single.markdown(),
        ]
    ) + "\n"  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rows", type=int, default=40, help="layers to name")
    parser.add_argument("-o", "--out", type=Path, help="the page; else it is printed")
    given = parser.parse_args()
    threads = usable_cores()
    ceilings = measure_ceilings(threads)
    layers = time_layers(given.artifact, threads)
    frame_ms = time_frame(given.artifact, threads)
    page = make_page(given.artifact, layers, frame_ms, ceilings, given.rows)
    if given.out is None:
        print(page)
    else:
        write_atomically(given.out, page.encode())


if __name__ == "__main__":
    main()
