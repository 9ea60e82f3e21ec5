"""See it: overlays, prediction files, the quick start."""
