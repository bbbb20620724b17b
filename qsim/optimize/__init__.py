"""Optimizers that search over simulations."""
