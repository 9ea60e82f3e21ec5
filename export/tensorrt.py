"""ONNX graph -> TensorRT engine and its card, with either TensorRT package."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..data.files import digest_of, text_log, write_atomically
from ..errors import ArtifactError, MissingPackage, UsageError
from ..gpu import gpus
from ..runtime.artifact import Card, EngineFacts, sidecar
from ..runtime.backends.argmax_kernel import kernel_path
from ..runtime.packages import (
    FLAVOURS,
    INSTALL,
    Flavour,
    Package,
    cache_folder,
    find_package,
    import_package,
    install_line,
    last_line,
    make_log,
    members,
    pip_line,
    slug,
)
from ..runtime.preflight import block_digests, this_platform
from ..runtime.support import GPUS, NAMED_ONLY, computes_fp8, find_capability, find_support
from ..runtime.verify import Reference, reference_path
from .dla import use_dla

# Of those in the table of GPUs, what an engine in this mode of compatibility runs on.
AMPERE_PLUS = tuple(dict.fromkeys(c for cs in GPUS.values() for c in cs if float(c) >= 8))
ONNX_NAMES = {"float32": "float", "half": "float16", "bf16": "bfloat16", "fp8": "float8e4m3fn"}


@dataclass(frozen=True)
class BuilderOptions:
    """What TensorRT's builder is told beside the graph; None leaves its default.

    Attributes:
        optimization_level: 0 to 5, how long it searches for the fastest kernels.
        workspace_mib: most memory in MiB that a layer may use while it runs.
        version_compatible: newer releases of TensorRT load the engine too; with the full package.
        hardware_compatible: GPUs of 8.0 and later run it, not only the one that builds it; with
            the full package, as TensorRT-RTX takes compute capabilities instead.
        timing_cache: file with the times of kernels, read and written; with the full package, by
            default one in the user's cache.
        dla: core of the deep learning accelerator that runs what it can.
    """

    optimization_level: int | None = None
    workspace_mib: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None
    dla: int | None = None

    def __post_init__(self) -> None:
        if self.optimization_level not in (None, *range(6)):
            raise UsageError(f"the optimization level is 0 to 5, not {self.optimization_level}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"the workspace is 1 MiB or more, not {self.workspace_mib}")

    def facts(self) -> dict[str, str]:
        """Those that are not left at their defaults, for the card."""
        facts = {
            "optimization_level": self.optimization_level,
            "workspace_mib": self.workspace_mib,
            "version_compatible": self.version_compatible or None,
            "hardware_compatible": self.hardware_compatible or None,
            "timing_cache": self.timing_cache and self.timing_cache.name,
            "dla": self.dla,
        }
        return {name: str(value).lower() for name, value in facts.items() if value is not None}


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that was written.

    Attributes:
        card: beside it.
        census: values held in the weights of the network that TensorRT parsed, by data type.
        layer_types: its layer outputs likewise.
        log: TensorRT's own, beside the engine; not there if it said nothing.
        warnings: GPUs that it was to run on and cannot.
    """

    card: Card
    census: dict[str, int]
    layer_types: dict[str, int]
    log: Path
    warnings: tuple[str, ...] = ()


def build_engine(
    onnx: Path,
    target: Path,
    card: Card,
    *,
    compute_capabilities: Sequence[str] = (),
    gpu: str | None = None,
    options: BuilderOptions | None = None,
    log_level: str = "warning",
    flavour: Flavour | None = None,
    references: Mapping[tuple[int, int], Reference] | None = None,
    label_kernel: Callable[[Sequence[str]], Mapping[tuple[int, int], bytes]] | None = None,
) -> BuiltEngine:
    """Build an engine from a typed ONNX graph, and write its log, reference and card beside it.

    Args:
        onnx: the graph.
        target: the engine's path.
        card: of the graph; the engine's is this one with the engine's facts and no proof.
        compute_capabilities: such as ("8.6", "8.9"), by default all that one engine serves well
            (with `tensorrt`: that of the GPU here).
        gpu: that it shall run on, by its name ("h100"); by default those of this machine.
        options: of the builder, which the card keeps.
        log_level: "verbose", "info", "warning" or "error".
        flavour: by default `tensorrt` where it is installed and finds a GPU, else `tensorrt_rtx`.
        references: by size, what the engine is proven against on the first machine that loads it.
        label_kernel: gives the kernel files that make labels of the engine's coarse logits, by
            size, for these compute capabilities.

    Raises:
        MissingPackage: no TensorRT package is installed.
        ArtifactError: TensorRT cannot parse or build the graph; only the log is left.
        UsageError: an option is unknown.
    """
    package = choose_package(flavour, gpu)
    if gpu and not compute_capabilities and find_support(gpu, package.flavour).works:
        compute_capabilities = (find_capability(gpu),)
    options = options or BuilderOptions()
    _check_options(options, package)
    trt = import_package(package.flavour)
    log_path = target.with_name(target.name + ".log")
    began = time.perf_counter()
    with text_log(log_path) as file:
        log = make_log(trt, log_level, file)
        builder = _builder(trt, log)
        network = _network(trt, builder)
        _parse(trt, network, log, onnx)
        config = builder.create_builder_config()
        _add_profiles(builder, config, card)
        capabilities = _configure(trt, config, package, compute_capabilities, options, card)
        core = options.dla
        dla = None if core is None else use_dla(trt, builder, network, config, core, card.precision)
        kernels = label_kernel(capabilities) if label_kernel else {}
        plan = _build(trt, builder, network, config, log, package, log_path)
        if package.flavour == "tensorrt":
            _keep_timings(config, options.timing_cache or _timing_cache(package))
    if not log_path.stat().st_size:
        log_path.unlink()
    facts = EngineFacts(
        flavour=package.flavour,
        version=trt.__version__,
        compute_capabilities=capabilities,
        platform=this_platform(),
        minimum_driver=package.minimum_driver,
        flags=_flags(trt, network, config),
        layers=network.num_layers,
        onnx=digest_of(onnx),
        build_seconds=round(time.perf_counter() - began, 3),
        options=(options.facts() | (dla.facts() if dla else {})) or None,
    )
    written = _write(target, plan, card, facts, references or {}, kernels)
    warnings = tuple(find_unserved(package, capabilities, gpu, card.precision))
    if dla and dla.fallback:
        warnings = (*warnings, dla.describe())
    return BuiltEngine(written, census(trt, network), layer_types(network), log_path, warnings)


def find_unserved(
    package: Package, capabilities: Sequence[str], gpu: str | None = None, precision: str = ""
) -> Iterator[str]:
    """A line for each GPU, the named one or this machine's, that an engine cannot run on.

    Args:
        package: that builds the engine.
        capabilities: compute capabilities that it is built for.
        gpu: by its name; by default those of this machine.
        precision: of the engine.
    """
    wanted = {gpu: find_capability(gpu)} if gpu else {g.name: g.compute_capability for g in gpus()}
    for name, capability in wanted.items():
        answer = find_support(capability, package.flavour, package.version, precision)
        if not answer.works:
            yield f"this engine does not run on {name}: {answer.why}; {answer.fix}"
        elif capability not in capabilities:
            yield (
                f"this engine does not run on {name} ({capability}), as it is for "
                f"{', '.join(capabilities)}: export with --compute-capability {capability}, or on "
                "that machine"
            )


def choose_package(flavour: Flavour | None = None, gpu: str | None = None) -> Package:
    """The package to build with: the full one for a GPU of this machine, else TensorRT-RTX.

    Args:
        flavour: the one that is asked for.
        gpu: that the engine is for, by its name, if not one of this machine.

    Raises:
        MissingPackage: it is not installed.
    """
    found = [package for name in FLAVOURS if (package := find_package(name))]
    wanted = [package for package in found if flavour in (None, package.flavour)]
    if not wanted:
        names = flavour or "tensorrt or tensorrt_rtx"
        line = install_line(flavour) if flavour else pip_line("tensorrt-rtx")
        raise MissingPackage(f"building an engine needs {names}: {line}")
    # The full package tunes on the GPU it builds for, so without one only the other can build.
    here = {each.compute_capability for each in gpus()}
    at_hand = bool(here) if gpu is None else find_capability(gpu) in here
    return wanted[0] if at_hand else wanted[-1]


def census(trt: ModuleType, network: object) -> dict[str, int]:
    """Values held in a TensorRT network's weights and constants, by data type as ONNX names it."""
    held: Counter[str] = Counter()
    for layer in _layers(network):
        for weights in _weights(trt, layer):
            name = getattr(weights.dtype, "name", str(weights.dtype)).lower()
            held[ONNX_NAMES.get(name, name)] += int(weights.size)
    return dict(held)


def layer_types(network: object) -> dict[str, int]:
    """Layer outputs of a TensorRT network by its data types, such as {"HALF": 120, "INT32": 2}."""
    return dict(
        Counter(
            layer.get_output(i).dtype.name
            for layer in _layers(network)
            for i in range(layer.num_outputs)
        )
    )


def _layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(place) for place in range(network.num_layers))


def _weights(trt: ModuleType, layer: Any) -> Iterator[Any]:
    """The non-empty weights of a layer, as arrays or `trt.Weights`."""
    kind = {"CONVOLUTION": "IConvolutionLayer", "DECONVOLUTION": "IDeconvolutionLayer"}.get(
        layer.type.name, "IConstantLayer" if layer.type.name == "CONSTANT" else None
    )
    if kind is None:
        return
    # network.get_layer gives the base class, which hides the weights; the binding has no cast but
    # this one.
    layer.__class__ = getattr(trt, kind)
    for name in ("weights", "kernel", "bias"):
        weights = getattr(layer, name, None)
        if weights is not None and weights.size:
            yield weights


def _builder(trt: ModuleType, log: Any) -> Any:
    try:
        return trt.Builder(log)
    except TypeError as error:  # how the binding reports a null pointer
        raise ArtifactError(
            f"{trt.__name__} {trt.__version__} cannot build here ({last_line(log.errors)}): "
            f"tensorrt_rtx builds without a GPU, {INSTALL}"
        ) from error


def _network(trt: ModuleType, builder: Any) -> Any:
    """An empty network whose data types are those of the graph, where that is a choice."""
    flags = members(trt.NetworkDefinitionCreationFlag)
    typed = flags.get("STRONGLY_TYPED")
    # Probed, not derived from a version: where the flag is gone, every network is strongly typed.
    return builder.create_network(0 if typed is None else 1 << int(typed))


def _parse(trt: ModuleType, network: object, log: Any, onnx: Path) -> None:
    """Raises ArtifactError that names the node that TensorRT cannot read, and why."""
    if not onnx.is_file():
        raise ArtifactError(f"no ONNX graph at {onnx}")
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(str(onnx)):
        return
    if not parser.num_errors:
        raise ArtifactError(f"TensorRT cannot parse {onnx}: {last_line(log.errors)}")
    error = parser.get_error(0)
    # Older TensorRTs know the node's number only.
    name = error.node_name() if hasattr(error, "node_name") else f"number {error.node()}"
    operator = f" ({error.node_operator()})" if hasattr(error, "node_operator") else ""
    reason = " ".join(error.desc().split())
    raise ArtifactError(
        f"TensorRT {trt.__version__} cannot parse {onnx} at node {name}{operator}: {reason}"
    )


def _add_profiles(builder: Any, config: Any, card: Card) -> None:
    """One for each size of an engine that takes several, for that size alone: TensorRT chooses
    kernels for it as for an engine of one size."""
    for height, width in card.sizes:
        shape = (card.batch, height, width, 3)
        profile = builder.create_optimization_profile()
        profile.set_shape("frame", shape, shape, shape)
        config.add_optimization_profile(profile)


def _check_options(options: BuilderOptions, package: Package) -> None:
    """Raises UsageError for what the package has no such option for."""
    if package.flavour != "tensorrt_rtx":
        return
    instead = {
        "hardware_compatible": "name GPUs with --compute-capability, which may be repeated",
        "timing_cache": "it times nothing as it builds",
        # The flag is there, and the build ends for want of libnvinfer_lean (tried with 1.7.1).
        "version_compatible": "its engines load in the release that built them",
    }
    for name, why in instead.items():
        if getattr(options, name):
            raise UsageError(f"tensorrt_rtx has no --{name.replace('_', '-')}: {why}")


def _set_options(trt: ModuleType, config: Any, options: BuilderOptions) -> None:
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _configure(
    trt: ModuleType,
    config: Any,
    package: Package,
    wanted: Sequence[str],
    options: BuilderOptions,
    card: Card,
) -> tuple[str, ...]:
    """Set flags, timing cache and compute capabilities; returns the capabilities."""
    _set_options(trt, config, options)
    flags = members(trt.BuilderFlag)
    # TF32 has 10 bits of mantissa.
    if "TF32" in flags:  # float32 is where the range or the position counts, in fp16 engines too
        config.clear_flag(flags["TF32"])
    if package.flavour == "tensorrt":
        # A rebuild on the same GPU reads the kernels' times instead of taking them anew.
        cache = options.timing_cache or _timing_cache(package)
        known = cache.read_bytes() if cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
        here = _capability_here(wanted)
        chosen = AMPERE_PLUS if options.hardware_compatible else here
        _check_precision(package, chosen, card)
        return chosen
    return _set_capabilities(trt, config, package, wanted, card)


def _check_precision(package: Package, capabilities: Sequence[str], card: Card) -> None:
    for capability in capabilities:
        answer = find_support(capability, package.flavour, precision=card.precision)
        if not answer.works and card.precision == "fp8":
            raise ArtifactError(f"no engine in fp8 for {capability}: {answer.why}: {answer.fix}")


def _capability_here(wanted: Sequence[str]) -> tuple[str, ...]:
    """The full TensorRT builds for the GPU that it runs on, and no other."""
    here = {gpu.compute_capability for gpu in gpus()[:1]}
    if wanted and set(wanted) != here:
        raise ArtifactError(
            f"tensorrt builds for the GPU at hand ({', '.join(here) or 'none'}), not for "
            f"{', '.join(wanted)}: tensorrt_rtx builds for any, {INSTALL}"
        )
    return tuple(here)


def _set_capabilities(
    trt: ModuleType, config: Any, package: Package, wanted: Sequence[str], card: Card
) -> tuple[str, ...]:
    offered = {}
    for name, member in members(trt.ComputeCapability).items():
        if name.startswith("SM"):  # SM86, SM120
            offered[f"{name[2:-1]}.{name[-1]}"] = member
    # In an engine for several GPUs the oldest would make it slower on all the others.
    usual = tuple(
        c for c in offered if c not in NAMED_ONLY and (card.precision != "fp8" or computes_fp8(c))
    )
    here = tuple(dict.fromkeys(g.compute_capability for g in gpus()))
    if here and not set(here) & set(usual) and set(here) <= set(offered):
        usual = here
    chosen = tuple(dict.fromkeys(wanted)) or usual
    if unknown := [capability for capability in chosen if capability not in offered]:
        raise UsageError(
            f"{trt.__name__} {trt.__version__} builds for compute capability "
            f"{', '.join(offered)}, not {', '.join(unknown)}"
        )
    _check_precision(package, chosen, card)
    config.num_compute_capabilities = len(chosen)
    for place, capability in enumerate(chosen):
        if not config.set_compute_capability(offered[capability], place):
            raise ArtifactError(f"{trt.__name__} refuses compute capability {capability}")
    return chosen


def _build(
    trt: ModuleType,
    builder: Any,
    network: object,
    config: Any,
    log: Any,
    package: Package,
    log_path: Path,
) -> bytes:
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ArtifactError(
            f"{trt.__name__} {trt.__version__} cannot build the engine: {last_line(log.errors)} "
            f"(log: {log_path})"
        )
    return bytes(plan)


def _keep_timings(config: Any, path: Path) -> None:
    # A cache that cannot be kept costs time at the next build, nothing else.
    with contextlib.suppress(OSError):
        write_atomically(path, bytes(config.get_timing_cache().serialize()))


def _timing_cache(package: Package) -> Path:
    """Kernel timings of earlier builds, by TensorRT version and GPU; TensorRT-RTX times nothing,
    and a cache would make it ask for a GPU."""
    here = gpus()
    name = slug(here[0].name) if here else "no-gpu"
    return cache_folder() / f"timing-{package.version}-{name}.cache"


def _flags(trt: ModuleType, network: Any, config: Any) -> tuple[str, ...]:
    """Names of the network's and the builder's flags that were set."""
    of_network = members(trt.NetworkDefinitionCreationFlag)
    of_builder = members(trt.BuilderFlag)
    return (
        *(name for name, flag in of_network.items() if network.get_flag(flag)),
        *(name for name, flag in of_builder.items() if config.get_flag(flag)),
    )


def _write(
    target: Path,
    plan: bytes,
    card: Card,
    facts: EngineFacts,
    references: Mapping[tuple[int, int], Reference],
    kernels: Mapping[tuple[int, int], bytes],
) -> Card:
    """Write engine, what goes with it, and card, in this order: a reader that sees the card has
    them all."""
    card = card.model_copy(
        update={"proof": None, "tools": card.tools | {facts.flavour: facts.version}}
    )
    sized = [card.at(size) for size in card.all_sizes]
    beside = [place(target, each) for each in sized for place in (reference_path, kernel_path)]
    try:
        write_atomically(target, plan)
        files = [target]
        for size, reference in references.items():
            files.append(reference_path(target, card.at(size)))
            reference.save(files[-1])
        for size, kernel in kernels.items():
            files.append(kernel_path(target, card.at(size)))
            write_atomically(files[-1], kernel)
        # By blocks as well, so that all cores of a vehicle check a large engine at once.
        facts = facts.model_copy(update={"blocks": block_digests(target)})
        digests = {path.name: digest_of(path) for path in files}
        card = card.model_copy(update={"engine": facts, "files": digests})
        write_atomically(sidecar(target), card.to_json().encode())
    # An interrupt too: an engine without its card must not be found later.
    except BaseException:
        for path in (target, *beside, sidecar(target)):
            path.unlink(missing_ok=True)
        raise
    return card
