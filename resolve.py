"""From what the user typed to a model or an artifact.

An artifact is taken as it is. A variant's name, `NAME:WEIGHTS`, a checkpoint or a `Model` is
exported for this machine first, and the export is kept in the user's cache. PyTorch is
imported only where something has to be exported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .data.files import write_atomically
from .data.limits import read_json_object
from .data.signature import required_key
from .errors import ArtifactError, MissingPackage, SignatureError, UsageError
from .gpu import gpus
from .reporting import Progress
from .runtime import Segmenter, load, read_card
from .runtime.backends.backend import BACKENDS, default_backends, is_installed
from .runtime.packages import writable_cache

if TYPE_CHECKING:
    from .data.classes import ClassSet
    from .models import Network
    from .models.loading import Model

Size = tuple[int, int]  # (height, width) in pixels
logger = logging.getLogger("rtseg")

ROOT = Path(__file__).parent
# Networks whose weights ship: the more accurate one to look at, the faster one to keep up.
BEST_TO_LOOK_AT, BEST_TO_DRIVE = "csfcn_tiny", "csfcn_nano"


def is_artifact(what: str | os.PathLike[str]) -> bool:
    """Whether `what` names a file that a runtime loads: not a variant, nor a bare checkpoint."""
    path = Path(what)
    # The one ending that both have: weights with a card are an artifact, without one a checkpoint.
    if path.suffix == ".safetensors":
        try:
            read_card(path)
        except SignatureError:
            raise
        except ArtifactError:
            return False
        return True
    return any(path.suffix in entry.suffixes for entry in BACKENDS.values())


def load_source(
    what: str | os.PathLike[str] | Network | Model,
    weights: str | os.PathLike[str] | None = None,
    classes: str | os.PathLike[str] | ClassSet | None = None,
    ignore: Sequence[str] = (),
    **own: Any,
) -> Model:
    """`load_model`, or one line on how to get along where PyTorch is not installed."""
    if required_key() is not None:
        raise UsageError(f"{what} is no artifact, and only signed artifacts are wanted: name one")
    if importlib.util.find_spec("torch") is None:
        raise MissingPackage(
            f"{what} has to be exported first, which needs PyTorch: pip install "
            '"rtseg[export]", or name an artifact'
        )
    from .models.loading import load_model

    return load_model(what, weights, classes, ignore, **own)


def read_own_options(
    sizes: Sequence[Size],
    normalize: str | None,
    mean: str | None,
    std: str | None,
    order: str | None,
    output: str | None,
    preprocess: str | None = None,
    fit: str | None = None,
    pad_color: tuple[int, ...] | None = None,
) -> dict[str, object]:
    """What the command line says of a network of the user's own, as `load_model` takes it.

    Args:
        sizes: (height, width) in pixels; the network is tried at the first.
        normalize: a name of `NORMALIZATIONS`.
        mean: in its place, of each channel in 0..1, as "0.5,0.5,0.5".
        std: with `mean`, in the same form.
        order: "rgb" or "bgr".
        output: key or place of the logits.
        preprocess: where to find the user's own, "package.module:callable" or "file.py:callable".
        fit: how frames of another aspect come to the size, which that is held against.
        pad_color: likewise, of what is beside them, in RGB.

    Raises:
        UsageError: both ways are used, a number is none, or the name is unknown.
    """
    found: dict[str, Any] = {"size": sizes[0]} if sizes else {}
    if output is not None:
        found["output"] = output
    if preprocess is not None:
        given = {"preprocess": preprocess, "fit": fit, "pad_color": pad_color}
        found |= {name: value for name, value in given.items() if value is not None}
    if normalize is None and mean is None and std is None and order is None:
        return found
    from .models.own import Normalization, find_normalization

    if (mean is None) != (std is None) or (mean is not None and normalize is not None):
        raise UsageError("give either --normalize NAME, or --mean and --std together")
    known = (
        find_normalization(normalize)
        if mean is None or std is None
        else Normalization(_read_triple(mean), _read_triple(std))
    )
    found["normalize"] = replace(known, order=order or known.order)  # type: ignore[arg-type]
    if known.order != found["normalize"].order and mean is None:  # its values are named in RGB
        found["normalize"] = replace(found["normalize"], mean=known.mean[::-1], std=known.std[::-1])
    return found


def _read_triple(text: str) -> tuple[float, float, float]:
    try:
        first, second, third = map(float, text.split(","))
    except ValueError as error:
        raise UsageError(
            f"--mean and --std are three numbers, as 0.5,0.5,0.5, not {text!r}"
        ) from error
    return first, second, third


def resolve_artifact(
    what: str | os.PathLike[str] | Model,
    *,
    weights: str | os.PathLike[str] | None = None,
    classes: str | os.PathLike[str] | ClassSet | None = None,
    size: Size | None = None,
    backend: str | None = None,
    device: str | None = None,
    progress: Progress = lambda step, share: None,
) -> Path:
    """The path of an artifact; of anything else, its export for this machine.

    Args:
        what: an artifact, a variant's name, "NAME:WEIGHTS", a checkpoint, or what `load_model`
            gave.
        weights: of a network, as `load_model` takes them.
        classes: of a network, as `load_model` takes them.
        size: (height, width) in pixels of the export; by default the one that it was trained at.
        backend: that shall run it; by default the fastest one here.
        device: "cpu" or "cuda[:N]".
        progress: called during an export, with what is being done and the share done, 0..1.

    Raises:
        UsageError: no model is called so, or an artifact is asked for another size.
        MissingPackage: the backend, or PyTorch to export with, is not installed.
    """
    if isinstance(what, (str, os.PathLike)) and is_artifact(what):
        if weights is not None or classes is not None or size is not None:
            raise UsageError(
                f"{what} has its weights, classes and size already: leave --weights, --classes and "
                "--size out, or name a network"
            )
        return Path(what)
    check_backends([backend] if backend else [])
    chosen = backend or fastest_backends(device)[0]
    model = load_source(what, weights, classes)
    paths = cached_export(
        model,
        size or model.trained_size,
        [chosen],
        graph_precision(device),
        progress,
    )
    return paths[chosen]


def open_segmenter(
    what: str | os.PathLike[str] | Model,
    *,
    backend: str | None = None,
    device: str | None = None,
    **options: Any,
) -> Segmenter:
    """The Segmenter of whatever `resolve_artifact` takes; options are that function's. `size` is
    taken of an artifact too that has several: the one that every frame is brought to."""
    own: dict[str, Any] = {}
    artifact = isinstance(what, (str, os.PathLike)) and is_artifact(what)
    if options.get("size") and artifact and read_card(str(what)).sizes:
        own["size"] = options.pop("size")
    path = resolve_artifact(what, backend=backend, device=device, **options)
    return load(path, backend, device, **own)


def check_backends(backends: Iterable[str]) -> None:
    """Refuse backends that are unknown, not installed or without a GPU to run on."""
    for backend in backends:
        if backend not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise UsageError(f"no backend is called {backend!r}: choose from {known}")
        if not is_installed(backend):
            raise MissingPackage(f"{backend} is not installed: {BACKENDS[backend].install}")
        if "cpu" not in BACKENDS[backend].devices and not gpus():
            raise ArtifactError(
                f"{backend} runs on an NVIDIA GPU, and none answers here: take "
                f"{' or '.join(default_backends('cpu'))}"
            )


def fastest_backends(device: str | None) -> list[str]:
    """The installed backends that make the best of this machine, the fastest first."""
    if uses_gpu(device):
        found = [name for name in default_backends("cuda") if _built_for_gpu(name)]
        if found:
            return found
    return default_backends("cpu")


def uses_gpu(device: str | None) -> bool:
    """Whether what was asked for, or nothing, leads to a GPU that is here."""
    return (device or "cuda").startswith("cuda") and bool(gpus())


def graph_precision(device: str | None) -> str:
    """Of an export that nobody asked a precision of: GPUs have arithmetic for halves, and on a CPU
    the fastest form that passes there is found by trying."""
    return "fp16" if uses_gpu(device) else "auto"


def _built_for_gpu(backend: str) -> bool:
    """Whether the installed package uses a GPU here."""
    try:
        devices = BACKENDS[backend].load().diagnose(gpus()).devices
    except Exception:  # a broken install can raise anything; `rtseg doctor` says what
        return False
    return any(device.startswith("cuda") for device in devices)


def cached_export(
    model: Model,
    size: Size,
    backends: Sequence[str],
    precision: str,
    progress: Progress = lambda step, share: None,
    calib: Path | None = None,
    batch: int = 1,
) -> dict[str, Path]:
    """The artifact for each backend, from the cache, or exported into it.

    The cache is keyed by weights, size, precision, calibration folder, batch and the code that
    exports.

    Args:
        model: what `load_model` gave.
        size: (height, width) in pixels.
        backends: which shall run it; a file each.
        precision: of the graph; "auto": the fastest that passes here, which the log names.
        progress: called with what is being done and the share of it that is done, 0..1.
        calib: folder of frames that int8 and fp8 are calibrated on.
        batch: frames that a call takes.

    Raises:
        UsageError: these have no calibration frames, and no ranges ship with the weights.
    """
    from .export import export
    from .export.calibrate import Calibration
    from .export.export import AUTO
    from .export.job import TARGETS as ENDINGS
    from .export.stored_ranges import find_stored_ranges

    if precision == AUTO:
        told: Progress = lambda step, share: progress(f"exporting {step}", share)  # noqa: E731
        return {
            name: _cached_fastest(model, size, _target_for(name, precision), told, batch)
            for name in backends
        }
    rounded = precision in ("int8", "fp8")
    if rounded and calib is None and find_stored_ranges(model) is None:
        raise UsageError(
            f"{precision} needs frames to be calibrated on: add --calib FOLDER, or name an artifact"
        )
    folder = export_cache(model)
    if calib is not None:
        # By the folder's path alone: frames are not read to look a file up.
        folder /= f"int8-{hashlib.sha256(str(Path(str(calib)).resolve()).encode()).hexdigest()[:8]}"
    stem = f"{model.network.info.name}_{size[0]}x{size[1]}_{precision}{_ending(batch)}"
    targets = {backend: _target_for(backend, precision) for backend in backends}
    paths = {backend: folder / (stem + ENDINGS[target][0]) for backend, target in targets.items()}
    if missing := [targets[backend] for backend, path in paths.items() if not path.exists()]:
        logger.info("export into the cache", extra={"artifact": stem, "folder": str(folder)})
        export(
            model,
            size,
            missing,
            precision,
            out=folder,
            calib=Calibration(calib) if rounded and calib else None,
            batch=batch,
            progress=lambda step, share: progress(f"exporting {step}", share),
        )
    return paths


def _ending(batch: int) -> str:
    """Of a file's name, as export writes it."""
    return f"_b{batch}" if batch > 1 else ""


def _cached_fastest(
    model: Model, size: Size, target: str, progress: Progress, batch: int = 1
) -> Path:
    """The artifact that `precision="auto"` chose, now or when it was first asked for."""
    from .export import export
    from .export.export import AUTO
    from .export.fastest import list_candidates

    candidates = list_candidates(model, target)
    if len(candidates) == 1:  # nothing to choose
        backend = next(name for name in BACKENDS if _target_for(name, AUTO) == target)
        paths = cached_export(model, size, [backend], candidates[0], progress, batch=batch)
        return paths[backend]
    folder = export_cache(model)
    stem = f"{model.network.info.name}_{size[0]}x{size[1]}_{AUTO}{_ending(batch)}"
    note = folder / f"{stem}.{target}.json"
    known = read_json_object(note)
    path = folder / str(known.get("file") or note.name)
    if not known or not path.is_file():
        made = export(model, size, target, AUTO, out=folder, progress=progress, batch=batch)[0]
        path, known = made.path, {"file": made.path.name, "chosen": made.chosen}
        write_atomically(note, (json.dumps(known) + "\n").encode())
    else:
        logger.info(str(known.get("chosen", "")))
    return path


def _target_for(backend: str, precision: str) -> str:
    """What `export` writes for a backend: the files made for it, or others that it reads."""
    from .export.export import AUTO
    from .export.job import TARGETS

    if backend == "onnxruntime" and precision in ("int8", AUTO):
        return backend  # in its own form
    for target, (_, runs_in) in TARGETS.items():
        if runs_in == backend:
            return target
    suffixes = BACKENDS[backend].suffixes
    return next(target for target, (suffix, _) in TARGETS.items() if suffix in suffixes)


def export_cache(model: Model) -> Path:
    """The folder of this network's exports; those that older code made of it are removed."""
    from .models import digest

    exports = writable_cache("bench")
    prefix = f"{model.network.info.name}-{digest(model.network)[:16]}-"
    folder = exports / f"{prefix}{__version__}-{_code_digest()[:8]}"
    # Or a working copy would fill the cache with every edit.
    for stale in exports.glob(f"{prefix}*"):
        if stale != folder:
            shutil.rmtree(stale, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def _code_digest() -> str:
    """Of the code that makes artifacts: in a working copy it changes while the version stays."""
    summary = hashlib.sha256()
    for path in sorted([*ROOT.glob("models/**/*.py"), *ROOT.glob("export/**/*.py")]):
        summary.update(path.read_bytes())
    return summary.hexdigest()
