"""The loop in the vehicle: newest frame only, within a deadline, and faults do not stop it."""
