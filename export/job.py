"""One export: the reference's answers, the graph, and the artifacts made of them, each proven."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from ..data.files import digest_of, write_atomically
from ..errors import ExportError
from ..models import save_checkpoint
from ..models.loading import Model
from ..reporting import Progress
from ..runtime.argmax import compiled_available
from ..runtime.artifact import Card, Precision, read_card, sidecar
from ..runtime.backends.backend import ORT_FORM
from ..runtime.camera_torch import CameraFrames
from ..runtime.preprocess_facts import PreprocessFacts
from ..runtime.safetensors_card import digest_of_tensors
from . import parity
from .artifacts import Artifact
from .calibrate import CalibrationFrames
from .camera_input import compare_colors, find_conversion_faults, take_camera
from .conditions import compare_calibration, find_missing_classes, find_warnings, text_of
from .graph import census, find_coarse, to_onnx, write_artifact
from .grid_gather import gather_samples
from .reference import ProofFrames, ReferenceOutputs, as_camera_sees, run_reference
from .sensitivity import LayerCost
from .several_sizes import merge_sizes
from .stored_ranges import StoredRanges

TARGETS = {  # target: file ending, backend that runs it
    "onnx": (".onnx", "onnxruntime"),
    # In int8 a graph of its own, for the integer kernels of CPUs.
    "onnxruntime": (ORT_FORM, "onnxruntime"),
    "openvino": (".xml", "openvino"),
    "tensorrt": (".engine", "tensorrt"),
    "torch": (".safetensors", "torch"),
    "qnn": (".qnn", "qnn"),
    "executorch": (".pte", "executorch"),
}
WITHOUT_GRAPH = {"torch", "executorch"}  # targets that are no form of the ONNX graph
ONNX_LIMIT = 2**31  # bytes; protobuf holds no more
Size = tuple[int, int]  # (height, width) in pixels
logger = logging.getLogger("rtseg")


class ExportJob:
    """One size, or several in one file: reference outputs, graph, and the artifacts made of them.

    Args:
        model: what is exported.
        card: of the artifacts, not proven yet.
        proofs: by size, the frames to prove it on there.
        folder: that files are made in.
        progress: called with what is being done and the share of it that is done, 0..1.
        soc: the chip that a context binary is for.
    """

    def __init__(
        self,
        model: Model,
        card: Card,
        proofs: Mapping[Size, ProofFrames],
        folder: Path,
        progress: Progress,
        soc: str | None = None,
    ):
        self.soc = soc
        self.network, self.card, self.folder = model.network.eval(), card, folder
        sizes = "_".join(map(text_of, card.all_sizes))
        self.stem = f"{card.model}_{sizes}_{card.precision}"
        self.stem += f"_b{card.batch}" if card.batch > 1 else ""
        self.stem += f"_{card.input}" if card.input != "bgr" else ""
        self.stem += f"_from_{text_of(card.camera_size)}" if card.camera_size else ""
        self.tell: Progress = lambda line, share: progress(f"{self.stem}: {line}", share)
        self.graph: onnx.ModelProto | None = None
        self.graphs: dict[Size, onnx.ModelProto] = {}  # that it was made of, by size
        self.in_float: list[onnx.ModelProto] = []  # those that became int8, and their ranges
        self.ranges: dict[str, float] = {}
        self.find_unsigned_ranges: Callable[[], dict[str, float]] = dict
        self.faults: list[str] = []  # of the graph, whatever file it is written to
        self.costs: tuple[LayerCost, ...] = ()
        told: list[str] = []
        self.answers: dict[Size, ReferenceOutputs] = {}
        self.asked: dict[Size, ReferenceOutputs] = {}
        for size, given in proofs.items():
            told += find_warnings(card.at(size), given)
            proof, taken, pictures = as_camera_sees(given, card.at(size))
            self.answers[size] = run_reference(
                self.network,
                proof,
                size,
                card.fit,
                self._count("float32 reference"),
                model.preprocess,
                pictures,
                card.pad_color,
            )
            # The same answers, of the frames as the artifact takes them.
            answer = self.answers[size]
            self.asked[size] = answer.with_frames(taken) if card.takes_camera else answer
            told += find_missing_classes(card, self.answers[size])
        self.expected = self.answers[card.size]
        if checked := [each.preprocess for each in self.answers.values() if each.preprocess]:
            worst = PreprocessFacts(
                frames=min(each.frames for each in checked),
                largest=max(each.largest for each in checked),
                agreement=min(each.agreement for each in checked),
            )
            self.card = card.model_copy(update={"preprocess": worst})
        self.warnings = tuple(dict.fromkeys(told))

    def step(self, line: str) -> None:
        self.tell(line, 0.0)

    def _count(self, what: str) -> Progress:
        """A sign of life where frames make a step long."""
        return lambda frame, share: self.tell(f"{what}, {frame}", share)

    def make_graph(
        self, picked: CalibrationFrames | StoredRanges | None, integer: bool = False
    ) -> None:
        """Write the typed graph; a rounded one leaves its facts in the card. integer: whether ONNX
        Runtime's own form of int8 will be made of it too."""
        self.step("ONNX graph")
        card = self.card
        # int8 from float32: float16's own rounding would be charged to it.
        kind = "fp32" if picked is not None else card.precision
        graphs = [
            to_onnx(self.network, size, kind, card.outputs, card.batch) for size in card.all_sizes
        ]
        if picked is not None:
            if integer:
                from .quantize import check_integer_form

                check_integer_form(graphs[0], card)
            graphs = self._quantize(graphs, picked)
        self.graphs = dict(zip(card.all_sizes, graphs, strict=True))
        self.graph = merge_sizes(graphs, card.sizes) if card.sizes else graphs[0]
        # protobuf would fail while it writes, with a message that names neither file nor limit.
        if self.graph.ByteSize() >= ONNX_LIMIT:
            raise ExportError(f"{self.stem} is above 2 GB, more than one ONNX file holds")
        if card.precision == "fp16":
            told = self._count("headroom of float16")
            for size, expected in self.answers.items():
                found = parity.find_overflow(self.graph, expected, told)
                self.faults += [f"{self._place(size)}{fault}" for fault in found]
        if card.takes_camera:
            # Last: what measured or changed the graph had pictures to do it with.
            self.graph = take_camera(self.graph, card)
            frames = list(self.asked[card.size].reference.frames)
            self.faults += find_conversion_faults(self.graph, frames, card)
        write_atomically(self._graph_path, self.graph.SerializeToString())

    def _place(self, size: Size) -> str:
        return f"at {text_of(size)}: " if self.card.sizes else ""

    @property
    def _graph_path(self) -> Path:
        return self.folder / "graph.onnx"

    def _quantize(
        self, graphs: list[onnx.ModelProto], picked: CalibrationFrames | StoredRanges
    ) -> list[onnx.ModelProto]:
        from .quantize import SizedGraph, quantize, quantize_by_stored_ranges

        sizes = [
            SizedGraph(graph, self.card.at(size), self.answers[size])
            for graph, size in zip(graphs, self.card.all_sizes, strict=True)
        ]
        if isinstance(picked, StoredRanges):
            made = quantize_by_stored_ranges(sizes, picked, self.tell)
        else:
            made = quantize(sizes, picked, self.tell)
            self.warnings += tuple(compare_calibration(self.card, picked, self.expected))
        self.card = self.card.model_copy(update={self.card.precision: made.facts})
        self.costs, self.ranges, self.in_float = made.costs, made.ranges, graphs
        self.find_unsigned_ranges = cache(made.find_unsigned_ranges)
        return list(made.graphs)

    def _make_form(self, target: str) -> tuple[onnx.ModelProto | None, Card]:
        """The graph as a target takes it, and the card of that."""
        card = self.card
        if target == "executorch":
            from .executorch import with_coarse

            return None, with_coarse(self.network, card)
        if target == "qnn":
            from .qnn import to_integer_logits

            card = card.model_copy(update={"soc": self.soc})
            return to_integer_logits(self.in_float[0], card, self.ranges)
        if target not in ("onnxruntime", "openvino") or card.int8 is None:
            return self.graph, card
        from .quantize import to_integer_form
        from .unsigned_form import to_unsigned_form

        facts, ranges = card.int8, self.find_unsigned_ranges()
        if ranges != self.ranges:
            facts = facts.model_copy(update={"method": "minmax"})
        if target == "onnxruntime":
            graph, facts = to_integer_form(
                self.in_float[0], facts, ranges, reads_bytes=not card.takes_camera
            )
            graph = gather_samples(graph)
        else:
            made = [to_unsigned_form(each, facts, ranges) for each in self.in_float]
            graphs, facts = [graph for graph, _ in made], made[0][1]
            graph = merge_sizes(graphs, card.sizes) if card.sizes else graphs[0]
        card = card.model_copy(update={"int8": facts})
        return take_camera(graph, card) if card.takes_camera else graph, card

    def make_file(self, target: str) -> Artifact:
        """Write the artifact for a target without a compiler of its own, prove it, and write it
        again with the proof in its card."""
        self.step(target)
        chip = f"_{self.soc}" if target == "qnn" else ""
        path = self.folder / (self.stem + chip + TARGETS[target][0])
        # Twice: the proof runs on the file as it will be served, and then goes into its card.
        graph, card = self._make_form(target)
        held = self._write(target, path, graph, card)
        ways: list[tuple[Precision | None, dict[str, Any]]] = [(None, {})]
        if target == "executorch" and card.coarse is not None:
            # The method that apps call, and the one that the runtime reads where numba is.
            ways = [(None, {"argmax": "graph"})]
            if compiled_available() and card.outputs == ("labels",):
                ways.append((None, {"argmax": "runtime"}))
        # OpenVINO computes in bfloat16 where the processor can, unless it is told not to: both ways
        # are proven, and the card tells the runtime whether it may.
        if target == "openvino":
            ways = [(None, {"precision": "fp32"})]
            if _cpu_has_bf16():
                ways.append(("bf16", {"precision": "bf16"}))
        if target == "qnn":
            self.warnings += _warn_simulated(self.soc)
        faults = list(self.faults)
        if target == "torch" and card.takes_camera:
            frames = list(self.asked[card.size].reference.frames)
            faults += compare_colors(_convert_by_pytorch(card), frames, card)
        results = tuple(
            parity.prove_artifact(
                path,
                card.at(size),
                expected,
                TARGETS[target][1],
                held,
                bar,
                progress=self._count(f"proof of {target}"),
                **options,
            )
            for bar, options in ways
            for size, expected in self.asked.items()
        )
        for result in results:
            result.fail(faults)
        proof = parity.summarize(results, self.expected, self.warnings)
        self._write(target, path, graph, card.model_copy(update={"proof": proof}))
        return Artifact(
            path,
            target,
            read_card(path),
            results,
            self.expected.described,
            self.warnings,
            self.costs,
        )

    def _write(
        self, target: str, path: Path, graph: onnx.ModelProto | None, card: Card
    ) -> dict[str, int]:
        """Write the artifact with its card; returns the census of its data types."""
        if target == "torch":
            save_checkpoint(self.network, path)
            files = {"": digest_of_tensors(path)}
            text = card.model_copy(update={"files": files}).to_json()
            save_checkpoint(self.network, path, metadata={"card": text})
            return {}  # weights as they were trained; the backend converts them when it loads them
        if target == "executorch":
            from .executorch import write_executorch

            write_executorch(self.network, path, card)
            return {}
        assert graph is not None
        if target == "qnn":
            from .qnn import write_qnn

            write_qnn(graph, path, card)
            return census(graph)
        if TARGETS[target][1] == "onnxruntime":
            write_artifact(path, graph, card)
            return census(graph)
        from .openvino import census as openvino_census
        from .openvino import to_openvino

        # The second time only the card beside it changes.
        if not path.exists():
            source = self.folder / "openvino.onnx"
            write_atomically(source, graph.SerializeToString())
            to_openvino(source, path, card.precision)
        files = {p.name: digest_of(p) for p in (path, path.with_suffix(".bin"))}
        card = card.model_copy(update={"files": files, "coarse": find_coarse(graph)})
        write_atomically(sidecar(path), card.to_json().encode())
        return openvino_census(path)

    def make_engine(self, options: dict[str, Any], label_kernel: bool) -> Artifact:
        """Build the engine; it is proven here if a GPU can load it, else where it is first
        loaded."""
        from .tensorrt import build_engine

        self.step("tensorrt")
        path, graph = self.folder / f"{self.stem}.engine", self._graph_path
        card, kernel = self.card, None
        if label_kernel:
            from .argmax_kernel import cut_before_labels

            path = path.with_stem(f"{self.stem}_kernel")
            # Each file's name says it: such an engine needs the kernel file beside it.
            assert self.graph is not None
            graph = self.folder / "coarse.onnx"
            # Converted from a camera's format, the graph has one size.
            graphs = self.graphs if card.sizes else {card.size: self.graph}
            card, kernel = cut_before_labels(graphs, card, graph)
        references = {size: expected.reference for size, expected in self.asked.items()}
        built = build_engine(
            graph, path, card, references=references, label_kernel=kernel, **options
        )
        results = tuple(
            parity.prove_engine(path, built.card.at(size), expected, built.census)
            for size, expected in self.asked.items()
        )
        for result in results:
            result.fail(self.faults)
        return Artifact(
            path,
            "tensorrt",
            read_card(path),
            results,
            self.expected.described,
            self.warnings + built.warnings,
            self.costs,
        )


def _warn_simulated(soc: str | None) -> tuple[str, ...]:
    from ..runtime.backends.qnn import is_simulated

    if not is_simulated():
        return ()
    return (
        f"proven in the HTP's simulation on x86, not on {soc}: there, rtseg eval FILE DATASET with "
        "labels of yours",
    )


def _convert_by_pytorch(card: Card) -> Callable[[NDArray[np.uint8]], NDArray[np.generic]]:
    convert = CameraFrames(card)
    return lambda frames: convert(torch.from_numpy(frames)).numpy()


def _cpu_has_bf16() -> bool:
    from ..runtime.backends.openvino import the_core

    return "BF16" in the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
