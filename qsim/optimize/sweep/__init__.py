"""Sweeps: one simulation for every point of a grid."""
