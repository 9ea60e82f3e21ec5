"""OpenVINO on Intel, AMD and Arm CPUs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from ...errors import ArtifactError
from ...gpu import Gpu
from ...system import usable_cores
from ..argmax import LabelMaker
from ..artifact import Card, read_card, read_sealed
from ..verify import prove_half, this_processor
from .backend import (
    Backend,
    Diagnosis,
    Image,
    Info,
    Labels,
    LayerTimes,
    Scores,
    check_input,
    label_maker,
    leaves_out_argmax,
)

HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
NAMES = {hint: name for name, hint in HINTS.items()}
# What it makes of a camera's frame: BGR of the camera's size, and of the network's.
CAMERA = ("camera/bgr", "camera/pixels")
SCORES = "scores"  # what the exporter calls the tensor that the labels are the argmax of
RUNS = 10  # of a profile


@cache
def the_core() -> openvino.Core:
    """The one OpenVINO core of this process, which is never freed."""
    # Its CPU plugin gives the thread that loads it a signal stack, and unmaps that when the last
    # core goes, from whatever thread: the next signal would end the process.
    return openvino.Core()


class OpenVino(Backend):
    """An OpenVINO or ONNX artifact, tuned for latency. Frames are shared with it, not copied.

    Args:
        path: the artifact.
        device: "cpu" or None.
        threads: by default one per core that this process may use.
        precision: what it computes in, "fp32", "bf16" or "fp16"; see `default_precision`.
        argmax: "graph" takes it as exported, "runtime" outside of the graph; see
            `leaves_out_argmax` for the default.
        card: of the artifact, if it was read and verified.
        size: (height, width), of an artifact that takes several.
    """

    def __init__(
        self,
        path: Path,
        device: str | None = None,
        threads: int | None = None,
        precision: str | None = None,
        argmax: str | None = None,
        card: Card | None = None,
        size: tuple[int, int] | None = None,
    ):
        self._again = partial(OpenVino, path, device, threads, precision, argmax)
        if device not in (None, "cpu"):
            raise ArtifactError(f'the OpenVINO backend runs on "cpu", not on {device!r}')
        self.card = (card or read_card(path)).at(size)
        threads = threads or usable_cores()
        hint = precision or default_precision(self.card)
        if hint not in HINTS:
            raise ArtifactError(f"precision is fp32, bf16 or fp16, not {hint!r}")
        leave_out = leaves_out_argmax(self.card, argmax)
        self._maker: LabelMaker | None = None
        try:
            model = read_model(path, self.card, leave_out)
            if self.card.sizes:
                model.reshape(list(self.card.input_shape))
            self.model = the_core().compile_model(model, "CPU", _settings(threads, hint))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:300]
            raise ArtifactError(
                f"OpenVINO {openvino.__version__} cannot load {path}: {reason}"
            ) from error
        check_input(path, self.card, tuple(self.model.input(0).shape))
        self.names = sorted(name for output in self.model.outputs for name in output.names)
        self.request = self.model.create_infer_request()
        if leave_out and self.card.coarse:
            self._coarse = self.card.coarse.tensor
            shape = tuple(self.model.output(self._coarse).shape)
            self._maker = label_maker(self.card, shape, threads)
        # Asked, not assumed: a CPU without bfloat16 computes in float32 whatever the hint says.
        chosen = self.model.get_property("INFERENCE_PRECISION_HINT").to_string()
        self._computes = NAMES.get(chosen, chosen)
        self.info = Info(
            name="openvino",
            version=openvino.__version__.split("-")[0],
            device="cpu",
            threads=threads,
            precision=_reached(self.card.precision, self._computes),
            options=(("argmax", "runtime" if self._maker else "graph"),),
        )
        if NAMES.get(chosen) == "fp16":  # where the CPU has it; export computed in float32
            plain = partial(
                OpenVino, path, threads=threads, precision="fp32", argmax=argmax, card=self.card
            )
            prove_half(path, self.card, self, this_processor(), plain)

    @property
    def maker(self) -> LabelMaker | None:
        return self._maker

    @property
    def arithmetic(self) -> str:
        # An int8 graph's other layers compute in the precision of the hint.
        return f"openvino cpu {self._computes}"

    def upload(self, image: Image) -> None:
        self.request.set_input_tensor(openvino.Tensor(image, shared_memory=True))

    def compute(self) -> None:
        self.request.infer()
        if self._maker is not None:
            self._maker(self._fetch(self._coarse).reshape(self._maker.shape))

    def download(self) -> Labels:
        return super().download() if self._maker is None else self._maker.labels

    def _fetch(self, name: str) -> NDArray[np.generic]:
        data: NDArray[np.generic] = self.request.get_tensor(name).data
        return data

    def synchronize(self) -> None:
        """Every step here ends before it returns."""

    def at(self, size: tuple[int, int]) -> OpenVino:
        # Compiled once more: a model with open sides, which all sizes could share, took 6 to 8 %
        # longer (docs/howto/several.md).
        return self._again(card=self.card, size=size)

    def close(self) -> None:
        del self.request, self.model
        if self._maker is not None:
            self._maker.close()

    @classmethod
    def diagnose(cls, found: Sequence[Gpu]) -> Diagnosis:
        versions = {"openvino": openvino.__version__.split("-")[0]}
        note = "computes in bf16 in hardware" if computes_bf16() else ""
        return Diagnosis(versions, ("cpu",), note)

    @classmethod
    def open_scores(
        cls,
        path: Path,
        precision: str = "fp32",
        size: tuple[int, int] | None = None,
        **options: object,
    ) -> Scores:
        card = read_card(path).at(size)
        model = read_model(path, card)
        if card.sizes:
            model.reshape(list(card.input_shape))
        held = {name for node in model.get_ops() for o in node.outputs() for name in o.get_names()}
        # Where the argmax reads an output of its own, that kept its name.
        name = SCORES if SCORES in held else "logits"
        if name not in {name for output in model.outputs for name in output.get_names()}:
            model.add_outputs(name)
        settings = {"INFERENCE_PRECISION_HINT": HINTS[precision]}
        compiled = the_core().compile_model(model, "CPU", settings)
        return lambda image: np.asarray(compiled({"frame": image})[name])

    @classmethod
    def profile(cls, path: Path, threads: int, hint: str | None, image: Image) -> LayerTimes:
        card = read_card(path)
        settings = _settings(threads, hint or default_precision(card)) | {"PERF_COUNT": True}
        model = read_model(path, card, leaves_out_argmax(card, None))
        request = the_core().compile_model(model, "CPU", settings).create_infer_request()
        request.set_input_tensor(openvino.Tensor(image, shared_memory=True))
        request.infer()
        spent: LayerTimes = defaultdict(list)
        for _ in range(RUNS):
            request.infer()
            for node in request.get_profiling_info():
                ms = node.real_time.total_seconds() * 1e3
                # Nodes that were fused into others are listed with no time.
                if ms > 0:
                    spent[node.node_name, node.node_type, node.exec_type].append(ms)
        return spent


def default_precision(card: Card) -> str:
    """What this machine computes an artifact in: "bf16" where its CPU has that in hardware and the
    artifact's proof was passed in it, else "fp32"."""
    return "bf16" if card.proof is not None and card.proof.bf16 and computes_bf16() else "fp32"


def computes_bf16() -> bool:
    """Whether this CPU has bfloat16 in hardware."""
    return "BF16" in the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def read_model(path: Path, card: Card, leave_out: bool = False) -> openvino.Model:
    """Read a model, with GridSamples' positions and a camera's pixels as further outputs.

    Args:
        path: the artifact.
        card: its card.
        leave_out: whether it gives its coarse logits in place of its labels.

    Raises:
        ArtifactError: its files are not as its card says.
        RuntimeError: if OpenVINO cannot read it, or it has no tensor of that name.
    """
    content, weights = read_sealed(path, card), b""
    if path.suffix == ".xml":
        weights = read_sealed(path, card, path.with_suffix(".bin").name)
    model = the_core().read_model(content, weights)
    samplers = [node for node in model.get_ops() if node.get_type_name() == "GridSample"]
    # In bfloat16 OpenVINO rounds positions too, by up to half a pixel of a 256 pixels wide map, but
    # it keeps what only outputs depend on in float32.
    model.add_outputs([sampler.input_value(1) for sampler in samplers])
    # The colors of a camera's frame likewise: a level of 255 is one of bfloat16's 8 bits.
    held = {name for node in model.get_ops() for o in node.outputs() for name in o.get_names()}
    for name in held.intersection(CAMERA):
        model.add_outputs(name)
    if leave_out and card.coarse is not None:
        name = card.coarse.tensor
        if name not in {each for output in model.outputs for each in output.get_names()}:
            model.add_outputs(name)
        for result in model.get_results():
            if "labels" in result.input_value(0).get_names():
                model.remove_result(result)
    return model


def _settings(threads: int, hint: str) -> dict[str, object]:
    return {
        # One frame at a time with all threads, not several side by side.
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": HINTS[hint],
    }


def _reached(graph: str, computed: str) -> str:
    """An int8 graph stays one, whatever its other layers compute in."""
    return graph if graph == "int8" else computed
