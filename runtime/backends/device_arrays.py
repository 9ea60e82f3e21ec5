"""Arrays that stay on a device: DLPack and `__cuda_array_interface__`, taken and given."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...errors import UsageError
from .cuda import Cuda, DeviceArray

CPU, CUDA, PINNED, MANAGED = 1, 2, 3, 13  # DLDeviceType
HOST = (CPU, PINNED)
UNSIGNED, FLOAT = 1, 2  # DLDataTypeCode
NAME, USED = b"dltensor", b"used_dltensor"


class LentTensor(ctypes.Structure):
    """DLTensor, as dlpack.h lays it out."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class ManagedTensor(ctypes.Structure):
    """DLManagedTensor: whoever takes it calls `deleter` when it is done."""

    _fields_ = (
        ("tensor", LentTensor),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_get = ctypes.pythonapi.PyCapsule_GetPointer
_get.restype, _get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
# In a destructor no reference to the capsule may be made any more: bare pointers.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_get_bare = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
# What was given away, by address, until its taker has called the deleter.
_given: dict[int, tuple[object, ...]] = {}


def _delete(address: int) -> None:
    _given.pop(address, None)


def _drop_capsule(capsule: int) -> None:
    if _is_valid(capsule, NAME):  # nobody took it
        _given.pop(_get_bare(capsule, NAME), None)


_callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# Kept here for ever, since another library may call them at any time.
_DELETE, _DROP = _callback(_delete), _callback(_drop_capsule)


class SharedArray(DeviceArray):
    """A view of device memory that DLPack takes too, such as `torch.from_dlpack(array)`.

    Args:
        address: where it lies.
        shape: of it, C-contiguous.
        dtype: unsigned integers or floats.
        device: (DLDeviceType, index).
        finish: called before it is given away, so that nothing is still being written.
    """

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        device: tuple[int, int],
        finish: Callable[[], None] | None = None,
    ):
        super().__init__(address, shape, dtype)
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._address, self._device, self._finish = address, device, finish

    def first(self) -> SharedArray:
        """The first along the first axis, (N, H, W) -> (H, W)."""
        return SharedArray(self._address, self.shape[1:], self.dtype, self._device, self._finish)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, *, stream: int | None = None, **_newer: object) -> object:
        """A capsule; it is finished whatever the taker's stream."""
        if self._finish is not None:
            self._finish()
        sides = (ctypes.c_int64 * len(self.shape))(*self.shape)
        code = FLOAT if self.dtype.kind == "f" else UNSIGNED
        managed = ManagedTensor(
            LentTensor(
                self._address, *self._device, len(self.shape), code, self.dtype.itemsize * 8, 1,
                sides, None, 0,
            ),
            None,
            ctypes.cast(_DELETE, ctypes.c_void_p),
        )  # fmt: skip
        place = ctypes.addressof(managed)
        _given[place] = (managed, sides, self)
        return _new(place, NAME, ctypes.cast(_DROP, ctypes.c_void_p))


class DeviceFrame:
    """A frame on the GPU that another library made; `release` it once it is read.

    Its producer's stream has been told to be waited for: work queued on `stream` from now on sees
    the frame whole.

    Args:
        frame: an object with `__dlpack__` or `__cuda_array_interface__`, C-contiguous uint8.
        shape: (N, H, W, 3) or a camera's; without N too if that is 1.
        cuda: the GPU that it has to be on.
        stream: that reads it.

    Raises:
        UsageError: if it is on another device, or of another type, shape or layout.
    """

    def __init__(self, frame: object, shape: tuple[int, ...], cuda: Cuda, stream: int):
        device = device_of(frame)
        if device is not None:
            if device not in ((CUDA, cuda.index), (MANAGED, cuda.index)):
                raise UsageError(
                    f"the frame is on {name_device(device)} and the network on cuda:{cuda.index}: "
                    "give a frame of that device"
                )
            self._keep, facts = _import(frame, stream)
        else:
            self._keep, facts = frame, _read_interface(frame, cuda, stream)
        self.address, found, strides, dtype = facts
        self.several = check_layout(found, strides, dtype, shape)

    def release(self) -> None:
        self._keep = None


def _import(frame: Any, stream: int) -> tuple[object, tuple[Any, ...]]:
    """(what keeps the memory alive, its address, shape, strides and dtype)."""
    try:
        # DLPack has no 0 for CUDA: 1 is the default stream.
        capsule = frame.__dlpack__(stream=stream or 1)
    except BufferError as error:
        raise UsageError(f"the frame cannot be shared through DLPack: {error}") from error
    tensor = ManagedTensor.from_address(_get(capsule, NAME)).tensor
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    kind = {0: "int", UNSIGNED: "uint", FLOAT: "float"}.get(tensor.code, "other")
    address = (tensor.data or 0) + tensor.byte_offset
    # The capsule is not taken but kept: its own destructor gives the memory back.
    return capsule, (address, shape, strides, f"{kind}{tensor.bits}")


def _read_interface(frame: object, cuda: Cuda, stream: int) -> tuple[Any, ...]:
    facts = getattr(frame, "__cuda_array_interface__", None)
    if facts is None:
        raise UsageError(
            "a frame on the device has __dlpack__ or __cuda_array_interface__; "
            f"{type(frame).__name__} has neither"
        )
    dtype, address = np.dtype(facts["typestr"]), int(facts["data"][0])
    index = cuda.index_of(address)
    if index != cuda.index:
        where = "in host memory" if index is None else f"on cuda:{index}"
        raise UsageError(
            f"the frame is {where} and the network on cuda:{cuda.index}: "
            "give a frame of that device"
        )
    if facts.get("stream") is not None:
        cuda.wait_for(stream, int(facts["stream"]))
    strides = facts.get("strides")
    if strides is not None:
        strides = tuple(step // dtype.itemsize for step in strides)
    return address, tuple(facts["shape"]), strides, dtype.name


def device_of(frame: Any) -> tuple[int, int] | None:
    """(DLDeviceType, index) of an object with DLPack, else None."""
    if not hasattr(frame, "__dlpack_device__"):
        return None
    kind, index = frame.__dlpack_device__()
    return int(kind), int(index)


def name_device(device: tuple[int, int]) -> str:
    """ "cpu" or "cuda:0" of a (DLDeviceType, index)."""
    kind, index = device
    return {CPU: "cpu", PINNED: "cpu", CUDA: f"cuda:{index}", MANAGED: f"cuda:{index}"}.get(
        kind, f"device {kind}:{index} of DLPack"
    )


def check_layout(
    found: tuple[int, ...],
    strides: tuple[int, ...] | None,
    dtype: str,
    shape: tuple[int, ...],
) -> bool:
    """Whether the frame has the axis N of `shape`; strides in elements, None where contiguous.

    Raises:
        UsageError: unless it is contiguous uint8 of `shape`.
    """
    fits = found == shape or (shape[0] == 1 and found == shape[1:])
    if not fits or dtype != "uint8":
        single = f" or {shape[1:]}" if shape[0] == 1 else ""
        raise UsageError(
            f"this network takes uint8 of shape {shape}{single} on the device, not {dtype} "
            f"{found}: resize or convert it there, or call the segmenter with one in host memory"
        )
    contiguous = tuple(int(np.prod(found[axis + 1 :])) for axis in range(len(found)))
    # Of an axis of length 1 it is never taken: `frame[None]` has 0 there in NumPy.
    wrong = (
        length > 1 and taken != whole
        for length, taken, whole in zip(found, strides or contiguous, contiguous, strict=True)
    )
    if any(wrong):
        raise UsageError(
            f"a frame on the device is contiguous, and this one has strides {strides}, not "
            f"{contiguous}: copy it (`.contiguous()` in PyTorch, `cupy.ascontiguousarray`)"
        )
    return found == shape


def host_frame(frame: Any, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], bool]:
    """(frame as NumPy array of `shape` on the same memory, whether it had the axis N).

    Raises:
        UsageError: for one that is not in host memory, or of another type, shape or layout.
    """
    device = device_of(frame)
    if device is None or device[0] not in HOST:
        if hasattr(frame, "__cuda_array_interface__") or device is not None:
            where = name_device(device) if device else "a CUDA device"
            raise UsageError(
                f"the frame is on {where} and the network on the cpu: copy the frame to host "
                'memory, or load the artifact with device="cuda"'
            )
        raise UsageError(f"a frame has __dlpack__; {type(frame).__name__} has not")
    try:
        array: NDArray[Any] = np.from_dlpack(frame)
    except BufferError as error:
        raise UsageError(f"the frame cannot be shared through DLPack: {error}") from error
    steps = tuple(step // array.itemsize for step in array.strides)
    several = check_layout(array.shape, steps, array.dtype.name, shape)
    # OpenVINO takes nothing that it could not write to: a frame that is read-only is copied.
    return np.require(array.reshape(shape), requirements=["W"]), several
