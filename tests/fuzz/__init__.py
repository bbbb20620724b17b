"""Mutated inputs and options: whatever comes in, the answer is a result or one line of error.

``python -m tests.fuzz N [SEED]`` runs N cases; ``make fuzz`` does. A case that fails is printed and
kept in ``fuzz-failures/``; moved to ``tests/fuzz/corpus`` it is replayed by the tests.
"""
