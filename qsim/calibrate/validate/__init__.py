"""How well profiles predict recordings: comparison, fidelity, agreement."""
