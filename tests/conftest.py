"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# time limits per example would fail on a busy machine and nowhere else
settings.register_profile("qsim", deadline=None)
settings.load_profile("qsim")
