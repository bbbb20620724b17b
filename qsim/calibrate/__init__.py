"""Calibration: measure a real server, fit a profile, state its error."""
