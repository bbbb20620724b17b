"""Capacity plans: the smallest fleet that meets the SLOs, and why."""
