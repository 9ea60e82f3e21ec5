"""Options that several commands share, and their shell completion."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..errors import UsageError

ROOT = Path(__file__).parents[1]
FILES = (
    ".engine",
    ".onnx",
    ".xml",
    ".qnn",
    ".pte",
    ".safetensors",
    ".pth",
    ".pt",
)  # artifacts and checkpoints


def complete_models(incomplete: str) -> list[str]:
    """Variants, artifacts and checkpoints; `costs.json` names the variants without PyTorch."""
    names = json.loads((ROOT / "models" / "costs.json").read_text())
    return [name for name in names if name.startswith(incomplete)] + _paths(incomplete, FILES)


def complete_recipes(incomplete: str) -> list[str]:
    """The shell's completions of a recipe: names that ship, and YAML files."""
    names = sorted(path.stem for path in (ROOT / "train" / "recipes").glob("*.yaml"))
    return [name for name in names if name.startswith(incomplete)] + _paths(incomplete, (".yaml",))


def complete_data(incomplete: str) -> list[str]:
    """The shell's completions of a data set's name."""
    from ..data.datasets import DATASETS

    return [name for name in DATASETS if name.startswith(incomplete)]


def complete_classes(incomplete: str) -> list[str]:
    """The shell's completions of a class set: known names, and YAML files."""
    from ..data.classes import CLASS_SETS

    return [n for n in CLASS_SETS if n.startswith(incomplete)] + _paths(incomplete, (".yaml",))


def complete_backends(incomplete: str) -> list[str]:
    """The shell's completions of a backend's name."""
    from ..runtime.backends.backend import BACKENDS

    return [name for name in BACKENDS if name.startswith(incomplete)]


def _paths(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    """Folders, and files with one of the endings, that complete what was typed."""
    folder, start = (Path(incomplete), "") if incomplete.endswith("/") else (
        Path(incomplete).parent, Path(incomplete).name
    )  # fmt: skip
    # Nothing typed yet: names are shown, not all files of the current folder.
    if not incomplete or not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.name.startswith(start))
    return sorted(
        f"{path}/" if path.is_dir() else str(path)
        for path in found
        if path.is_dir() or path.suffix in suffixes
    )


def in_group(group: str, *declarations: str, **settings: object) -> object:
    """An option that the help page shows under `group`."""
    return Option(*declarations, rich_help_panel=group, **settings)  # type: ignore[arg-type]


NETWORK = "Network"
VIEW = "How a network sees a frame (fixed in an artifact)"
MACHINE = "Where it runs"
TRUST = "Trust"

Model = Annotated[
    str,
    Argument(
        help="A model's name, NAME:WEIGHTS, a checkpoint or an artifact.",
        autocompletion=complete_models,
    ),
]
Network = Annotated[
    str,
    Argument(
        help="A name that `rtseg models` lists, NAME:WEIGHTS or a checkpoint.",
        autocompletion=complete_models,
    ),
]
_MODEL = "An artifact, a model's name, NAME:WEIGHTS or a checkpoint"
OneModel = Annotated[str, Option("--model", help=f"{_MODEL}.", autocompletion=complete_models)]
OptionalModel = Annotated[
    str | None,
    Option("--model", help=f"{_MODEL}; by default csfcn_tiny.", autocompletion=complete_models),
]
Models = Annotated[
    list[str] | None,
    Option("--model", help=f"{_MODEL}; may be repeated.", autocompletion=complete_models),
]
Dataset = Annotated[
    str, Argument(help="camvid, cityscapes, folder, ...", autocompletion=complete_data)
]
Root = Annotated[Path, Option(help="The data set's folder.")]
Split = Annotated[str, Option(help="Which part of the data set.")]
Weights = Annotated[Path | None, in_group(NETWORK, help="Checkpoint to load into the named model.")]
Classes = Annotated[
    str | None,
    in_group(
        NETWORK,
        help="Class set: cityscapes, camvid, ..., or a YAML file of your own.",
        autocompletion=complete_classes,
    ),
]
ExportClasses = Annotated[
    str | None,
    in_group(
        NETWORK,
        help="Class set: cityscapes, camvid, ..., or a YAML file; for a network of your own also "
        "numbered.",
        autocompletion=complete_classes,
    ),
]
Sizes = Annotated[
    list[str] | None, Option("--size", help="HxW in pixels, such as 512x1024; may be repeated.")
]
Backend = Annotated[
    str | None,
    in_group(
        MACHINE,
        help="One that `rtseg doctor` lists; by default the fastest.",
        autocompletion=complete_backends,
    ),
]
Device = Annotated[str | None, in_group(MACHINE, help="cpu, cuda or cuda:N.")]
RequireSignature = Annotated[
    str | None,
    in_group(
        TRUST,
        "--require-signature",
        metavar="PUBKEY",
        callback=lambda key: _require_signature(key),
        help="Refuse models that this key did not sign: a .pub file of `rtseg sign`, or its text.",
    ),
]
Threads = Annotated[int | None, in_group(MACHINE, help="CPU threads; by default one per core.")]
Json = Annotated[bool, Option("--json", help="Print one JSON value and nothing else on stdout.")]

Steady = Annotated[
    bool, Option("--steady", help="Hold uncertain pixels for up to 2 frames, against flicker.")
]
LIVE = "Live page"
Host = Annotated[str, in_group(LIVE, help="Address of the page.")]
Port = Annotated[int, in_group(LIVE, help="Port of the page; 0 takes a free one.")]
Token = Annotated[
    str | None,
    in_group(
        LIVE,
        envvar="RTSEG_TOKEN",
        help="Password for viewers of the page, generated if other machines can connect; a drive "
        "asks for it at /health and /metrics too, and makes none up there.",
    ),
]

FrameSize = Annotated[
    str | None,
    in_group(VIEW, "--size", help="HxW that the frame is resized to; by default its own."),
]
Scales = Annotated[
    list[float] | None, in_group(VIEW, "--scale", help="Scale factor; several are averaged.")
]
Flip = Annotated[bool, in_group(VIEW, "--flip", help="Average with the mirrored frame.")]
Window = Annotated[
    str | None, in_group(VIEW, help="HxW of a sliding window; by default the whole frame.")
]
Computed = Annotated[str, in_group(VIEW, "--precision", help="fp32, bf16 or fp16.")]


class Target(str, Enum):
    """What an export writes."""

    onnx = "onnx"
    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"
    openvino = "openvino"
    torch = "torch"
    qnn = "qnn"
    executorch = "executorch"
    triton = "triton"


class Precision(str, Enum):
    """Precision of the numbers in a graph."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"
    fp8 = "fp8"
    auto = "auto"


class Method(str, Enum):
    """Calibration method of int8."""

    auto = "auto"
    percentile = "percentile"
    entropy = "entropy"
    minmax = "minmax"


class Fit(str, Enum):
    """How frames of another aspect ratio are fitted to a size."""

    letterbox = "letterbox"
    letterbox_center = "letterbox_center"
    crop = "crop"
    stretch = "stretch"


class CameraFormat(str, Enum):
    """Format of a camera's frames."""

    bgr = "bgr"
    nv12 = "nv12"
    nv21 = "nv21"
    yuyv = "yuyv"
    uyvy = "uyvy"
    bayer_rggb = "bayer_rggb"
    bayer_bggr = "bayer_bggr"
    bayer_gbrg = "bayer_gbrg"
    bayer_grbg = "bayer_grbg"


class Outputs(str, Enum):
    """Outputs of a graph."""

    labels = "labels"
    logits = "logits"
    both = "both"


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels."""
    height, _, width = text.lower().partition("x")
    if not (text.isascii() and height.isdigit() and width.isdigit()):
        raise UsageError(f"a size is HEIGHTxWIDTH, such as 512x1024, not {text!r}")
    return int(height), int(width)


def parse_sizes(texts: list[str] | None) -> list[tuple[int, int]]:
    """Of texts such as "512x1024": (height, width) each; none of none."""
    return [parse_size(text) for text in texts or ()]


def parse_color(text: str) -> tuple[int, ...]:
    """Of "114,114,114", what `check_fit` looks at."""
    try:
        return tuple(map(int, text.split(",")))
    except ValueError as error:
        raise UsageError(
            f"a color is R,G,B, each a whole number 0..255, such as 114,114,114, not {text!r}"
        ) from error


def _require_signature(key: str | None) -> str | None:
    """For all that this process reads, and the workers that it starts."""
    if key is not None:
        from ..data.signature import require

        require(key)
    return key
