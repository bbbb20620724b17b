"""A GPU whose stream is an amount of work that ends at a time."""

from contextlib import nullcontext as no_grad  # noqa: F401

from torch import cuda  # noqa: F401
