"""Compensation: what reads removed units is refitted to the dense model, in closed form, on calibration images."""
