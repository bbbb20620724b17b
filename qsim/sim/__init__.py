"""The discrete-event simulator: vLLM's scheduler, one replica's pipeline, fleets, energy."""
