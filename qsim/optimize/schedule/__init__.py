"""Schedules: which servers are on when."""
