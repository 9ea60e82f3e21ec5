"""OpenVINO on Intel, AMD and Arm CPUs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import openvino
from numpy.typing import NDArray

from ...errors import ArtifactError
from ...system import usable_cores
from ..argmax import LabelMaker, compiled_available
from ..artifact import Card, read_card
from ..cut import cut_labels
from ..cut_onnx import COARSE
from .backend import Image, Info, InTurn, Labels, check_argmax

HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
NAMES = {hint: name for name, hint in HINTS.items()}


@cache
def the_core() -> openvino.Core:
    """The one OpenVINO core of this process, which is never freed.

    Its CPU plugin gives the thread that loads it a signal stack, and unmaps that when the last core
    goes, from whatever thread: the next signal would end the process.
    """
    return openvino.Core()


class OpenVino(InTurn):
    """An OpenVINO or ONNX artifact, tuned for latency. Frames are shared with it, not copied.

    threads: by default one per core that this process may use. precision: what it computes in,
    "fp32", "bf16" or "fp16"; by default bf16 where the CPU has it in hardware and the artifact's
    proof was passed in it, else fp32. argmax: "graph" makes them in the model as it was exported,
    "runtime" from its coarse logits, by `argmax.py`; by default "runtime" where the model ends in a
    bilinear resize and numba is installed, since that was the faster (docs/speed-notes.md).
    """

    def __init__(
        self,
        path: Path,
        device: str | None = None,
        threads: int | None = None,
        precision: str | None = None,
        argmax: str | None = None,
    ):
        check_argmax(argmax)
        if device not in (None, "cpu"):
            raise ArtifactError(f'the OpenVINO backend runs on "cpu", not on {device!r}')
        self.card = read_card(path)
        core = the_core()
        threads = threads or usable_cores()
        hint = precision or default_precision(self.card)
        if hint not in HINTS:
            raise ArtifactError(f"precision is fp32, bf16 or fp16, not {hint!r}")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": HINTS[hint],
        }
        model = with_positions(core, path)
        self._maker = None if argmax == "graph" else self._cut(model, threads, argmax is not None)
        try:
            self.model = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:300]
            raise ArtifactError(
                f"OpenVINO {openvino.__version__} cannot load {path}: {reason}"
            ) from error
        self.names = sorted(name for output in self.model.outputs for name in output.names)
        self.request = self.model.create_infer_request()
        chosen = self.model.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.info = Info(
            name="openvino",
            version=openvino.__version__.split("-")[0],
            device="cpu",
            threads=threads,
            precision=_reached(self.card.precision, NAMES.get(chosen, chosen)),
            options=(("argmax", "runtime" if self._maker else "graph"),),
        )

    def _cut(self, model: openvino.Model, threads: int, asked_for: bool) -> LabelMaker | None:
        """What makes the labels of the logits that `model` is cut down to, where both can be.

        Raises ArtifactError where that was asked for and cannot be.
        """
        if not (compiled_available() or asked_for):
            return None
        coarse = cut_labels(model, self.card.size, shuffled=asked_for)
        if coarse is not None:
            return LabelMaker(coarse.shape, self.card.size, coarse.enlarge, threads)
        if asked_for:
            raise ArtifactError(
                'this model\'s labels are no argmax of enlarged logits: load it with argmax="graph"'
            )
        return None

    def upload(self, image: Image) -> None:
        self.request.set_input_tensor(openvino.Tensor(image, shared_memory=True))

    def compute(self) -> None:
        self.request.infer()
        if self._maker is not None:
            self._maker(self._fetch(COARSE).reshape(self._maker.shape))

    def download(self) -> Labels:
        return self._output("labels") if self._maker is None else self._maker.labels

    def _fetch(self, name: str) -> NDArray[Any]:
        data: NDArray[Any] = self.request.get_tensor(name).data
        return data

    def synchronize(self) -> None:
        """Every step here ends before it returns."""

    def close(self) -> None:
        del self.request, self.model
        if self._maker is not None:
            self._maker.close()


def default_precision(card: Card) -> str:
    """What this machine computes an artifact in: "bf16" where its CPU has that in hardware and the
    artifact's proof was passed in it, else "fp32"."""
    has_bf16 = "BF16" in the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if has_bf16 and card.proof is not None and card.proof.bf16 else "fp32"


def with_positions(core: openvino.Core, path: Path) -> openvino.Model:
    """The model with the positions of every GridSample as further outputs.

    In bfloat16 OpenVINO rounds positions too, by up to half a pixel of a 256 pixels wide map, but
    it keeps what only outputs depend on in float32.
    """
    model = core.read_model(str(path))
    samplers = [node for node in model.get_ops() if node.get_type_name() == "GridSample"]
    model.add_outputs([sampler.input_value(1) for sampler in samplers])
    return model


def _reached(graph: str, computed: str) -> str:
    """An int8 graph stays one, whatever its other layers compute in."""
    return graph if graph == "int8" else computed
