"""Real-time street-scene segmentation: export, prove, measure and run networks in a vehicle.

Public names are imported when they are first used, so that `import rtseg` is instant and a vehicle
never loads PyTorch:

    model = rtseg.load_model("csfcn_tiny", weights="mine.pth")
    (artifact,) = rtseg.export(model, size=(512, 1024), to="tensorrt", precision="fp16")
    segment = rtseg.load(artifact.path)
    labels = segment(frame)
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from .data.limits import LIMITS, find_variable
from .errors import (
    ArtifactError,
    BackendError,
    CheckpointError,
    DataError,
    ExportError,
    MissingPackage,
    ProofError,
    RecipeError,
    RtsegError,
    SignatureError,
    TrainingError,
    UsageError,
    WriteError,
)

if TYPE_CHECKING:
    from .api import evaluate
    from .export.artifacts import Artifact
    from .export.export import export
    from .labels import exact_labels
    from .models.loading import Model, load_model
    from .runtime import Card, Details, Drive, Segmenter, load
    from .speed.bench import bench
    from .train import train

__version__ = "0.1.0"
# A small file may claim a picture of many gigabytes. OpenCV reads this when it is loaded, and would
# take up to 2**30 pixels; set it for larger ones.
# What is wrong with a file is said in one line; FFmpeg says it again for every block of a picture.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
# ONNX Runtime tells its makers of each session, from its import on; a vehicle tells nobody.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault(find_variable("image_pixels"), str(LIMITS["image_pixels"].most))
# FFmpeg's bound, read at each opening; TCP is what OpenCV itself sets where nothing is set.
os.environ.setdefault(
    "OPENCV_FFMPEG_CAPTURE_OPTIONS",
    "rtsp_flags;prefer_tcp|max_streams;"
    + os.environ.get(find_variable("video_streams"), str(LIMITS["video_streams"].most)),
)
__all__ = [
    "Artifact",
    "ArtifactError",
    "BackendError",
    "Card",
    "CheckpointError",
    "DataError",
    "Details",
    "Drive",
    "ExportError",
    "MissingPackage",
    "Model",
    "ProofError",
    "RecipeError",
    "RtsegError",
    "Segmenter",
    "SignatureError",
    "TrainingError",
    "UsageError",
    "WriteError",
    "__version__",
    "bench",
    "evaluate",
    "exact_labels",
    "export",
    "load",
    "load_model",
    "train",
]
_LOCATIONS = {  # public name: the module that has it
    "Artifact": "export",
    "Card": "runtime",
    "Details": "runtime",
    "Drive": "runtime",
    "Model": "models.loading",
    "Segmenter": "runtime",
    "bench": "speed",
    "evaluate": "api",
    "exact_labels": "labels",
    "export": "export",
    "load": "runtime",
    "load_model": "models.loading",
    "train": "train",
}


def __getattr__(name: str) -> object:
    if name not in _LOCATIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_LOCATIONS[name]}", __name__)
    except ModuleNotFoundError as error:
        from .runtime.packages import explain_import

        if (missing := explain_import(error)) is None:
            raise
        raise missing from error
    # `export` and `train` are packages too, which Python puts here under the same names as soon as
    # one of their modules is imported. So that the order of imports changes nothing, the names
    # always mean the packages, and those can be called (see `_package.py`).
    value = module if name == _LOCATIONS[name] else getattr(module, name)
    # Kept, so that Python asks here only once.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
