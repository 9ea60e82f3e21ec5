"""The end of an engine as a GPU kernel: the graph is cut before its last upsampling, and a kernel
of `runtime/argmax_triton.py` is compiled for the output at that point.

Compiling needs PyTorch and Triton, but no GPU. The machine code and its tables travel with the
engine; `runtime/backends/argmax_kernel.py` runs them without either package.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from ..data.files import write_atomically
from ..errors import ArtifactError, MissingPackage
from ..runtime.artifact import Card, Upsampling
from ..runtime.backends.argmax_kernel import COARSE, LABELS, Call, KernelFile, runs_on
from .graph import find_coarse, rename
from .several_sizes import Size, merge_sizes

if TYPE_CHECKING:
    from ..runtime.argmax_triton import Launch

POINTERS = {"float32": "*fp32", "float16": "*fp16", "int32": "*i32", "uint8": "*u8"}
ALIGNED = 16  # bytes that pointers are promised to be aligned to; cudaMalloc aligns to 256
CARRIERS = ("Reshape", "Identity")  # between a head's convolution and the argmax
THREADS_A_WARP = 32
Array = NDArray[np.generic]


@dataclass(frozen=True)
class CutGraph:
    """A graph without its end.

    Attributes:
        graph: gives COARSE in place of labels.
        shape, dtype: of COARSE, (N, C, h, w).
        weight, bias: of the 1x1 convolution that read it, where `upsampling` is a shuffle.
    """

    graph: onnx.ModelProto
    upsampling: Upsampling
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    weight: Array | None = None
    bias: Array | None = None


def cut_before_labels(
    graphs: Mapping[Size, onnx.ModelProto], card: Card, path: Path
) -> tuple[Card, Callable[[Sequence[str]], dict[Size, bytes]]]:
    """Write a graph cut before its last upsampling to `path`.

    Args:
        graphs: the whole graph, of several sizes that of each.
        card: of it.
        path: file to write.

    Returns:
        The cut graph's card, and what makes the kernel files, by size, for compute capabilities.
        Raises as `cut` and `compile_kernel`.
    """
    endings = {size: cut(graph) for size, graph in graphs.items()}
    first, *others = endings.values()
    whole = merge_sizes([e.graph for e in (first, *others)], card.sizes) if others else first.graph
    write_atomically(path, whole.SerializeToString())
    card = card.model_copy(update={"outputs": (COARSE,), "upsampling": first.upsampling})

    def kernels(compute_capabilities: Sequence[str]) -> dict[Size, bytes]:
        return {
            size: compile_kernel(ending, size, compute_capabilities).to_bytes()
            for size, ending in endings.items()
        }

    return card, kernels


def cut(graph: onnx.ModelProto) -> CutGraph:
    """Take the last upsampling and the argmax off a graph.

    Raises:
        ArtifactError: its labels are no argmax of a bilinear resize, or of a pixel shuffle of a 1x1
            convolution.
    """
    found = find_coarse(graph)
    if found is None:
        raise ArtifactError(
            "the label kernel cannot make these labels: they are not the argmax of upsampled "
            "logits; export without --label-kernel"
        )
    source, upsampling = found.tensor, found.upsampling
    weight = bias = None
    if upsampling == "shuffle":
        source, weight, bias = _head(graph, source)
    # The extractor takes types and shapes over only where the graph states them.
    typed = onnx.shape_inference.infer_shapes(graph, strict_mode=True)
    part = onnx.utils.Extractor(typed).extract_model(["frame"], [source])
    rename(part.graph, source, COARSE)
    kind = part.graph.output[0].type.tensor_type
    shape = tuple(side.dim_value for side in kind.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return CutGraph(part, upsampling, shape, dtype, _cast(weight, dtype), _cast(bias, dtype))


def _head(graph: onnx.ModelProto, scores: str) -> tuple[str, Array, Array | None]:
    """(what the convolution behind `scores` reads, its weight, its bias)."""
    makers = {output: node for node in graph.graph.node for output in node.output}
    held = {tensor.name: tensor for tensor in graph.graph.initializer}
    node = makers.get(scores)
    # Only nodes that move nothing: behind any other the argmax reads something else.
    while node is not None and node.op_type in CARRIERS:
        node = makers.get(node.input[0])
    if node is None or node.op_type != "Conv" or not _is_plain(node):
        raise ArtifactError(
            "the label kernel cannot make these labels: their logits are not of a 1x1 convolution; "
            "export without --label-kernel"
        )
    weight, *bias = (_constant(name, makers, held) for name in node.input[1:])
    source = node.input[0]
    if makers[source].op_type == "DequantizeLinear":  # the kernel takes it as it was, not rounded
        source = makers[makers[source].input[0]].input[0]
    return source, weight, bias[0] if bias else None


def _is_plain(convolution: onnx.NodeProto) -> bool:
    facts = {each.name: onnx.helper.get_attribute_value(each) for each in convolution.attribute}
    ones = (*facts.get("strides", ()), *facts.get("dilations", ()), facts.get("group", 1))
    return set(ones) == {1} and not any(facts.get("pads", ()))


def _constant(name: str, makers: dict[str, onnx.NodeProto], held: dict[str, TensorProto]) -> Array:
    """A weight as a float array, also where the graph holds it in int8."""
    if name in held:
        return np.asarray(numpy_helper.to_array(held[name]))
    # Held as int8 behind a DequantizeLinear: brought back here, since the kernel computes in
    # floats.
    back = makers[name]
    rounded, scale = (numpy_helper.to_array(held[each]) for each in back.input[:2])
    sides = (-1, *[1] * (rounded.ndim - 1))
    return np.asarray(rounded.astype(np.float32) * scale.reshape(sides))


def _cast(values: Array | None, dtype: np.dtype[np.generic]) -> Array | None:
    return None if values is None else values.astype(dtype)


def compile_kernel(
    ending: CutGraph, size: tuple[int, int], compute_capabilities: Sequence[str]
) -> KernelFile:
    """The kernel for a frame of `size`, on GPUs of those compute capabilities ("8.6").

    Raises:
        MissingPackage: Triton is not installed.
        ArtifactError: the kernels cannot take these logits.
    """
    if importlib.util.find_spec("triton") is None:
        raise MissingPackage("label kernels are compiled by triton: pip install triton")
    from ..runtime.argmax_triton import bilinear_launch, named_strides, shuffled_launch

    if ending.weight is None:
        launch = bilinear_launch(ending.shape, size, ending.upsampling)
        tables = launch.tables
    else:
        launch = shuffled_launch(ending.weight.shape, ending.shape, size)
        bias = ending.bias
        offsets = np.zeros(len(ending.weight), ending.dtype) if bias is None else bias
        tables = {"weight": ending.weight.reshape(len(ending.weight), -1), "bias": offsets}
    types = {name: table.dtype.name for name, table in tables.items()}
    types |= {launch.kernel.arg_names[0]: ending.dtype.name, LABELS: "uint8"}
    _, channels, height, width = ending.shape
    # An engine's outputs are contiguous.
    constants = launch.constants | named_strides(
        (channels * height * width, height * width, width, 1)
    )
    made = {
        target: _machine_code(launch, types, constants, target)
        for target in _targets(compute_capabilities)
    }
    return KernelFile(
        call=_call(ending, launch, types, made),
        code={target: each.asm["cubin"] for target, each in made.items()},
        tables={name: np.ascontiguousarray(table) for name, table in tables.items()},
    )


def _targets(compute_capabilities: Sequence[str]) -> list[str]:
    """As few as run on all of these GPUs."""
    chosen: list[tuple[int, ...]] = []
    # Lowest first: code for an older GPU of a generation runs on its younger ones too.
    for gpu in sorted(tuple(map(int, each.split("."))) for each in compute_capabilities):
        if not any(runs_on(target, gpu) for target in chosen):
            chosen.append(gpu)
    return [".".join(map(str, target)) for target in chosen]


def _machine_code(
    launch: Launch, types: dict[str, str], constants: dict[str, int], target: str
) -> Any:
    """The kernel with every number built in, so that only pointers are left to pass."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    # Pointers are arguments; every number becomes a constant of the machine code.
    signature = {name: POINTERS[types[name]] if name in types else "constexpr" for name in names}
    hints = {
        (place,): [["tt.divisibility", ALIGNED]]
        for place, name in enumerate(names)
        if name in types
    }
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=hints)
    capability = int(target.replace(".", ""))
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, THREADS_A_WARP),
        options={"num_stages": launch.stages},
    )


def _call(ending: CutGraph, launch: Launch, types: dict[str, str], made: dict[str, Any]) -> Call:
    # Name, threads and parameters are the same for every GPU; code and shared memory are not.
    first = next(iter(made.values()))
    _, *others = launch.kernel.arg_names
    arguments = [COARSE, *(name for name in others if name in types)]
    for each in made.values():
        facts = each.metadata
        if facts.global_scratch_size or facts.profile_scratch_size:
            raise ArtifactError("this Triton needs scratch memory, which the runtime lacks")
    return Call(
        name=first.metadata.name,
        shape=ending.shape,
        dtype=ending.dtype.name,
        grid=launch.grid,
        threads=first.metadata.num_warps * THREADS_A_WARP,
        shared={target: each.metadata.shared for target, each in made.items()},
        arguments=tuple(arguments),
        unused=_parameters(first.asm["ptx"]) - len(arguments),
    )


def _parameters(ptx: str) -> int:
    """How many parameters the kernel takes; Triton adds pointers to scratch memory of its own."""
    entry = re.search(r"\.entry[^(]*\((.*?)\)", ptx, re.DOTALL)
    assert entry is not None
    return len(re.findall(r"\.param\b", entry.group(1)))
