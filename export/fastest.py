"""The fastest form of a network that passes its proof on this machine: `precision="auto"`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.files import scratch_folder
from ..errors import ExportError, ProofError
from ..models.loading import Model
from ..runtime import Segmenter, load
from .artifacts import Artifact, publish, write_report
from .export import Size, export
from .reference import read_shipped_frames
from .stored_ranges import find_stored_ranges

log = logging.getLogger("rtseg")
ROUNDS = 15  # frames that each form answers, in turns
WARM_UP = 3


def list_candidates(model: Model, target: str) -> list[str]:
    """Precisions worth trying for a target here, the one that always passes last.

    OpenVINO alone has integer kernels for our graphs on CPUs: ONNX Runtime computes int8 of them
    more slowly than float32. What an engine gains is known on its GPU only, and half precision is
    right on all of them.
    """
    if target == "tensorrt":
        return ["fp16"]
    if target == "openvino" and find_stored_ranges(model) is not None:
        return ["int8", "fp32"]
    return ["fp32"]


def export_fastest(
    model: Model, sizes: Sequence[Size], targets: Sequence[str], out: Path, **options: Any
) -> list[Artifact]:
    """Export in each precision worth trying, and keep the fastest that passes its proof.

    Args:
        model: with its weights.
        sizes: (height, width) in pixels.
        targets: as of `export`.
        out: folder for the artifacts; only what was chosen comes there.
        **options: of `export`.

    Raises:
        ExportError: there are calibration frames, which are for int8 by name.
        ProofError: no form holds its bar.
    """
    if options.get("calib") is not None:
        raise ExportError("calibration frames are for int8: add --precision int8")
    artifacts = [
        _keep_fastest(model, size, target, out, options)
        for size in dict.fromkeys(sizes)
        for target in targets
    ]
    write_report(out, artifacts)
    return artifacts


def _keep_fastest(
    model: Model, size: Size, target: str, out: Path, options: dict[str, Any]
) -> Artifact:
    made: dict[str, Artifact] = {}
    refused: dict[str, str] = {}
    candidates = list_candidates(model, target)
    out.mkdir(parents=True, exist_ok=True)
    with scratch_folder(out, "fastest") as folder:
        for precision in candidates:
            try:
                made[precision] = export(model, size, target, precision, out=folder, **options)[0]
            except ProofError as error:
                if precision == candidates[-1]:
                    raise
                refused[precision] = str(error)
        times_ms = _race({name: artifact.path for name, artifact in made.items()})
        best = min(made, key=lambda name: times_ms.get(name, 0.0))
        chosen = _explain(made[best], best, times_ms, refused)
        log.info(chosen)
        return publish(replace(made[best], chosen=chosen), out)


def _explain(
    artifact: Artifact, best: str, times_ms: Mapping[str, float], refused: Mapping[str, str]
) -> str:
    others = [
        f"{name} takes {times_ms[name] / times_ms[best]:.2f}x its time"
        for name in times_ms
        if name != best
    ]
    others += [f"{name} did not pass: {why}" for name, why in refused.items()]
    why = "; ".join(others) or f"the form for {artifact.target} here"
    return f"{artifact.path.name}: {best} chosen; {why}"


def _race(paths: Mapping[str, Path]) -> dict[str, float]:
    """Milliseconds a frame of each, from frame to labels; {} where there is nothing to compare.

    In turns, and the fastest of each counts: what else the machine does meets all of them.
    """
    if len(paths) < 2:
        return {}
    frame = read_shipped_frames().frames[0][1]
    with ExitStack() as opened:
        runners: dict[str, Segmenter] = {
            name: opened.enter_context(load(path)) for name, path in paths.items()
        }
        taken: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(WARM_UP + ROUNDS):
            for name, runner in runners.items():
                begun = time.perf_counter()
                runner(frame)
                taken[name].append(time.perf_counter() - begun)
    return {name: 1000 * min(times[WARM_UP:]) for name, times in taken.items()}
