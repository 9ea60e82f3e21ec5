"""The main path: network -> ONNX graph -> targets -> proof -> files under their names."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from .. import __version__
from ..data.classes import CITYSCAPES, ClassSet
from ..data.files import digest_of, write_atomically
from ..data.scenes import scenes
from ..errors import ExportError, ProofError
from ..models import Network, count, digest, save_checkpoint
from ..runtime.artifact import Card, Precision, append_card, read_card, sidecar
from ..runtime.backends.backend import BACKENDS, installed
from ..runtime.packages import pip_line
from . import calibrate
from . import parity as proof
from .artifact import Artifact, publish, write_report
from .calibrate import Calibration, CalibrationError, Picked
from .graph import DTYPES, census, to_onnx
from .sensitivity import Cost

TARGETS = {  # target: file ending, backend that runs it
    "onnx": (".onnx", "onnxruntime"),
    "openvino": (".xml", "openvino"),
    "tensorrt": (".engine", "tensorrt"),
    "torch": (".safetensors", "torch"),
}
OUTPUTS = {"labels": ("labels",), "logits": ("logits",), "both": ("labels", "logits")}
PRECISIONS = (*DTYPES, "int8")
ONNX_LIMIT = 2**31  # bytes; protobuf holds no more
Frames = Sequence[tuple[str, NDArray[np.uint8]]]


def export(
    model: Network,
    sizes: Sequence[tuple[int, int]],
    targets: Sequence[str] = ("onnx",),
    precision: str = "fp32",
    *,
    out: Path = Path("artifacts"),
    outputs: str = "labels",
    classes: ClassSet | None = None,
    weights_from: str = "memory",
    trained: bool = True,
    frames: Frames | None = None,
    truth: Sequence[NDArray[np.uint8] | None] = (),
    engine: dict[str, Any] | None = None,
    label_kernel: bool = False,
    calibration: Calibration | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> list[Artifact]:
    """Export `model` (plain, not deployed) at each (height, width) to each target, and prove it.

    targets: "onnx", "openvino", "tensorrt", "torch". precision: "fp32", "fp16" or "int8", of the
    graph; "int8" needs `calibration`, and is proven on the frames that this holds out by default.
    outputs: "labels", "logits" or "both". frames: (name, (H, W, 3) uint8 BGR) to prove it on, by
    default drawn scenes; truth: their label maps (H, W) of the artifact's size, where there are
    any. engine: options of `build_engine`. label_kernel: engines end before their last enlargement,
    and a GPU kernel beside them makes the labels; their names end in `_kernel`. progress: called
    with a line before each step.

    Files are `VARIANT_HxW_PRECISION` plus the target's ending, in `out`, where `report.json` keeps
    the report of every artifact. An engine that cannot run on this machine carries its reference
    and is proven on the first machine that loads it.

    Raises ExportError before anything is written, for a bad size, target, precision, class set or
    calibration frames; ProofError after the report is written, if an artifact falls below the bar,
    and before, if no int8 graph reaches it.
    """
    classes = classes or _default_classes(model)
    _check(model, sizes, targets, precision, outputs, classes)
    if label_kernel and ("tensorrt" not in targets or outputs != "labels"):
        raise ExportError("a label kernel is for engines that give labels only: add --to tensorrt")
    picked = _frames_for_int8(precision, calibration)
    out.mkdir(parents=True, exist_ok=True)
    artifacts: list[Artifact] = []
    for size in dict.fromkeys(sizes):
        job = _Job(model, size, precision, outputs, classes, weights_from, trained, progress)
        job.expect(frames if frames is not None or not picked else picked.held_out, truth)
        with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as scratch:
            made = job.make(targets, Path(scratch), engine or {}, label_kernel, calibration, picked)
            artifacts += [publish(artifact, out) for artifact in made]
    write_report(out, artifacts)
    failed = [artifact for artifact in artifacts if not artifact.passed]
    if failed:
        lines = [
            f"{artifact.path.name}: {fault}"
            for artifact in failed
            for verdict in artifact.verdicts
            for fault in verdict.faults
        ]
        raise ProofError(
            f"below the parity bar: {'; '.join(lines)} (files kept in {out}, "
            f"full figures in {out / 'report.json'})"
        )
    return artifacts


def _default_classes(model: Network) -> ClassSet:
    if model.info.num_classes == len(CITYSCAPES):
        return CITYSCAPES
    names = tuple(f"class {i}" for i in range(model.info.num_classes))
    grays = tuple((i, i, i) for i in range(model.info.num_classes))
    return ClassSet("unnamed", names, grays)


def _check(
    model: Network,
    sizes: Sequence[tuple[int, int]],
    targets: Sequence[str],
    precision: str,
    outputs: str,
    classes: ClassSet,
) -> None:
    if unknown := [t for t in targets if t not in TARGETS]:
        raise ExportError(f"no target is called {unknown[0]!r}: choose from {', '.join(TARGETS)}")
    if precision not in PRECISIONS:
        raise ExportError(f"precision is {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "int8" and "torch" in targets:
        raise ExportError("int8 is a precision of graphs: choose onnx, openvino or tensorrt")
    if outputs not in OUTPUTS:
        raise ExportError(f"outputs is {', '.join(OUTPUTS)}, not {outputs!r}")
    if not sizes or not targets:
        raise ExportError("nothing to export: give at least one size and one target")
    if len(classes) != model.info.num_classes:
        raise ExportError(
            f"the class set {classes.name!r} has {len(classes)} classes, but the model was built "
            f"with {model.info.num_classes}: pass the set that it was trained on"
        )
    for height, width in sizes:
        try:
            model.info.check_size(height, width)
        except ValueError as error:
            raise ExportError(str(error)) from error
    for target in set(targets) - {"tensorrt"}:
        if not installed(TARGETS[target][1]):
            extra = BACKENDS[TARGETS[target][1]].extra
            raise ExportError(f"{target} needs its package: {pip_line(extra)}")
    if "tensorrt" in targets and not installed("tensorrt"):
        raise ExportError(
            'neither tensorrt nor tensorrt_rtx is installed: pip install "rtseg[tensorrt]"'
        )


def _frames_for_int8(precision: str, calibration: Calibration | None) -> Picked | None:
    if precision != "int8":
        if calibration is not None:
            raise ExportError(f"calibration frames are for int8, not for {precision}")
        return None
    if calibration is None:
        raise ExportError(
            "int8 is calibrated on real frames, a hundred or more from where the camera will "
            "drive: give their folder (--calib DIR)"
        )
    try:
        return calibrate.pick(calibration)
    except CalibrationError as error:
        raise ExportError(str(error)) from error


class _Job:
    """One size: the graph, the expected answers, and the artifacts made of them."""

    def __init__(
        self,
        model: Network,
        size: tuple[int, int],
        precision: str,
        outputs: str,
        classes: ClassSet,
        weights_from: str,
        trained: bool,
        progress: Callable[[str], None],
    ):
        self.model, self.size, self.precision, self.progress = model, size, precision, progress
        self.costs: tuple[Cost, ...] = ()
        self.stem = f"{model.info.name}_{size[0]}x{size[1]}_{precision}"
        cost = count(model, size)
        self.card = Card(
            model=model.info.name,
            size=size,
            precision=precision,  # type: ignore[arg-type]
            outputs=OUTPUTS[outputs],  # type: ignore[arg-type]
            classes=classes.names,
            palette=classes.palette,
            label_ids=classes.label_ids,
            class_set=classes.name,
            mean=model.info.mean,
            std=model.info.std,
            weights=digest(model),
            weights_from=weights_from,
            trained=trained,
            macs=cost.macs,
            params=cost.params,
            tools=_tools(),
        )

    def expect(self, frames: Frames | None, truth: Sequence[NDArray[np.uint8] | None]) -> None:
        self.progress(f"{self.stem}: float32 reference")
        if frames is None:
            frames = [(f"scene {i}", scene) for i, scene in enumerate(scenes(3, self.size))]
        self.expected = proof.expect(self.model.eval(), frames, self.size, truth)

    def make(
        self,
        targets: Sequence[str],
        folder: Path,
        engine: dict[str, Any],
        label_kernel: bool = False,
        calibration: Calibration | None = None,
        picked: Picked | None = None,
    ) -> list[Artifact]:
        graph = None
        if set(targets) - {"torch"}:
            graph = self._graph(calibration, picked)
            if graph.ByteSize() >= ONNX_LIMIT:
                raise ExportError(f"{self.stem} is above 2 GB, more than one ONNX file holds")
            (folder / "graph.onnx").write_bytes(graph.SerializeToString())
        artifacts = []
        for target in dict.fromkeys(targets):
            self.progress(f"{self.stem}: {target}")
            path = folder / (self.stem + TARGETS[target][0])
            if target == "tensorrt":
                onnx = folder / "graph.onnx"
                artifacts.append(self._engine(onnx, path, engine, label_kernel))
                continue
            held = self._write(target, graph, folder, path, self.card)
            artifacts.append(self._proven(target, graph, folder, path, held))
        return artifacts

    def _graph(self, calibration: Calibration | None, picked: Picked | None) -> onnx.ModelProto:
        """The typed graph; an int8 one leaves its facts in the card and its costs in the report."""
        self.progress(f"{self.stem}: ONNX graph")
        if calibration is None or picked is None:
            return to_onnx(self.model, self.size, self.precision, self.card.outputs)
        from .quantize import QuantizeError, quantize

        plain = to_onnx(self.model, self.size, "fp32", self.card.outputs)
        try:
            made = quantize(
                plain,
                self.card,
                picked,
                calibration.method,
                self.expected,
                lambda step: self.progress(f"{self.stem}: {step}"),
            )
        except QuantizeError as error:
            raise ProofError(f"{self.stem}: {error}") from error
        self.card = self.card.model_copy(update={"int8": made.facts})
        self.costs = made.costs
        return made.graph

    def _write(
        self, target: str, graph: onnx.ModelProto | None, folder: Path, path: Path, card: Card
    ) -> dict[str, int]:
        """Write the artifact with its card; returns the census of its data types."""
        if target == "torch":
            save_checkpoint(
                self.model,
                path,
                metadata={"card": json.loads(card.to_json())},
            )
            return {}  # weights as they were trained; the backend converts them when it loads them
        assert graph is not None
        if target == "onnx":
            path.write_bytes(append_card(graph.SerializeToString(), card))
            return census(graph)
        from .openvino import census as openvino_census
        from .openvino import to_openvino

        if not path.exists():
            to_openvino(folder / "graph.onnx", path, self.precision)
        files = {p.name: digest_of(p) for p in (path, path.with_suffix(".bin"))}
        card = card.model_copy(update={"files": files})
        write_atomically(sidecar(path), card.to_json().encode())
        return openvino_census(path)

    def _proven(
        self,
        target: str,
        graph: onnx.ModelProto | None,
        folder: Path,
        path: Path,
        held: dict[str, int],
    ) -> Artifact:
        self.progress(f"{self.stem}: proof of {target}")
        ways: list[tuple[Precision | None, dict[str, Any]]] = [(None, {})]
        if target == "openvino":
            ways = [(None, {"precision": "fp32"}), ("bf16", {"precision": "bf16"})]
        verdicts = tuple(
            proof.judge(path, self.card, self.expected, TARGETS[target][1], held, way, **options)
            for way, options in ways
            if way != "bf16" or _cpu_has_bf16()
        )
        proven = proof.proof_of(verdicts, len(self.expected.logits))
        self._write(target, graph, folder, path, self.card.model_copy(update={"proof": proven}))
        return Artifact(path, target, read_card(path), verdicts, self.costs)

    def _engine(
        self, graph: Path, path: Path, options: dict[str, Any], label_kernel: bool
    ) -> Artifact:
        from .tensorrt import build_engine

        card, kernel = self.card, None
        if label_kernel:
            from .argmax_kernel import before_labels

            path = path.with_name(f"{self.stem}_kernel{path.suffix}")
            graph, card, kernel = before_labels(graph, card)
        reference = self.expected.reference
        built = build_engine(graph, path, card, reference=reference, label_kernel=kernel, **options)
        verdict = proof.judge_engine(path, built.card, self.expected, built.census)
        return Artifact(path, "tensorrt", read_card(path), (verdict,), self.costs)


def _tools() -> dict[str, str]:
    tools = {"rtseg": __version__, "torch": torch.__version__}
    for package in ("onnx", "onnxscript", "onnxslim"):
        tools[package] = metadata.version(package)
    return tools


def _cpu_has_bf16() -> bool:
    from ..runtime.backends.openvino import the_core

    return "BF16" in the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
