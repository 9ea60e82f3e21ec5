"""Many drive logs labeled by many processes, here or on a Ray cluster."""
