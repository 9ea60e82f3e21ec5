"""The fastest form of a network that passes its proof on this machine: `precision="auto"`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..data.files import scratch_folder
from ..data.letterbox import Size
from ..errors import ProofError
from ..models.loading import Model
from ..reporting import Progress
from ..runtime import Segmenter, load, read_card
from .artifacts import Artifact, publish, write_report
from .reference import read_shipped_frames
from .stored_ranges import find_stored_ranges

log = logging.getLogger("rtseg")
ROUNDS = 15  # frames that each form answers, in turns
WARM_UP = 3
Export = Callable[..., list[Artifact]]


def pick_default(model: Model, targets: Sequence[str], one_file: bool) -> tuple[str, str]:
    """The precision of an export that nobody asked for one, and why it is no choice among several.

    Args:
        model: with its weights.
        targets: as a user names them, "triton" among them.
        one_file: for several sizes.

    Returns:
        "auto" for weights that ship with ranges, with no reason; "fp32" otherwise, with one.
    """
    if find_stored_ranges(model) is None:
        return "fp32", (
            "the default for weights without stored ranges; --precision fp16 halves the file, int8 "
            "with --calib DIR is the fastest on many CPUs"
        )
    if "triton" in targets:
        return "fp32", "the default for Triton, which runs on another machine"
    if one_file:
        return "fp32", "the default for one file of several sizes"
    return "auto", ""


def list_candidates(model: Model, target: str) -> list[str]:
    """Precisions worth trying for a target here, the one that always passes last.

    Of "onnx" int8 is for other runtimes too, and ONNX Runtime computes that more slowly than
    float32. What an engine gains is known on its GPU only, and half precision is right on all.
    """
    if target == "tensorrt":
        return ["fp16"]
    if target == "qnn":
        return ["int8"]
    if target in ("openvino", "onnxruntime") and find_stored_ranges(model) is not None:
        return ["int8", "fp32"]
    return ["fp32"]


def _find_choices(model: Model, targets: Sequence[str]) -> dict[str, list[str]]:
    """The targets with more than one candidate."""
    return {t: found for t in targets if len(found := list_candidates(model, t)) > 1}


def announce(model: Model, targets: Sequence[str]) -> list[str]:
    """What `export_fastest` will try where there is a choice, and what that costs: a line a target,
    to be read before it begins."""
    several = _find_choices(model, targets)
    return [
        f"{target}: {' and '.join(found)} are exported, proven and timed, and the faster one is "
        f"kept; that takes about {len(found)} times as long as --precision {found[-1]}"
        for target, found in several.items()
    ]


def export_fastest(
    export: Export,
    model: Model,
    sizes: Sequence[Size],
    targets: Sequence[str],
    out: Path,
    progress: Progress,
    label_kernel: bool = False,
    one_file: bool = False,
    soc: str | None = None,
    **options: Any,
) -> list[Artifact]:
    """Export in each precision worth trying, and keep the fastest that passes its proof.

    One file for several sizes has one precision: the one that is fastest over a frame of each.

    Args:
        export: what makes artifacts in one precision, `export` itself.
        model: with its weights.
        sizes: (height, width) in pixels.
        targets: as of `export`.
        out: folder for the artifacts; only what was chosen comes there.
        progress: as of `export`.
        label_kernel: as of `export`; for the engines alone.
        one_file: as of `export`.
        soc: as of `export`; for QNN alone.
        **options: of `export`.

    Raises:
        ProofError: no form holds its bar.
    """
    several = _find_choices(model, targets)
    for line in announce(model, targets):
        log.info(line)
    options |= {"progress": progress, "one_file": one_file}
    make = partial(export, model)
    made: list[Artifact] = []
    # No choice: one export, whose targets share its graph.
    for precision in ("fp32", "fp16", "int8"):
        if single := [t for t in targets if list_candidates(model, t) == [precision]]:
            kernel = label_kernel and "tensorrt" in single
            chip = soc if "qnn" in single else None
            for each in make(
                sizes, single, precision, out=out, label_kernel=kernel, soc=chip, **options
            ):
                made.append(replace(each, chosen=_explain(each, precision, {}, {})))
    sizes = list(dict.fromkeys(sizes))
    for group in [sizes] if one_file else [[size] for size in sizes]:
        made += [_keep_fastest(make, group, t, several[t], out, options) for t in several]
    made.sort(key=lambda a: (list(sizes).index(a.card.size), list(targets).index(a.target)))
    write_report(out, made)
    return made


def _keep_fastest(
    make: Export,
    sizes: Sequence[Size],
    target: str,
    candidates: Sequence[str],
    out: Path,
    options: dict[str, Any],
) -> Artifact:
    made: dict[str, Artifact] = {}
    refused: dict[str, str] = {}
    out.mkdir(parents=True, exist_ok=True)
    with scratch_folder(out, "fastest") as folder:
        for precision in candidates:
            try:
                made[precision] = make(sizes, target, precision, out=folder, **options)[0]
            except ProofError as error:
                refused[precision] = str(error)
                if precision == candidates[-1]:
                    # Once more, for its error: what failed stays in `out`, where that says it is.
                    make(sizes, target, precision, out=out, **options)
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
    why = "; ".join(others) or f"the form of --to {artifact.target} that fits this machine"
    return f"{artifact.path.name}: {best} chosen; {why}"


def _race(paths: Mapping[str, Path]) -> dict[str, float]:
    """Milliseconds a frame of each, from frame to labels, of several sizes one of each; {} where
    there is nothing to compare.

    In turns, and the fastest of each counts: what else the machine does meets all of them.
    """
    if len(paths) < 2:
        return {}
    frame = read_shipped_frames().frames[0][1]
    with ExitStack() as opened:
        runners: dict[tuple[str, Size], Segmenter] = {
            (name, size): opened.enter_context(load(path, size=size))
            for name, path in paths.items()
            for size in read_card(path).all_sizes
        }
        taken: dict[tuple[str, Size], list[float]] = {key: [] for key in runners}
        # One frame for all: what they take differs in nothing but their precision.
        given = next(iter(runners.values())).card.encode(frame)
        for _ in range(WARM_UP + ROUNDS):
            for key, runner in runners.items():
                begun = time.perf_counter()
                runner(given)
                taken[key].append(time.perf_counter() - begun)
    best = {key: 1000 * min(times[WARM_UP:]) for key, times in taken.items()}
    return {name: sum(ms for (of, _), ms in best.items() if of == name) for name in paths}
