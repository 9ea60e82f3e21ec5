"""Context binaries for Qualcomm's HTP (the NPU of Snapdragon and Dragonwing chips), run by ONNX
Runtime's QNN plug-in: on such a chip, or on x86 in the simulation of the HTP that it brings.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_qnn
from numpy.typing import NDArray

from ...errors import ArtifactError
from ...gpu import Gpu
from ...labels import exact_labels
from ..artifact import Card, read_card, read_sealed
from .backend import Backend, Diagnosis, Image, Info, Labels, Scores, check_input

PROVIDER = "QNNExecutionProvider"
X86 = ("x86_64", "amd64")


class Qnn(Backend):
    """A context binary: the HTP gives rounded coarse logits, and the host makes exact labels.

    Args:
        path: the artifact.
        device: "cpu" or None: which HTP it is for, its card says.
        card: of the artifact, if it was read and verified.
        size: (height, width), the card's own.
    """

    names = ("labels",)
    gives_coarse = True

    def __init__(
        self,
        path: Path,
        device: str | None = None,
        card: Card | None = None,
        size: tuple[int, int] | None = None,
    ):
        if device not in (None, "cpu"):
            raise ArtifactError(f"a QNN context binary runs on its HTP, not on {device!r}")
        self.card = (card or read_card(path)).at(size)
        if self.card.coarse is None or self.card.coarse.upsampling == "shuffle":
            raise ArtifactError(f"{path} names no logits to upsample: export it again")
        self._coarse = self.card.coarse
        self.session = open_session(read_sealed(path, self.card), str(path))
        check_input(path, self.card, self.session.get_inputs()[0].shape)
        self.info = Info(
            name="qnn",
            version=onnxruntime_qnn.__version__,
            device="HTP, simulated" if is_simulated() else "HTP",
            threads=None,
            precision=self.card.precision,
            options=(("soc", self.card.soc or "unknown"),),
        )
        self._image: Image | None = None
        self._labels = np.empty(self.card.label_shape, np.uint8)

    @property
    def arithmetic(self) -> str:
        return f"qnn htp {self.card.precision}"

    def upload(self, image: Image) -> None:
        self._image = image

    def compute(self) -> None:
        (logits,) = self.session.run([self._coarse.tensor], {"frame": self._image})
        aligned = self._coarse.upsampling == "bilinear_aligned"
        # One scale and zero point for all classes: they change no argmax.
        exact_labels(logits, self.card.size, align_corners=aligned, out=self._labels)

    def _fetch(self, name: str) -> Labels:
        return self._labels

    def synchronize(self) -> None:
        """Every step here ends before it returns."""

    def close(self) -> None:
        del self.session
        self._image = None

    @classmethod
    def open_scores(cls, path: Path, **options: Any) -> Scores:
        card = read_card(path)
        session = open_session(read_sealed(path, card), str(path))
        assert card.coarse is not None
        name = card.coarse.tensor
        scale, zero = np.float32(card.coarse.scale or 1), np.float32(card.coarse.zero or 0)

        def read(image: Image) -> NDArray[np.generic]:
            logits = session.run([name], {"frame": image})[0]
            return np.asarray((logits.astype(np.float32) - zero) * scale)

        return read

    @classmethod
    def diagnose(cls, found: Sequence[Gpu]) -> Diagnosis:
        versions = {
            "onnxruntime-qnn": onnxruntime_qnn.__version__, "onnxruntime": onnxruntime.__version__,
        }  # fmt: skip
        kinds = tuple(str(each.device.type).rpartition(".")[2].lower() for each in find_devices())
        note = "simulates the HTP here, seconds a frame" if is_simulated() else ""
        return Diagnosis(versions, ("HTP, simulated",) if is_simulated() else kinds, note)


def is_simulated() -> bool:
    """Whether this machine has no HTP, and QNN computes what one would."""
    return platform.machine().lower() in X86


@cache
def find_devices() -> list[Any]:
    """What the plug-in offers here, NPUs first; it is registered once in a process."""
    onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    found = [each for each in onnxruntime.get_ep_devices() if each.ep_name == PROVIDER]
    npus = [each for each in found if each.device.type == onnxruntime.OrtHardwareDeviceType.NPU]
    return npus or found


def open_session(
    model: bytes,
    what: str,
    provider: Mapping[str, str] | None = None,
    entries: Mapping[str, str] | None = None,
) -> Any:
    """A session with every node on the HTP.

    Args:
        model: an ONNX graph, or a context binary.
        what: it is, for the error.
        provider: options of the plug-in.
        entries: of the session's configuration.

    Raises:
        ArtifactError: the HTP does not take all of it; the reason is the plug-in's own.
    """
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # fatal: what fails is raised, too
    for key, value in {"session.disable_cpu_ep_fallback": "1", **(entries or {})}.items():
        settings.add_session_config_entry(key, value)
    with stdout_to_stderr():
        try:
            settings.add_provider_for_devices(
                find_devices(), {"backend_type": "htp", **(provider or {})}
            )
            return onnxruntime.InferenceSession(model, settings)
        except Exception as error:  # the package raises classes of its own, without a common base
            lines = str(error).strip().splitlines() or [type(error).__name__]
            version = onnxruntime_qnn.__version__
            raise ArtifactError(
                f"onnxruntime-qnn {version} cannot load {what}: {lines[0][:300]}"
            ) from error


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what a library prints as it loads where it spoils no JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
