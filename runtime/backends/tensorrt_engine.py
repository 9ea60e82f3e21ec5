"""A TensorRT engine in GPU memory, with a buffer for each input and output."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ...data.files import write_atomically
from ...errors import ArtifactError, BackendError
from ..packages import last_line, members
from ..records import seal, unseal
from .cuda import Cuda, CudaError

log = logging.getLogger("rtseg")


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine, and where its buffer lies on the GPU."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    is_input: bool
    address: int

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


class Plan:
    """Deserializes `content`, or takes another plan's engine for a context of its own; creating the
    context compiles the kernels of a TensorRT-RTX engine.

    jit_caches: where those kernels may lie from an earlier start; `keep_cache` keeps them in the
    first that can be written. `jit` is the outcome: "read", "written" or "none". `behind`, if
    it is set, queues what belongs to every run, on a stream. profile: of an engine for several
    sizes, the number of the one to run and the frame's shape in it. dla: core of the deep learning
    accelerator that the engine was built for.

    Raises ArtifactError if TensorRT rejects the engine.
    """

    _runtime: Any
    _engine: Any

    def __init__(
        self,
        trt: ModuleType,
        log: Any,
        content: bytes | Plan,
        cuda: Cuda,
        jit_caches: tuple[Path, ...] = (),
        profile: tuple[int, tuple[int, ...]] | None = None,
        dla: str | None = None,
    ):
        self._cuda, self._log, self._profile = cuda, log, profile
        self._addresses: list[int] = []
        self._context: Any = None
        self._graph: object = None
        self._config: object = None
        self._cache: Any = None
        self.jit, self._kept, self._caches = "none", b"", jit_caches
        self.behind: Callable[[int], None] | None = None
        if isinstance(content, Plan):
            # Both refer to it: it is freed with the last of them.
            self._runtime, self._engine = content._runtime, content._engine
        else:
            self._runtime = trt.Runtime(log)
            if dla is not None:
                self._runtime.DLA_core = int(dla)  # before the engine is read, else it is core 0
            refuse_invalid(trt, self._runtime, content)
            self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise ArtifactError(f"{trt.__name__} cannot load it ({last_line(log.errors)})")
        self._open_context(trt)

    def open_another(self, trt: ModuleType) -> Plan:
        """A second context of this engine, with buffers of its own; the weights and the compiled
        kernels are shared."""
        other = copy.copy(self)
        other._addresses, other._context, other._graph, other.behind = [], None, None, None
        other._open_context(trt)
        return other

    def _open_context(self, trt: ModuleType) -> None:
        try:
            self._context = self._create_context()
            if self._profile is not None:
                self._choose(*self._profile)
            self.tensors = {tensor.name: tensor for tensor in self._bind(trt)}
        except BaseException:
            self.close()
            raise

    def enqueue(self, stream: int) -> None:
        """Queue one run. Raises BackendError if TensorRT refuses."""
        if not self._context.execute_async_v3(stream):
            raise BackendError(f"TensorRT could not run the engine: {last_line(self._log.errors)}")
        if self.behind is not None:
            self.behind(stream)

    def capture(self) -> str:
        """Record the run as a CUDA graph, after one run without; "on", or why it stays off."""
        stream = self._cuda.create_stream()
        try:
            # Versions that cannot tell are asked to record, and may fail at that.
            if not getattr(self._context, "is_stream_capturable", lambda _: True)(stream):
                return "off: this engine cannot be captured"
            self._graph = self._record(stream)
        except (CudaError, RuntimeError) as error:
            return f"off: {error}"
        finally:
            self._cuda.destroy_stream(stream)
        return "on"

    def _record(self, stream: int) -> object:
        self._cuda.begin_capture(stream)
        try:
            self.enqueue(stream)
        except RuntimeError:
            with contextlib.suppress(CudaError):  # the first reason is the one that counts
                self._cuda.destroy_graph(self._cuda.end_capture(stream))
            raise
        return self._cuda.end_capture(stream)

    def run(self, stream: int) -> None:
        """Queue one run, as a graph if it was captured."""
        if self._graph is None:
            self.enqueue(stream)
        else:
            self._cuda.launch(self._graph, stream)

    def close(self) -> None:
        if self._graph is not None:
            self._cuda.destroy_graph(self._graph)
        self._graph = None
        # A context must go before its engine, an engine before its runtime.
        self._context = None
        self._config = self._cache = None
        self._engine = None
        self._runtime = None
        while self._addresses:
            self._cuda.free(self._addresses.pop())

    def _bind(self, trt: ModuleType) -> list[Tensor]:
        tensors = []
        for place in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(place)
            # The context's: those of an engine for several sizes are known once one is chosen.
            shape = tuple(self._context.get_tensor_shape(name))
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
            # -1 stands for a side that is chosen at run time; buffers and CUDA graph need to know
            # it.
            if min(shape, default=1) < 1:
                raise ArtifactError(f"its tensor {name!r} has no fixed shape: {shape}")
            address = self._cuda.allocate(int(np.prod(shape)) * dtype.itemsize)
            self._addresses.append(address)
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            if not self._context.set_tensor_address(name, address):
                raise ArtifactError(f"TensorRT refuses the buffer of {name!r}")
            tensors.append(Tensor(name, shape, dtype, is_input, address))
        return tensors

    def _choose(self, number: int, shape: tuple[int, ...]) -> None:
        stream = self._cuda.create_stream()
        try:
            chosen = self._context.set_optimization_profile_async(number, stream)
            self._cuda.synchronize(stream)
        finally:
            self._cuda.destroy_stream(stream)
        if not (chosen and self._context.set_input_shape("frame", shape)):
            raise ArtifactError(f"TensorRT refuses frames of {shape}: export the engine again")

    def _create_context(self) -> object:
        if self._caches and self._config is None:
            self._attach_cache()
        if self._cache is None:
            context = self._engine.create_execution_context()
        else:
            context = self._engine.create_execution_context(self._config)
        if context is None:
            raise ArtifactError(f"TensorRT cannot start it ({last_line(self._log.errors)})")
        return context

    def _attach_cache(self) -> None:
        """Give the engine the kernels of an earlier start, where the package compiles at start."""
        create: Any = getattr(self._engine, "create_runtime_config", lambda: None)
        config = create()
        cache = config.create_runtime_cache() if hasattr(config, "create_runtime_cache") else None
        if cache is None:
            return
        for path in self._caches:
            known = unseal(path.read_bytes()) if path.is_file() else None
            # It refuses what another driver, GPU or version compiled.
            if known is not None and cache.deserialize(known):
                self.jit, self._kept = "read", known
                break
        if config.set_runtime_cache(cache):
            self._config, self._cache = config, cache

    def keep_cache(self) -> None:
        """Write the kernels that were compiled, where that is more than was read."""
        memory = self._cache.serialize() if self._cache is not None else None
        if memory is None or memory.nbytes <= len(self._kept):
            return
        if (sealed := seal(bytes(memory))) is None:
            return
        for path in self._caches:
            with contextlib.suppress(OSError):
                write_atomically(path, sealed)
                self.jit, self._kept = "written", bytes(memory)
                log.info("compiled kernels kept in %s", path)
                return


def refuse_invalid(trt: ModuleType, runtime: object, content: bytes) -> None:
    """Raises ArtifactError with TensorRT's own reasons, where the package looks for them."""
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, bits = runtime.get_engine_validity(content)
    if validity == trt.EngineValidity.INVALID:
        known = members(trt.EngineInvalidityDiagnostics)
        reasons = [name.lower().replace("_", " ") for name, bit in known.items() if bits & int(bit)]
        raise ArtifactError(
            f"{trt.__name__} {trt.__version__} cannot load it ({', '.join(reasons) or 'no GPU'})"
        )
