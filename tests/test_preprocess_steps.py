"""A preprocess that differs: each step is named, and the options that mend it."""

from __future__ import annotations

import re
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from own_parts import IMAGENET, SIZE, prepare
from rtseg.cli._options import parse_color
from rtseg.data.letterbox import Fit
from rtseg.errors import UsageError
from rtseg.models.own import (
    Normalization,
)
from rtseg.models.preprocessing import check_preprocess
from rtseg.resolve import read_own_options


def test_the_same_preprocessing_passes() -> None:
    check_preprocess(IMAGENET, SIZE, prepare(), "stretch")
    check_preprocess(IMAGENET, SIZE, prepare(pad=True), "letterbox")
    check_preprocess(IMAGENET, SIZE, prepare(crop=True), "crop")


@pytest.mark.parametrize(
    ("fit", "way", "says"),
    [
        (
            "letterbox",
            {},
            "yours is bilinear, this export's bilinear with pad.*--fit stretch .*fit='stretch'",
        ),
        (
            "stretch",
            {"pad": True},
            "yours is bilinear with padding.*, this export's bilinear.*--fit letterbox ",
        ),
        (
            "stretch",
            {"crop": True},
            r"yours is .*\(cropped.*, this export's bilinear\. .*--fit crop ",
        ),
        ("crop", {"pad": True}, r"yours is .*with padding.*, this export's .*\(cropped"),
        (
            "letterbox",
            {"pad": True, "middle": True},
            r"yours is .*in the middle\), this export's .*at the top left.*--fit letterbox_center ",
        ),
    ],
)
def test_another_rule_for_another_aspect_is_named(fit: Any, way: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_preprocess(IMAGENET, SIZE, prepare(**way), fit)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"order": "bgr"}, "order: yours is bgr"),
        (
            {"scale": 1.0, "mean": np.array(IMAGENET.mean) * 1, "std": IMAGENET.std},
            "scale: your pixels",
        ),
        ({"mean": (0.5, 0.5, 0.5)}, "mean: yours is (0.500, 0.500, 0.500)"),
        ({"std": (0.5, 0.5, 0.5)}, "std: yours is (0.500, 0.500, 0.500)"),
        ({"way": cv2.INTER_NEAREST}, "resize: yours is nearest"),
        ({"way": cv2.INTER_AREA}, "resize: yours is by area"),
        ({"corners": True}, "half a pixel off"),
        ({"pad": True}, "padding"),
    ],
    ids=["order", "scale", "mean", "std", "nearest", "area", "half pixel", "padding"],
)
def test_a_planted_fault_is_named(fault: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as error:
        check_preprocess(IMAGENET, SIZE, prepare(**fault), "stretch")
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (
            {"color": 114},
            "padding: yours is (114, 114, 114) of 0..255 in RGB, this export's is (0, 0, 0). If "
            "the network was trained with yours, export it with --pad-color 114,114,114 (in "
            "Python, pad_color=(114, 114, 114)); if not, change yours",
        ),
        (
            {"pad_last": True},
            "padding: yours is 0 after the normalization, which is the mean color (124, 116, 104) "
            "of 0..255 in RGB, this export's is (0, 0, 0). If the network was trained with yours, "
            "export it with --pad-color 124,116,104 (",
        ),
        ({"color": (30, 20, 10)}, "yours is (10, 20, 30) of 0..255 in RGB"),  # BGR, as frames are
    ],
    ids=["gray", "after normalization", "a color"],
)
def test_a_color_beside_the_frame_is_named(fault: dict[str, Any], named: str) -> None:
    """It is told alone: scale, mean and order are read off the frame itself."""
    with pytest.raises(UsageError) as error:
        check_preprocess(IMAGENET, SIZE, prepare(pad=True, **fault), "letterbox")
    assert named in str(error.value)
    assert not re.search("order:|scale:|mean:|std:|resize:", str(error.value))


def test_padding_that_no_pixel_has_is_told_to_be_mended() -> None:
    def outside(frame: np.ndarray[Any, Any]) -> Any:
        image = prepare(pad=True)(frame)
        bars = image[0, 0] == image[0, 0, -1, -1]
        return torch.where(bars, -9.0, image)

    with pytest.raises(UsageError, match=r"no pixel has: pad the frame before it is normalized$"):
        check_preprocess(IMAGENET, SIZE, outside, "letterbox")


def read_advice(message: str) -> tuple[Normalization, Fit, Any]:
    """What the options that an error names mean to the command that is given them."""
    words = re.findall(r"export it with (.*) \(in Python", message)[0].split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    own: dict[str, Any] = read_own_options(
        [SIZE],
        *(given.pop(name, None) for name in ("--normalize", "--mean", "--std", "--order")),
        *(None, "x", given.pop("--fit", None)),
        parse_color(given.pop("--pad-color", "0,0,0")),
    )
    assert not given
    normalization = own.get("normalize", IMAGENET)
    return normalization, own.get("fit", "letterbox"), own["pad_color"]


GRAY = {"pad": True, "middle": True, "color": 114}


CAFFE = {"order": "bgr", "scale": 1.0, "mean": (103.939, 116.779, 123.68), "std": (1, 1, 1)}


@pytest.mark.parametrize(
    ("fault", "advice"),
    {
        "gray": ({"pad": True, "color": 114}, "--pad-color 114,114,114"),
        "gray, in the middle": (GRAY, "--fit letterbox_center --pad-color 114,114,114"),
        "mean color": ({"pad": True, "pad_last": True}, "--pad-color 124,116,104"),
        "order": (
            {"pad": True, "order": "bgr", "mean": IMAGENET.mean[::-1], "std": IMAGENET.std[::-1]},
            "--normalize imagenet --order bgr",
        ),
        "order alone": (
            {"pad": True, "order": "bgr"},
            "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --order bgr",
        ),
        "mean": (
            {"pad": True, "mean": (0.5, 0.5, 0.5)},
            "--mean 0.5,0.5,0.5 --std 0.229,0.224,0.225",
        ),
        "0..1": ({"pad": True, "mean": (0, 0, 0), "std": (1, 1, 1)}, "--normalize unit"),
        "0..255": (
            {"pad": True, "scale": 1.0, "mean": (0, 0, 0), "std": (1, 1, 1)},
            "--normalize none",
        ),
        "Caffe": (
            {"pad": True, **CAFFE},
            "--mean 0.4076,0.458,0.485 --std 0.003922,0.003922,0.003922 --order bgr",
        ),
        "all": (
            {**GRAY, **CAFFE, "color": (10, 20, 30)},
            "--fit letterbox_center --pad-color 30,20,10 --mean 0.4076,0.458,0.485 --std "
            "0.003922,0.003922,0.003922 --order bgr",
        ),
    }.values(),
)
def test_an_export_with_the_options_that_an_error_names_does_the_same(
    fault: dict[str, Any], advice: str
) -> None:
    with pytest.raises(UsageError) as error:
        check_preprocess(IMAGENET, SIZE, prepare(**fault), "letterbox")
    assert f"export it with {advice} (in Python" in str(error.value)
    normalization, fit, color = read_advice(str(error.value))
    check_preprocess(normalization, SIZE, prepare(**fault), fit, color)


@pytest.mark.parametrize(
    "fault",
    [{"way": cv2.INTER_NEAREST}, {"corners": True}, {"scale": 1.0}],
    ids=["nearest", "half pixel", "not divided"],
)
def test_what_no_option_mends_is_told_to_be_changed(fault: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        check_preprocess(IMAGENET, SIZE, prepare(**fault), "stretch")
    assert "export it with" not in str(error.value)
    assert re.search(r"with cv2\.INTER_LINEAR in yours$|divide them by 255", str(error.value))


def test_a_normalization_that_is_nearly_the_same_is_named() -> None:
    """Two levels of 255 are below what tells apart two resizes."""
    rough = tuple(mean - 0.008 for mean in IMAGENET.mean)
    with pytest.raises(UsageError, match=r"mean: yours is \(0\.477, 0\.448, 0\.398\)"):
        check_preprocess(IMAGENET, SIZE, prepare(mean=rough), "stretch")


def test_another_shape_is_named() -> None:
    with pytest.raises(UsageError, match=r"gives \(3, 32, 32\)"):
        check_preprocess(IMAGENET, SIZE, lambda frame: np.zeros((3, 32, 32), np.float32))
