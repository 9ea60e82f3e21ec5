"""Will this file run here? Answered from the card and the machine, without loading a model."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..data.shipped import name_shipped
from ..data.signature import check_required
from ..errors import ArtifactError, SignatureError
from ..gpu import Gpu, gpus
from ..install import localize
from .artifact import Card, EngineFacts, read_card, sidecar, verify_artifact
from .backends.backend import BACKENDS
from .packages import (
    FLAVOURS,
    MINIMUM_DRIVER,
    Package,
    bindings_version,
    find_package,
    pip_line,
    read_header,
)
from .support import NAMED_ONLY, computes_fp8, find_support

BLOCK = 1 << 22  # bytes hashed by one thread at a time
BINDINGS = "cuda.bindings"


def this_platform() -> str:
    """Such as "linux-x86_64", "linux-aarch64", "windows-x86_64"."""
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    return f"{platform.system().lower()}-{machine}"


@dataclass(frozen=True)
class Machine:
    """What a file may find here. tensorrt: the installed packages; modules: names that import, of
    those that a backend needs; bindings: the version of cuda-bindings, None if that is unknown."""

    platform: str
    gpus: tuple[Gpu, ...]
    tensorrt: tuple[Package, ...]
    modules: frozenset[str]
    bindings: str | None = None

    def package(self, flavour: str) -> Package | None:
        return next((p for p in self.tensorrt if p.flavour == flavour), None)


def this_machine() -> Machine:
    """Read from the driver and the package metadata; no backend is imported."""
    names = [BINDINGS, *(name for entry in BACKENDS.values() for name in entry.packages)]
    return Machine(
        platform=this_platform(),
        gpus=tuple(gpus()),
        tensorrt=tuple(package for name in FLAVOURS if (package := find_package(name))),
        modules=frozenset(name for name in names if _importable(name)),
        bindings=bindings_version(),
    )


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that `name` would be in
        return False


@dataclass(frozen=True)
class Verdict:
    """Whether a file will run here; if not, `reason` says why and `fix` is the command, or else the
    step, that mends it or does without. `code` is the reason as one word, else "ok"."""

    path: str
    ok: bool
    code: str
    reason: str
    fix: str

    def __str__(self) -> str:
        told = "runs here" if self.ok else f"{self.reason}: {localize(self.fix)}"
        return f"{self.path}: {told}"


class _Refused(Exception):
    """code, reason, fix."""


def check(path: str | os.PathLike[str], machine: Machine | None = None) -> Verdict:
    """Whether the artifact at `path` will run on this machine; never raises for a bad file.

    Reads and hashes the file, asks the driver, and loads neither the model nor its backend.
    """
    path = Path(path)
    try:
        check_required(path)
    except SignatureError as error:
        reason, _, fix = str(error).rpartition(": ")
        return Verdict(str(path), False, "signature", reason or fix, fix)
    try:
        card = _readable(path)
        _check_content(path, card)
    except _Refused as refusal:
        return Verdict(str(path), False, *refusal.args)
    return check_machine(path, card, machine or this_machine())


def check_machine(path: Path, card: Card, machine: Machine) -> Verdict:
    """Whether `machine` runs the sound file at `path`, whose card is `card`."""
    try:
        if card.engine is None:
            _check_backend(path, machine)
        else:
            for step in ENGINE_STEPS:
                step(path, card, card.engine, machine)
    except _Refused as refusal:
        return Verdict(str(path), False, *refusal.args)
    return Verdict(str(path), True, "ok", "", "")


def _readable(path: Path) -> Card:
    """The card of a file that is an artifact by its name and its first bytes."""
    if not path.is_file():
        raise _Refused("missing", "there is no such file", f"ls {path.parent}")
    suffixes = [suffix for entry in BACKENDS.values() for suffix in entry.suffixes]
    if path.suffix not in suffixes:
        known = ", ".join(dict.fromkeys(suffixes))
        raise _Refused("not_artifact", f"no backend loads it; they load {known}", "rtseg --help")
    is_engine = path.suffix in BACKENDS["tensorrt"].suffixes
    if is_engine and read_header(path) is None:
        raise _Refused("not_engine", "it is not a TensorRT engine", "rtseg export --help")
    try:
        card = read_card(path)
    except ArtifactError as error:
        beside = sidecar(path)
        if path.suffix not in (".onnx", ".safetensors") and not beside.is_file():
            raise _Refused(
                "no_card",
                f"its card {beside.name} is not beside it",
                f"copy {beside.name} to {path.parent}, or export it again",
            ) from error
        raise _Refused(
            "card", _what(error, path), "export it again with this version, or update rtseg"
        ) from error
    if is_engine and card.engine is None:
        raise _Refused("card", "its card describes no engine", _export(card, "tensorrt"))
    return card


def _what(error: ArtifactError, path: Path) -> str:
    """The error without the file's name at its start and the advice at its end."""
    return str(error).removeprefix(str(path)).lstrip(" .json").rsplit(": ", 1)[0]


def _check_content(path: Path, card: Card) -> None:
    engine, again = card.engine, f"copy {path.name} and its card again, or export it again"
    if card.proof is not None and not card.proof.passed:
        raise _Refused("proof", "it failed its proof", "export it again")
    if engine is not None:
        expected, found = _expected_size(path), path.stat().st_size
        if expected and found < expected:
            raise _Refused("truncated", f"it has {found} of {expected} bytes", again)
        if not _same_content(path, card, engine):
            reason = "it was changed or damaged since it was exported (its SHA-256 differs)"
            raise _Refused("digest", reason, again)
        for name in card.files:
            if not path.with_name(name).is_file():
                raise _Refused("incomplete", f"{name} is not beside it", f"copy {name} too")
    try:
        verify_artifact(path, card, but=(path.name,) if engine else ())
    except ArtifactError as error:
        raise _Refused("digest", _what(error, path), again) from error


def _expected_size(path: Path) -> int | None:
    """In bytes, where the engine says so; the size field is only known for TensorRT-RTX."""
    header = read_header(path)
    return header[2] if header and header[0] == "tensorrt_rtx" else None


def _same_content(path: Path, card: Card, engine: EngineFacts) -> bool:
    if engine.blocks:
        return block_digests(path) == engine.blocks
    return hashlib.sha256(path.read_bytes()).hexdigest() == card.files.get(path.name)


def block_digests(path: Path) -> tuple[str, ...]:
    """SHA-256 of every BLOCK of a file, hashed by as many threads as there are cores."""
    blocks = -(-path.stat().st_size // BLOCK)

    def digest(place: int) -> str:
        # hashlib lets other threads run while it hashes, so that blocks are hashed side by side.
        summary, buffer = hashlib.sha256(), memoryview(bytearray(1 << 18))
        with path.open("rb", buffering=0) as file:
            file.seek(place * BLOCK)
            for _ in range(BLOCK // len(buffer)):
                summary.update(buffer[: file.readinto(buffer)])
        return summary.hexdigest()

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return tuple(pool.map(digest, range(blocks)))


def _check_backend(path: Path, machine: Machine) -> None:
    """For ONNX, OpenVINO and weights: any backend that loads them."""
    able = [entry for entry in BACKENDS.values() if path.suffix in entry.suffixes]
    if not any(name in machine.modules for entry in able for name in entry.packages):
        entry = able[0]
        raise _Refused(
            "no_package",
            f"{entry.packages[0]} is not installed",
            pip_line(entry.extra),
        )


def _check_gpu(path: Path, card: Card, engine: EngineFacts, machine: Machine) -> None:
    if machine.gpus:
        return
    near = [path.with_suffix(suffix) for suffix in (".xml", ".onnx")]
    instead = next((file for file in near if file.is_file()), None)
    fix = f"rtseg predict INPUT --model {instead}" if instead else _export(card, "openvino")
    raise _Refused("no_gpu", "it needs an NVIDIA GPU, and none answers here", fix)


def _check_platform(path: Path, card: Card, engine: EngineFacts, machine: Machine) -> None:
    built, here = engine.platform, machine.platform
    if engine.flavour == "tensorrt_rtx":  # its engines are the same on Linux and Windows
        built, here = (name.split("-")[-1] for name in (built, here))
    if built != here:
        reason = f"it was built for {engine.platform}, and this is {machine.platform}"
        raise _Refused("platform", reason, _export(card, "tensorrt"))


def _check_driver(path: Path, card: Card, engine: EngineFacts, machine: Machine) -> None:
    package, driver = machine.package(engine.flavour), machine.gpus[0].driver
    needed = [engine.minimum_driver, package.minimum_driver if package else None]
    newest = max((_numbers(version) for version in needed if version), default=())
    if driver and _numbers(driver) < newest:
        wanted = ".".join(map(str, newest))
        fix = f"install NVIDIA driver {wanted} or newer: https://www.nvidia.com/drivers"
        if machine.platform == "linux-x86_64":
            fix = f"sudo apt-get install nvidia-driver-{newest[0]}"
        reason = f"it needs NVIDIA driver {wanted} or newer, and {driver} is installed"
        raise _Refused("driver", reason, fix)
    if fix := mend_bindings(machine.bindings, driver):
        reason = f"cuda-bindings {machine.bindings} is newer than NVIDIA driver {driver} allows"
        raise _Refused("driver", reason, fix)


def mend_bindings(bindings: str | None, driver: str) -> str:
    """The command that brings cuda-bindings which a driver runs, "" where they fit already: those
    of CUDA 13 end in error 35 on the drivers of CUDA 12, which a T4 or JetPack 6 may have."""
    major = (_numbers(bindings or "") or (0,))[0]
    oldest = MINIMUM_DRIVER.get(major)
    if not driver or oldest is None or _numbers(driver) >= _numbers(oldest):
        return ""
    return f'pip install "cuda-bindings<{major}"'


def _check_support(path: Path, card: Card, engine: EngineFacts, machine: Machine) -> None:
    """Before the package: to install it for a GPU that it does not run on would help nobody."""
    facts = engine.flavour, engine.version
    answers = {gpu: find_support(gpu, *facts, card.precision) for gpu in machine.gpus}
    if not any(answer.works for answer in answers.values()):
        gpu, answer = next(iter(answers.items()))
        full = machine.package("tensorrt")
        able = card.precision != "fp8" or computes_fp8(gpu.compute_capability)
        steps = [_export(card, "tensorrt", card.precision if able else "int8")]
        plain = find_support(gpu, *facts)  # whatever the precision
        at_hand = full is not None and find_support(gpu, "tensorrt", full.version).works
        if not plain.works and not at_hand:
            steps.insert(0, plain.fix)
        reason = f"{engine.flavour} built it, and on {gpu.name} {answer.why}"
        raise _Refused("compute_capability", reason, "; then ".join(steps))


def _check_package(path: Path, card: Card, engine: EngineFacts, machine: Machine) -> None:
    package = machine.package(engine.flavour)
    if package is None:
        others = ", ".join(p.flavour for p in machine.tensorrt)
        reason = f"it was built by {engine.flavour}, which is not installed"
        raise _Refused(
            "flavour" if others else "no_package",
            reason + (f" ({others} cannot load it)" if others else ""),
            _pip(engine, package),
        )
    if not _loads(package.version, engine):
        reason = f"it was built by {engine.flavour} {engine.version}, and {package.version} is here"
        raise _Refused("version", reason, _pip(engine, package))
    if BINDINGS not in machine.modules:
        raise _Refused("no_package", "cuda-bindings is not installed", pip_line("tensorrt-rtx"))


def _loads(installed: str, engine: EngineFacts) -> bool:
    """Engines load in the release that built them; version compatible ones in newer ones too, and
    those of TensorRT 10 in 11."""
    here, built = _numbers(installed), _numbers(engine.version)
    if "VERSION_COMPATIBLE" in engine.flags:
        return here >= built and (here[0] == built[0] or (built[0], here[0]) == (10, 11))
    # The package may name a build number that the engine does not.
    shorter = min(len(here), len(built))
    return here[:shorter] == built[:shorter]


def _check_capability(path: Path, card: Card, engine: EngineFacts, machine: Machine) -> None:
    here = {gpu.compute_capability: gpu.name for gpu in machine.gpus}
    if not here.keys() & set(engine.compute_capabilities):
        found = ", ".join(f"{name} has {capability}" for capability, name in here.items())
        reason = f"it holds code for compute capability {', '.join(engine.compute_capabilities)}"
        fix = _export(card, "tensorrt")
        if (named := next(iter(here))) in NAMED_ONLY and engine.flavour == "tensorrt_rtx":
            fix += f" --compute-capability {named}"
        raise _Refused("compute_capability", f"{reason}, and {found}", fix)


ENGINE_STEPS: tuple[Callable[[Path, Card, EngineFacts, Machine], None], ...] = (
    _check_gpu,
    _check_platform,
    _check_driver,
    _check_support,
    _check_package,
    _check_capability,
)


def _export(card: Card, target: str, precision: str | None = None) -> str:
    """The command that makes the artifact anew, in its own precision by default; only engines are
    in fp8, and other targets in int8."""
    other = "int8" if card.precision == "fp8" and target != "tensorrt" else card.precision
    sizes = " ".join(f"--size {height}x{width}" for height, width in card.all_sizes)
    sizes += " --one-file" if card.sizes else ""
    model = card.model
    if shipped := name_shipped(model, card.weights_from):
        model = shipped
    elif card.trained:
        model += f" --weights {card.weights_from}"
    batch = f" --batch {card.batch}" if card.batch > 1 else ""
    return f"rtseg export {model} {sizes}{batch} --precision {precision or other} --to {target}"


def _pip(engine: EngineFacts, package: Package | None) -> str:
    cuda = package.cuda if package else None
    if cuda is None:
        cuda = next((c for c, d in MINIMUM_DRIVER.items() if d == engine.minimum_driver), None)
    name = engine.flavour.replace("_", "-") + (f"-cu{cuda}" if cuda else "")
    return f"pip install {name}=={engine.version}"


def _numbers(version: str) -> tuple[int, ...]:
    """("580", "65", "06") as numbers; a part that is none, such as "rc1", ends them."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
