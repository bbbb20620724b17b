"""Settings of all tests.

Hypothesis draws the same examples each time, so that whether the tests pass depends on the code
alone. To look for new counter-examples: ``HYPOTHESIS_PROFILE=explore make test``.
"""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# time limits, of an example or of drawing it, would fail on a busy machine and nowhere else
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", UNTIMED, derandomize=True)
settings.register_profile("explore", UNTIMED, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# A script's background jobs (``nohup make test &``) start with Ctrl-C ignored, and so would all
# that they start: the tests that send it need what a terminal's processes have.
if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests first, so that none of them keeps one process busy at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
