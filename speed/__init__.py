"""Measure: `bench` times artifacts beside plain PyTorch, `examine` says what the machine can do."""

from __future__ import annotations

from .bench import bench
from .config import BenchConfig
from .doctor import Findings, examine
from .result import Report, Result

__all__ = ["BenchConfig", "Findings", "Report", "Result", "bench", "examine"]
