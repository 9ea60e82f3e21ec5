"""Measure: `bench` times artifacts beside plain PyTorch, `examine` says what the machine can do."""

from __future__ import annotations

from .bench import bench
from .doctor import Findings, examine
from .report import Report
from .result import Result

__all__ = ["Findings", "Report", "Result", "bench", "examine"]
