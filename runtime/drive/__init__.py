"""The loop inside a vehicle: newest frame only, within a deadline, whatever breaks."""
