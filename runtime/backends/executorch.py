"""ExecuTorch programs (.pte) through its Python runtime, which brings XNNPACK; it needs PyTorch."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import ArtifactError, BackendError
from ...gpu import Gpu
from ...system import usable_cores
from ..argmax import LabelMaker
from ..artifact import Card, read_card, read_sealed
from .backend import (
    Backend,
    Diagnosis,
    Image,
    Info,
    Scores,
    check_input,
    label_maker,
    leaves_out_argmax,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # all of its interface calls itself experimental
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

VERSION = metadata.version("executorch")
XNNPACK = "XnnpackBackend"
_lock = threading.Lock()
_loaded: weakref.WeakSet[ExecuTorch] = weakref.WeakSet()


class ExecuTorch(Backend):
    """A program lowered to XNNPACK, on the CPU.

    Args:
        path: the artifact.
        device: "cpu" or None.
        threads: of XNNPACK's pool, by default one per core that this process may use. There is one
            pool a process: all that is loaded at a time shares it.
        argmax: "graph" has the program give labels, "runtime" makes them of its coarse logits; see
            `leaves_out_argmax` for the default.
        card: of the artifact, if it was read and verified.
        size: (height, width), the card's own.
    """

    gives_coarse = True

    def __init__(
        self,
        path: Path,
        device: str | None = None,
        threads: int | None = None,
        argmax: str | None = None,
        card: Card | None = None,
        size: tuple[int, int] | None = None,
    ):
        if device not in (None, "cpu"):
            raise ArtifactError(f"ExecuTorch's XNNPACK runs on the CPU, not on {device!r}")
        self.card = (card or read_card(path)).at(size)
        threads = threads or usable_cores()
        content = read_sealed(path, self.card)
        with _lock:
            _use_threads(threads)
            _loaded.add(self)
        try:
            leave_out = leaves_out_argmax(self.card, argmax)
            if leave_out and self.card.outputs != ("labels",):
                if argmax == "runtime":
                    raise ArtifactError('it gives logits too: load it with argmax="graph"')
                leave_out = False
            self._method = ProgramMethod(content, "coarse" if leave_out else "forward", path)
            check_input(path, self.card, self._method.input_shape)
            self.names = ("labels",) if leave_out else self.card.outputs
            self._maker: LabelMaker | None = None
            if leave_out:
                self._maker = label_maker(self.card, self._method.output_shape, threads)
        except BaseException:
            _loaded.discard(self)
            raise
        self._frame = torch.zeros(self.card.input_shape, dtype=torch.uint8)
        self._results: dict[str, NDArray[np.generic]] = {}
        self.info = Info(
            name="executorch",
            version=VERSION,
            device="cpu",
            threads=threads,
            precision=self.card.precision,
            options=(("argmax", "runtime" if self._maker else "graph"),),
        )

    @property
    def maker(self) -> LabelMaker | None:
        return self._maker

    def upload(self, image: Image) -> None:
        self._frame = torch.from_numpy(image)

    def compute(self) -> None:
        results = self._method(self._frame)
        if self._maker is not None:
            self._results = {"labels": self._maker(results[0])}
        else:
            self._results = dict(zip(self.names, results, strict=True))

    def _fetch(self, name: str) -> NDArray[np.generic]:
        return self._results[name]

    def synchronize(self) -> None:
        """Every step here ends before it returns."""

    def close(self) -> None:
        del self._method
        self._results = {}
        if self._maker is not None:
            self._maker.close()
        _loaded.discard(self)

    @classmethod
    def open_scores(cls, path: Path, **options: Any) -> Scores:
        method = ProgramMethod(read_sealed(path, read_card(path)), "coarse", path)
        return lambda image: method(torch.from_numpy(image))[0]

    @classmethod
    def diagnose(cls, found: Sequence[Gpu]) -> Diagnosis:
        versions = {"executorch": VERSION, "torch": str(torch.__version__)}
        if Runtime.get().backend_registry.is_available(XNNPACK):
            return Diagnosis(versions, ("cpu",))
        return Diagnosis(versions, (), "this build has no XNNPACK")


def _use_threads(threads: int) -> None:
    """Make XNNPACK's pool, which all programs of a process share, and those loaded point at.

    Raises:
        ArtifactError: another number of threads is in use.
    """
    with _silenced():
        there = portable_lib._threadpool_get_thread_count()
    if there == threads:
        return
    if len(_loaded):
        raise ArtifactError(
            f"ExecuTorch has one pool of threads a process, and {there} are in use: load it with "
            f"threads={there}, or close what is loaded"
        )
    portable_lib._unsafe_reset_threadpool(threads)


class ProgramMethod:
    """A method of a program, which takes a frame.

    Args:
        content: of the file.
        name: of the method.
        path: of the file, for errors.

    Raises:
        ArtifactError: it is damaged, or needs a kernel that this version lacks.
    """

    def __init__(self, content: bytes, name: str, path: Path):
        try:
            # Kept: the package's methods do not keep their program, and read its memory.
            self._program = Runtime.get().load_program(content)
            if name not in self._program.method_names:
                raise ArtifactError(f"{path} has no method {name!r}: export it again")
            self._method: Any = self._program.load_method(name)
        except RuntimeError as error:
            raise ArtifactError(
                f"executorch {VERSION} cannot load {path}: {_first_line(error)}"
            ) from error
        facts = self._method.metadata
        self.input_shape = tuple(facts.input_tensor_meta(0).sizes())
        self.output_shape = tuple(facts.output_tensor_meta(0).sizes())

    def __call__(self, frame: torch.Tensor) -> list[NDArray[np.generic]]:
        """The outputs of a frame, the caller's own."""
        try:
            return [each.numpy() for each in self._method.execute([frame])]
        except RuntimeError as error:
            raise BackendError(f"executorch: {_first_line(error)}") from error


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Without what its library tells of the processor, on stderr, when its pool is made."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
