"""Prometheus metrics of a drive, on a port."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...errors import MissingPackage
from ..drive.health_server import PageServer
from ..drive.messages import State
from ..drive.report import DriveSnapshot

INSTALL = 'Prometheus metrics need prometheus-client: pip install "rtseg[drive]"'


class PrometheusCollector:
    """Reads the drive's state when Prometheus scrapes, so that it costs the loop nothing."""

    def __init__(self, snapshot: Callable[[], DriveSnapshot]):
        self.snapshot = snapshot

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily as Counters
        from prometheus_client.core import GaugeMetricFamily as Gauges

        now = self.snapshot()
        yield Counters("rtseg_frames_captured", "Frames from the source", now.frames.captured)
        yield Counters("rtseg_results", "Frames answered with labels", now.frames.published)
        missed = now.deadline_misses
        yield Counters("rtseg_deadline_misses", "Labels that came after the deadline", missed)
        lost = now.replaced_workers
        yield Counters("rtseg_workers_lost", "Worker processes ended and replaced", lost)
        yield _by_label(Counters, "rtseg_frames_dropped", "cause", now.frames.dropped)
        yield _by_label(Counters, "rtseg_statuses", "kind", now.statuses)
        for name in ("delivered", "dropped", "failed", "withheld"):
            counts = {sink.name: getattr(sink, name) for sink in now.sinks}
            yield _by_label(Counters, f"rtseg_sink_{name}", "sink", counts)
        yield _by_label(Counters, "rtseg_results_by_age_source", "source", now.age_sources)
        if now.proof is not None:
            seen = now.proof
            yield Counters("rtseg_verified", "Frames that a reference labeled too", seen.verified)
            yield Counters("rtseg_verify_suspects", "Of those, that disagreed", seen.suspects)
            yield Counters("rtseg_verify_alarms", "Faults that the proof found", seen.alarms)
            if seen.last_agreement is not None:
                text = "Share of equal labels, of the last verified frame"
                yield Gauges("rtseg_verify_agreement", text, seen.last_agreement)
        states = {state.value: int(state.value == now.state) for state in State}
        yield _by_label(Gauges, "rtseg_state", "state", states)
        levels = {level: int(level == now.level) for level in now.levels}
        yield _by_label(Gauges, "rtseg_level", "level", levels)
        for name, times in (("age", now.age_ms), ("latency", now.latency_ms)):
            # Prometheus' base unit is the second.
            quantiles = {key: getattr(times, key) / 1000 for key in ("p50", "p95", "p99", "max")}
            yield _by_label(Gauges, f"rtseg_{name}_seconds", "quantile", quantiles)
        p99 = {stage: times.p99 / 1000 for stage, times in now.stages_ms.items()}
        yield _by_label(Gauges, "rtseg_age_stage_p99_seconds", "stage", p99)


def _by_label(family: Any, name: str, label: str, values: Mapping[str, float]) -> object:
    metric = family(name, f"By {label}", labels=[label])
    for value, number in values.items():
        metric.add_metric([value], number)
    return metric


def serve_metrics(
    snapshot: Callable[[], DriveSnapshot], port: int, host: str = "127.0.0.1"
) -> PageServer:
    """Serve GET /metrics from threads of its own.

    Args:
        snapshot: `Drive.snapshot`.
        port: 0 takes a free one.
        host: the address to listen on.

    Raises:
        MissingPackage: prometheus-client is not installed.
        UsageError: the port is no port.
        OSError: it is taken.
    """
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    except ImportError as error:
        raise MissingPackage(INSTALL) from error
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PrometheusCollector(snapshot))
    metrics = lambda: (200, CONTENT_TYPE_LATEST, generate_latest(registry))  # noqa: E731
    return PageServer({"/metrics": metrics}, port, host)
