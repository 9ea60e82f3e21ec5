"""Real-time street-scene segmentation: export, prove, measure and run networks in a vehicle."""

__version__ = "0.1.0"
