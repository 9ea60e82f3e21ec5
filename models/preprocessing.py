"""Compare the user's own preprocessing with ours, from the camera's bytes on.

An exported network whose input is prepared differently than in training is slightly wrong
everywhere, which no comparison of networks shows. So the two inputs are compared, and the error
names the step that differs: resize, padding, channel order, scale, mean or standard deviation.
Frames of other sizes are drawn when a network is loaded; every frame of a proof is compared too,
and the float32 reference reads what the user's preprocessing makes of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.letterbox import ASPECT_TOLERANCE, Color, Fit, find_place, find_view, fit_frame
from ..data.scenes import scenes
from ..errors import UsageError
from .factories import find_line, first_line, load_function
from .network import Network
from .own import NORMALIZATIONS, Normalization, OwnOptions
from .preprocess_inference import RULES, Found, Frame, Pixels, identify

Size = tuple[int, int]
Preprocess = Callable[..., object]  # of a Frame, and of `size` where it takes that

# The same in levels of 255, at the worst pixel: both sides may round, and OpenCV its weights too.
LEVELS = 1.05
EXACT = 0.02  # levels; float32 in another order
# Of a fit to thousands of pixels; either moves a bright pixel by a level.
SAME_STD = 0.004  # relative
SAME_MEAN = 0.003  # in units of 0..1


class OwnInput:
    """The user's preprocessing, run on a proof's frames beside what the export does to them.

    Args:
        function: (H, W, 3) uint8 BGR, as a camera gives it -> what the network reads, (3, h, w) or
            (1, 3, h, w) float, or with the channels last; for several sizes it has a parameter
            `size`, which is (h, w).
        network: from outside the zoo.
        size: (height, width) of its input in pixels.
        fit: how a frame of another aspect comes to that.
        pad_color: of what is beside it, in RGB; None: black.

    Attributes:
        frames: that were compared.
        largest: difference of a pixel, in levels of 255.
    """

    def __init__(
        self,
        function: Preprocess,
        network: Network,
        size: Size,
        fit: Fit,
        pad_color: Color | None = None,
    ):
        self.function, self.size, self.fit, self.pad_color = function, size, fit, pad_color
        self.normalization = _normalization_of(network)
        self.frames, self.largest = 0, 0.0

    def read(self, name: str, frame: Frame) -> tuple[Tensor, bool]:
        """The network's input of a frame, (1, 3, h, w) float32 in RGB, and whether it is what the
        export gives it, but for float32's rounding.

        Raises:
            UsageError: it differs by more than a resize rounds; each step that does is named.
        """
        theirs = run_preprocess(self.function, frame, self.size)
        ours = (self.normalization, self.fit, self.pad_color)
        off = measure(theirs, frame, *ours)
        if not off <= LEVELS:
            where = f"a frame {name!r} of {frame.shape[0]}x{frame.shape[1]}"
            raise _refuse(where, *explain(theirs, frame, *ours))
        self.frames, self.largest = self.frames + 1, max(self.largest, off)
        rgb = theirs if self.normalization.order == "rgb" else theirs[..., ::-1]
        image = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))[None]
        return image, off <= EXACT


def find_preprocess(
    what: str | Preprocess | None,
    normalization: Normalization,
    size: Size,
    fit: Fit,
    pad_color: Color | None = None,
) -> Preprocess | None:
    """The user's preprocessing, or where to find it, as a function that passed
    `check_preprocess`; None if there is none.

    Raises:
        UsageError: it cannot be found, or differs.
    """
    if what is None:
        return None
    found: Preprocess = load_function(what) if isinstance(what, str) else what
    check_preprocess(normalization, size, found, fit, pad_color)
    return found


def check_preprocess(
    normalization: Normalization,
    size: Size,
    preprocess: Preprocess,
    fit: Fit = "letterbox",
    pad_color: Color | None = None,
) -> None:
    """Compare the user's `preprocess` with what the exported graph does to the same frame.

    Args:
        normalization: what the graph does once the frame is at `size`.
        size: (height, width) of the network's input in pixels.
        preprocess: as `OwnInput` takes it.
        fit: how a frame of another aspect comes to `size`.
        pad_color: of what is beside it, in RGB; None: black.

    Raises:
        UsageError: naming each step that differs and what it is on either side.
    """
    lines: dict[str, str] = {}  # by the step that they name
    sizes, options = [], OwnOptions()
    # A frame of the network's own aspect tells how it is resized, the others what becomes of the
    # aspect: one that is wider, one that is higher.
    for height, width in ((18, 18), (18, 27), (27, 18)):
        (frame,) = scenes(1, (size[0] * height // 12, size[1] * width // 12))
        theirs = run_preprocess(preprocess, frame, size)
        off = measure(theirs, frame, normalization, fit, pad_color)
        if not off <= LEVELS:
            told, mends = explain(theirs, frame, normalization, fit, pad_color)
            for line in told:
                lines.setdefault(line.partition(":")[0], line)
            options = OwnOptions(**(mends | options))
            sizes.append(f"{frame.shape[0]}x{frame.shape[1]}")
    if lines:
        raise _refuse(f"a frame of {' or '.join(sizes)}", list(lines.values()), options)


def check_sizes(
    preprocess: Preprocess,
    network: Network,
    sizes: Sequence[Size],
    fit: Fit,
    pad_color: Color | None,
    loaded: Size,
) -> None:
    """As `check_preprocess`, at each of some sizes; loaded: that it was compared at already.

    Raises:
        UsageError: it differs at one of them, or makes pictures of one size.
    """
    for size in sizes:
        try:
            check_preprocess(_normalization_of(network), size, preprocess, fit, pad_color)
        except UsageError as error:
            if takes_size(preprocess) or size == loaded:
                raise
            raise UsageError(
                f"your preprocess has to make pictures of {size[0]}x{size[1]} too: give it a "
                "parameter, preprocess(frame, size), which is (height, width), or export each size "
                f"in a run of its own ({error})"
            ) from error


def run_preprocess(preprocess: Preprocess, frame: Frame, size: Size) -> Pixels:
    """What it makes of a copy of a frame, (h, w, 3) float32 in the network's channel order.

    Raises:
        UsageError: it raises, or gives anything but the network's input.
    """
    try:
        given = {"size": size} if takes_size(preprocess) else {}
        result = preprocess(frame.copy(), **given)
        if isinstance(result, Tensor):
            result = result.detach().cpu().float()
        array = np.asarray(result, np.float32)
    except Exception as error:
        raise UsageError(
            f"your preprocess fails on a frame of {frame.shape[0]}x{frame.shape[1]}: "
            f"{first_line(error)}{find_line(error)}"
        ) from error
    array = array[0] if array.ndim == 4 and array.shape[0] == 1 else array
    if array.shape == (3, *size):
        array = array.transpose(1, 2, 0)
    if array.shape != (*size, 3):
        raise UsageError(
            f"your preprocess gives {tuple(array.shape)}, the network takes (3, {size[0]}, "
            f"{size[1]}): resize, padding or the order of axes differ"
        )
    if not np.isfinite(array).all():
        raise UsageError("your preprocess gives NaN or infinite values")
    return np.ascontiguousarray(array)


def takes_size(preprocess: Preprocess) -> bool:
    """Whether it is told (height, width) in pixels, as `size`: where its default is no pair, that
    name means something else."""
    try:
        known = inspect.signature(preprocess).parameters.get("size")
    except (TypeError, ValueError):  # a function of C has none
        return False
    usual = (inspect.Parameter.empty, None)
    return known is not None and (known.default in usual or isinstance(known.default, tuple))


def measure(
    theirs: Pixels, frame: Frame, ours: Normalization, fit: Fit, pad_color: Color | None = None
) -> float:
    """The largest difference of a pixel from what the export reads of `frame`, in levels of 255."""
    size = (theirs.shape[0], theirs.shape[1])
    image = fit_frame(frame, size, fit, pad_color).astype(np.float32)
    wanted = image[..., ::-1] if ours.order == "rgb" else image
    mean, std = (np.array(each, np.float32) for each in (ours.mean, ours.std))
    return float(np.abs((theirs * std + mean) / np.float32(ours.scale) - wanted).max())


def _refuse(frames: str, lines: Sequence[str], options: OwnOptions) -> UsageError:
    """The error that names what differs, and the options that would do as the user's does."""
    advice = ""
    if options:
        advice = (
            f". If the network was trained with yours, export it with {_as_flags(options)} (in "
            f"Python, {_as_keywords(options)}); if not, change yours"
        )
    return UsageError(
        f"your preprocessing is not what this export would do to {frames}: {'; '.join(lines)}"
        + advice
    )


def _as_flags(options: OwnOptions) -> str:
    flags = [f"--fit {options['fit']}"] if "fit" in options else []
    if color := options.get("pad_color"):
        flags.append("--pad-color " + ",".join(map(str, color)))
    if (normalize := options.get("normalize")) is not None:
        flags.append(_name_normalization(normalize))
    return " ".join(flags)


def _name_normalization(normalize: str | Normalization) -> str:
    if isinstance(normalize, str):
        return f"--normalize {normalize}"
    order = f" --order {normalize.order}" if normalize.order != "rgb" else ""
    named = _find_name(*normalize.rgb)
    if named:
        return f"--normalize {named}{order}"
    mean, std = (",".join(f"{v:.5g}" for v in values) for values in (normalize.mean, normalize.std))
    return f"--mean {mean} --std {std}{order}"


def _as_keywords(options: OwnOptions) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _find_name(mean: Sequence[float], std: Sequence[float]) -> str | None:
    """The usual normalization that this is, of RGB in 0..1."""
    for name, known in NORMALIZATIONS.items():
        if np.allclose(known.rgb[0], mean, rtol=0, atol=SAME_MEAN) and np.allclose(
            known.rgb[1], std, rtol=SAME_STD, atol=0
        ):
            return name
    return None


def _normalization_of(network: Network) -> Normalization:
    mean, std = network.info.mean, network.info.std
    if getattr(network, "order", "rgb") == "rgb":
        return Normalization(mean, std)
    return Normalization((mean[2], mean[1], mean[0]), (std[2], std[1], std[0]), "bgr")


def explain(
    theirs: Pixels,
    frame: Frame,
    ours: Normalization,
    fit: Fit = "letterbox",
    pad_color: Color | None = None,
) -> tuple[list[str], OwnOptions]:
    """(a line for each step in which `theirs`, (h, w, 3) float32, differs from what `ours` makes of
    `frame` that was brought to (h, w) by `fit`; the options of `load_model` that an export would do
    as `theirs` with, as far as it can)."""
    size = (theirs.shape[0], theirs.shape[1])
    camera = (frame.shape[0], frame.shape[1])
    rows, columns = find_view(camera, size, fit)
    changed = (rows.stop - rows.start, columns.stop - columns.start) != camera
    rows, columns = find_place(camera, size, fit)
    changed |= (rows.stop - rows.start, columns.stop - columns.start) != size
    expected = next(way for way, rule in RULES.items() if rule == (fit if changed else "stretch"))
    found = identify(theirs, frame, expected)
    if found.resize == "unknown":
        return [
            f"resize: no way known here explains yours ({found.residual:.0%} of it is left), this "
            f"export's is {expected}: do the same in yours, without augmentation"
        ], {}
    lines, options = [], OwnOptions()
    if found.resize != expected:
        rule = RULES.get(found.resize)
        hint = "" if rule else ", as every export's: resize with cv2.INTER_LINEAR in yours"
        if rule == fit:  # it only fits another aspect
            hint = f" of frames whose aspect is within {ASPECT_TOLERANCE:.0%} of the network's"
        elif rule:
            options["fit"] = rule
        lines.append(f"resize: yours is {found.resize}, this export's {expected}{hint}")
    if found.order != ours.order:
        lines.append(f"order: yours is {found.order}, this export's {ours.order}")
    lines += _explain_padding(found, pad_color, options)
    values = _explain_values(found, ours)
    if (values or found.order != ours.order) and (known := _as_option(found, ours)):
        options["normalize"] = known
    lines += values
    if not lines:
        off = measure(theirs, frame, ours, fit, pad_color)
        lines = [
            f"pixels: yours are off by up to {off:.3g} of 255 levels, by no step known here: is "
            "anything random, or computed in half precision?"
        ]
    return lines, options


def _as_option(found: Found, ours: Normalization) -> str | Normalization | None:
    """The normalization that was found; none that nobody trains with."""
    step = 1 if found.order == "rgb" else -1
    mean, std = found.mean[::step], found.std[::step]
    if (named := _find_name(mean, std)) and found.order == "rgb":
        return named
    if named:
        usual = NORMALIZATIONS[named].rgb
        return Normalization(usual[0][::-1], usual[1][::-1], "bgr")
    if min(std) < 1 / 256:  # pixels in 0..255, divided by what is meant for those in 0..1
        return None
    exact = (
        tuple(float(f"{v:.4f}") for v in found.mean),
        tuple(float(f"{v:.4g}") for v in found.std),
    )
    return Normalization(*exact, found.order)  # type: ignore[arg-type]


def _explain_padding(found: Found, pad_color: Color | None, options: OwnOptions) -> list[str]:
    """What differs beside a letterboxed frame; the color that mends it goes to `options`."""
    if found.padding is None:
        return []
    step = 1 if found.order == "rgb" else -1
    theirs, ours = np.array(found.padding[::step]), np.array(pad_color or (0, 0, 0))
    if np.abs(theirs - ours).max() <= LEVELS:
        return []
    color = tuple(int(value) for value in theirs.round())
    if not all(0 <= value <= 255 for value in color):
        hint = ", which no pixel has: pad the frame before it is normalized"
    else:
        hint = ""
        options["pad_color"] = (color[0], color[1], color[2])
    if np.allclose(found.padding, 255 * np.array(found.mean), atol=LEVELS):  # normalization's 0
        return [
            f"padding: yours is 0 after the normalization, which is the mean color {color} of "
            f"0..255 in RGB, this export's is {tuple(ours.tolist())}{hint}"
        ]
    return [
        f"padding: yours is {color} of 0..255 in RGB, this export's is {tuple(ours.tolist())}{hint}"
    ]


def _explain_values(found: Found, ours: Normalization) -> list[str]:
    unit = 255 * ours.scale
    mean, std = np.array(ours.mean) / unit, np.array(ours.std) / unit
    theirs = np.array(found.std)
    lines = []
    ratio = theirs / std
    for factor, name, hint in (
        (1 / 255, "0..255, this export's 0..1", "divide them by 255 before mean and std"),
        (255, "0..1, this export's 0..255", "do not divide them by 255"),
    ):
        if np.allclose(ratio, factor, rtol=SAME_STD):
            return [f"scale: your pixels are {name}: {hint}"]
    if not np.allclose(ratio, 1, rtol=0, atol=SAME_STD):
        lines.append(f"std: yours is {_shown(found.std)}, this export's {_shown(std)} (of 0..1)")
    if not np.allclose(found.mean, mean, rtol=0, atol=SAME_MEAN):
        lines.append(f"mean: yours is {_shown(found.mean)}, this export's {_shown(mean)} (of 0..1)")
    return lines


def _shown(values: Any) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"
