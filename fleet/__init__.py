"""Label many drive logs in many processes, here or on a Ray cluster."""
