"""Classes, frames, data sets and how they are read."""
