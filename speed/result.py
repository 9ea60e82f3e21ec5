"""Measured facts of one contestant, and their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..system import GpuState, Noise, SystemInfo
from .camera_rate import Pace
from .roofline import Share
from .timing import Histogram, Ratio, Timing, WarmUp

STAGES = ("preprocess", "host_to_device", "compute", "device_to_host", "post")


@dataclass(frozen=True)
class Subject:
    """What was measured, and what ran it.

    weights: digest of the network's state; precision: that it computed in; device: "cpu" or the
    GPU's name; threads: None on a GPU; artifact: the file's name, "" for what was not exported by
    rtseg; peer: whether it is there to be compared with.
    """

    model: str
    weights: str
    trained: bool
    size: tuple[int, int]
    precision: str
    backend: str
    version: str
    device: str
    threads: int | None
    options: Mapping[str, str]
    macs: int
    artifact: str
    peer: bool = False

    @property
    def title(self) -> str:
        return f"{self.model} {self.size[0]}x{self.size[1]} {self.runner}"

    @property
    def runner(self) -> str:
        """What ran it, and in which precision."""
        return f"{self.backend} {self.precision}"

    def names(self) -> list[str]:
        """What a table's row is about, in three cells."""
        device = "" if self.device == "cpu" else f", {self.device}"
        return [self.model, f"{self.size[0]}x{self.size[1]}", f"{self.runner}{device}"]

    def facts(self) -> dict[str, Any]:
        """JSON values; names as in docs/benchmarking.md."""
        value = asdict(self)
        value["backend_version"] = value.pop("version")
        return value


@dataclass(frozen=True)
class Speedup:
    """How many times as fast as a peer of the same run, on the same kind of device."""

    frame_to_labels: Ratio
    network: Ratio

    def facts(self) -> dict[str, dict[str, float]]:
        return {
            name: {
                "ratio": round(ratio["value"], 4),
                "low": round(ratio["low"], 4),
                "high": round(ratio["high"], 4),
            }
            for name, ratio in asdict(self).items()
        }


@dataclass(frozen=True)
class Result:
    """One row.

    papers: the network alone on random input, calls queued one behind another, ms each; camera: at
    a camera's pace, None if that was not asked for; stages: median ms by name of STAGES; host_mib,
    device_mib: peak memory; against: by the peer's runner, such as "eager fp32"; gpu: its state
    under this load; share: of the machine's limit, None if that was not asked for; histograms: of
    frame to labels, "burst" and "camera".
    """

    subject: Subject
    frame_to_labels: Timing
    network: Timing
    stages: Mapping[str, float]
    host_mib: float | None
    device_mib: float | None
    warm_up: WarmUp
    against: Mapping[str, Speedup]
    noise: Noise
    machine: SystemInfo
    papers: Timing | None = None
    camera: Pace | None = None
    gpu: GpuState | None = None
    share: Share | None = None
    histograms: Mapping[str, Histogram] = field(default_factory=dict)

    @property
    def macs_per_s(self) -> float:
        """Multiply-adds a second that the network reaches at its median time."""
        return self.subject.macs / self.network.p50_ms * 1e3

    @property
    def against_eager(self) -> Speedup | None:
        found = (ratio for peer, ratio in self.against.items() if peer.startswith("eager "))
        return next(found, None)

    def facts(self) -> dict[str, Any]:
        """All of it as JSON values; names as in docs/benchmarking.md."""
        eager = self.against_eager
        return {
            **self.subject.facts(),
            "frame_to_labels": asdict(self.frame_to_labels),
            "network": asdict(self.network),
            "papers": asdict(self.papers) if self.papers else None,
            "camera": asdict(self.camera) if self.camera else None,
            "stages": {f"{name}_ms": round(ms, 4) for name, ms in self.stages.items()},
            "peak_memory": {"host_mib": self.host_mib, "device_mib": self.device_mib},
            "macs_per_s": round(self.macs_per_s),
            "against_eager": eager.facts() if eager else None,
            "against": [{"peer": peer, **ratio.facts()} for peer, ratio in self.against.items()],
            "roofline": asdict(self.share) if self.share else None,
            "warm_up": {
                "runs": self.warm_up.runs,
                "duration_ms": round(1e3 * self.warm_up.seconds, 1),
                "steady": self.warm_up.steady,
            },
            "noise": asdict(self.noise),
            "gpu": asdict(self.gpu) if self.gpu else None,
            "histograms": {name: asdict(each) for name, each in self.histograms.items()},
            "machine": asdict(self.machine),
        }
