"""One server's engine core on a clock: steps, fast-forward, energy, token times."""
