"""Compare the user's own preprocessing with ours, from the camera's bytes on.

An exported network whose input is prepared differently than in training is slightly wrong
everywhere, which no comparison of networks shows. So the two inputs are compared, and the error
names the step that differs: resize, padding, channel order, scale, mean or standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..data.letterbox import Fit, find_view, fit_size
from ..data.scenes import scenes
from ..errors import UsageError
from .own import Normalization

Size = tuple[int, int]
Frame = NDArray[np.uint8]  # (H, W, 3) BGR
Pixels = NDArray[np.float32]  # (H, W, 3) RGB, 0..255
Preprocess = Callable[[Frame], object]

# Roundings of a resize in uint8, as a share of the spread of what a network reads; a neighboring
# way to resize is off by 0.03 and more on a drawn scene.
SAME = 0.012
LETTERBOX = "bilinear with padding (letterbox, the frame at the top left)"
CROPPED = "bilinear of the frame's middle (cropped to the aspect)"
RULES = {"bilinear": "stretch", LETTERBOX: "letterbox", CROPPED: "crop"}  # what `fit` they are
SAME_STD = 0.02  # relative
SAME_MEAN = 0.01  # in units of 0..1


@dataclass(frozen=True)
class Found:
    """What a preprocessing does, inferred from one frame.

    Attributes:
        resize: a name of RESIZES, or "unknown".
        order: of the channels, "rgb" or "bgr".
        mean: in that order, of pixels in 0..1.
        std: in that order, of pixels in 0..1.
        residual: what this does not explain, as a share of the spread.
    """

    resize: str
    order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    residual: float


def check_preprocess(
    normalization: Normalization, size: Size, preprocess: Preprocess, fit: Fit = "letterbox"
) -> None:
    """Compare the user's `preprocess` with what the exported graph does to the same frame.

    Args:
        normalization: what the graph does once the frame is at `size`.
        size: (height, width) of the network's input in pixels.
        preprocess: (H, W, 3) uint8 BGR, as a camera gives it -> (3, h, w) or (1, 3, h, w) float, a
            tensor or an array.
        fit: how a frame of another aspect comes to `size`.

    Raises:
        UsageError: naming each step that differs and what it is on either side.
    """
    # A frame of the network's own aspect tells how it is resized, the others what becomes of the
    # aspect: one that is wider, one that is higher.
    for height, width in ((18, 18), (18, 27), (27, 18)):
        (frame,) = scenes(1, (size[0] * height // 12, size[1] * width // 12))
        theirs = _as_pixels(preprocess(frame), size)
        if differences := explain(theirs, frame, normalization, fit):
            raise UsageError(
                f"your preprocessing is not what this export would do to a frame of "
                f"{frame.shape[0]}x{frame.shape[1]}: " + "; ".join(differences)
            )


def explain(
    theirs: NDArray[np.float32], frame: Frame, ours: Normalization, fit: Fit = "letterbox"
) -> list[str]:
    """A line for each step in which `theirs`, (h, w, 3) float32, differs from what `ours` makes of
    `frame` that was brought to (h, w) by `fit`; none if they are the same."""
    found = identify(theirs, frame)
    if found.resize == "unknown":
        return [
            f"no resize known here explains it ({found.residual:.0%} of it is left): resize the "
            "frames bilinearly to the network's size, without cropping or augmentation"
        ]
    lines = []
    size = (theirs.shape[0], theirs.shape[1])
    whole = fit_size((frame.shape[0], frame.shape[1]), size, fit) == size
    rows, columns = find_view((frame.shape[0], frame.shape[1]), size, fit)
    cropped = (rows.stop - rows.start, columns.stop - columns.start) != frame.shape[:2]
    expected = CROPPED if cropped else "bilinear" if whole else LETTERBOX
    if found.resize != expected:
        rule = RULES.get(found.resize)
        hint = f'; if frames shall come so, say fit="{rule}", --fit {rule}' if rule else ""
        lines.append(f"resize: yours is {found.resize}, this export's {expected}{hint}")
    if found.order != ours.order:
        lines.append(f"order: yours is {found.order}, this export's {ours.order}")
    return lines + _explain_values(found, ours)


def _explain_values(found: Found, ours: Normalization) -> list[str]:
    unit = 255 * ours.scale
    mean, std = np.array(ours.mean) / unit, np.array(ours.std) / unit
    theirs = np.array(found.std)
    lines = []
    ratio = theirs / std
    for factor, name in (
        (1 / 255, "0..255, this export's 0..1"),
        (255, "0..1, this export's 0..255"),
    ):
        if np.allclose(ratio, factor, rtol=SAME_STD):
            return [f"scale: your pixels are {name}"]
    if not np.allclose(ratio, 1, rtol=0, atol=SAME_STD):
        lines.append(f"std: yours is {_shown(found.std)}, this export's {_shown(std)} (of 0..1)")
    if not np.allclose(found.mean, mean, atol=SAME_MEAN):
        lines.append(f"mean: yours is {_shown(found.mean)}, this export's {_shown(mean)} (of 0..1)")
    return lines


def _shown(values: Any) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"


def identify(theirs: NDArray[np.float32], frame: Frame) -> Found:
    """The resize, order, mean and standard deviation that turn `frame` into `theirs`.

    Every known resize and either order are tried; scale and shift of each channel are a least
    squares fit, so that they are read off and need not be guessed.
    """
    tries = [
        _fit(theirs, name, pixels, order)
        for name, pixels in _resized(frame, theirs.shape[:2])
        for order in ("rgb", "bgr")
    ]
    best = min(tries, key=lambda found: found.residual)
    if best.residual > SAME:
        return Found("unknown", best.order, best.mean, best.std, best.residual)
    return best


def _fit(theirs: NDArray[np.float32], name: str, pixels: Pixels, order: str) -> Found:
    ours = pixels if order == "rgb" else pixels[..., ::-1]
    means, stds, left = [], [], 0.0
    for channel in range(3):
        x, y = ours[..., channel].ravel().astype(float), theirs[..., channel].ravel().astype(float)
        slope = float(np.cov(x, y, bias=True)[0, 1] / max(x.var(), 1e-12))
        shift = float(y.mean() - slope * x.mean())
        # A constant channel has no slope; the division below would end in infinities.
        slope = slope if abs(slope) > 1e-12 else 1e-12
        left = max(left, float((y - slope * x - shift).std() / max(y.std(), 1e-12)))
        means.append(-shift / slope / 255)
        stds.append(1 / slope / 255)
    return Found(name, order, tuple(means), tuple(stds), left)


def _resized(frame: Frame, size: tuple[int, ...]) -> list[tuple[str, Pixels]]:
    """The frame at (height, width) in every way known, the exporter's own first."""
    height, width = size[0], size[1]
    rgb = np.ascontiguousarray(frame[..., ::-1])
    ways: Mapping[str, int] = {
        "bilinear": cv2.INTER_LINEAR,
        "nearest": cv2.INTER_NEAREST,
        "by area": cv2.INTER_AREA,
        "bicubic": cv2.INTER_CUBIC,
    }
    made = [(name, cv2.resize(rgb, (width, height), interpolation=w)) for name, w in ways.items()]
    tensor = torch.from_numpy(rgb.transpose(2, 0, 1))[None].float()
    for name, options in {
        "bilinear with antialiasing": {"antialias": True},
        "bilinear with aligned corners (half a pixel off)": {"align_corners": True},
    }.items():
        image = F.interpolate(tensor, (height, width), mode="bilinear", **options)
        made.append((name, image[0].permute(1, 2, 0).numpy()))
    made += _letterboxed(rgb, height, width)
    middle = rgb[find_view((rgb.shape[0], rgb.shape[1]), (height, width), "crop")]
    made.append((CROPPED, cv2.resize(middle, (width, height), interpolation=cv2.INTER_LINEAR)))
    return [(name, image.astype(np.float32)) for name, image in made]


def _letterboxed(rgb: Frame, height: int, width: int) -> list[tuple[str, Frame]]:
    """The frame's aspect kept, the rest black: at the top left, and in the middle."""
    factor = min(height / rgb.shape[0], width / rgb.shape[1])
    h, w = round(rgb.shape[0] * factor), round(rgb.shape[1] * factor)
    small = cv2.resize(rgb, (w, h), interpolation=cv2.INTER_LINEAR)
    made: list[tuple[str, Frame]] = []
    middle = "bilinear with padding (letterbox, the frame in the middle)"
    for name, top, left in (
        (LETTERBOX, 0, 0),
        (middle, (height - h) // 2, (width - w) // 2),
    ):
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[top : top + h, left : left + w] = small
        made.append((name, canvas))
    return made


def _as_pixels(result: object, size: Size) -> NDArray[np.float32]:
    array = np.asarray(result.detach().cpu() if isinstance(result, torch.Tensor) else result)
    array = array[0] if array.ndim == 4 and array.shape[0] == 1 else array
    if array.shape != (3, *size):
        raise UsageError(
            f"your preprocess gives {tuple(array.shape)}, the network takes (3, {size[0]}, "
            f"{size[1]}): resize, padding or the order of axes differ"
        )
    return np.ascontiguousarray(array.transpose(1, 2, 0), dtype=np.float32)
