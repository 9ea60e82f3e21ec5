"""Calibration for int8: frames of a folder, and the ranges of tensors on them."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData

from ..data.files import write_atomically
from ..data.frames import numeric_order
from ..data.images import IMAGES, read_image
from ..errors import ExportError
from ..runtime.batches import stack_batches
from .graph import find_batch

Image = NDArray[np.uint8]  # (H, W, 3) BGR
METHODS = {
    # One outlier in ten thousand values must not stretch the range, and the step with it.
    "percentile": (CalibrationMethod.Percentile, {"percentile": 99.99}),
    "entropy": (CalibrationMethod.Entropy, {}),
    "minmax": (CalibrationMethod.MinMax, {}),
}
# "percentile" for signed bytes. Unsigned ones have twice the steps, so there the range is that of
# "minmax": a value beyond it is cut, and cut values, not rounded ones, are what makes the largest
# errors of logits.
AUTO = "auto"
FEWEST = 12  # frames in all, below which ranges are a matter of luck
HELD_OUT = 3  # one in so many frames judges and does not calibrate
# Measured on 240 x 320 gray pictures: street frames, by day and drawn, keep 0.76 to 0.95 of their
# spread when averaged to 12 x 16 cells, noise 0.03 to 0.6 (of cells up to a 15th of the height);
# their detail is 0.1 and more of their spread, that of smooth pictures below 0.05.
SEEN = (240, 320)
LEAST_SPREAD = 4.0  # gray levels
LEAST_COARSE = 0.6
LEAST_DETAIL = 0.05
LEAST_CHANGE = 1.2  # gray levels of 24 x 32 cells; sensor noise moves them by 0.7, driving by 2
FAULTY = 0.1  # share of the picked frames that may be blank or noise, and are left out


class CalibrationError(ExportError):
    """Frames that nothing can be calibrated on; the message says what is wrong with them."""


@dataclass(frozen=True)
class Calibration:
    """How int8 is to be calibrated.

    Attributes:
        folder: of real frames, with its subfolders.
        method: "percentile", "entropy", "minmax", or "auto": "minmax" for files whose bytes may be
            unsigned (OpenVINO's, ONNX Runtime's own form), else "percentile".
        frames: how many of them to take.
        seed: of the picking.
    """

    folder: Path
    method: str = AUTO
    frames: int = 32
    seed: int = 0


@dataclass(frozen=True)
class CalibrationFrames:
    """Frames (name, image): `used` to calibrate by `method`, `held_out` to judge by; `left_out`
    says why others were not taken."""

    method: str
    used: list[tuple[str, Image]]
    held_out: list[tuple[str, Image]]
    left_out: tuple[str, ...]


def pick_frames(wish: Calibration) -> CalibrationFrames:
    """Frames of the folder and its subfolders, spread over all of it: one at random out of each of
    equally long stretches, every third held out.

    Raises:
        CalibrationError: the method is unknown, the folder does not exist or holds too few images,
            or its frames are blank, noise or all alike.
    """
    if wish.method not in (*METHODS, AUTO):
        raise CalibrationError(
            f"calibration is {', '.join(METHODS)} or {AUTO}, not {wish.method!r}"
        )
    paths = _draw_stretches(_images(wish.folder), wish)
    good: list[tuple[str, Image]] = []
    left_out = []
    for path in paths:
        image = read_image(path)
        if fault := find_fault(image):
            left_out.append(f"{path.name} {fault}")
        else:
            good.append((path.stem, image))
    # A few bad frames in a recording are usual; more of them mean the wrong folder.
    if len(left_out) > FAULTY * len(paths):
        raise CalibrationError(
            f"{len(left_out)} of {len(paths)} frames picked from {wish.folder} are no camera "
            f"frames: {left_out[0]}. Give a folder of real frames, such as the camera records"
        )
    _check_alike(good, wish.folder)
    # Every third, not the last third: both parts see all of the drive.
    held_out = good[HELD_OUT - 1 :: HELD_OUT]
    used = [frame for place, frame in enumerate(good) if place % HELD_OUT != HELD_OUT - 1]
    return CalibrationFrames(wish.method, used, held_out, tuple(left_out))


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CalibrationError(f"no folder of frames at {folder}: --calib takes one")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    # By number, so that stretches of the folder are stretches of the drive.
    paths = sorted((path for path in found if path.is_file()), key=numeric_order)
    if len(paths) < FEWEST:
        raise CalibrationError(
            f"{folder} holds {len(paths)} images ({', '.join(IMAGES[:3])}...), and int8 takes at "
            f"least {FEWEST}: calibration on fewer depends on which they are; some hundred from "
            "several drives are best"
        )
    return paths


def _draw_stretches(paths: list[Path], wish: Calibration) -> list[Path]:
    """One path at random out of each of as many stretches as frames are wanted."""
    # As many more as are held out, so that `frames` are left to calibrate.
    wanted = max(wish.frames * HELD_OUT // (HELD_OUT - 1), FEWEST)
    if len(paths) <= wanted:
        return paths
    bounds = np.linspace(0, len(paths), wanted + 1).astype(int)
    random = np.random.default_rng(wish.seed)
    return [paths[random.integers(low, high)] for low, high in pairwise(bounds)]


def find_fault(image: Image) -> str | None:
    """Why a picture cannot be a camera frame of a street: None if it can."""
    height, width = SEEN
    # One size for all, so that the limits above, which were measured at it, mean the same.
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).astype(np.float32)
    spread = float(gray.std())
    if spread < LEAST_SPREAD:
        return f"is blank (its gray levels spread by {spread:.1f})"
    coarse = float(cv2.resize(gray, (16, 12), interpolation=cv2.INTER_AREA).std()) / spread
    if coarse < LEAST_COARSE:
        return f"is noise (large shapes make {coarse:.0%} of its contrast)"
    detail = float((gray - cv2.GaussianBlur(gray, (0, 0), 2)).std()) / spread
    if detail < LEAST_DETAIL:
        return f"has no detail (it makes {detail:.1%} of its contrast)"
    return None


def _check_alike(frames: Sequence[tuple[str, Image]], folder: Path) -> None:
    """Raises CalibrationError unless at least FEWEST frames differ from each other."""
    different: list[NDArray[np.float32]] = []
    for _, image in frames:
        small = cv2.resize(image, (32, 24), interpolation=cv2.INTER_AREA)
        cells = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).astype(np.float32)
        if all(np.abs(cells - other).mean() >= LEAST_CHANGE for other in different):
            different.append(cells)
    if len(different) < FEWEST:
        raise CalibrationError(
            f"only {len(different)} of {len(frames)} frames picked from {folder} differ from each "
            f"other, and int8 takes at least {FEWEST} that do: give frames of a moving car, from "
            "different places"
        )


def measure_ranges(
    model: onnx.ModelProto, kinds: Sequence[str], frames: Sequence[Image], method: str
) -> TensorsData:
    """The range of every tensor that nodes of `kinds` read or write, as the quantizer takes it.

    frames: (H, W, 3) of the graph's size. The range is symmetric: TensorRT knows no zero point.
    """
    how, options = METHODS[method]
    with tempfile.TemporaryDirectory() as folder, silence_quantizer():
        plain = Path(folder) / "plain.onnx"
        write_atomically(plain, model.SerializeToString())
        calibrator = quantization.create_calibrator(
            plain,
            list(kinds),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=how,
            extra_options={"symmetric": True, **options},
        )
        # One run at a time: a call keeps all values of its frames in memory.
        for images in stack_batches(frames, find_batch(model)):
            calibrator.collect_data(_SingleRun(images))
        return calibrator.compute_data()


def as_spans(ranges: Mapping[str, float]) -> TensorsData:
    """Largest magnitudes by the name of the tensor, as the quantizer takes them."""
    pairs = {name: (np.float32(-most), np.float32(most)) for name, most in ranges.items()}
    return TensorsData(CalibrationMethod.MinMax, pairs)


class _SingleRun(quantization.CalibrationDataReader):  # type: ignore[misc]
    """The frames (N, H, W, 3) of one run, as ONNX Runtime asks for them."""

    def __init__(self, images: Image):
        self.left: list[dict[str, Image]] = [{"frame": images}]

    def get_next(self) -> dict[str, Image] | None:
        return self.left.pop() if self.left else None


@contextlib.contextmanager
def silence_quantizer() -> Iterator[None]:
    """Keep what ONNX Runtime's quantizer prints and logs off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
