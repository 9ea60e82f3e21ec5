"""Measure: `bench` times artifacts beside plain PyTorch, `examine` says what the machine can do."""

from __future__ import annotations

from .bench import bench
from .config import BenchConfig
from .doctor import DoctorReport, examine
from .result import BenchResult, Report

__all__ = ["BenchConfig", "BenchResult", "DoctorReport", "Report", "bench", "examine"]
