"""Fit a profile to recordings: GPU spans, host, front end, power, memory."""
