"""Options that several commands share, and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ..errors import UsageError

if TYPE_CHECKING:
    from ..data.classes import ClassSet

Model = Annotated[str, Argument(help="A model's name, a checkpoint or an artifact.")]
Weights = Annotated[Path | None, Option(help="Checkpoint to load into the named model.")]
Classes = Annotated[
    str | None, Option(help="Class set: cityscapes, camvid, or a YAML file of your own.")
]
Sizes = Annotated[
    list[str] | None, Option("--size", help="HxW in pixels, such as 512x1024; may be repeated.")
]
Backend = Annotated[str | None, Option(help="As `rtseg doctor` lists them.")]
Device = Annotated[str | None, Option(help="cpu, cuda or cuda:N.")]
Json = Annotated[bool, Option("--json", help="Print one JSON value and nothing else on stdout.")]

# How a network looks at a frame; an artifact has settled that already.
FrameSize = Annotated[
    str | None, Option("--size", help="HxW the frame is brought to; else its own.")
]
Scales = Annotated[
    list[float] | None, Option("--scale", help="Factor on that size; several are averaged.")
]
Flip = Annotated[bool, Option("--flip", help="Average with the mirrored frame.")]
Window = Annotated[str | None, Option(help="HxW of a sliding window; else whole.")]
Computed = Annotated[str, Option("--precision", help="fp32, bf16 or fp16, of a network.")]


@dataclass(frozen=True)
class View:
    """How a network looks at a frame: as the options of the same names say."""

    size: str | None = None
    scales: list[float] | None = None
    flip: bool = False
    window: str | None = None
    precision: str = "fp32"


class Target(str, Enum):
    onnx = "onnx"
    tensorrt = "tensorrt"
    openvino = "openvino"
    torch = "torch"
    triton = "triton"


class Precision(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class Method(str, Enum):
    percentile = "percentile"
    entropy = "entropy"
    minmax = "minmax"


class Fit(str, Enum):
    letterbox = "letterbox"
    stretch = "stretch"


class Outputs(str, Enum):
    labels = "labels"
    logits = "logits"
    both = "both"


def parse_sizes(texts: list[str] | None) -> list[tuple[int, int]]:
    """Raises ValueError for a size that is not HxW."""
    sizes = []
    for text in texts or ():
        height, _, width = text.lower().partition("x")
        if not (height.isdigit() and width.isdigit()):
            raise UsageError(f"a size is HEIGHTxWIDTH, such as 512x1024, not {text!r}")
        sizes.append((int(height), int(width)))
    return sizes


def class_set(name: str | None) -> ClassSet | None:
    if name is None:
        return None
    from ..data.classes import load_class_set

    return load_class_set(name)
