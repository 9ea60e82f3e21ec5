"""A drive's counters and times for Prometheus, on a port of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...errors import MissingPackage

INSTALL = 'Prometheus metrics need prometheus-client: pip install "rtseg[drive]"'
STATES = ("starting", "running", "degraded", "stale", "failed")


class PrometheusCollector:
    """Asks the drive when Prometheus asks, so that it costs the loop nothing."""

    def __init__(self, snapshot: Callable[[], dict[str, Any]]):
        self.snapshot = snapshot

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily as Counters
        from prometheus_client.core import GaugeMetricFamily as Gauges

        facts = self.snapshot()
        frames = facts["frames"]
        yield Counters("rtseg_frames_captured", "Frames from the source", frames["captured"])
        yield Counters("rtseg_results", "Frames answered with labels", frames["published"])
        missed = facts["deadline_misses"]
        yield Counters("rtseg_deadline_misses", "Labels that came after the deadline", missed)
        lost = facts["replaced_workers"]
        yield Counters("rtseg_workers_lost", "Worker processes ended and replaced", lost)
        yield _by_label(Counters, "rtseg_frames_dropped", "cause", frames["dropped"])
        yield _by_label(Counters, "rtseg_statuses", "kind", facts["statuses"])
        for name in ("delivered", "dropped", "failed", "withheld"):
            counts = {sink["name"]: sink[name] for sink in facts["sinks"]}
            yield _by_label(Counters, f"rtseg_sink_{name}", "sink", counts)
        states = {state: int(state == facts["state"]) for state in STATES}
        yield _by_label(Gauges, "rtseg_state", "state", states)
        levels = {level: int(level == facts["level"]) for level in facts["levels"]}
        yield _by_label(Gauges, "rtseg_level", "level", levels)
        for name in ("age_ms", "latency_ms"):
            quantiles = {key: facts[name][key] / 1000 for key in ("p50", "p95", "p99", "max")}
            unit = name.replace("_ms", "_seconds")
            yield _by_label(Gauges, f"rtseg_{unit}", "quantile", quantiles)


def _by_label(family: Any, name: str, label: str, values: Mapping[str, float]) -> Any:
    metric = family(name, f"By {label}", labels=[label])
    for value, number in values.items():
        metric.add_metric([value], number)
    return metric


def serve(
    snapshot: Callable[[], dict[str, Any]], port: int, host: str = "127.0.0.1"
) -> tuple[Any, Any]:
    """GET /metrics from a thread of its own; gives prometheus_client's (server, thread).

    snapshot: `Drive.snapshot`. Raises MissingPackage where prometheus-client is missing, OSError if
    the port is taken.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise MissingPackage(INSTALL) from error
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PrometheusCollector(snapshot))
    server, thread = start_http_server(port, addr=host, registry=registry)
    return server, thread
