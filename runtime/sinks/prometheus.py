"""Prometheus metrics of a drive, on a port."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...errors import MissingPackage
from ..drive.messages import State
from ..drive.page_server import PageServer
from ..drive.report import DriveSnapshot
from ..drive.stats import TimeSummary

Count = Callable[[DriveSnapshot], int]
Part = Callable[[DriveSnapshot], Mapping[str, float]]
COUNTS: tuple[tuple[str, str, Count], ...] = (
    ("rtseg_frames_captured", "Frames from the source", lambda now: now.frames.captured),
    ("rtseg_results", "Frames answered with labels", lambda now: now.frames.published),
    (
        "rtseg_deadline_misses",
        "Labels that came after the deadline",
        lambda now: now.deadline_misses,
    ),
)
INSTALL = 'Prometheus metrics need prometheus-client: pip install "rtseg[drive]"'


class PrometheusCollector:
    """Reads the drive's state when Prometheus scrapes, so that it costs the loop nothing."""

    def __init__(self, snapshot: Callable[[], DriveSnapshot]):
        self.snapshot = snapshot

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily as Counters
        from prometheus_client.core import GaugeMetricFamily as Gauges

        now = self.snapshot()
        lost = now.replaced_workers
        yield Counters("rtseg_workers_lost", "Worker processes ended and replaced", lost)
        cameras = now.cameras or {"": now}
        parts: list[tuple[Any, str, str, Part]] = [
            (Counters, "frames_dropped", "cause", lambda s: s.frames.dropped),
            (Counters, "statuses", "kind", lambda s: s.statuses),
            (Counters, "results_by_age_source", "source", lambda s: s.age_sources),
            (Gauges, "level", "level", lambda s: {each: int(each == s.level) for each in s.levels}),
            (Gauges, "age_seconds", "quantile", lambda s: _quantiles(s.age_ms)),
            (Gauges, "latency_seconds", "quantile", lambda s: _quantiles(s.latency_ms)),
            (Gauges, "age_stage_p99_seconds", "stage", _stages),
        ]
        if now.cameras:
            parts.append((Gauges, "camera_state", "state", _states))
        for name, text, count in COUNTS:
            yield _by_camera(Counters, name, text, {c: count(s) for c, s in cameras.items()})
        for family, name, label, part in parts:
            values = {camera: part(snapshot) for camera, snapshot in cameras.items()}
            yield _by_camera_and(family, f"rtseg_{name}", label, values)
        for name in ("delivered", "dropped", "failed", "withheld"):
            counts = {sink.name: getattr(sink, name) for sink in now.sinks}
            yield _by_label(Counters, f"rtseg_sink_{name}", "sink", counts)
        if now.proof is not None:
            seen = now.proof
            yield Counters("rtseg_verified", "Frames that a reference labeled too", seen.verified)
            yield Counters("rtseg_verify_suspects", "Of those, that disagreed", seen.suspects)
            yield Counters("rtseg_verify_alarms", "Faults that the proof found", seen.alarms)
            if seen.last_agreement is not None:
                text = "Share of equal labels, of the last verified frame"
                yield Gauges("rtseg_verify_agreement", text, seen.last_agreement)
        yield _by_label(Gauges, "rtseg_state", "state", _states(now))


def _states(now: DriveSnapshot) -> dict[str, int]:
    return {state.value: int(state.value == now.state) for state in State}


def _stages(now: DriveSnapshot) -> dict[str, float]:
    return {stage: times.p99 / 1000 for stage, times in now.stages_ms.items()}


def _quantiles(times: TimeSummary) -> dict[str, float]:
    # Prometheus' base unit is the second.
    return {key: getattr(times, key) / 1000 for key in ("p50", "p95", "p99", "max")}


def _by_camera(family: Any, name: str, text: str, values: Mapping[str, float]) -> object:
    """Of several cameras with a label each, of one without."""
    if "" in values:
        return family(name, text, values[""])
    metric = family(name, text, labels=["camera"])
    for camera, number in values.items():
        metric.add_metric([camera], number)
    return metric


def _by_camera_and(
    family: Any, name: str, label: str, values: Mapping[str, Mapping[str, float]]
) -> object:
    if "" in values:
        return _by_label(family, name, label, values[""])
    metric = family(name, f"By camera and {label}", labels=["camera", label])
    for camera, numbers in values.items():
        for value, number in numbers.items():
            metric.add_metric([camera, value], number)
    return metric


def _by_label(family: Any, name: str, label: str, values: Mapping[str, float]) -> object:
    metric = family(name, f"By {label}", labels=[label])
    for value, number in values.items():
        metric.add_metric([value], number)
    return metric


def serve_metrics(
    snapshot: Callable[[], DriveSnapshot],
    where: int | str,
    host: str = "127.0.0.1",
    token: str | None = None,
) -> PageServer:
    """Serve GET /metrics from threads of its own.

    Args:
        snapshot: `Drive.snapshot`.
        where: a port or "unix:PATH", as `PageServer` takes it.
        host: the address that the port is of.
        token: what a scraper must bring where other machines can connect.

    Raises:
        MissingPackage: prometheus-client is not installed.
        UsageError: the port is no port, or others can connect and there is no token.
        OSError: it is taken.
    """
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    except ImportError as error:
        raise MissingPackage(INSTALL) from error
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PrometheusCollector(snapshot))
    metrics = lambda: (200, CONTENT_TYPE_LATEST, generate_latest(registry))  # noqa: E731
    return PageServer({"/metrics": metrics}, where, host, token)
