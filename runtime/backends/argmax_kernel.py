"""Labels from an engine's coarse logits, by a GPU kernel that ships with the engine.

The kernels are those of `argmax_triton.py`, as machine code in `NAME.engine.labels.npz` (of an
engine for several sizes one a size); only CUDA's driver is needed to run them.
"""

from __future__ import annotations

import ctypes
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ...data.limits import read_arrays
from ...errors import ArtifactError
from ..artifact import Card, beside_engine
from .cuda import Cuda

COARSE, LABELS = "coarse", "labels"  # what the kernel reads and writes
OPEN = 8  # the last generation for which Triton's machine code runs on its later GPUs too
_CALL, _CODE, _TABLE = "call", "code ", "table "  # names of arrays in the file, and how they begin


class Call(BaseModel):
    """How the kernel is launched. shape, dtype: of COARSE; grid: of programs, of `threads` each;
    shared: bytes of a program's shared memory, by compute capability; arguments: COARSE, LABELS and
    tables in their order, all pointers; unused: further ones, which the compiler adds and this
    kernel does not follow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shape: tuple[int, ...]
    dtype: str
    grid: tuple[int, ...]
    threads: int
    shared: dict[str, int]
    arguments: tuple[str, ...]
    unused: int


@dataclass(frozen=True)
class KernelFile:
    """`code`: machine code by the compute capability that it was made for; `tables`: its arrays."""

    call: Call
    code: Mapping[str, bytes]
    tables: Mapping[str, NDArray[np.generic]]

    def to_bytes(self) -> bytes:
        arrays: dict[str, Any] = {_TABLE + name: table for name, table in self.tables.items()}
        for capability, code in self.code.items():
            arrays[_CODE + capability] = np.frombuffer(code, np.uint8)
        arrays[_CALL] = np.array(self.call.model_dump_json())
        held = io.BytesIO()
        np.savez_compressed(held, **arrays)
        return held.getvalue()

    @classmethod
    def load(cls, path: Path, digest: str | None = None) -> KernelFile:
        """Raises ArtifactError if the file is missing, damaged, or not of that SHA-256."""
        try:
            # The file came from elsewhere, and a pickle runs code.
            arrays = read_arrays(path, ArtifactError, digest)
            return cls(
                call=Call.model_validate_json(str(arrays[_CALL])),
                code={
                    capability: code.tobytes() for capability, code in _named(arrays, _CODE).items()
                },
                tables=_named(arrays, _TABLE),
            )
        except FileNotFoundError as error:
            raise ArtifactError(f"{path} is missing: copy it with the engine") from error
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(f"{path} is damaged: copy it again, or export again") from error

    def code_for(self, compute_capability: str) -> str:
        """Of the targets in `code`, the one that a GPU runs: its own, or up to OPEN one of its
        generation and no later."""
        wanted = _numbers(compute_capability)
        able = [target for target in self.code if runs_on(_numbers(target), wanted)]
        if not able:
            raise ArtifactError(
                f"the label kernel holds code for compute capability {', '.join(self.code)}, not "
                f"for {compute_capability}: export again with --compute-capability "
                f"{compute_capability}"
            )
        return max(able, key=_numbers)


def _named(arrays: Mapping[str, NDArray[np.generic]], start: str) -> dict[str, NDArray[np.generic]]:
    return {
        name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)
    }


def runs_on(code: tuple[int, ...], gpu: tuple[int, ...]) -> bool:
    """Whether machine code for one compute capability runs on a GPU of another."""
    return code == gpu or (code[0] == gpu[0] <= OPEN and code <= gpu)


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))


def kernel_path(engine: Path, card: Card | None = None) -> Path:
    """`NAME.engine.labels.npz`; of an engine for several sizes that of the size `card` is at."""
    return beside_engine(engine, card, "labels.npz")


class LabelKernel:
    """A kernel on one GPU, which reads the buffer at `coarse` and writes `labels`, an address of
    (N, H, W) uint8 there. Nothing is allocated per call, and calls can be captured in a graph."""

    def __init__(
        self, file: KernelFile, cuda: Cuda, coarse: int, size: tuple[int, int], stream: int
    ):
        self._cuda, self._call = cuda, file.call
        self._addresses: list[int] = []
        target = file.code_for(cuda.compute_capability)
        self._shared = file.call.shared[target]
        self._module, self._function = cuda.load_kernel(
            file.code[target], file.call.name, self._shared
        )
        try:
            places = {name: self._on_device(table, stream) for name, table in file.tables.items()}
            self.labels = self._allocate(file.call.shape[0] * size[0] * size[1])
            places |= {COARSE: coarse, LABELS: self.labels}
            given = [places[name] for name in file.call.arguments]
            # Null for pointers to scratch memory, which Triton adds and this kernel does not
            # follow.
            self._arguments = _Arguments([*given, *[0] * file.call.unused])
            cuda.synchronize(stream)  # the tables were copied from memory that goes now
        except BaseException:
            self.close()
            raise

    def enqueue(self, stream: int) -> None:
        """Queue one run behind what fills `coarse`."""
        call, arguments = self._call, self._arguments.address
        self._cuda.launch_kernel(
            self._function, call.grid, call.threads, self._shared, stream, arguments
        )

    def close(self) -> None:
        while self._addresses:
            self._cuda.free(self._addresses.pop())
        if self._module is not None:
            self._cuda.unload(self._module)
        self._module = None

    def _allocate(self, size: int) -> int:
        self._addresses.append(self._cuda.allocate(size))
        return self._addresses[-1]

    def _on_device(self, table: NDArray[np.generic], stream: int) -> int:
        address = self._allocate(table.nbytes)
        self._cuda.to_device(address, np.ascontiguousarray(table), stream)
        return address


class _Arguments:
    """Pointers for a kernel, and the `address` of the array that points at each, as CUDA wants."""

    def __init__(self, values: list[int]):
        self._values = (ctypes.c_uint64 * len(values))(*values)
        start = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_void_p * len(values))(
            *(start + 8 * place for place in range(len(values)))
        )
        self.address = ctypes.addressof(self._pointers)
