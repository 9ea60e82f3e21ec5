"""Overlays, prediction files and the quick start."""
