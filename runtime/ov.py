"""OpenVINO on Intel, AMD and Arm CPUs."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import openvino
from numpy.typing import NDArray

from .backend import Image, Info, InTurn
from .card import ArtifactError, read_card
from .ort import usable_cores

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
    proof was passed in it, else fp32.
    """

    def __init__(
        self,
        path: Path,
        device: str | None = None,
        threads: int | None = None,
        precision: str | None = None,
    ):
        if device not in (None, "cpu"):
            raise ArtifactError(f'the OpenVINO backend runs on "cpu", not on {device!r}')
        self.card = read_card(path)
        core = the_core()
        threads = threads or usable_cores()
        hint = precision or self._default_precision(core)
        if hint not in HINTS:
            raise ArtifactError(f"precision is fp32, bf16 or fp16, not {hint!r}")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": HINTS[hint],
        }
        try:
            self.model = core.compile_model(with_positions(core, path), "CPU", settings)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:300]
            raise ArtifactError(
                f"OpenVINO {openvino.__version__} cannot load {path}: {reason}"
            ) from error
        self.names = [output.get_any_name() for output in self.model.outputs if output.names]
        self.request = self.model.create_infer_request()
        chosen = self.model.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.info = Info(
            name="openvino",
            version=openvino.__version__.split("-")[0],
            device="cpu",
            threads=threads,
            precision=_reached(self.card.precision, NAMES.get(chosen, chosen)),
        )

    def _default_precision(self, core: openvino.Core) -> str:
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        proof = self.card.proof
        return "bf16" if has_bf16 and proof is not None and proof.bf16 else "fp32"

    def upload(self, image: Image) -> None:
        self.request.set_input_tensor(openvino.Tensor(image, shared_memory=True))

    def compute(self) -> None:
        self.request.infer()

    def _fetch(self, name: str) -> NDArray[Any]:
        data: NDArray[Any] = self.request.get_output_tensor(self.names.index(name)).data
        return data

    def synchronise(self) -> None:
        """Every step here ends before it returns."""

    def close(self) -> None:
        del self.request, self.model


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
