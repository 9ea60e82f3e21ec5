"""Artifacts and plain exports that a measurement needs, kept in the user's cache."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import UsageError
from ..runtime.packages import writable_cache

if TYPE_CHECKING:
    import torch

    from ..models import Network
    from ..models.loading import Source

Size = tuple[int, int]
Progress = Callable[[str, float], None]
TARGETS = {"onnxruntime": "onnx"}  # what `export` makes for a backend, where the names differ
ROOT = Path(__file__).parents[1]


def exported(
    source: Source,
    size: Size,
    backends: Sequence[str],
    graph: str,
    progress: Progress,
    calib: Path | None = None,
) -> dict[str, Path]:
    """The artifact of each backend, from the cache, or exported into it.

    The cache is keyed by weights, size, precision, calibration folder and the code that exports.
    calib: that folder, of frames for int8.

    Raises ValueError where int8 has no calibration frames.
    """
    from ..export import export
    from ..export.calibrate import Calibration
    from ..export.export import TARGETS as ENDINGS
    from ..models import digest

    if graph == "int8" and calib is None:
        raise UsageError(
            "int8 needs frames to be calibrated on: add --calib FOLDER, or measure an int8 artifact"
        )

    name = source.network.info.name
    folder = _cache_folder(name, digest(source.network))
    if graph == "int8":
        folder /= f"int8-{hashlib.sha256(str(Path(str(calib)).resolve()).encode()).hexdigest()[:8]}"
    stem = f"{name}_{text_of(size)}_{graph}"
    targets = {backend: TARGETS.get(backend, backend) for backend in backends}
    paths = {backend: folder / (stem + ENDINGS[target][0]) for backend, target in targets.items()}
    if missing := [targets[backend] for backend, path in paths.items() if not path.exists()]:
        export(
            source.network,
            [size],
            missing,
            graph,
            out=folder,
            classes=source.classes,
            weights_from=source.weights_from,
            trained=source.trained,
            calibration=Calibration(calib) if graph == "int8" and calib else None,
            progress=lambda step: progress(f"exporting {step}", 0.0),
        )
    return paths


def plain_export(source: Source, size: Size) -> Path:
    """An ONNX file as anybody would write it: `torch.onnx.export` with its defaults, float32, of
    the network, the resize to the image and the argmax; "image" (1, 3, H, W) float32, normalized,
    to "labels" (1, H, W) int64. From the cache, or exported into it."""
    import torch

    from ..export.graph import quiet
    from ..models import digest

    name = source.network.info.name
    path = _cache_folder(name, digest(source.network)) / f"{name}_{text_of(size)}_plain.onnx"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch, quiet():
        torch.onnx.export(
            _plain(source.network, size),
            (torch.zeros(1, 3, *size),),
            str(Path(scratch) / path.name),
            input_names=["image"],
            output_names=["labels"],
            external_data=False,
        )
        (Path(scratch) / path.name).replace(path)
    return path


def _plain(network: Network, size: Size) -> torch.nn.Module:
    import torch

    class Labels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits = self.network(image)
            if tuple(logits.shape[-2:]) != size:
                corners = network.info.align_corners
                logits = torch.nn.functional.interpolate(
                    logits, size, mode="bilinear", align_corners=corners
                )
            labels: torch.Tensor = logits.argmax(1)
            return labels

    return Labels().eval()


def _cache_folder(name: str, weights: str) -> Path:
    """This network's folder of artifacts; those that older code made of it are removed."""
    bench = writable_cache("bench")
    prefix = f"{name}-{weights[:16]}-"
    folder = bench / f"{prefix}{__version__}-{_code_digest()[:8]}"
    for stale in bench.glob(f"{prefix}*"):
        if stale != folder:
            shutil.rmtree(stale, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def _code_digest() -> str:
    """Of the code that makes artifacts: in a working copy it changes while the version stays."""
    summary = hashlib.sha256()
    for path in sorted([*ROOT.glob("models/*.py"), *ROOT.glob("export/*.py")]):
        summary.update(path.read_bytes())
    return summary.hexdigest()


def text_of(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
