"""The main path: network -> ONNX graph -> targets -> proof -> files under their names."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
from ..models import Network, count, digest, save_checkpoint
from ..runtime.backend import installed
from ..runtime.card import Card, Precision, append_card, read_card, sidecar
from . import proof
from .onnx import DTYPES, census, to_onnx

TARGETS = {  # target: file ending, backend that runs it
    "onnx": (".onnx", "onnxruntime"),
    "openvino": (".xml", "openvino"),
    "tensorrt": (".engine", "tensorrt"),
    "torch": (".safetensors", "torch"),
}
OUTPUTS = {"labels": ("labels",), "logits": ("logits",), "both": ("labels", "logits")}
ONNX_LIMIT = 2**31  # bytes; protobuf holds no more
Frames = Sequence[tuple[str, NDArray[np.uint8]]]


class ExportError(ValueError):
    """An export that cannot be made as asked; nothing was written."""


class ProofError(RuntimeError):
    """Artifacts that fell below the parity bar; they were kept under a `.failed` name."""


@dataclass(frozen=True)
class Artifact:
    """An exported file, its card, and what the proof found, one verdict per way of running it."""

    path: Path
    target: str
    card: Card
    verdicts: tuple[proof.Verdict, ...]

    @property
    def status(self) -> str:
        if all(v.status == "not run" for v in self.verdicts):
            return "built, not proven"
        return "proven" if self.passed else "failed"

    @property
    def passed(self) -> bool:
        """No run fell below its bar. Computing in bfloat16 is optional: a fall there only means
        that the runtime will not do it."""
        return all(v.status != "failed" for v in self.verdicts if v.precision != "bf16")


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
    progress: Callable[[str], None] = lambda step: None,
) -> list[Artifact]:
    """Export `model` (plain, not deployed) at each (height, width) to each target, and prove it.

    targets: "onnx", "openvino", "tensorrt", "torch". precision: "fp32" or "fp16", of the graph.
    outputs: "labels", "logits" or "both". frames: (name, (H, W, 3) uint8 BGR) to prove it on, by
    default drawn scenes; truth: their label maps (H, W) of the artifact's size, where there are
    any. engine: options of `build_engine`. progress: called with a line before each step.

    Files are `VARIANT_HxW_PRECISION` plus the target's ending, in `out`, where `report.json` keeps
    the report of every artifact. An engine that cannot run on this machine carries its reference
    and is proven on the first machine that loads it.

    Raises ExportError before anything is written, for a bad size, target, precision or class set;
    ProofError after the report is written, if an artifact falls below the bar.
    """
    classes = classes or _default_classes(model)
    _check(model, sizes, targets, precision, outputs, classes)
    out.mkdir(parents=True, exist_ok=True)
    artifacts: list[Artifact] = []
    for size in dict.fromkeys(sizes):
        job = _Job(model, size, precision, outputs, classes, weights_from, trained, progress)
        job.expect(frames, truth)
        with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as scratch:
            made = job.make(targets, Path(scratch), engine or {})
            artifacts += [_publish(artifact, out) for artifact in made]
    _write_report(out, artifacts)
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
    greys = tuple((i, i, i) for i in range(model.info.num_classes))
    return ClassSet("unnamed", names, greys)


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
    if precision not in DTYPES:
        raise ExportError(f"precision is {' or '.join(DTYPES)}, not {precision!r}")
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
            raise ExportError(f'{target} needs its package: pip install "rtseg[{target}]"')
    if "tensorrt" in targets and not installed("tensorrt"):
        raise ExportError(
            'neither tensorrt nor tensorrt_rtx is installed: pip install "rtseg[tensorrt]"'
        )


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

    def make(self, targets: Sequence[str], folder: Path, engine: dict[str, Any]) -> list[Artifact]:
        graph = None
        if set(targets) - {"torch"}:
            self.progress(f"{self.stem}: ONNX graph")
            graph = to_onnx(self.model, self.size, self.precision, self.card.outputs)
            if graph.ByteSize() >= ONNX_LIMIT:
                raise ExportError(f"{self.stem} is above 2 GB, more than one ONNX file holds")
            (folder / "graph.onnx").write_bytes(graph.SerializeToString())
        artifacts = []
        for target in dict.fromkeys(targets):
            self.progress(f"{self.stem}: {target}")
            path = folder / (self.stem + TARGETS[target][0])
            if target == "tensorrt":
                artifacts.append(self._engine(folder / "graph.onnx", path, engine))
                continue
            held = self._write(target, graph, folder, path, self.card)
            artifacts.append(self._proven(target, graph, folder, path, held))
        return artifacts

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
        return Artifact(path, target, read_card(path), verdicts)

    def _engine(self, graph: Path, path: Path, options: dict[str, Any]) -> Artifact:
        from .engine import build_engine

        built = build_engine(graph, path, self.card, reference=self.expected.reference, **options)
        verdict = proof.judge_engine(path, built.card, self.expected, built.census)
        return Artifact(path, "tensorrt", read_card(path), (verdict,))


def _tools() -> dict[str, str]:
    tools = {"rtseg": __version__, "torch": torch.__version__}
    for package in ("onnx", "onnxscript", "onnxslim"):
        tools[package] = metadata.version(package)
    return tools


def _cpu_has_bf16() -> bool:
    from ..runtime.ov import the_core

    return "BF16" in the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _publish(artifact: Artifact, out: Path) -> Artifact:
    """Move an artifact's files from the scratch folder to `out`, under `.failed` if it failed."""
    suffix = "" if artifact.passed else ".failed"
    stem = artifact.path.stem
    ending = artifact.path.suffix
    belonging = [
        p
        for p in artifact.path.parent.iterdir()
        if p.name.startswith(artifact.path.name) or (ending == ".xml" and p.name == f"{stem}.bin")
    ]
    # The artifact itself last: whoever sees it finds its card and weights beside it.
    for path in sorted(belonging, key=lambda p: p == artifact.path):
        shutil.move(path, out / (path.name + suffix))
    return Artifact(
        out / (artifact.path.name + suffix), artifact.target, artifact.card, artifact.verdicts
    )


def _write_report(out: Path, artifacts: Sequence[Artifact]) -> None:
    """Add to the folder's `report.json`, by artifact; an older entry of the same name goes."""
    path = out / "report.json"
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError):
        report = {}
    for artifact in artifacts:
        report[artifact.path.name] = entry(artifact)
    write_atomically(path, (json.dumps(report, indent=2) + "\n").encode())


def entry(artifact: Artifact) -> dict[str, Any]:
    """What the report says of an artifact."""
    card = artifact.card
    return {
        "target": artifact.target,
        "status": artifact.status,
        "model": card.model,
        "size": f"{card.size[0]}x{card.size[1]}",
        "precision": card.precision,
        "weights": card.weights,
        "weights_from": card.weights_from,
        "report": card.proof.report if card.proof else None,
        "engine": card.engine.model_dump() if card.engine else None,
        "tools": card.tools,
        "runs": [asdict(verdict) for verdict in artifact.verdicts],
    }
