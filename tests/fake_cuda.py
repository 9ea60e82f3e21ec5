"""A pretended GPU: CUDA on host memory, TensorRT whose engines are JSON, and engines for it.

The pretended CUDA counts what is alive, so that leaks and a wrong order of calls show.
"""

import ctypes
import gc
import hashlib
import json
from types import SimpleNamespace

import numpy as np
from rtseg.gpu import Gpu
from rtseg.runtime import verify as first_load
from rtseg.runtime.artifact import EngineFacts, sidecar
from rtseg.runtime.backends import cuda as cuda_module
from rtseg.runtime.backends import tensorrt as module
from rtseg.runtime.backends.argmax_kernel import kernel_path
from rtseg.runtime.packages import Package
from rtseg.runtime.preflight import BINDINGS, Machine
from rtseg.runtime.verify import Reference
from speed_parts import CARD

SIZE, CLASSES = (16, 32), 4
TYPES = {"pieces": np.int32, "left": np.int32, "right": np.int32}
POINTERS = (
    "logits", "pieces", "row_near", "row_far", "left", "right", "near", "far", "labels",
)  # fmt: skip
COLUMNS = 128  # of a program, as `argmax_triton.py` has it, which needs Triton
COARSE_SHAPE = (1, CLASSES, SIZE[0] // 4, SIZE[1] // 4)
GPU = Gpu(0, "Pretended GPU", "8.9", "580.65.06", 1 << 30)
MACHINE = Machine(
    "linux-x86_64",
    (GPU,),
    (Package("tensorrt_rtx", "1.7.1.116", 13),),
    frozenset({BINDINGS, "onnxruntime"}),
)


ENGINE = EngineFacts(
    flavour="tensorrt_rtx",
    version="1.7.1.116",
    compute_capabilities=("8.9",),
    platform="linux-x86_64",
    minimum_driver="580",
    flags=(),
    layers=1,
    onnx="o",
    build_seconds=1,
)


class PretendedCuda:
    """The part of `cuda.bindings.runtime` that is used, on host memory."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaMemoryType = SimpleNamespace(cudaMemoryTypeDevice=2, cudaMemoryTypeManaged=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, gpus=1):
        self.gpus = gpus
        self.memory, self.streams, self.graphs = {}, set(), {}
        self.recording = None
        self.allocations = self.launches = 0
        self.used_streams = []
        self.events, self.destroyed = {}, set()
        self.waits = []  # (stream, the event that it waits for)

    def cudaGetDeviceCount(self):
        return 0, self.gpus

    def cudaSetDevice(self, index):
        return (0,)

    def cudaGetDeviceProperties(self, index):
        return 0, SimpleNamespace(name=b"Pretended GPU\0\0", major=8, minor=9)

    def cudaMalloc(self, size):
        buffer = (ctypes.c_uint8 * size)()
        self.allocations += 1
        self.memory[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    def cudaHostAlloc(self, size, flags):
        return self.cudaMalloc(size)

    def cudaFree(self, address):
        return (0,) if address == 0 or self.memory.pop(address, None) else (1,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        self.used_streams.append(stream)
        ctypes.memmove(target, source, size)
        return (0,)

    def cudaStreamCreateWithFlags(self, flags):
        self.streams.add(len(self.streams) + 100)
        return 0, max(self.streams)

    def cudaStreamDestroy(self, stream):
        self.streams.remove(stream)
        return (0,)

    def cudaStreamSynchronize(self, stream):
        return (0,) if stream in self.streams or stream == 7 else (400,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.recording = []
        return (0,)

    def cudaStreamEndCapture(self, stream):
        recorded, self.recording = self.recording, None
        return 0, recorded

    def cudaGraphInstantiate(self, graph, flags):
        self.graphs[len(self.graphs) + 1] = graph
        return 0, len(self.graphs)

    def cudaGraphDestroy(self, graph):
        return (0,)

    def cudaGraphExecDestroy(self, graph):
        return (0,) if self.graphs.pop(graph, None) is not None else (1,)

    def cudaGraphLaunch(self, graph, stream):
        self.launches += 1
        self.used_streams.append(stream)
        for step in self.graphs[graph]:
            step()
        return (0,)

    def cudaEventCreate(self):
        self.events[len(self.events) + 1] = None
        return 0, len(self.events)

    def cudaEventRecord(self, event, stream):
        self.used_streams.append(stream)
        self.events[event] = self.launches  # a launch takes a millisecond
        return (0,)

    def cudaStreamWaitEvent(self, stream, event, flags):
        self.waits.append((stream, event))
        return (0,)

    def cudaPointerGetAttributes(self, address):
        kind = 2 if address in self.memory else 0
        return 0, SimpleNamespace(type=kind, device=0)

    def cudaEventSynchronize(self, event):
        return (0,) if self.events.get(event) is not None else (400,)

    def cudaEventElapsedTime(self, begin, end):
        return 0, float(self.events[end] - self.events[begin])

    def cudaEventDestroy(self, event):
        return (0,) if event in self.events and not self.destroyed.add(event) else (400,)

    def cudaGetErrorString(self, code):
        return 0, b"pretended error"

    @property
    def alive(self):
        gc.collect()
        return len(self.memory) + len(self.streams) + len(self.graphs)


class PretendedDriver:
    """The part of `cuda.bindings.driver` that is used. A kernel is a function of the addresses that
    it is given; `kernels` has it by the machine code's name in the module."""

    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)

    def __init__(self, cuda):
        self.cuda, self.modules, self.kernels, self.shared = cuda, {}, {}, 0

    def cuModuleLoadData(self, code):
        self.modules[len(self.modules) + 1] = code
        return 0, len(self.modules)

    def cuModuleUnload(self, module):
        return (0,) if self.modules.pop(module, None) is not None else (1,)

    def cuModuleGetFunction(self, module, name):
        known = name.decode() in self.kernels and module in self.modules
        return (0, self.kernels[name.decode()]) if known else (500, None)

    def cuFuncSetAttribute(self, kernel, attribute, value):
        self.shared = value
        return (0,)

    def cuLaunchKernel(
        self, kernel, x, y, z, threads, threads_y, threads_z, shared, stream, arguments, extra
    ):
        count, run = kernel
        pointers = (ctypes.c_void_p * count).from_address(arguments)
        given = [ctypes.c_uint64.from_address(pointer).value for pointer in pointers]
        self.cuda.used_streams.append(stream)
        if self.cuda.recording is not None:
            self.cuda.recording.append(lambda: run((x, y, z), given))
        else:
            run((x, y, z), given)
        return (0,)

    def cuGetErrorString(self, code):
        return 0, b"pretended error"


def coarse_logits(frame):
    """frame (N, H, W, 3) -> (N, CLASSES, H / 4, W / 4) float16: all exact, of many winners."""
    blue, green, red = np.moveaxis(frame[:, 2::4, 2::4].astype(np.int64), -1, 0)
    planes = [(blue * (k + 1) + green * (k + 3) + red) % 97 for k in range(CLASSES)]
    return (np.stack(planes, axis=1) / 8).astype(np.float16)


class Context:
    """Labels are the blue channel modulo the number of classes, plus `shift`."""

    def __init__(self, engine):
        self.engine, self.addresses = engine, {}
        self.jit = engine.world.jit
        self.tensors = dict(engine.tensors)

    def get_tensor_shape(self, name):
        return self.tensors[name]

    def set_optimization_profile_async(self, number, stream):
        self.profile = self.engine.profiles[number]
        return True

    def set_input_shape(self, name, shape):
        """Refuses any but that of the profile, which has one size."""
        sides = dict(zip((1, 2), self.profile, strict=True))
        for tensor, dims in self.tensors.items():
            self.tensors[tensor] = [sides[i] if dim < 0 else dim for i, dim in enumerate(dims)]
        return tuple(shape) == tuple(self.tensors[name])

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream):
        return self.engine.world.capturable

    def execute_async_v3(self, stream):
        world = self.engine.world
        world.runs += 1
        if world.recording is not None and world.capture_fails:
            return False
        if world.cuda.recording is not None:
            world.cuda.recording.append(self.compute)
        else:
            self.compute()
        return True

    def compute(self):
        tensors = self.tensors
        frame = self.array("frame", np.uint8)
        labels = (frame[..., 0] + self.engine.world.shift) % CLASSES
        if "labels" in tensors:
            self.array("labels", np.uint8)[:] = labels
        if "coarse" in tensors:
            self.array("coarse", np.float16)[:] = coarse_logits(frame)
        if "logits" in tensors:
            one_hot = np.arange(CLASSES)[:, None, None] == labels[0]
            self.array("logits", np.float32)[0] = one_hot

    def array(self, name, dtype):
        shape = self.tensors[name]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_uint8 * size).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)


class Engine:
    def __init__(self, world, tensors):
        self.profiles = tensors.pop("profiles", [])
        self.world, self.tensors = world, tensors
        self.num_io_tensors = len(tensors)

    def get_tensor_name(self, place):
        return list(self.tensors)[place]

    def get_tensor_shape(self, name):
        return self.tensors[name]

    def get_tensor_dtype(self, name):
        return {"logits": np.float32, "coarse": np.float16}.get(name, np.uint8)

    def get_tensor_mode(self, name):
        return "input" if name == "frame" else "output"

    def create_runtime_config(self):
        return self.world.jit

    def create_execution_context(self, config=None):
        return Context(self)


class Jit:
    """TensorRT-RTX's runtime configuration and cache in one."""

    def __init__(self):
        self.content = None

    def create_runtime_cache(self):
        return self

    def set_runtime_cache(self, cache):
        return True

    def deserialize(self, content):
        accepted = content == b"kernels"
        self.content = content if accepted else self.content
        return accepted

    def serialize(self):
        return np.frombuffer(b"kernels", np.uint8)


class World:
    """The pretended machine, and the switches of what goes wrong on it."""

    def __init__(self):
        self.cuda = PretendedCuda()
        self.driver = PretendedDriver(self.cuda)
        self.api = {"runtime": self.cuda, "driver": self.driver}
        self.jit, self.shift, self.runs = None, 0, 0
        self.engines = 0  # deserialized
        self.capturable, self.capture_fails, self.bits = True, False, 0

    @property
    def recording(self):
        return self.cuda.recording

    def trt(self):
        world = self

        class Log:
            pass

        class Runtime:
            def __init__(self, log):
                self.log = log

            def get_engine_validity(self, content):
                return ("invalid" if world.bits else "valid"), world.bits

            def deserialize_cuda_engine(self, content):
                world.engines += 1
                tensors = {k: tuple(v) for k, v in json.loads(content).items()}
                return Engine(world, tensors) if tensors else None

        invalidity = {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2}
        return SimpleNamespace(
            __name__="tensorrt_rtx",
            __version__="1.7.1.116",
            ILogger=Log,
            Runtime=Runtime,
            nptype=lambda kind: kind,
            TensorIOMode=SimpleNamespace(INPUT="input"),
            EngineValidity=SimpleNamespace(INVALID="invalid"),
            EngineInvalidityDiagnostics=SimpleNamespace(__members__=invalidity),
        )


class PretendedKernel:
    """The bilinear kernel of `file` on a pretended GPU: NumPy on the memory that its arguments
    point at, a frame after another."""

    def __init__(self, world, file):
        self.shape = file.call.shape
        self.world, self.cuda = world, world.cuda
        count = len(file.call.arguments) + file.call.unused
        world.driver.kernels[file.call.name] = (count, self.bilinear)

    def bilinear(self, grid, given):
        at = dict(zip(POINTERS, given, strict=False))
        assert not any(given[len(POINTERS) :]), "the compiler's own pointers are null"
        names = POINTERS[1:-1]
        tables = {name: self.array(at[name], TYPES.get(name, np.float32)) for name in names}
        read = SimpleNamespace(**tables)
        batch = self.shape[0]
        planes = self.array(at["logits"], np.float16).reshape(self.shape).astype(np.float32)
        maps = self.array(at["labels"], np.uint8).reshape(batch, *SIZE)
        for logits, labels in list(zip(planes, maps, strict=True))[: grid[2]]:
            self.label(grid, read, logits, labels)

    def label(self, grid, read, logits, labels):
        columns = min(SIZE[1], grid[1] * COLUMNS)
        for first, rows, upper, lower in read.pieces.reshape(-1, 4)[: grid[0]]:
            ends = [
                logits[:, row][:, read.left] * read.near + logits[:, row][:, read.right] * read.far
                for row in (upper, lower)
            ]
            for y in range(first, first + rows):
                values = ends[0] * read.row_near[y] + ends[1] * read.row_far[y]
                labels[y, :columns] = values.argmax(0)[:columns]

    def array(self, address, dtype):
        buffer = self.cuda.memory[address]
        return np.frombuffer((ctypes.c_uint8 * len(buffer)).from_address(address), dtype)


def pretend(monkeypatch, folder):
    """A world in place of this machine's GPU; caches go to `folder`."""
    world = World()
    monkeypatch.setattr(cuda_module, "_bindings", lambda api="runtime": world.api[api])
    monkeypatch.setattr(module, "import_package", lambda flavour: world.trt())
    monkeypatch.setattr(module, "this_machine", lambda: MACHINE)
    monkeypatch.setattr(module, "gpus", lambda: [GPU])
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return world


def write_engine(
    folder,
    outputs=("labels",),
    tensors=None,
    reference=True,
    margins=255,
    kernel=None,
    labels_of=lambda frame: frame[..., 0] % CLASSES,
    batch=1,
    sizes=(),
):
    """kernel: content of the file that makes labels of coarse logits; batch: frames at once; sizes:
    of an engine that takes several."""
    path = folder / "net.engine"
    shapes = {
        "frame": (batch, *SIZE, 3),
        "labels": (batch, *SIZE),
        "logits": (batch, CLASSES, *SIZE),
        "coarse": (batch, *COARSE_SHAPE[1:]),
    }
    kept = {name: shapes[name] for name in ("frame", *outputs)}
    if sizes:
        kept = {"frame": (batch, -1, -1, 3), "labels": (batch, -1, -1), "profiles": sizes}
    path.write_text(json.dumps(kept if tensors is None else tensors))
    files = [path]
    for size in (sizes or [SIZE]) if reference else []:
        frames = np.concatenate([picture(seed, size) for seed in range(batch)])
        labels = labels_of(frames)
        sure = np.full_like(labels, margins)
        at = CARD.model_copy(update={"size": size, "sizes": sizes})
        files.append(first_load.reference_path(path, at))
        Reference(frames, labels, sure, ("drawn",) * batch).save(files[-1])
    if kernel is not None:
        files.append(kernel_path(path))
        files[-1].write_bytes(kernel)
    facts = {
        "size": sizes[0] if sizes else SIZE,
        "sizes": sizes,
        "size_macs": (1,) * len(sizes),
        "batch": batch,
        "precision": "fp16",
        "outputs": outputs,
        "classes": tuple("abcd"),
        "palette": ((0, 0, 0),) * CLASSES,
        "trained": True,
        "engine": ENGINE,
        "files": {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
    }
    card = CARD.model_copy(update=facts)
    sidecar(path).write_text(card.to_json())
    return path


def picture(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (1, *size, 3), np.uint8)
