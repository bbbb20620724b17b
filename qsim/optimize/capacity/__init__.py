"""The most that given GPUs carry, and what a fleet does from light load to beyond that."""
