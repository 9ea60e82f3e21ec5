"""Weights of our own networks: their names, and the folder that holds them.

The files are large, so a vehicle's wheel leaves them out: they are a distribution of their own,
`rtseg-weights`, which is built of `models/pretrained`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..errors import MissingPackage

PACKAGE = "rtseg_weights"
# Of each variant its weights, with the class set that they were trained on; a bare name takes the
# first whose classes fit.
SHIPPED = {
    "csfcn_nano": {"streets": "cityscapes", "camvid": "camvid", "camvid_noise": "camvid"},
    "csfcn_tiny": {"streets": "cityscapes", "camvid": "camvid"},
}
INSTALL = 'pip install "rtseg[weights]"'


def find_pretrained() -> Path:
    """The folder of the weights: a checkout's own, else that of the installed package. Where there
    is neither, the first, which does not exist."""
    own = Path(__file__).parents[1] / "models" / "pretrained"
    if not own.is_dir() and (installed := find_spec(PACKAGE)) is not None:
        return Path([*(installed.submodule_search_locations or ()), str(own)][0])
    return own


def refuse_absent(folder: Path, variant: str, weights: Sequence[str]) -> None:
    """Random weights in place of those that ship would be taken for them.

    Args:
        folder: what `find_pretrained` gave.
        variant: a network's name.
        weights: the names of its weights that would do.

    Raises:
        MissingPackage: there are such, and the folder is not there.
    """
    if weights and not folder.is_dir():
        raise MissingPackage(
            f"the weights {variant}:{weights[0]} are not installed: {INSTALL}, or give a file of "
            "weights"
        )


def name_shipped(variant: str, file: str) -> str | None:
    """VARIANT:WEIGHTS of a file's name, if that is one of ours."""
    weights = Path(file).stem.removeprefix(f"{variant}_")
    return f"{variant}:{weights}" if weights in SHIPPED.get(variant, ()) else None
