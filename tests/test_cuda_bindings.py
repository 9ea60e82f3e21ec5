"""Our CUDA calls against NVIDIA's own bindings, which check arguments without a GPU too."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda import PretendedCuda, PretendedDriver
from rtseg.runtime.backends.cuda import Cuda, CudaError

runtime: Any = pytest.importorskip("cuda.bindings.runtime", exc_type=ImportError)
driver: Any = pytest.importorskip("cuda.bindings.driver", exc_type=ImportError)
MEMORY = np.zeros(64, np.uint8)
ADDRESS = MEMORY.ctypes.data
CALLS = {  # by the name of the call that the first of CUDA's is
    "cudaSetDevice": Cuda.select,
    "cudaGetDeviceProperties": lambda cuda: cuda.compute_capability,
    "cudaMemGetInfo": Cuda.free_bytes,
    "cudaMalloc": lambda cuda: cuda.allocate(64),
    "cudaFree": lambda cuda: cuda.free(ADDRESS),
    "cudaHostAlloc": lambda cuda: cuda.allocate_pinned((4, 16), np.uint8),
    "cudaMemcpyAsync": lambda cuda: cuda.upload(ADDRESS, MEMORY, MEMORY.copy(), 0),
    "cudaStreamCreateWithFlags": Cuda.create_stream,
    "cudaStreamDestroy": lambda cuda: cuda.destroy_stream(7),
    "cudaStreamSynchronize": lambda cuda: cuda.synchronize(7),
    "cudaEventCreate": lambda cuda: cuda.wait_for(7, 8),
    "cudaPointerGetAttributes": lambda cuda: cuda.index_of(ADDRESS),
    "cudaStreamBeginCapture": lambda cuda: cuda.begin_capture(7),
    "cudaStreamEndCapture": lambda cuda: cuda.end_capture(7),
    "cudaGraphLaunch": lambda cuda: cuda.launch(runtime.cudaGraphExec_t(), 7),
    "cudaGraphExecDestroy": lambda cuda: cuda.destroy_graph(runtime.cudaGraphExec_t()),
}


@pytest.mark.skipif(not int(runtime.cudaGetDeviceCount()[0]), reason="there is a GPU here")
@pytest.mark.parametrize("name", CALLS)
def test_arguments_reach_cuda(name: str) -> None:
    """What answers is CUDA itself, for want of a driver: with a wrong number or kind of arguments
    the bindings would have raised before."""
    cuda: Any = object.__new__(Cuda)
    cuda._runtime, cuda.index = runtime, 0
    with pytest.raises(CudaError, match=f"^{name}: "):
        CALLS[name](cuda)


@pytest.mark.parametrize(
    ("pretended", "real"), [(PretendedCuda, runtime), (PretendedDriver, driver)]
)
def test_the_pretended_calls_take_what_the_real_ones_do(pretended: Any, real: Any) -> None:
    """Else tests would pass with calls that a GPU refuses."""
    names = [name for name in vars(pretended) if name.startswith("cu")]
    assert len(names) >= 6
    for name in names:
        found, fake = getattr(real, name), getattr(pretended, name)
        if not inspect.isfunction(fake):
            members = vars(fake) if isinstance(fake, SimpleNamespace) else {}
            assert {each: int(getattr(found, each)) for each in members} == members
            assert members or found == fake
            continue
        wanted = list(inspect.signature(found).parameters)
        given = [p for n, p in inspect.signature(fake).parameters.items() if n != "self"]
        assert len(given) == len(wanted), f"{name} takes {wanted}"
