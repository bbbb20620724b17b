"""Tuning: fleets and engine settings that no other one beats."""
