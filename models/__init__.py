"""Networks: `build` one by name, load weights with `load_checkpoint`, `deploy` it for inference."""

from ..errors import CheckpointError
from .checkpoints import digest, save_checkpoint
from .fuse import deploy
from .loading import load_checkpoint
from .network import Network, NetworkInfo
from .pipeline import FrameToLabels
from .registry import VARIANTS, build
from .variant import Variant
from .zoo import NetworkCost, count

__all__ = [
    "VARIANTS",
    "CheckpointError",
    "FrameToLabels",
    "Network",
    "NetworkCost",
    "NetworkInfo",
    "Variant",
    "build",
    "count",
    "deploy",
    "digest",
    "load_checkpoint",
    "save_checkpoint",
]
