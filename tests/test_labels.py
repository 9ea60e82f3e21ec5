"""Labels of coarse logits are those of interpolation and argmax in PyTorch, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from labels_plain import (
    FUSED,
    KINDS,
    RNG,
    Logits,
    constant,
    in_numpy,
    in_torch,
    plain,
    random,
    regions,
    ties,
)
from rtseg.errors import ArtifactError
from rtseg.runtime.argmax import MOST_MIXED, Axis, LabelMaker, classes_and_factor


def ours(
    logits: Logits,
    size: tuple[int, int],
    aligned: bool,
    threads: int = 1,
    most_mixed: float = MOST_MIXED,
) -> Any:
    name = "bilinear_aligned" if aligned else "bilinear"
    maker = LabelMaker(logits.shape, size, name, threads)  # type: ignore[arg-type]
    maker.most_mixed = most_mixed
    return maker(logits)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("make", KINDS)
def test_every_factor(make: Any, aligned: bool) -> None:
    for factor in range(2, 17):
        # Above 128 pixels of height and width together PyTorch takes its kernel for planes.
        height, width = 130 // factor // 2 + 3, 130 // factor + 2
        for classes in (2, 11, 19):
            logits = make((1, classes, height, width))
            size = height * factor, width * factor
            expected = plain(logits, size, aligned)
            for most_mixed in (-1.0, MOST_MIXED, 1.0):  # every band whole, as is, cell by cell
                wrong = np.count_nonzero(ours(logits, size, aligned, 1, most_mixed) != expected)
                assert wrong == 0, f"factor {factor}, {classes} classes: {wrong} pixels"


@pytest.mark.skipif(not FUSED, reason="PyTorch rounds products before sums here")
@pytest.mark.parametrize("make", KINDS)
def test_the_roundings_written_out_are_pytorch_s(make: Any) -> None:
    logits = make((1, 11, 33, 65))
    for aligned, size in ((False, (132, 260)), (True, (200, 301))):
        same = in_numpy(logits, size, aligned) == in_torch(logits, size, aligned)
        assert same.all(), f"{np.count_nonzero(~same)} pixels"


@pytest.mark.parametrize("aligned", [False, True])
def test_any_size_and_border(aligned: bool) -> None:
    generator = RNG(7)
    for _ in range(60):
        classes = int(generator.choice([1, 2, 5, 19]))
        shape = (1, classes, *(int(s) for s in generator.integers(1, 20, 2)))
        size = (
            shape[2] + int(generator.integers(60, 150)),
            shape[3] + int(generator.integers(70, 200)),
        )
        for make in (random, ties, regions):
            logits = make(shape)
            assert (ours(logits, size, aligned) == plain(logits, size, aligned)).all(), (
                shape,
                size,
            )


@pytest.mark.parametrize("layout", ["half precision", "channels last", "view"])
def test_other_layouts(layout: str) -> None:
    logits = regions((1, 11, 12, 24))
    given = {
        "half precision": logits.astype(np.float16),
        "channels last": np.ascontiguousarray(logits.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        "view": np.repeat(logits, 2, axis=3)[..., ::2],
    }[layout]
    assert (ours(given, (96, 192), True) == plain(given, (96, 192), True)).all()


def test_threads_give_the_same_labels() -> None:
    logits = random((1, 19, 33, 40))
    expected = plain(logits, (264, 320), False)
    for threads in (1, 2, 3):
        assert (ours(logits, (264, 320), False, threads) == expected).all()


def test_uniform_cells_are_filled() -> None:
    maker = LabelMaker((1, 11, 32, 64), (256, 512), "bilinear_aligned")
    logits = constant((1, 11, 32, 64))
    logits[:, 4, :, :32], logits[:, 7, :, 32:] = 2, 2
    maker(logits)
    assert 1 - maker.uniform == 1 / 64, "one column of cells lies on the border"
    logits[:, 3, :, :32] = np.nextafter(np.float32(2), np.float32(0))
    maker(logits)
    assert maker.uniform == 0.5, "rounding might make class 3 equal to class 4"


def test_a_shuffled_head() -> None:
    logits = ties((1, 5 * 16, 9, 13))
    full = torch.pixel_shuffle(torch.from_numpy(logits), 4)
    expected = full.argmax(1).numpy()
    for threads in (1, 2):
        assert (LabelMaker(logits.shape, (36, 52), "shuffle", threads)(logits) == expected).all()


def test_numbers_that_are_none_still_give_class_ids() -> None:
    logits = random((1, 5, 12, 20))
    logits[RNG(8).random(logits.shape) < 0.2] = np.nan
    logits[RNG(9).random(logits.shape) < 0.2] = -np.inf
    assert ours(logits, (96, 160), False).max() < 5


def test_what_does_not_fit() -> None:
    with pytest.raises(ArtifactError, match="not a shuffled 64x64"):
        classes_and_factor((1, 30, 8, 8), (64, 64), "shuffle")
    with pytest.raises(ArtifactError, match="256 classes are more than 255"):
        LabelMaker((1, 256, 2, 2), (16, 16), "bilinear")
    maker = LabelMaker((1, 3, 4, 4), (32, 32), "bilinear")
    with pytest.raises(ValueError, match=r"coarse logits are \(1, 3, 4, 4\)"):
        maker(np.zeros((1, 3, 4, 5), np.float32))


def test_without_the_compiler_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rtseg.runtime.argmax.compiled_available", lambda: False)
    with pytest.raises(ArtifactError, match=r'pip install .*\[fast\]"'):
        LabelMaker((1, 3, 4, 4), (32, 32), "bilinear")


def test_an_axis_covers_every_position_once() -> None:
    for coarse, fine in ((1, 9), (7, 56), (5, 81), (64, 512)):
        for aligned in (False, True):
            axis = Axis(coarse, fine, aligned)
            assert axis.starts[0] == 0
            assert axis.starts[-1] == fine
            assert (np.diff(axis.starts) > 0).all()
            assert (axis.near >= 0).all()
            assert (axis.far >= 0).all()
