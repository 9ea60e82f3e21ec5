"""The few CUDA calls that an engine needs: device and pinned memory, streams, graphs, kernels.

Through NVIDIA's own `cuda.bindings`, whose API is the same in CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...errors import ArtifactError, BackendError, MissingPackage, UsageError
from ..packages import pip_line

STRIPE = 1 << 20  # bytes of a frame that are copied on the host while the last are on their way
STATIC_SHARED = 48 * 1024  # bytes of shared memory that a kernel has without asking


class CudaError(BackendError):
    """A CUDA call failed; the message names the call and CUDA's reason."""


class Cuda:
    """One GPU, by its CUDA index. Raises MissingPackage without `cuda.bindings`, ArtifactError
    where CUDA finds no such GPU."""

    def __init__(self, index: int = 0, runtime: Any = None):
        self._runtime = runtime or _bindings()
        self.index = index
        try:
            count = self._call("cudaGetDeviceCount")
            if index >= count:
                raise ArtifactError(f"there is no cuda:{index}: CUDA finds {count} GPUs")
            self.select()
            self._call("cudaFree", 0)  # creates the context now rather than in the first frame
        except CudaError as error:
            raise ArtifactError(f"CUDA does not start: {error}: run `rtseg doctor`") from error

    def select(self) -> None:
        """Make this GPU the calling thread's own; CUDA keeps one a thread."""
        self._call("cudaSetDevice", self.index)

    @property
    def name(self) -> str:
        name = self._call("cudaGetDeviceProperties", self.index).name
        text = name.split(b"\0")[0].decode() if isinstance(name, bytes) else str(name)
        return text or f"cuda:{self.index}"

    @property
    def compute_capability(self) -> str:
        facts = self._call("cudaGetDeviceProperties", self.index)
        return f"{facts.major}.{facts.minor}"

    def free_bytes(self) -> int:
        """Free memory of the GPU."""
        return int(self._call("cudaMemGetInfo")[0])

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the GPU, until `free`."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def allocate_pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
        """An array in page-locked host memory, which is freed with the last view of it."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        address = int(self._call("cudaHostAlloc", size, 0))
        memory = (ctypes.c_uint8 * size).from_address(address)
        # NumPy's views keep this ctypes object alive, and it goes with the last of them.
        weakref.finalize(memory, self._runtime.cudaFreeHost, address)
        array: NDArray[np.generic] = np.frombuffer(memoryview(memory), kind).reshape(shape)
        return array

    def to_device(self, address: int, source: NDArray[np.generic], stream: int) -> None:
        assert source.flags.c_contiguous
        self._copy(address, source.ctypes.data, source.nbytes, "HostToDevice", stream)

    def upload(
        self, address: int, staging: NDArray[np.generic], source: NDArray[np.generic], stream: int
    ) -> None:
        """Queue the copy of `source` by way of pinned `staging` of its size, which may be itself.

        In stripes: while one is on its way to the GPU, the host copies the next.
        """
        if source.ctypes.data == staging.ctypes.data:
            self.to_device(address, staging, stream)
            return
        given, pinned = (
            np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in (source, staging)
        )
        for start in range(0, given.size, STRIPE):
            part = slice(start, start + STRIPE)
            np.copyto(pinned[part], given[part])
            self.to_device(address + start, pinned[part], stream)

    def to_host(self, target: NDArray[np.generic], address: int, stream: int) -> None:
        assert target.flags.c_contiguous
        self._copy(target.ctypes.data, address, target.nbytes, "DeviceToHost", stream)

    def on_device(self, target: int, source: int, size: int, stream: int) -> None:
        self._copy(target, source, size, "DeviceToDevice", stream)

    def _copy(self, target: int, source: int, size: int, way: str, stream: int) -> None:
        kind = getattr(self._runtime.cudaMemcpyKind, f"cudaMemcpy{way}")
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def create_stream(self) -> int:
        """A stream that does not wait for the default one; its handle, until `destroy_stream`."""
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def wait_for(self, stream: int, producer: int) -> None:
        """Have `stream` wait for what is queued on another library's stream by now; the host does
        not wait."""
        event = self._call("cudaEventCreate")
        try:
            self._call("cudaEventRecord", event, producer)
            self._call("cudaStreamWaitEvent", stream, event, 0)
        finally:
            self._call("cudaEventDestroy", event)  # CUDA keeps it until it has happened

    def index_of(self, address: int) -> int | None:
        """The GPU that an address is on; None in host memory."""
        facts = self._call("cudaPointerGetAttributes", address)
        kinds = self._runtime.cudaMemoryType
        on_gpu = (kinds.cudaMemoryTypeDevice, kinds.cudaMemoryTypeManaged)
        return int(facts.device) if facts.type in on_gpu else None

    def time_ms(self, work: Callable[[], None], stream: int, runs: int) -> list[float]:
        """Milliseconds of each run of what `work` queues on `stream`, by the GPU's own clock.

        Each follows an untimed one, during which the host queues it: launching is not in its time.
        """
        begin, end = (self._call("cudaEventCreate") for _ in range(2))
        times = []
        try:
            for _ in range(runs):
                work()
                self._call("cudaEventRecord", begin, stream)
                work()
                self._call("cudaEventRecord", end, stream)
                self._call("cudaEventSynchronize", end)
                times.append(float(self._call("cudaEventElapsedTime", begin, end)))
        finally:
            for event in (begin, end):
                self._call("cudaEventDestroy", event)
        return times

    def begin_capture(self, stream: int) -> None:
        # Thread-local: other threads may go on allocating meanwhile.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> object:
        """The recorded graph, ready to launch, until `destroy_graph`."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: object, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: object) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def load_kernel(self, code: bytes, name: str, shared: int) -> tuple[object, object]:
        """(module, kernel) of machine code, until `unload`. shared: bytes of shared memory that a
        block takes."""
        module = self._drive("cuModuleLoadData", code)
        try:
            kernel = self._drive("cuModuleGetFunction", module, name.encode())
            # More has to be asked for, kernel by kernel, on GPUs that have it.
            if shared > STATIC_SHARED:
                kinds = _bindings("driver").CUfunction_attribute
                limit = kinds.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._drive("cuFuncSetAttribute", kernel, limit, shared)
        except CudaError:
            self.unload(module)
            raise
        return module, kernel

    def unload(self, module: object) -> None:
        self._drive("cuModuleUnload", module)

    def launch_kernel(
        self,
        kernel: object,
        grid: tuple[int, ...],
        threads: int,
        shared: int,
        stream: int,
        arguments: int,
    ) -> None:
        """Queue `grid` blocks of `threads`. arguments: the address of pointers at each argument."""
        # CUDA's grids always have three sides.
        sides = (*grid, 1, 1)[:3]
        self._drive("cuLaunchKernel", kernel, *sides, threads, 1, 1, shared, stream, arguments, 0)

    def _call(self, name: str, *arguments: object) -> Any:
        """The results behind the error code: none, one, or a tuple of several."""
        return _checked(self._runtime, "cudaGetErrorString", name, *arguments)

    def _drive(self, name: str, *arguments: object) -> object:
        """As `_call`, of the driver, which alone loads machine code."""
        return _checked(_bindings("driver"), "cuGetErrorString", name, *arguments)


def _checked(api: object, reason_of: str, name: str, *arguments: object) -> object:
    # The bindings raise nothing: every call returns its error code in front of its results.
    code, *results = getattr(api, name)(*arguments)
    if int(code):
        reason = getattr(api, reason_of)(code)[1]
        text = reason.decode() if isinstance(reason, bytes) else str(reason)
        raise CudaError(f"{name}: {text}")
    return results[0] if len(results) == 1 else tuple(results)


def _bindings(api: str = "runtime") -> Any:
    try:
        return importlib.import_module(f"cuda.bindings.{api}")
    except ImportError as error:
        raise MissingPackage(f"engines need cuda-bindings: {pip_line('tensorrt-rtx')}") from error


def stream_handle(stream: object) -> int:
    """The handle of a stream of any library: an integer, an object with `__cuda_stream__` (CUDA's
    own protocol), `cuda_stream` (PyTorch) or `handle` (PyCUDA).

    Raises ValueError for anything else.
    """
    if isinstance(stream, int):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        pair = stream.__cuda_stream__
        return int((pair() if callable(pair) else pair)[1])
    for name in ("cuda_stream", "handle"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    raise UsageError(
        f"a stream is a handle or an object with __cuda_stream__, not {type(stream).__name__}"
    )


def device_address(frame: object, shape: tuple[int, ...]) -> int:
    """Where a uint8 array on the GPU lies: an address, or an object with
    `__cuda_array_interface__` (PyTorch, CuPy, Numba) of `shape`, C-contiguous.

    Raises ValueError for anything else.
    """
    if isinstance(frame, int):
        return frame
    facts = getattr(frame, "__cuda_array_interface__", None)
    if facts is None:
        raise UsageError(
            f"a frame on the GPU has __cuda_array_interface__; {type(frame).__name__} has not"
        )
    found, dtype = tuple(facts["shape"]), np.dtype(facts["typestr"])
    contiguous = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    if found != shape or dtype != np.uint8 or facts.get("strides") not in (None, contiguous):
        raise UsageError(
            f"a frame on the GPU is contiguous uint8 of shape {shape}, not {dtype} {found}"
        )
    return int(facts["data"][0])


class DeviceArray:
    """A view of device memory for other libraries, such as `torch.as_tensor(array)`. Valid while
    its owner is open."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: DTypeLike):
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (address, False),
            "version": 3,
        }
