"""Servers behind a router, fed by a trace: router, lives, admission."""
