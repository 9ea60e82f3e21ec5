"""Where results go. Any callable is a sink; `base` tells what a sink may say of itself."""

from __future__ import annotations

from .queue import Outlet, Sink

__all__ = ["Outlet", "Sink"]
