"""Where results go. Any callable is a sink; `base` tells what a sink may say of itself."""

from __future__ import annotations

from .queue import Sink, SinkQueue

__all__ = ["Sink", "SinkQueue"]
