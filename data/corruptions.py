"""Corruptions of pictures for evaluation: darkness, blur, noise, JPEG and fog, one strength each.

The table in docs/training.md repeats the strengths of `CORRUPTIONS`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .transforms import add_noise, blur, change_brightness, recompress

Picture = NDArray[np.uint8]  # (H, W, 3) BGR
FOG_GRAY, FOG_FAR, FOG_NEAR = 210, 0.3, 0.8


@dataclass(frozen=True)
class Corruption:
    """`strength` in words; `apply` takes a picture and a generator for what is random in it."""

    strength: str
    apply: Callable[[Picture, np.random.Generator], Picture]


def add_fog(image: Picture) -> Picture:
    """A light gray veil, thick at the top of the picture and thin at its bottom, where a road is
    near. It knows no distances: fog-like, not fog."""
    through = np.linspace(FOG_FAR, FOG_NEAR, len(image), dtype=np.float32)[:, None, None]
    return np.asarray(np.rint(image * through + FOG_GRAY * (1 - through)), np.uint8)


CORRUPTIONS = {
    "dark": Corruption(
        "gray levels times 0.25", lambda image, _: change_brightness(image, 0.25, contrast=1)
    ),
    "blur": Corruption(
        "Gaussian, standard deviation 2 pixels of the frame", lambda image, _: blur(image, 2)
    ),
    "noise": Corruption(
        "Gaussian, standard deviation 20 gray levels, the same in all channels",
        lambda image, random: add_noise(image, 20, random),
    ),
    "jpeg": Corruption("JPEG of quality 10", lambda image, _: recompress(image, 10)),
    "fog": Corruption(
        f"gray {FOG_GRAY} over the picture, of which {FOG_FAR} shows through at the top and "
        f"{FOG_NEAR} at the bottom",
        lambda image, _: add_fog(image),
    ),
}


def check_corruptions(names: Iterable[str]) -> tuple[str, ...]:
    """The names, all of them known.

    Raises:
        UsageError: if there is no corruption of a name.
    """
    names = tuple(names)
    for name in names:
        if name not in CORRUPTIONS:
            near = get_close_matches(name, CORRUPTIONS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(CORRUPTIONS)}"
            raise UsageError(f"no corruption is called {name!r}: {hint}")
    return names


def corrupt(image: Picture, name: str) -> Picture:
    """A corrupted copy of a picture, the same each time.

    Args:
        image: (H, W, 3) uint8 BGR.
        name: one of `CORRUPTIONS`.

    Raises:
        UsageError: if there is no corruption of that name.
    """
    check_corruptions([name])
    # Seeded by the picture, so that neither the order of frames nor their number changes any.
    seed = zlib.crc32(image.tobytes())
    return CORRUPTIONS[name].apply(image, np.random.default_rng(seed))
