"""Profiles of GPUs and models that were not measured, from kernels that were.

NVIDIA publishes measured latencies of single kernels (matrix products, attention, all-reduce) for
many GPUs in the package aiconfigurator-core (Apache-2.0). A step's GPU span is composed from an
architecture's kernels; what they do not explain is learnt on the GPU where both the tables and
measured profiles exist, and carried over by stated rules. In reading order:

``specs``    what is known of each GPU
``kernels``  the tables, interpolated
``compose``  an architecture's kernels in a step
``learn``    what kernels do not explain: launch gaps, norms, sampling; methods without a table
``power``    watts from bytes and operations
``memory``   how many KV blocks fit
``build``    a profile out of all that
``check``    against measured profiles and published measurements
"""
