"""Bars of an update: what a new artifact must reach beside the old one, in a team's YAML file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..data.limits import read_yaml
from ..errors import UsageError


@dataclass(frozen=True)
class ReplayBars:
    """What an update must reach; None: that bar is not judged.

    Attributes:
        agreement: least share of pixels with the old label, mean over frames.
        frame_agreement: of the worst frame.
        border_agreement: within 3 pixels of a border between the old mask's classes.
        class_iou_drop: most that a class's overlap (IoU) of old and new may lack to 1.
        class_share: of the old masks' pixels, from which on a class is judged.
        certified_drop: most that the certified share may fall, where both have one.
        latency_ratio: most that the new times may be of the old ones, medians of turn by turn.
        p99_ratio: likewise of the 99th percentiles.
        memory_growth_mb: most MB a frame that the new one may grow by more than the old one.
    """

    agreement: float | None = 0.995
    frame_agreement: float | None = 0.98
    border_agreement: float | None = 0.97
    class_iou_drop: float | None = 0.05
    class_share: float = 0.001
    certified_drop: float | None = 0.02
    latency_ratio: float | None = 1.10
    p99_ratio: float | None = None
    memory_growth_mb: float | None = 0.1


def read_bars(path: Path) -> ReplayBars:
    """The bars of a YAML file, `key: number`; what it leaves out has its default.

    Raises:
        UsageError: names the key that is unknown, or whose value is no number.
    """
    found = read_yaml(path)
    known = [each.name for each in fields(ReplayBars)]
    if found is None:
        found = {}
    if not isinstance(found, dict):
        raise UsageError(f"{path} should have lines like `agreement: 0.995`")
    for key, value in found.items():
        if key not in known:
            raise UsageError(f"{path}: no bar is called {key!r}: choose from {', '.join(known)}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
        if not number and (value is not None or key == "class_share"):
            raise UsageError(f"{path}: {key} is a number of 0 or more, or null, not {value!r}")
    return ReplayBars(**found)


@dataclass(frozen=True)
class BarCheck:
    """A bar held against an update. passed: None where it could not be judged, as `text` says;
    undecided: where it could with more runs, or on a machine that does nothing else."""

    bar: str
    limit: float | None
    value: float | None
    passed: bool | None
    text: str
    undecided: bool = False

    def to_dict(self) -> dict[str, object]:
        """The values that JSON has."""
        return asdict(self)


def at_least(bar: str, limit: float | None, value: float, what: str) -> BarCheck:
    """A share that may not be lower. what: it is of, for people."""
    text = f"{what}: {value:.3%}"
    if limit is None:
        return BarCheck(bar, limit, value, None, f"{text}; this bar is switched off")
    # Written so that NaN fails.
    return BarCheck(bar, limit, value, value >= limit, f"{text}, at least {limit:.2%} must")


def at_most(
    bar: str, limit: float | None, value: float | None, what: str, why: str = "", unit: str = ""
) -> BarCheck:
    """A figure that may not be higher; value: None where it is not known, for the reason `why`."""
    if value is None:
        return BarCheck(bar, limit, None, None, f"not judged: {why}")
    text = f"{what}: {value:.3f}{unit}" + (f" ({why})" if why else "")
    if limit is None:
        return BarCheck(bar, limit, value, None, f"{text}; this bar is switched off")
    return BarCheck(bar, limit, value, value <= limit, f"{text}, at most {limit:g}{unit} may be")
