"""Traces drawn from a workload: arrivals, lengths, prefixes, presets."""
