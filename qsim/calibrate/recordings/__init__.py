"""Recordings of real servers: their data, and how they are read."""
