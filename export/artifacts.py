"""Exported artifacts: publishing them, their report, and their table."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..data.files import move_file, write_atomically
from ..data.limits import read_json_object
from ..errors import RtsegError
from ..reporting import Table
from ..runtime.artifact import Card, read_card
from .conditions import text_of
from .parity import ParityResult
from .sensitivity import LayerCost

logger = logging.getLogger("rtseg")


@dataclass(frozen=True, repr=False)
class Artifact:
    """An exported file.

    Attributes:
        path, target, card: the file, what it was made for, and what it says of itself.
        results: of the proof, one for each way of running it.
        frames: what the proof ran on, such as "24 of 380 frames given".
        warnings: what the proof cannot see: a size or frames far from the training's.
        costs: of the layers of an int8 graph.
        chosen: which precision was chosen and why, where none was asked for.
    """

    path: Path
    target: str
    card: Card
    results: tuple[ParityResult, ...]
    frames: str
    warnings: tuple[str, ...] = ()
    costs: tuple[LayerCost, ...] = ()
    chosen: str = ""

    def __repr__(self) -> str:
        card, weights = self.card, "" if self.card.trained else ", random weights"
        sizes = " and ".join(map(text_of, card.all_sizes))
        sizes += f", batch {card.batch}" if card.batch > 1 else ""
        return (
            f"<Artifact {self.path}\n"
            f"  {card.model} for {self.target}, {card.precision}, {sizes}{weights}\n"
            f"  {self.status} on {self.frames}>"
        )

    @property
    def status(self) -> str:
        """ "proven", "failed", or "built, not proven" where nothing here can run it."""
        if all(result.status == "not run" for result in self.results):
            return "built, not proven"
        return "proven" if self.passed else "failed"

    @property
    def passed(self) -> bool:
        """No run fell below its bar; that none could run here is no failure, see `status`.
        Computing in bfloat16 is optional: a fall there only means that the runtime will not."""
        return all(r.status != "failed" for r in self.results if r.precision != "bf16")

    def as_dict(self) -> dict[str, object]:
        """JSON-ready, as `report.json` keeps it."""
        card = self.card
        costs = {"sensitivity": [asdict(cost) for cost in self.costs]}
        return {
            "target": self.target,
            "status": self.status,
            "model": card.model,
            "size": text_of(card.size),
            "sizes": [text_of(size) for size in card.all_sizes],
            "batch": card.batch,
            "precision": card.precision,
            "weights": card.weights,
            "weights_from": card.weights_from,
            "report": card.proof.report if card.proof else None,
            "frames": self.frames,
            "warnings": list(self.warnings),
            "chosen": self.chosen,
            "preprocess": card.preprocess.model_dump() if card.preprocess else None,
            "engine": card.engine.model_dump() if card.engine else None,
            "int8": card.int8 and {**card.int8.model_dump(), **costs},
            "fp8": card.fp8 and {**card.fp8.model_dump(), **costs},
            "tools": card.tools,
            "runs": [asdict(result) for result in self.results],
        }


def build_table(artifacts: Sequence[Artifact]) -> Table:
    """A row for every way that each artifact was run."""
    rows = []
    for artifact in artifacts:
        for number, result in enumerate(artifact.results):
            first = number == 0
            logits = result.logits_error
            rows.append(
                [
                    artifact.path.name,
                    f"{result.backend} {result.precision}"
                    + (f" {result.size}" if artifact.card.sizes else "")
                    + (f", argmax in the {result.argmax}" if result.argmax else ""),
                    f"{_mebibytes(artifact.path):.1f}" if first else "",
                    _percent(result.agreement),
                    _percent(result.band_agreement),
                    _percent(result.miou),
                    "-" if logits is None else f"{logits:.0e}",
                    "not used" if _is_left_out(result) else result.status,
                ]
            )
    header = ["file", "run by", "MiB", "agree %", "borders %", "mIoU %", "logits", "verdict"]
    files = {a.card.weights_from for a in artifacts if a.card.weights_from.endswith(".onnx")}
    against = f"{files.pop()} in ONNX Runtime" if files else "PyTorch"
    title = f"Labels and mIoU against float32 {against}; they are not accuracy"
    return Table(header, rows, title, words=["run by", "verdict"], optional=["borders %", "MiB"])


def list_notes(artifacts: Sequence[Artifact]) -> list[str]:
    """Notes below the table, each once."""
    notes: dict[str, None] = {}
    for artifact in artifacts:
        name, engine = artifact.path.name, artifact.card.engine
        if artifact.chosen:
            notes[artifact.chosen] = None
        was_run = artifact.status != "built, not proven"
        proof = "proven" if was_run else f"{name}: not run here; its first load proves it"
        notes[f"{proof} on {artifact.frames}"] = None
        if artifact.card.preprocess:
            notes[str(artifact.card.preprocess)] = None
        notes |= dict.fromkeys(f"warning: {warning}" for warning in artifact.warnings)
        for result in artifact.results:
            if reasons := "; ".join(result.faults) or result.why:
                then = ", so the runtime computes in fp32" if _is_left_out(result) else ""
                notes[f"{name}, {result.precision}: {reasons}{then}"] = None
        if engine:
            notes[
                f"{name}: {engine.layers} layers, {engine.flavour} {engine.version}, built in "
                f"{engine.build_seconds:.1f} s for compute capability "
                f"{', '.join(engine.compute_capabilities)}"
            ] = None
    return list(notes)


def describe_next(artifacts: Sequence[Artifact], out: Path) -> str:
    """The last line: where they are, what their weights say, and what to do next."""
    card = artifacts[0].card
    if not card.trained:
        hint = "RANDOM weights: the proof shows equality, the labels mean nothing; trained ones: "
        hint += "--weights FILE"
    elif card.weights_from == "memory":
        hint = "the weights that it came with, no --weights: if they are untrained, the proof "
        hint += "shows equality, and the labels mean nothing"
    else:
        hint = ""
    return f"written to {out}; next: rtseg bench {artifacts[0].path}" + (hint and f"; {hint}")


def _is_left_out(result: ParityResult) -> bool:
    """A way of computing that fell below its bar and is left out, which is no fault of the file."""
    return result.precision == "bf16" and result.status == "failed"


def _mebibytes(path: Path) -> float:
    weights = path.with_name(path.name.replace(".xml", ".bin"))  # of OpenVINO
    return sum(each.stat().st_size for each in {path, weights} if each.exists()) / 2**20


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def publish(artifact: Artifact, out: Path) -> Artifact:
    """Move an artifact's files from the scratch folder to `out`, under `.failed` if it failed."""
    path, suffix = artifact.path, "" if artifact.passed else ".failed"
    _tell_of_other_weights(out / (path.name + suffix), artifact)
    # Whatever begins with its name: log, reference, card, kernel.
    own = [p for p in path.parent.iterdir() if p.name.startswith(path.name)]
    # Weights of OpenVINO, the one file that does not begin with the artifact's whole name.
    if path.suffix == ".xml":
        own.append(path.with_suffix(".bin"))
    # The artifact itself last: a reader that sees it finds its card and weights beside it.
    for each in sorted(own, key=lambda p: p == path):
        move_file(each, out / (each.name + suffix))
    logger.info("%s: %s", artifact.status, path.name)
    return replace(artifact, path=out / (path.name + suffix))


def _tell_of_other_weights(path: Path, artifact: Artifact) -> None:
    """File names say network, size and precision, not which weights."""
    if not path.is_file():
        return
    try:
        old = read_card(path)
    except RtsegError:  # it is no artifact that could be missed
        return
    if old.weights != artifact.card.weights:
        logger.warning("%s of other weights (%s) is replaced", path, old.weights_from)


def write_report(out: Path, artifacts: Sequence[Artifact]) -> None:
    """Add to the folder's `report.json`, by artifact; an older entry of the same name goes."""
    path = out / "report.json"
    report = read_json_object(path)  # nothing but people and tables reads it
    report |= {artifact.path.name: artifact.as_dict() for artifact in artifacts}
    write_atomically(path, (json.dumps(report, indent=2) + "\n").encode())
