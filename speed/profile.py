"""Where a network's time goes: its costliest layers, as the runtime itself counts them."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError, MissingPackage
from ..runtime import read_card
from .contestant import random_frame
from .plan import Entry
from .preparation import Setup
from .sheet import Figures, Sheet, figure, percent

COSTLIEST = 10
RUNS = 10
LAYER = ("layer", "kind", "kernel")
Spent = dict[tuple[str, str, str], list[float]]  # (layer, kind, what computed it): ms of each run


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
    profilers = {"openvino": _openvino, "onnxruntime": _onnxruntime, "torch": _torch}
    if backend not in profilers:
        raise ArtifactError(f"{backend} has no profile of layers here: use {', '.join(profilers)}")
    spent = profilers[backend](path, threads, hint)
    medians = {layer: float(np.median(times)) for layer, times in spent.items()}
    whole = sum(medians.values()) or 1.0
    slowest = sorted(medians.items(), key=lambda item: -item[1])[:count]
    return [LayerTime(*layer, round(ms, 4), round(ms / whole, 4)) for layer, ms in slowest]


def _openvino(path: Path, threads: int, hint: str | None) -> Spent:
    import openvino

    from ..runtime.argmax import compiled_available
    from ..runtime.backends.openvino import HINTS, default_precision, the_core, with_positions
    from ..runtime.cut import cut_labels

    card = read_card(path)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": HINTS[hint or default_precision(card)],
        "PERF_COUNT": True,
    }
    core = the_core()
    model = with_positions(core, path)
    if compiled_available():
        # As the runtime runs it: labels are made outside.
        cut_labels(model, card.size, shuffled=False)
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    frame = random_frame(card.size)[None]
    request.set_input_tensor(openvino.Tensor(frame, shared_memory=True))
    request.infer()
    spent: Spent = defaultdict(list)
    for _ in range(RUNS):
        request.infer()
        for node in request.get_profiling_info():
            ms = node.real_time.total_seconds() * 1e3
            if ms > 0:
                spent[node.node_name, node.node_type, node.exec_type].append(ms)
    return spent


def _onnxruntime(path: Path, threads: int, hint: str | None) -> Spent:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    frame = random_frame(read_card(path).size)[None]
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        for _ in range(RUNS + 1):
            session.run(None, {"frame": frame})
        events = json.loads(Path(session.end_profiling()).read_text())
    return _kernels(events)


def _kernels(events: Sequence[dict[str, Any]]) -> Spent:
    """ONNX Runtime's events, the first run's left out."""
    spent: Spent = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            facts = event["args"]
            layer = event["name"].removesuffix("_kernel_time")
            key = layer, facts.get("op_name", ""), facts.get("provider", "")
            spent[key].append(event["dur"] / 1e3)
    return {key: times[1:] or times for key, times in spent.items()}


def _torch(path: Path, threads: int, hint: str | None) -> Spent:
    """By operation and the shapes that it was given, since PyTorch does not know layers' names."""
    from torch.profiler import ProfilerActivity, profile

    from ..runtime import load

    frame = random_frame(read_card(path).size)
    spent: Spent = defaultdict(list)
    with load(path, "torch", "cpu", threads=threads) as segmenter:
        segmenter(frame)
        for _ in range(3):
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
                segmenter(frame)
            for event in record.key_averages(group_by_input_shape=True):
                shape = "x".join(map(str, (event.input_shapes or [[]])[0]))
                key = f"{event.key} {shape}".strip(), event.key, "PyTorch"
                spent[key].append(event.self_cpu_time_total / 1e3)
    return spent


def profile(setup: Setup) -> Sheet:
    """The costliest layers of every artifact that is to be measured."""
    tables: list[Figures] = []
    facts: list[dict[str, Any]] = []
    for contest in setup.contests:
        for entry in contest.entries:
            setup.host.progress(f"{entry.title}: layers", 0.0)
            try:
                found = costliest(entry.path, entry.backend, setup.host.threads, entry.hint)
            except (ArtifactError, MissingPackage) as error:
                setup.warnings.append(str(error))
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
    return setup.sheet("profile", tables, facts, {"runs": RUNS, "layers": COSTLIEST})


def _table(entry: Entry, found: Sequence[LayerTime]) -> Figures:
    rows = [
        [layer.name[-40:], layer.kind, layer.by, figure(layer.ms), percent(layer.share)]
        for layer in found
    ]
    told = f" in {entry.hint}" if entry.hint else ""
    return Figures(f"{entry.title}{told}: its costliest layers", ["ms", "share"], rows, LAYER)
