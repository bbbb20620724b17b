"""Measure real vLLM servers: campaigns, servers, loads, power, journal."""
